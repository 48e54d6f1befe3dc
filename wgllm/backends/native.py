"""wgpu-native's functions, past wgpu-py's classes: less time per dispatch, and waiting that blocks nobody else.

wgpu-py's promises wait on a thread that blocks in the library, where it also holds up the next submission. Here the
device is asked again and again, in ever longer pauses.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from wgllm.backends.signals import SignalsHeld

# How often a device is asked before the first pause; seconds by which pauses grow, and their most.
_EAGER_TRIES = 20
_PAUSE = 2e-5
_LONGEST_PAUSE = 5e-4
# A wait of seconds will hardly end within the next moment: it leaves the processor to others, and tells whoever looks
# that this process does nothing.
_LONG_WAIT = 2.0
_PAUSE_OF_LONG_WAIT = 0.02


class Call(NamedTuple):
    """One dispatch, ready to be recorded. What wgpu gave for it must be kept alive elsewhere too."""

    pipeline: Any
    bind_group: Any
    groups: int


class Waited:
    """What asking a device whether it is ready has taken, in seconds of this thread's processor."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        started = time.thread_time()
        try:
            yield
        finally:
            self.seconds += time.thread_time() - started


class Native:
    """Raises what wgpu-py raises. encoder.finish() still checks what was recorded."""

    def __init__(self) -> None:
        from wgpu.backends.wgpu_native._api import libf  # type: ignore[import-untyped,unused-ignore]
        from wgpu.backends.wgpu_native._ffi import (  # type: ignore[import-untyped,unused-ignore]
            ffi,
            lib,
        )

        self._ffi = ffi
        self._null = ffi.NULL
        self._read = lib.WGPUMapMode_Read
        self._process_events = lib.WGPUCallbackMode_AllowProcessEvents
        self._success = lib.WGPUMapAsyncStatus_Success
        self._set_pipeline = lib.wgpuComputePassEncoderSetPipeline
        self._set_bind_group = lib.wgpuComputePassEncoderSetBindGroup
        self._dispatch = lib.wgpuComputePassEncoderDispatchWorkgroups
        self._poll = lib.wgpuDevicePoll
        self._map = libf.wgpuBufferMapAsync
        self._mapped = libf.wgpuBufferGetMappedRange
        self._unmap = libf.wgpuBufferUnmap

    def record(self, compute: Any, calls: Sequence[Call]) -> None:
        """Into a compute pass."""
        encoder, null, last = compute._internal, self._null, None
        set_bind_group, dispatch = self._set_bind_group, self._dispatch
        for pipeline, bind_group, groups in calls:
            if pipeline is not last:
                self._set_pipeline(encoder, pipeline._internal)
                last = pipeline
            set_bind_group(encoder, 0, bind_group._internal, 0, null)
            dispatch(encoder, groups, 1, 1)


class Readback:
    """A buffer that results are copied to, and how they come to the host: ``request``, then ``wait``, then ``read``.

    From the request to the end of ``read`` nothing may be copied to the buffer: wgpu-native would end the process.
    After an exception in between ``drop`` makes it free again.
    """

    def __init__(self, native: Native, device: Any, buffer: Any, size: int, waited: Waited) -> None:
        """Of ``buffer`` the first ``size`` bytes; ``device`` is the GPUDevice."""
        self.buffer = buffer
        self.size = size
        self._native = native
        self._device = device
        self._waited = waited
        self._status: int | None = None
        self._message = ""
        self._requested = False

        def told(status: int, message: Any, first: Any, second: Any) -> None:
            self._status = status
            if status != native._success and message.data:
                self._message = native._ffi.string(message.data, message.length).decode(errors="replace")

        # Kept, since the library calls back later.
        self._callback = native._ffi.callback(
            "void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)", told
        )
        self._info = native._ffi.new("WGPUBufferMapCallbackInfo *")
        self._info.mode = native._process_events
        self._info.callback = self._callback

    def request(self) -> None:
        """For when everything that was submitted so far is done."""
        with SignalsHeld():
            self._status = None
            self._native._map(self.buffer._internal, self._native._read, 0, self.size, self._info[0])
            self._requested = True

    def wait(self, interrupt: Callable[[], None] | None = None, *, pauses: bool = True) -> None:
        """Until the results are there. ``interrupt`` is called again and again and may raise, as handlers of signals
        may; then the request still stands. Without ``pauses`` their coming is seen at once."""
        with self._waited.counted():
            while self._status is None:
                with (
                    SignalsHeld() as signals
                ):  # what is raised inside of the library's callback would be lost
                    self._poll(interrupt, signals, pauses=pauses)

    def _poll(self, interrupt: Callable[[], None] | None, signals: SignalsHeld, *, pauses: bool) -> None:
        """Until the results are there, or a signal has come."""
        tries, began = 0, time.monotonic()
        while not signals.pending:
            self._native._poll(self._device._internal, 0, self._native._null)
            if self._status is not None:
                return
            signals.heed_impatience()
            if interrupt is not None:
                interrupt()
            tries += 1
            if time.monotonic() - began > _LONG_WAIT:
                time.sleep(_PAUSE_OF_LONG_WAIT)
            elif pauses and tries > _EAGER_TRIES:
                time.sleep(min((tries - _EAGER_TRIES) * _PAUSE, _LONGEST_PAUSE))

    def read(self) -> bytes:
        """A copy; ends the request. Raises RuntimeError when the device has failed."""
        with SignalsHeld():
            self._requested = False
            if self._status != self._native._success:
                raise RuntimeError(self._message or "the device was lost")
            pointer = self._native._mapped(self.buffer._internal, 0, self.size)
            data = bytes(self._native._ffi.buffer(pointer, self.size))
            self._native._unmap(self.buffer._internal)
            return data

    def drop(self) -> None:
        """Waits for what was requested, if anything was, and forgets it."""
        with SignalsHeld():  # to be interrupted would leave the buffer on its way
            if self._requested:
                self.wait()
                if self._status == self._native._success:
                    self._native._unmap(self.buffer._internal)
                self._requested = False


class PublicReadback:
    """The same through wgpu-py's public interface."""

    def __init__(self, buffer: Any, size: int, waited: Waited) -> None:
        self.buffer = buffer
        self.size = size
        self._waited = waited
        self._promise: Any = None

    def request(self) -> None:
        self._promise = self.buffer.map_async("READ", 0, self.size)

    def wait(self, interrupt: Callable[[], None] | None = None, *, pauses: bool = True) -> None:
        with self._waited.counted():
            self._promise.sync_wait()

    def read(self) -> bytes:
        self._promise = None
        data = bytes(self.buffer.read_mapped(0, self.size))
        self.buffer.unmap()
        return data

    def drop(self) -> None:
        if self._promise is not None:
            with contextlib.suppress(Exception):
                self._promise.sync_wait()
            if self.buffer.map_state == "mapped":
                self.buffer.unmap()
            self._promise = None


def timestamp_period(queue: Any) -> float | None:
    """Nanoseconds that a timestamp of this GPUQueue counts; None where wgpu-py does not tell."""
    try:
        from wgpu.backends.wgpu_native._ffi import lib  # type: ignore[import-untyped,unused-ignore]

        return float(lib.wgpuQueueGetTimestampPeriod(queue._internal))
    except (ImportError, AttributeError):
        return None


@functools.cache
def native() -> Native | None:
    """None where wgpu-py has other private names than those of the versions that we know."""
    try:
        return Native()
    except (ImportError, AttributeError):
        return None
