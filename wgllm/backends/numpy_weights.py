"""Weights for NumPy: matrices as float32 on huge pages where memory allows, else dequantized in blocks as used."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from wgllm.errors import Cancelled
from wgllm.formats.model_file import TensorView

F32 = NDArray[np.float32]
T = TypeVar("T")

# Numbers dequantized at a time: large enough to pay for a call, small enough to spread over threads.
_PIECE = 1 << 20
# The same where they are transposed on the way, which is quick only while they stay in a core's cache.
_TRANSPOSED_PIECE = 1 << 19


class Workers:
    """Threads that share the pieces of a long product."""

    def __init__(self, threads: int, pause: Callable[[], None]) -> None:
        """``pause`` is called between pieces and may raise to give the product up."""
        self.threads = threads
        self.pause = pause
        self._pool: ThreadPoolExecutor | None = None

    def each(self, work: Callable[[T], object], pieces: Sequence[T]) -> None:
        """``work(piece)`` for every piece."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, "wgllm")
        futures = [self._pool.submit(work, piece) for piece in pieces]
        try:
            for future in futures:
                future.result()
                self.pause()
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            raise

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class Work(NamedTuple):
    """Rows of a tensor from ``start`` on, and where they go: [n, K]."""

    view: TensorView
    start: int
    out: F32


class Matrix:
    """A weight [O, K], or several stacked on top of each other that share one input.

    ``dense`` is its float32 form, or None when it is dequantized in blocks of rows at each use. It lies in memory
    along its longer side: a matrix-vector product runs at memory speed over long rows only (26 instead of 33 GB/s
    was seen for rows of 576 numbers).
    """

    def __init__(self, views: Sequence[TensorView], workers: Workers) -> None:
        self.views = tuple(views)
        self.workers = workers
        self.shape = (sum(v.shape[0] for v in views), views[0].shape[1])
        self.dense: F32 | None = None  # [O, K]; F-ordered where O >= K

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    def place(self, memory: F32) -> None:
        """Makes ``memory`` [size] the place of the float32 form, which is then to be filled."""
        rows, width = self.shape
        self.dense = memory.reshape(width, rows).T if rows >= width else memory.reshape(rows, width)

    def work(self) -> Iterator[Work]:
        """What fills the float32 form, in pieces."""
        assert self.dense is not None
        row = 0
        for view in self.views:
            for r0, r1 in _pieces(view):
                yield Work(view, r0, self.dense[row + r0 : row + r1])
            row += view.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return self.dense.nbytes if self.dense is not None else sum(v.nbytes for v in self.views)

    @property
    def view(self) -> TensorView:
        """The tensor in the file, of a matrix that is not a stack."""
        (view,) = self.views
        return view

    def product(self, x: F32) -> F32:
        """x wᵀ for x [R, K]: float32 [R, O]."""
        if self.dense is not None:
            # A vector makes it a gemv, which reads the weights once, at memory speed.
            return (self.dense @ x[0])[None] if len(x) == 1 else x @ self.dense.T
        y = np.empty((len(x), self.shape[0]), np.float32)
        if not len(x):
            return y
        firsts = np.cumsum([0, *(v.shape[0] for v in self.views)]).tolist()
        pieces = [
            (view, r0, y[:, first + r0 : first + r1])
            for view, first in zip(self.views, firsts, strict=False)
            for r0, r1 in _pieces(view)
        ]

        def work(piece: tuple[TensorView, int, F32]) -> None:
            view, r0, out = piece
            np.matmul(x, view.rows(r0, r0 + out.shape[1]).T, out=out)

        self.workers.each(work, pieces)
        return y


