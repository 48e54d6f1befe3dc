"""``WGLLM_DEBUG=2``: what each kernel of a program takes on the device, told on stderr when the program is closed.

Each dispatch is recorded in a pass of its own between two timestamps, which costs the host some 15 µs more: speeds are
those of the kernels, and the device is idle for longer than without. Where there are no timestamps each dispatch is
submitted by itself and waited for, and its time is the host's.

Bytes are those that ``plan_figures`` counts, a multiplication is two operations. What is small enough to stay in caches
may come to more than the roofline, which is that of memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wgllm import debug
from wgllm.backends.device import Copy, Device, reported
from wgllm.backends.native import Call
from wgllm.backends.roofline import Roofline, measure
from wgllm.errors import DeviceError
from wgllm.graph import Graph
from wgllm.plan import Plan, Schedule, Width
from wgllm.plan_figures import DispatchFigures, PlanFigures

# Two timestamps each; a query set has at most 4096.
_AT_ONCE = 2048
# Dispatches whose timestamps wait to be read; that they are is waited for.
_WAITING = 1 << 16
# Seconds; where the device had nothing to do for longer nobody asked it to.
_PAUSE = 1.0


@dataclass(frozen=True)
class KernelTime:
    """What the launches of a kernel with a format took in a part of the run."""

    part: str
    """``prompt``: of steps of several rows; ``decode``: of one row."""
    entry: str
    format: str
    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0
    operations: int = 0


@dataclass(frozen=True)
class PartTime:
    """What all launches of a part of the run took."""

    part: str
    dispatches: int = 0
    seconds: float = 0.0
    """On the device."""
    wall: float = 0.0
    """From the end of the launch before the first to the end of the last, without long pauses."""


class Profile:
    """Times of a plan's dispatches on a device, which they reach through ``submit``, known by their calls."""

    def __init__(self, device: Device, plan: Plan, graph: Graph) -> None:
        self.device = device
        self.recording = 0.0
        """Seconds that the host spent on recording."""
        self._figures = PlanFigures(plan, graph)
        self._known: dict[int, tuple[Width, DispatchFigures]] = {}
        self._part = "prompt"
        self._kernels: dict[tuple[str, str, str], KernelTime] = {}
        self._parts: dict[str, PartTime] = {}
        self._last_end: float | None = None
        self._waiting: list[tuple[str, DispatchFigures]] = []
        self._period = device.timestamp_period
        self._queries: Any = None
        self._resolved: Any = None
        self._readback: Any = None

    @property
    def has_timestamps(self) -> bool:
        return self._period is not None

    def know(self, width: Width, schedule: Schedule, calls: Sequence[Call]) -> None:
        """Before ``calls`` are submitted, which launch ``schedule`` and must be kept as long as this."""
        for dispatch, call in zip(schedule, calls, strict=True):
            self._known[id(call)] = width, self._figures.dispatch(width, dispatch)

    def submit(self, calls: Sequence[Call], copies: Sequence[Copy] = ()) -> None:
        """As ``Device.submit``; calls of a step come in its order."""
        if not self.has_timestamps:
            self._submit_one_by_one(calls)
            self.device.submit([], copies)
            return
        if self._queries is None:
            self._make_buffers()
        for first in range(0, max(1, len(calls)), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            if len(self._waiting) + len(calls[some]) > _WAITING:
                self._collect()
            last = first + _AT_ONCE >= len(calls)
            started = time.perf_counter()
            commands = self._recorded(calls[some], copies if last else ())
            self.recording += time.perf_counter() - started
            self.device.hand_over(commands)
            self._waiting.extend(self._launched(call) for call in calls[some])

    def kernels(self) -> list[KernelTime]:
        """Those that took longest first. Waits for all that was submitted."""
        self._collect()
        return sorted(self._kernels.values(), key=lambda k: -k.seconds)

    def parts(self) -> list[PartTime]:
        """In the order of the run. Waits for all that was submitted."""
        self._collect()
        return list(self._parts.values())

    def close(self) -> None:
        """Tells what there is to tell on stderr, once. The device's own speed is measured for that."""
        try:
            kernels = self.kernels()
            if not kernels:
                return
            lines = table(kernels, self.parts(), measure(self.device), self.recording)
        except DeviceError as error:
            print(f"WGLLM_DEBUG: no times of kernels: {error}", file=sys.stderr)
            return
        finally:
            for made in (self._queries, self._resolved, self._readback):
                if made is not None:
                    made.destroy()
            self._queries = self._resolved = self._readback = None
        print(f"WGLLM_DEBUG: kernels on {self.device.adapter}", file=sys.stderr)
        if not self.has_timestamps:
            print("it has no timestamps: times are of a submission each, waiting for it too", file=sys.stderr)
        print("\n".join(lines), file=sys.stderr)

    # What runs

    def _make_buffers(self) -> None:
        handle = self.device.handle
        self._queries = handle.create_query_set(type="timestamp", count=2 * _AT_ONCE)
        self._resolved = handle.create_buffer(size=16 * _AT_ONCE, usage="QUERY_RESOLVE|COPY_SRC")
        self._readback = self.device.buffer(16 * _WAITING, "timestamps", readback=True)

    def _recorded(self, calls: Sequence[Call], copies: Sequence[Copy]) -> Any:
        queries, n = self._queries, len(calls)
        with reported("the graphics card refused a step"):
            encoder = self.device.handle.create_command_encoder()
            for i, (pipeline, bind_group, groups) in enumerate(calls):
                compute = encoder.begin_compute_pass(
                    timestamp_writes={
                        "query_set": queries,
                        "beginning_of_pass_write_index": 2 * i,
                        "end_of_pass_write_index": 2 * i + 1,
                    }
                )
                compute.set_pipeline(pipeline)
                compute.set_bind_group(0, bind_group)
                compute.dispatch_workgroups(groups)
                compute.end()
            if n:
                encoder.resolve_query_set(queries, 0, 2 * n, self._resolved, 0)
                at = 16 * len(self._waiting)
                encoder.copy_buffer_to_buffer(self._resolved, 0, self._readback, at, 16 * n)
            for copy in copies:
                encoder.copy_buffer_to_buffer(
                    copy.source, copy.offset, copy.target, copy.target_offset, copy.size
                )
            return encoder.finish()

    def _submit_one_by_one(self, calls: Sequence[Call]) -> None:
        for call in calls:
            started = time.perf_counter()
            self.device.submit([call])
            self.device.wait()
            self._add(*self._launched(call), started, time.perf_counter())

    def _collect(self) -> None:
        """Reads the timestamps that wait."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        stamps = self.device.mapped(self._readback, 16 * len(waiting)).view(np.uint64).reshape(-1, 2)
        seconds = stamps.astype(np.float64) * (1e-9 * (self._period or 0.0))
        for (part, figures), (begin, end) in zip(waiting, seconds.tolist(), strict=True):
            self._add(part, figures, begin, end)

    # What it comes to

    def _launched(self, call: Call) -> tuple[str, DispatchFigures]:
        """The part of the run, and what it launches. Whatever follows a body belongs to the same step."""
        width, figures = self._known[id(call)]
        if width.part == "body":
            self._part = "decode" if width.rows == 1 else "prompt"
        return self._part, figures

    def _add(self, part: str, figures: DispatchFigures, begin: float, end: float) -> None:
        """Of a dispatch, its times in seconds of one clock; a clock that jumps back counts nothing."""
        spent = max(0.0, end - begin)
        key = part, figures.entry, figures.format
        kernel = self._kernels.get(key) or KernelTime(*key)
        self._kernels[key] = replace(
            kernel,
            calls=kernel.calls + 1,
            seconds=kernel.seconds + spent,
            bytes=kernel.bytes + figures.bytes,
            operations=kernel.operations + 2 * figures.multiplications,
        )
        idle = 0.0 if self._last_end is None else begin - self._last_end
        self._last_end = end
        total = self._parts.get(part) or PartTime(part)
        self._parts[part] = replace(
            total,
            dispatches=total.dispatches + 1,
            seconds=total.seconds + spent,
            wall=total.wall + spent + (idle if 0 < idle < _PAUSE else 0.0),
        )


def profile_if_wanted(device: Device, plan: Plan, graph: Graph) -> Profile | None:
    """None unless ``WGLLM_DEBUG`` is at least 2."""
    return Profile(device, plan, graph) if debug.level() >= 2 else None


def table(
    kernels: Iterable[KernelTime], parts: Sequence[PartTime], roofline: Roofline, recording: float = 0.0
) -> list[str]:
    """Lines of a table with a row for each of ``kernels``, and what ``parts`` come to. ``recording``: seconds that the
    host spent on that."""
    all_seconds = sum(p.seconds for p in parts)
    lines = [
        f"at best it reads {roofline.read_bandwidth / 1e9:,.1f} GB/s, computes {roofline.flops / 1e9:,.1f} GFLOP/s, "
        f"and takes {roofline.gap * 1e6:,.1f} µs from a dispatch to the next",
        f"{'part':6}  {'kernel':20}  {'format':9} {'calls':>8} {'ms':>11} {'of time':>8} {'GB/s':>8} "
        f"{'GFLOP/s':>9} {'of roof':>8}",
    ]
    for k in kernels:
        speed = 1 / k.seconds if k.seconds else 0.0
        lines.append(
            f"{k.part:6}  {k.entry:20}  {k.format:9} {k.calls:8,} {1e3 * k.seconds:11,.2f} "
            f"{_share(k.seconds, all_seconds)} {k.bytes * speed / 1e9:8,.2f} {k.operations * speed / 1e9:9,.2f} "
            f"{roofline.share(k.bytes, k.operations, k.seconds):8.1%}"
        )
    total = PartTime(
        "total",
        sum(p.dispatches for p in parts),
        all_seconds,
        sum(p.wall for p in parts),
    )
    for p in (*parts, total):
        lines.append(
            f"{p.part:6}  {p.dispatches:,} dispatches, {1e3 * p.seconds:,.2f} ms on the device, "
            f"busy {_share(p.seconds, p.wall).strip()} of {p.wall:,.3f} s"
        )
    if recording:
        lines.append(f"recording with timestamps took the host {recording:,.3f} s")
    return lines


def _share(part: float, whole: float) -> str:
    return f"{part / whole if whole else 0.0:8.1%}"
