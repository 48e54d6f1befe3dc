"""A plan's buffers on a device: made, filled, written to and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wgllm.backends.device import Copy, Device
from wgllm.backends.fills import Bytes, fill_pieces
from wgllm.errors import DeviceError
from wgllm.formats.model_file import TensorView
from wgllm.plan import Plan, Region

# What wgpu holds back in staging buffers until it is told that they are done with.
_STAGING = 16 << 20
_SMALLEST_READBACK = 1 << 16


class GpuMemory:
    """Raises OutOfDeviceMemory, with nothing left behind, when the device has not enough."""

    def __init__(self, device: Device, plan: Plan) -> None:
        self.device = device
        self.buffers: list[Any] = []
        self._staged = 0
        self._readback: Any = None
        try:
            for buffer in plan.buffers:
                self.buffers.append(device.buffer(buffer.size, buffer.name))
        except BaseException:
            self.close()
            raise

    def fill(
        self,
        plan: Plan,
        weights: Mapping[str, TensorView],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Streams the weights to the device. ``progress`` gets the bytes that are there and their total."""
        total = sum(f.region.size for f in plan.fills)
        done = 0
        for fill in plan.fills:
            written = 0
            for at, piece in fill_pieces(fill, weights):
                self.write(fill.region, piece, at)
                written += piece.size
                if progress:
                    progress(done + written, total)
            for rows in fill.rows:
                weights[rows.tensor].forget()
            done += fill.region.size
        self.device.wait()
        if progress:
            progress(total, total)

    def write(self, region: Region, data: NDArray[Any], at: int = 0) -> None:
        """``data`` to byte ``at`` of a region; multiples of 4."""
        assert at + data.nbytes <= region.size
        self.check()
        self.device.write(self.buffers[region.buffer], region.offset + at, np.ascontiguousarray(data))
        self._staged += data.nbytes
        if self._staged >= _STAGING:
            self._staged = 0
            self.device.wait()

    def copies(self, parts: Sequence[tuple[Region, int]]) -> list[Copy]:
        """Of the first bytes of regions, one after the other, to where ``collect`` reads them."""
        self.check()
        target, made, at = self._room(sum(size for _, size in parts)), [], 0
        for region, size in parts:
            made.append(Copy(self.buffers[region.buffer], region.offset, size, target, at))
            at += size
        return made

    def collect(self, copies: Sequence[Copy]) -> Bytes:
        """What ``copies`` copied, which have been submitted last."""
        return self.device.mapped(self._readback, sum(c.size for c in copies))

    def read(self, region: Region, size: int, at: int = 0) -> Bytes:
        """``size`` bytes from byte ``at`` of a region on; multiples of 4."""
        copies = self.copies([(Region(region.buffer, region.offset + at, size), size)])
        self.device.submit([], copies)
        return self.collect(copies)

    def check(self) -> None:
        """Raises DeviceError after ``close``: wgpu ends the process when it is given a buffer that was destroyed."""
        if not self.buffers:
            raise DeviceError("the model has been closed")

    def _room(self, size: int) -> Any:
        if self._readback is None or self._readback.size < size:
            if self._readback is not None:
                self.device.settle()
                small, self._readback = self._readback, None
                small.destroy()
            roomy = max(_SMALLEST_READBACK, 1 << (size - 1).bit_length())
            most = self.device.limits["max-buffer-size"]
            self._readback = self.device.buffer(min(roomy, max(size, most)), "results", readback=True)
        return self._readback

    def close(self) -> None:
        """Gives the memory back; nothing may be submitted with these buffers any more."""
        self.device.settle()
        for buffer in (*self.buffers, self._readback):
            if buffer is not None:
                buffer.destroy()
        self.buffers.clear()
        self._readback = None
