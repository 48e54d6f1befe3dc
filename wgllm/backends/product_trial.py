"""A product on a device, with random numbers: kernels for it are compared with NumPy, and timed."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from itertools import cycle, islice
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wgllm.backends.device import Copy, Device, OutOfDeviceMemory
from wgllm.backends.native import Call
from wgllm.backends.numpy import gelu_tanh, silu
from wgllm.errors import DeviceError
from wgllm.plan import ALIGNMENT
from wgllm.product_shape import Choice, Product, Reduce, Target, shape
from wgllm.quant import QuantFormat
from wgllm.quant.packing import Layout
from wgllm.wgsl import compose

# A submission that is timed takes at least so long, unless it has so many dispatches.
_BATCH_SECONDS, _LARGEST_BATCH = 0.002, 512
# Cards at rest are slow: they are kept busy for so long before anything is timed.
_WARM_SECONDS = 0.02
_MOST_COPIES = 1024
# Numbers of 32 bits after which weights repeat: odd, so that no two rows are the same.
_PATTERN = 1_000_003
# Rows and outputs that are compared: the last ones, and some of the others.
_LAST, _OTHERS = 32, 96
# How far a number may be from NumPy's: of Σ |x w|, and relative.
_DOT, _ELEMENT = 1e-6, 4e-6
_EPS = 1e-5

F64 = NDArray[np.float64]
Ints = NDArray[np.int64]
U8 = NDArray[np.uint8]


def weight_layout(product: Product) -> Layout:
    """Of the product's part of a matrix, packed."""
    return product.format.layout(
        product.parts * product.outputs * product.inputs // product.format.block_size
    )


class Arena:
    """Weights on the device for every format and any place: whatever begins at a multiple of 16 bytes is a matrix."""

    def __init__(self, device: Device, size: int) -> None:
        """``size``: bytes, a multiple of 256. Raises OutOfDeviceMemory."""
        self.size = size
        self.buffer = device.buffer(size, "weights to measure with")
        self._device = device
        self._table = 0  # so many bytes at the beginning are a format's table
        self._power_scales = False
        try:
            self._bytes = self._fill(_pattern(power_scales=False))
        except BaseException:
            self.close()
            raise

    def hold(self, fmt: QuantFormat) -> None:
        """Makes byte 0 the beginning of a matrix of this format. Raises OutOfDeviceMemory.

        Matrices elsewhere have whatever lies there as their table: other numbers by the same work.
        """
        if fmt.power_scales != self._power_scales:
            self._bytes = self._fill(_pattern(power_scales=fmt.power_scales))
            self._power_scales = fmt.power_scales
        start = self._bytes[: max(self._table, len(fmt.table))].copy()
        start[: len(fmt.table)] = np.frombuffer(fmt.table, np.uint8)
        if start.size:
            self._device.write(self.buffer, 0, start)
        self._table = len(fmt.table)

    def _fill(self, data: U8) -> U8:
        """``data``, which the whole buffer now repeats."""
        device, size, n = self._device, self.size, data.size
        pattern = device.buffer(n, "a pattern")
        try:
            device.write(pattern, 0, data)
            device.submit(
                [], [Copy(pattern, 0, min(n, size - at), self.buffer, at) for at in range(0, size, n)]
            )
            device.wait()
        finally:
            pattern.destroy()
        return data

    def rows(self, product: Product, rows: Ints) -> F64:
        """Rows of the matrix [parts · outputs, inputs] that begins at byte 0."""
        fmt, layout = product.format, weight_layout(product)
        per_row = product.inputs // fmt.block_size
        index = (rows[:, None] * per_row + np.arange(per_row)).reshape(-1, 1)
        blocks = np.zeros((len(index), fmt.type_size), np.uint8)
        for (start, stop), offset in zip(layout.planes, layout.offsets, strict=True):
            at = 4 * offset + index * (stop - start) + np.arange(stop - start)
            blocks[:, start:stop] = self._bytes[at % self._bytes.size]
        numbers = np.empty((len(index), fmt.block_size), np.float32)
        fmt.dequantize_blocks(blocks, numbers)
        return numbers.reshape(len(rows), product.inputs).astype(np.float64)

    def close(self) -> None:
        self.buffer.destroy()


def _pattern(*, power_scales: bool) -> U8:
    random = np.random.default_rng(1).integers(0, 1 << 16, 2 * _PATTERN, np.uint16)
    if power_scales:  # a byte is a scale from 2^-32 to 1
        return (random & np.uint16(0x1F1F) | np.uint16(0x6060)).view(np.uint8)
    # Each 16 bits are a float16 from 0.5 to 2 or from -2 to -0.5; as the upper half of a float32 one below 1.
    return (random & np.uint16(0x87FF) | np.uint16(0x3800)).view(np.uint8)


