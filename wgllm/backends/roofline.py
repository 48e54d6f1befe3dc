"""What a device could do at best: bytes and operations per second and the cost of a launch, as measured on it; and how
soon a model's tokens could be made with that.

The bounds are targets that do not move with what wgllm launches::

    decode   t >= (W + Σ_layers 2·n_kv·D·bytes_kv·ctx) / BW + (5·L + 4)·t_gap
    prefill  t >= max(2·P·T / F, W / BW) + Σ_layers 4·H·D·T²/2 / F

W bytes of the weights that a token is multiplied with, as the file has them, and P how many; L layers with H heads and
n_kv of keys and values, of D numbers; ctx positions that a token sees, in a layer with a window no more than it has;
T tokens of a prompt, which see those before them too. BW bytes per second that a kernel reads, F operations per second,
t_gap seconds from a dispatch to the next that needs its result. A layer in 5 dispatches and 4 for the rest is what the
best engines come to; a step may launch more, or fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from wgllm.backends.device import Device, OutOfDeviceMemory
from wgllm.backends.native import Call
from wgllm.wgsl import Constant, compose

# Bytes of each of two buffers, which are read in turns: together more than caches hold, which on software are a CPU's.
_BUFFER = 128 << 20
_BUFFER_SOFTWARE = 64 << 20
_SMALLEST_BUFFER = 16 << 20
# Seconds that a measurement takes, of which the best of a few counts; a slow device takes as long as the smallest does.
_SECONDS = 0.02
_RUNS = 3
_MOST_TURNS = 512
_FMA_ROUNDS = 64
_FMA_OPERATIONS = 512
_FMA_GROUPS = 16384
_CHAIN = 64
_LONGEST_CHAIN = 8192


class _Way(NamedTuple):
    """How a kernel goes through memory."""

    runs: bool
    """Whether each invocation takes a run of its own."""
    groups: int
    workgroup: int


_OF_CARDS = _Way(False, 1024, 256)
_OF_SOFTWARE = _Way(True, 64, 64)


@dataclass(frozen=True)
class Work:
    """What a model asks for, whoever computes it."""

    weight_bytes: int
    """Of the matrices that a token with logits is multiplied with."""
    row_weights: int
    """Numbers in the matrices that each token is multiplied with."""
    head_weights: int
    """In those for tokens with logits alone."""
    windows: tuple[float, ...]
    """How many positions each layer sees at most; infinity where all."""
    n_heads: int
    n_kv_heads: int
    head_dim: int
    kv_bytes: float
    """Of a number of a key and one of a value together."""

    def state_bytes(self, ctx: float) -> float:
        """Of the keys and values that the last of ``ctx`` positions sees."""
        return self.n_kv_heads * self.head_dim * self.kv_bytes * sum(min(ctx, w) for w in self.windows)


@dataclass(frozen=True)
class Roofline:
    """What was measured on a device."""

    read_bandwidth: float
    """BW: bytes per second that a kernel reads which does nothing else."""
    copy_bandwidth: float
    """Bytes per second that are read or written by a kernel that copies; of no bound."""
    flops: float
    """F: float32 operations per second of multiplications and additions in registers."""
    gap: float
    """t_gap: seconds between dispatches that wait for each other."""

    def share(self, touched: float, operations: float, seconds: float) -> float:
        """How much of ``seconds`` the device needs at best for so many bytes and operations."""
        best = max(touched / self.read_bandwidth, operations / self.flops)
        return best / seconds if seconds else 0.0

    def decode_seconds(self, work: Work, ctx: float) -> float:
        """The least time of a token that sees ``ctx`` positions, its own too."""
        read = work.weight_bytes + work.state_bytes(ctx)
        return read / self.read_bandwidth + (5 * len(work.windows) + 4) * self.gap

    def prefill_seconds(self, work: Work, tokens: int, depth: int = 0) -> float:
        """The least time of a prompt of ``tokens`` after ``depth`` positions; its last token gets logits."""
        products = 2 * (work.row_weights * tokens + work.head_weights)
        scores = sum(_seen(tokens, depth, window) for window in work.windows)
        attention = 4 * work.n_heads * work.head_dim * scores
        read = work.weight_bytes / self.read_bandwidth
        return max(products / self.flops, read) + attention / self.flops


def _seen(tokens: int, depth: int, window: float) -> float:
    """Positions that ``tokens`` after ``depth`` others see, all together: T²/2 where there are no others."""
    growing = min(max(window - depth, 0), tokens)
    rest = tokens - growing
    return growing * depth + growing**2 / 2 + (rest * window if rest else 0)


def measure(device: Device) -> Roofline:
    """Takes a second or so of an idle device, and up to 256 MiB of its memory for that time. Raises DeviceError."""
    bench = _Bench(device)
    try:
        gap = bench.gap()
        flops = bench.flops()
        read, copy = bench.bandwidths(gap)
        return Roofline(read, copy, flops, gap)
    finally:
        bench.close()


class _Bench:
    """A device with the kernels and buffers of the measurements that it runs."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._software = device.adapter.kind == "software"
        self._pipelines: dict[str, Any] = {}
        self._buffers: list[Any] = []

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.destroy()
        self._buffers.clear()

    def gap(self) -> float:
        """By how much longer a chain takes for each dispatch more."""
        call = self._call("chain", [(self._buffer(256), 256)], 1)
        short = self._best([call] * _CHAIN)
        length = min(max(round(_SECONDS * _CHAIN / short), 4 * _CHAIN), _LONGEST_CHAIN)
        return max(self._best([call] * length) - short, 1e-9) / (length - _CHAIN)

    def flops(self) -> float:
        x, y = self._buffer(160), self._buffer(1 << 16)
        self.device.write(x, 0, np.full(40, 0.5, np.float32))

        def calls(groups: int) -> list[Call]:
            constants: dict[str, Constant] = {"ROUNDS": _FMA_ROUNDS}
            return [self._call("multiply_add", [(x, 160), (y, 1 << 16)], groups, constants)]

        groups = 64
        while (spent := self._best(calls(groups))) < _SECONDS and groups < _FMA_GROUPS:
            groups *= 4
        times = max(1, round(_SECONDS / spent))
        operations = times * groups * 64 * _FMA_ROUNDS * _FMA_OPERATIONS
        return operations / self._best(calls(groups) * times)

    def bandwidths(self, gap: float) -> tuple[float, float]:
        """Of reading and of copying, in bytes per second, without what dispatches cost in themselves."""
        x, y = self._large()
        way = _OF_SOFTWARE if self._software else _OF_CARDS
        constants: dict[str, Constant] = {"RUNS": way.runs, "WORKGROUP": way.workgroup}
        sums_size = 4 * way.groups * way.workgroup
        sums = self._buffer(sums_size)
        for buffer in (x, y):
            self.device.seconds([self._call("fill", [(buffer, buffer.size)], 1024)])

        def reading(size: int) -> list[Call]:
            pairs = [[(b, size), (sums, sums_size)] for b in (x, y)]
            return [self._call("read_all", pair, way.groups, constants) for pair in pairs]

        def copying(size: int) -> list[Call]:
            pairs = [[(a, size), (b, size)] for a, b in ((x, y), (y, x))]
            return [self._call("copy_all", pair, way.groups, constants) for pair in pairs]

        read = self._bytes_per_second(reading, x.size, gap)
        return read, 2 * self._bytes_per_second(copying, x.size, gap)

    def _bytes_per_second(self, calls: Callable[[int], list[Call]], size: int, gap: float) -> float:
        """Of two buffers in turns, the first ``size`` bytes of each or as many as there is time for."""
        probed = self._best(calls(_SMALLEST_BUFFER)) / _SMALLEST_BUFFER  # seconds for a byte of both
        while size > _SMALLEST_BUFFER and size * probed > 4 * _SECONDS:
            size //= 2
        turns = max(1, min(_MOST_TURNS, round(_SECONDS / (size * probed))))
        spent = self._best(calls(size) * turns)
        return 2 * turns * size / max(spent - 2 * turns * gap, spent / 2)

    def _large(self) -> tuple[Any, Any]:
        """Two buffers of a power of two, smaller ones where there is no room."""
        limits = self.device.limits
        wanted = _BUFFER_SOFTWARE if self._software else _BUFFER
        most = min(wanted, limits["max-storage-buffer-binding-size"], limits["max-buffer-size"])
        size = 1 << (most.bit_length() - 1)
        while True:
            kept = len(self._buffers)
            try:
                return self._buffer(size), self._buffer(size)
            except OutOfDeviceMemory:
                if size <= _SMALLEST_BUFFER:
                    raise
                for buffer in self._buffers[kept:]:
                    buffer.destroy()
                del self._buffers[kept:]
                size //= 2

    def _best(self, calls: Sequence[Call]) -> float:
        """Seconds; of runs that take long only the first counts."""
        self.device.seconds(calls[:1])  # drivers compile at the first run
        best = math.inf
        for _ in range(_RUNS):
            spent = self.device.seconds(calls)
            best = min(best, spent)
            if spent > 2 * _SECONDS:
                break
        return best

    def _call(
        self,
        kernel: str,
        buffers: Sequence[tuple[Any, int]],
        groups: int,
        constants: dict[str, Constant] | None = None,
    ) -> Call:
        """Of the first bytes of buffers."""
        source = compose(f"bench/{kernel}.wgsl", constants=constants)
        if source.text not in self._pipelines:
            self._pipelines[source.text] = self.device.pipeline(source, kernel)
        pipeline = self._pipelines[source.text]
        group = self.device.bind_group(pipeline, [(b, 0, size) for b, size in buffers], kernel)
        return Call(pipeline, group, groups)

    def _buffer(self, size: int) -> Any:
        buffer = self.device.buffer(size, "the roofline")
        self._buffers.append(buffer)
        return buffer
