"""Runs one kernel on the GPU that there is, a software one included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import wgpu
from numpy.typing import NDArray

from wgllm.backends.device import Device, reported
from wgllm.wgsl import Source

Numbers = NDArray[Any]

# Long enough for every kernel's first workgroups to come round again: shapes in the tests are small.
FEW_WORKGROUPS = 3


class Gpu:
    """A device, and kernels that run on it one at a time."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._buffers: list[Any] = []

    def run(
        self,
        source: Source,
        entry: str,
        buffers: Sequence[Numbers | None],
        *,
        groups: int = FEW_WORKGROUPS,
        written: int = -1,
    ) -> NDArray[np.uint32]:
        """Dispatches ``groups`` workgroups with ``buffers`` at bindings 0, 1, … (None: that one is not bound).

        Returns the words of buffer ``written`` afterwards. Buffers are rounded up to 16 bytes.
        """
        handle = self.device.handle
        pipeline = self.device.pipeline(source, entry)
        with reported(f"can't run {entry}"):
            bound = [None if b is None else self._upload(b) for b in buffers]
            entries = [
                {"binding": i, "resource": {"buffer": b, "offset": 0, "size": b.size}}
                for i, b in enumerate(bound)
                if b is not None
            ]
            group = handle.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries)
            encoder = handle.create_command_encoder()
            compute = encoder.begin_compute_pass()
            compute.set_pipeline(pipeline)
            compute.set_bind_group(0, group)
            compute.dispatch_workgroups(groups)
            compute.end()
            handle.queue.submit([encoder.finish()])
            words = np.frombuffer(handle.queue.read_buffer(bound[written]), np.uint32)
        buffer = buffers[written]
        assert buffer is not None
        return words[: buffer.nbytes // 4]

    def _upload(self, array: Numbers) -> Any:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        padded = np.zeros(max(16, -(-data.size // 16) * 16), np.uint8)
        padded[: data.size] = data
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        return self.device.handle.create_buffer_with_data(data=padded, usage=usage)