class Kernel(NamedTuple):
    """One that has made the right numbers."""

    pipeline: Any
    turns: Sequence[Sequence[Call]]
    """Its one or two dispatches, with each copy of the weights."""


class Trial:
    """A product with its numbers on a device; as a context manager, since it holds memory there."""

    def __init__(self, device: Device, target: Target, product: Product, arena: Arena) -> None:
        """Raises OutOfDeviceMemory."""
        self.device = device
        self.target = target
        self.product = product
        self._buffers = contextlib.ExitStack()
        self._layouts: dict[tuple[str, ...], Any] = {}
        self._groups: dict[int, list[Any]] = {}
        self._turn = self._batch = 0
        rng = np.random.default_rng(2)
        given = {
            name: rng.random(size, np.float32) - np.float32(0.5)
            for name, size in (
                ("x", (product.rows, product.inputs)),
                ("norm", product.inputs),
                ("bias", product.outputs),
                ("residual", (product.rows, product.outputs)),
            )
            if name in product.bindings
        }
        try:
            arena.hold(product.format)
            self._size = 4 * product.rows * product.outputs
            self._y = self._buffer("y")
            self._nothing = self._buffer("nothing", np.full(self._size // 4, np.nan, np.float32))
            self._result = self._buffer("results", readback=True)
            self._bound = {"y": self._y, **{name: self._buffer(name, data) for name, data in given.items()}}
            self._weights = self._copies(arena)
            self._compared = _expected(product, arena, given)
            self._empty = statistics.median(device.seconds([]) for _ in range(5))
        except BaseException:
            self._buffers.close()
            raise

    def kernel(self, choice: Choice) -> Kernel | None:
        """That of ``choice``; None if the device can't compile it, or makes something else with it.

        Raises DeviceError when the device itself fails.
        """
        product = self.product
        made = shape(product, self.target, choice)
        constants = {
            "OUT_WIDTH": product.outputs,
            **made.constants,
            **weight_layout(product).constants,
            **({"EPS": _EPS} if product.before == "normed" else {}),
        }
        source = compose(*made.files, constants=constants, features=made.features)
        try:
            pipeline = self.device.pipeline(source, made.entry, self._layout(made.bindings))
            second = [] if made.reduce is None else [self._reduce(made.reduce, choice.splits)]
            groups = self._bind_groups(pipeline, made.bindings, choice.splits)
            kernel = Kernel(pipeline, [[Call(pipeline, group, made.groups), *second] for group in groups])
            return kernel if self._is_right(kernel, choice.splits) else None
        except OutOfDeviceMemory:
            raise
        except DeviceError:
            self.device.wait()  # which fails too if it was not the shader's fault
            return None

    def seconds(self, kernel: Kernel) -> float:
        """Of its dispatches, in one submission of many."""
        if not self._batch:
            self._choose_batch(kernel)
        return max(self._run(kernel, self._batch), 1e-9) / self._batch

    def _choose_batch(self, kernel: Kernel) -> None:
        self._batch = 1
        busy = 0.0
        while busy < _WARM_SECONDS:
            taken = self._run(kernel, self._batch)
            busy += taken + self._empty
            if taken < _BATCH_SECONDS and self._batch < _LARGEST_BATCH:
                self._batch *= 2

    def _run(self, kernel: Kernel, n: int) -> float:
        turns = islice(cycle(kernel.turns), self._turn, self._turn + n)
        self._turn = (self._turn + n) % len(kernel.turns)
        return self.device.seconds([call for calls in turns for call in calls]) - self._empty

    def _is_right(self, kernel: Kernel, splits: int) -> bool:
        unmade = [Copy(self._nothing, 0, self._size, self._y, 0)]
        if splits > 1:
            sums = self._partial_sums(splits)
            unmade += [Copy(self._nothing, 0, self._size, sums, i * self._size) for i in range(splits)]
        self.device.submit([], unmade)
        copy = Copy(self._y, 0, self._size, self._result, 0)
        self.device.submit(kernel.turns[0], [copy])
        got = self.device.mapped(self._result, self._size).view(np.float32)
        got = got.reshape(self.product.rows, self.product.outputs)
        if not np.isfinite(got).all():  # what was not written is NaN
            return False
        rows, outputs, want, allowed = self._compared
        return bool((np.abs(got[np.ix_(rows, outputs)] - want) <= allowed).all())

    def _reduce(self, reduce: Reduce, splits: int) -> Call:
        """The dispatch that adds partial sums up."""
        constants = {"OUT_WIDTH": self.product.outputs, **reduce.constants}
        source = compose(*reduce.files, constants=constants)
        pipeline = self.device.pipeline(source, reduce.entry, self._layout(reduce.bindings))
        bound = [self._whole(name, splits) for name in reduce.bindings]
        return Call(pipeline, self.device.bind_group(pipeline, bound, "partial sums"), reduce.groups)

    def _layout(self, bindings: tuple[str, ...]) -> Any:
        if bindings not in self._layouts:
            written = "y" if "y" in bindings else "partial_sums"
            self._layouts[bindings] = self.device.pipeline_layout([name == written for name in bindings])
        return self._layouts[bindings]

    def _bind_groups(self, pipeline: Any, bindings: tuple[str, ...], splits: int) -> list[Any]:
        """One with each copy of the weights; all pipelines of as many splits take them."""
        if splits not in self._groups:
            self._groups[splits] = [
                self.device.bind_group(
                    pipeline,
                    [weights if name == "weights" else self._whole(name, splits) for name in bindings],
                    "a product",
                )
                for weights in self._weights
            ]
        return self._groups[splits]

    def _whole(self, name: str, splits: int) -> tuple[Any, int, int]:
        buffer = self._partial_sums(splits) if name == "partial_sums" else self._bound[name]
        return buffer, 0, buffer.size

    def _partial_sums(self, splits: int) -> Any:
        """A buffer for [splits, rows, outputs]."""
        name = f"partial sums of {splits}"
        if name not in self._bound:
            self._bound[name] = self._buffer(name, copies=splits)
        return self._bound[name]

    def _copies(self, arena: Arena) -> list[tuple[Any, int, int]]:
        """The weights, at different places of the arena."""
        size = 4 * weight_layout(self.product).size
        step = -(-size // ALIGNMENT) * ALIGNMENT
        n = max(1, min(_MOST_COPIES, (arena.size - size) // step + 1))
        return [(arena.buffer, i * step, size) for i in range(n)]

    def _buffer(
        self,
        name: str,
        data: NDArray[np.float32] | None = None,
        *,
        copies: int = 1,
        readback: bool = False,
    ) -> Any:
        """As large as ``data``, or as so many copies of y."""
        size = copies * self._size if data is None else data.nbytes
        buffer = self.device.buffer(-(-size // 16) * 16, name, readback=readback)
        self._buffers.callback(buffer.destroy)
        if data is not None:
            self.device.write(buffer, 0, data)
        return buffer

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._buffers.close()


class _Compared(NamedTuple):
    rows: Ints
    outputs: Ints
    want: F64
    """[rows, outputs]"""
    allowed: F64
    """How far from that they may be."""


def _some(n: int) -> Ints:
    """The last of n numbers, and some of the others, in order."""
    last = n - np.arange(1, 1 + min(n, _LAST))
    return np.unique(np.concatenate([last, np.random.default_rng(3).integers(0, n, _OTHERS)]))


def _expected(product: Product, arena: Arena, given: dict[str, NDArray[np.float32]]) -> _Compared:
    rows, outputs = _some(product.rows), _some(product.outputs)
    x = given["x"][rows].astype(np.float64)
    relative = 0.0
    if product.before == "normed":
        x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + _EPS) * given["norm"]
        relative = _ELEMENT
    sums, errors = [], []
    for part in range(product.parts):
        w = arena.rows(product, outputs + part * product.outputs)
        sums.append(x @ w.T)
        errors.append(_DOT * (np.abs(x) @ np.abs(w).T) + relative * np.abs(sums[-1]))
    want, allowed = sums[0], errors[0]
    if product.parts == 2:
        with np.errstate(over="ignore"):
            activation = silu if product.after == "gated_silu" else gelu_tanh
            active = activation(sums[0].astype(np.float32)).astype(np.float64)
        want = active * sums[1]
        # No slope of silu or gelu is above 1.13.
        allowed = 1.13 * allowed * np.abs(sums[1]) + errors[1] * np.abs(active) + _ELEMENT * np.abs(sums[1])
    if product.after.startswith("biased"):
        want = want + given["bias"][outputs]
    if product.after.endswith("added"):
        want = want + given["residual"][np.ix_(rows, outputs)]
    return _Compared(rows, outputs, want, allowed + _ELEMENT * np.abs(want))