class Experts(Matrix):
    """Weights [A, O, K] of A experts. ``dense`` [A, O, K] has each expert's lie along its longer side.

    ``size`` and ``nbytes`` are those of all experts; a product reads the chosen ones'.
    """

    def __init__(self, view: TensorView, workers: Workers) -> None:
        super().__init__([view], workers)
        self.count, *shape = view.shape
        self.shape = (shape[0], shape[1])

    @property
    def size(self) -> int:
        return self.count * super().size

    def place(self, memory: F32) -> None:
        rows, width = self.shape
        if rows >= width:
            self.dense = memory.reshape(self.count, width, rows).transpose(0, 2, 1)
        else:
            self.dense = memory.reshape(self.count, rows, width)

    def work(self) -> Iterator[Work]:
        assert self.dense is not None
        for expert, r0, r1 in self._parts(range(self.count)):
            yield Work(self.view, expert * self.shape[0] + r0, self.dense[expert, r0:r1])

    def _parts(self, experts: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        """Of each expert its rows, in pieces."""
        for expert in experts:
            for r0, r1 in _row_pieces(*self.shape):
                yield expert, r0, r1

    def products(self, x: F32, runs: Sequence[tuple[int, int, int]]) -> F32:
        """Rows ``first:last`` of x [n, K] times the matrix of an expert, for each (expert, first, last): [n, O]."""
        y = np.empty((len(x), self.shape[0]), np.float32)
        if self.dense is not None:
            for expert, first, last in runs:
                w = self.dense[expert]
                if last - first == 1:
                    np.dot(w, x[first], out=y[first])  # a gemv
                else:
                    y[first:last] = _few_rows(x[first:last], w)
                self.workers.pause()
            return y
        rows = {expert: slice(first, last) for expert, first, last in runs}

        def work(part: tuple[int, int, int]) -> None:
            expert, r0, r1 = part
            mine, start = rows[expert], expert * self.shape[0]
            w = self.view.rows(start + r0, start + r1)
            y[mine, r0:r1] = _few_rows(x[mine], w)

        self.workers.each(work, list(self._parts(rows)))
        return y


def _few_rows(x: F32, w: F32) -> F32:
    """x wᵀ for few rows of x. BLAS takes the long way where the matrix that it copies is the large one: for 4 rows and
    768 × 2048 weights 0.4 instead of 0.6 ms were seen."""
    y: F32 = (w @ x.T).T if w.flags.c_contiguous else x @ w.T
    return y


def _row_pieces(rows: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _PIECE // max(1, width))
    for r0 in range(0, rows, step):
        yield r0, min(rows, r0 + step)


def _pieces(view: TensorView) -> Iterator[tuple[int, int]]:
    yield from _row_pieces(view.n_rows, view.shape[-1])


def allocate(shape: tuple[int, ...], *, huge_pages: bool) -> F32:
    """Zeroed float32 memory that is taken from the system when it is first touched.

    Huge pages suit what is written whole: first touch of 540 MB took 1.55 s in 4 KiB pages and 0.35 s in huge ones.
    They harm what is written here and there: a few cells of each KV state would touch hundreds of megabytes.
    """
    n = 4 * math.prod(shape)
    try:
        memory = mmap.mmap(-1, max(4, n))
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"the system has no {n} bytes") from error
    advice = "MADV_HUGEPAGE" if huge_pages else "MADV_NOHUGEPAGE"
    if hasattr(mmap, advice):
        # A kernel without huge pages refuses the advice, which changes nothing.
        with contextlib.suppress(OSError):
            memory.madvise(getattr(mmap, advice))
    return np.frombuffer(memory, np.float32, math.prod(shape)).reshape(shape)


def make_dense(
    matrices: Sequence[Matrix],
    budget: int,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Gives matrices their float32 form, in order, as long as they fit ``budget`` bytes.

    ``progress`` is called with the bytes of the file read so far and their total.
    """
    sizes = np.cumsum([m.size for m in matrices], dtype=np.int64)
    chosen = matrices[: int(np.searchsorted(sizes, budget // 4, side="right"))]
    for m in matrices[len(chosen) :]:
        m.views = tuple(view.kept() for view in m.views)
    arena = allocate((sum(m.size for m in chosen),), huge_pages=True)
    work: list[Work] = []
    at = 0
    for m in chosen:
        m.place(arena[at : at + m.size])
        at += m.size
        work += m.work()
    total = sum(v.nbytes for m in chosen for v in m.views)
    done = 0
    stop = False

    def convert(item: Work) -> int:
        if stop:
            raise Cancelled
        view, r0, out = item
        _dequantize(view, r0, out)
        return len(out) * view.format.row_bytes(view.shape[-1])

    with ThreadPoolExecutor(threads) as pool:
        try:
            for n in pool.map(convert, work):
                done += n
                if progress:
                    progress(done, total)
        except BaseException:  # a Ctrl-C too must not wait for the whole file
            stop = True
            raise
    for m in chosen:
        for view in m.views:
            view.forget()


def _dequantize(view: TensorView, start: int, out: F32) -> None:
    """Rows from ``start`` on into ``out`` [n, K], which may be a part of an F-ordered matrix."""
    if out.flags.c_contiguous:
        view.rows_into(out, start)
        return
    step = max(1, _TRANSPOSED_PIECE // out.shape[1])
    rows = np.empty((step, out.shape[1]), np.float32)
    for r in range(0, len(out), step):
        n = min(step, len(out) - r)
        view.rows_into(rows[:n], start + r)
        out[r : r + n] = rows[:n]


def available_memory() -> int:
    """Bytes that can be taken without swapping, within the limit of a container."""
    import psutil

    return min(int(psutil.virtual_memory().available), _container_memory())


def total_memory() -> int:
    """Bytes of memory and of swap that the machine has."""
    import psutil

    return int(psutil.virtual_memory().total + psutil.swap_memory().total)


def _container_memory(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What a control group (version 2, Linux) leaves; a huge number where there is none."""
    try:
        limit = int((folder / "memory.max").read_text())  # "max" where there is no limit
        return max(0, limit - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        return 1 << 62


def cpu_count() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
