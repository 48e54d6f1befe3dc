"""The GPU as wgpu shows it: which adapter, what it can do, and what it refuses as errors of ours.

Only this file and the executor on top of it import wgpu. Importing this module loads no driver.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wgllm import debug
from wgllm.backends.native import Call, PublicReadback, Readback, Waited, native, timestamp_period
from wgllm.errors import DeviceError, UsageError, printable
from wgllm.wgsl import Source

# What a device is asked for, as far as the adapter has it, and what every WebGPU device has.
_DEFAULT_LIMITS = {
    "max-buffer-size": 256 << 20,
    "max-storage-buffer-binding-size": 128 << 20,
    "max-storage-buffers-per-shader-stage": 8,
    "max-compute-workgroup-storage-size": 16384,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-size-x": 256,
    "max-compute-workgroup-size-y": 256,
    "max-compute-workgroup-size-z": 64,
    "max-compute-workgroups-per-dimension": 65535,
}
# Not OpenGL: it shows the same cards a second time, with fewer abilities.
_INTERFACES = ("Vulkan", "Metal", "DX12")
SUBGROUPS = "subgroup"
"""wgpu's name of the feature."""
TIMESTAMPS = "timestamp-query"
_KINDS = {"DiscreteGPU": "discrete", "IntegratedGPU": "integrated", "CPU": "software"}
_RANK = ("discrete", "integrated", "unknown", "software")
# wgpu-native reports memory that ran out as an error of validation, in these words.
_NO_MEMORY = "Not enough memory left"


@dataclass(frozen=True)
class Adapter:
    """A graphics card as one of the system's interfaces shows it; or software that imitates one."""

    index: int
    name: str
    kind: str
    """``discrete``, ``integrated``, ``software`` or ``unknown`` (often a virtual machine's card)."""
    interface: str
    handle: Any = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.interface})"


class NoGraphicsCard(DeviceError):
    def __init__(self, reason: str) -> None:
        super().__init__(f"no graphics card: {reason}; use --backend numpy")
        self.reason = reason


class OutOfDeviceMemory(DeviceError):
    """The device has no memory left for a buffer."""


class ShaderError(DeviceError):
    """The driver's compiler refused a shader: a mistake in wgllm or in the driver."""

    def __init__(self, problem: str, source: Source, line: int | None) -> None:
        self.listing = "" if line is None else source.listing(line)
        """Numbered lines of the shader's file around the mistake; part of the message under WGLLM_DEBUG."""
        text = f"shader {source.name if line is None else source.explain(line)}: {printable(problem)}"
        super().__init__(f"{text}\n{self.listing}" if self.listing and debug.level() else text)


def adapters() -> list[Adapter]:
    """The adapters that there are, none where no driver is installed. Raises DeviceError when wgpu can't be used."""
    wgpu = _wgpu()
    with reported("can't list graphics cards"):
        handles = wgpu.gpu.enumerate_adapters_sync()
    found: list[Adapter] = []
    for handle in handles:
        info = handle.info
        if info["backend_type"] in ("Vulkan", "Metal", "D3D12"):
            kind = adapter_kind(info["adapter_type"])
            name = printable(info["device"] or info["description"] or "unnamed")
            found.append(Adapter(len(found), name, kind, info["backend_type"], handle))
    return found


def adapter_kind(wgpu_type: str) -> str:
    """An adapter's kind by what wgpu calls its type."""
    return _KINDS.get(wgpu_type, "unknown")


def choose(found: list[Adapter], wanted: str | None = None, *, software: bool = False) -> Adapter:
    """The adapter to use: by index or part of its name, else the first of the best kind.

    Without ``wanted``, software adapters are taken only with ``software`` and when there is nothing else. Raises
    UsageError when ``wanted`` is none of them, DeviceError when there is none to take.
    """
    if wanted is not None:
        matching = [a for a in found if wanted == str(a.index)]
        matching = matching or [a for a in found if wanted and wanted.lower() in a.name.lower()]
        if not found:
            raise NoGraphicsCard("no driver shows one")
        if not matching:
            known = ", ".join(f"{a.index}: {a.name}" for a in found)
            raise UsageError(f"no graphics card {printable(wanted)!r} ({known})")
        return matching[0]
    usable = [a for a in found if software or a.kind != "software"]
    if not usable:
        raise NoGraphicsCard(
            "only a software adapter, which is slower than NumPy" if found else "no driver shows one"
        )
    # The first of equals; but DirectX's older compiler, which wgpu takes unless told otherwise, refuses much.
    return min(usable, key=lambda a: (_RANK.index(a.kind), a.interface == "D3D12"))


class Copy(NamedTuple):
    source: Any
    offset: int
    size: int
    """Bytes, a multiple of 4."""
    target: Any
    target_offset: int


@dataclass(frozen=True)
class Device:
    """An opened adapter, and what the rest of wgllm does with it."""

    adapter: Adapter
    limits: Mapping[str, int]
    """What shaders and buffers may use, under WebGPU's names with hyphens."""
    features: frozenset[str]
    handle: Any = field(repr=False)
    prebound: bool = True
    """Record through wgpu-native's functions, a third of the time of wgpu-py's classes, where they are there."""
    waited: Waited = field(default_factory=Waited, repr=False, compare=False)
    _unread: list[Readback | PublicReadback] = field(default_factory=list, repr=False, compare=False)

    @staticmethod
    def open(adapter: Adapter, features: Iterable[str] = (), *, default_limits: bool = False) -> Device:
        """``adapter`` with all of its limits that count, and of ``features`` those that it has.

        ``default_limits``: with what every WebGPU device has instead, to see that a kernel runs everywhere.
        """
        # Never all features that it lists: some are listed and can't be enabled.
        granted = sorted(set(features) & set(adapter.handle.features))
        has = adapter.handle.limits
        limits = {
            name: default if default_limits else has.get(name, default)
            for name, default in _DEFAULT_LIMITS.items()
        }
        with reported(f"can't open {adapter.name}"):
            handle = adapter.handle.request_device_sync(required_limits=limits, required_features=granted)
        return Device(adapter, dict(handle.limits), frozenset(granted), handle)

    @property
    def subgroup(self) -> int:
        """The least number of invocations in a subgroup; 0 where shaders may not use them."""
        if SUBGROUPS not in self.features:
            return 0
        info = self.adapter.handle.info  # wgpu-py 0.32 misspells the name
        return int(info.get("subgroup_min_size") or info.get("stackgroup_min_size") or 0)

    @property
    def timestamp_period(self) -> float | None:
        """Nanoseconds that a timestamp counts; None where there are none."""
        return timestamp_period(self.handle.queue) if TIMESTAMPS in self.features else None

    def shader(self, source: Source) -> Any:
        """A compiled GPUShaderModule. Raises ShaderError with the place in the shader's file."""
        with reported("can't compile a shader", source):
            return self.handle.create_shader_module(label=source.name, code=source.text)

    def pipeline(self, source: Source, entry: str, layout: Any = "auto") -> Any:
        """A GPUComputePipeline of ``entry`` in ``source``."""
        module = self.shader(source)
        with reported(f"can't build {entry}", source):
            return self.handle.create_compute_pipeline(
                layout=layout, compute={"module": module, "entry_point": entry}
            )

    def buffer(self, size: int, label: str, *, readback: bool = False) -> Any:
        """A storage buffer of zeros, or one to copy results to and read them. Raises OutOfDeviceMemory."""
        usage = _wgpu().BufferUsage
        kind = usage.MAP_READ if readback else usage.STORAGE | usage.COPY_SRC
        with reported(f"no buffer of {size / 2**20:,.1f} MiB for {label}"):
            return self.handle.create_buffer(label=label, size=size, usage=kind | usage.COPY_DST)

    def bind_group(self, pipeline: Any, bindings: Sequence[tuple[Any, int, int]], label: str) -> Any:
        """``bindings``: buffer, offset and size (bytes) by number."""
        entries = [
            {"binding": i, "resource": {"buffer": buffer, "offset": offset, "size": size}}
            for i, (buffer, offset, size) in enumerate(bindings)
        ]
        if not all(size > 0 for _, _, size in bindings):  # wgpu-native ends the process
            raise DeviceError(f"can't bind the buffers of {label}: a part of no bytes")
        with reported(f"can't bind the buffers of {label}"):
            layout = pipeline.get_bind_group_layout(0)
            return self.handle.create_bind_group(label=label, layout=layout, entries=entries)

    def write(self, buffer: Any, offset: int, data: NDArray[Any]) -> None:
        """Before everything that is submitted later. Offset and size are multiples of 4."""
        with reported("can't write to a buffer"):
            self.handle.queue.write_buffer(buffer, offset, data)

    def submit(self, calls: Sequence[Call], copies: Sequence[Copy] = ()) -> None:
        """Records ``calls`` in one pass, then ``copies``, and hands them to the device."""
        self.hand_over(self._recorded(calls, copies))

    def hand_over(self, commands: Any) -> None:
        """Submits a GPUCommandBuffer. Some drivers let it wait for what was submitted before."""
        self.settle()
        with reported("the graphics card refused a step"):
            self.handle.queue.submit([commands])

    def seconds(self, calls: Sequence[Call]) -> float:
        """How long an idle device takes for ``calls``: from when they are handed over until their end is known."""
        commands = self._recorded(calls, [Copy(self._number, 0, 4, self._fence, 0)])
        self.settle()
        with reported("the graphics card refused a step"):
            started = time.perf_counter()
            self.handle.queue.submit([commands])
        # Software that imitates a card needs the cores itself.
        self.mapped(self._fence, 4, pauses=self.adapter.kind == "software")
        return time.perf_counter() - started

    def _recorded(self, calls: Sequence[Call], copies: Sequence[Copy]) -> Any:
        with reported("the graphics card refused a step"):
            encoder = self.handle.create_command_encoder()
            if calls:
                compute = encoder.begin_compute_pass()
                if self._native is None:
                    _record(compute, calls)
                else:
                    self._native.record(compute, calls)
                compute.end()
            for copy in copies:
                encoder.copy_buffer_to_buffer(
                    copy.source, copy.offset, copy.target, copy.target_offset, copy.size
                )
            return encoder.finish()

    def pipeline_layout(self, written: Sequence[bool]) -> Any:
        """For pipelines that take each other's bind groups: of each binding whether it is written."""
        wgpu = _wgpu()
        entries = [
            {
                "binding": i,
                "visibility": wgpu.ShaderStage.COMPUTE,
                "buffer": {"type": "storage" if writes else "read-only-storage"},
            }
            for i, writes in enumerate(written)
        ]
        with reported("can't lay out bindings"):
            group = self.handle.create_bind_group_layout(entries=entries)
            return self.handle.create_pipeline_layout(bind_group_layouts=[group])

    def wait(self) -> None:
        """Until everything that was submitted is done: by reading a number that is copied last."""
        # wgpu-py 0.32's on_submitted_work_done_sync() fails: its callback has another signature than the library's.
        self.submit([], [Copy(self._number, 0, 4, self._fence, 0)])
        self.mapped(self._fence, 4)

    @functools.cached_property
    def _number(self) -> Any:
        return self.buffer(16, "a number")

    @functools.cached_property
    def _fence(self) -> Any:
        return self.buffer(16, "a number that was copied", readback=True)

    def readback(self, size: int, label: str) -> Readback | PublicReadback:
        """A new buffer to copy ``size`` bytes of results to, ready to be asked for."""
        return self._readback_of(self.buffer(size, label, readback=True), size)

    def mapped(self, buffer: Any, size: int, *, pauses: bool = True) -> NDArray[np.uint8]:
        """A copy of the first ``size`` bytes of a readback buffer, when all copies to it are done.

        Without ``pauses`` a core waits for nothing else.
        """
        self.settle()
        readback = self._readback_of(buffer, size)
        self._unread.append(readback)
        with reported("can't read results"):
            readback.request()
            readback.wait(pauses=pauses)
            data = np.frombuffer(readback.read(), np.uint8)
        self._unread.clear()
        return data

    def settle(self) -> None:
        """Ends what a Ctrl-C has left: buffers on their way to the host, to which nothing may be copied, and which must
        not be destroyed."""
        while self._unread:
            with contextlib.suppress(Exception):  # of a lost device
                self._unread[-1].drop()
            self._unread.pop()

    def _readback_of(self, buffer: Any, size: int) -> Readback | PublicReadback:
        if self._native is None:
            return PublicReadback(buffer, size, self.waited)
        return Readback(self._native, self.handle, buffer, size, self.waited)

    @property
    def asks_itself(self) -> bool:
        """Whether waiting for results can be interrupted: it is asking, not a thread's promise."""
        return self._native is not None

    @functools.cached_property
    def _native(self) -> Any:
        return native() if self.prebound else None


def _record(compute: Any, calls: Sequence[Call]) -> None:
    """Through the public interface."""
    last = None
    for pipeline, bind_group, groups in calls:
        if pipeline is not last:
            compute.set_pipeline(pipeline)
            last = pipeline
        compute.set_bind_group(0, bind_group)
        compute.dispatch_workgroups(groups)


@contextlib.contextmanager
def reported(what: str, source: Source | None = None) -> Iterator[None]:
    """Turns what wgpu raises into DeviceError: ``what`` failed, and why."""
    wgpu = _wgpu()
    try:
        yield
    except (wgpu.GPUError, wgpu.GPUPipelineError) as error:
        message = str(error)
        if isinstance(error, wgpu.GPUOutOfMemoryError) or _NO_MEMORY in message:
            raise OutOfDeviceMemory(f"{what}: the graphics card has no memory left") from error
        if source is not None and "Shader" in message and "┌" in message:
            raise ShaderError(*_complaint(message, source)) from error
        raise DeviceError(f"{what}: {_reason(message)}") from error
    except (RuntimeError, MemoryError) as error:  # of requests, and of what wgpu-py finds out by itself
        raise DeviceError(f"{what}: {_reason(str(error))}") from error


def _complaint(message: str, source: Source) -> tuple[str, Source, int | None]:
    """What naga has against a shader, and the line that it underlines."""
    problem, line = "", None
    number = 0
    for text in message.splitlines():
        if match := re.match(r"Shader .*?error: (.+)", text):
            problem = match[1]
        elif match := re.match(r"\s*(\d+) │", text):
            number = int(match[1])
        elif line is None and number and "^" in text:
            line = number
        elif match := re.match(r"\s*= (.+)", text):
            problem = match[1]  # the reason; what stood above only named the function
            break
    return problem, source, line


def _reason(message: str) -> str:
    """The last line of wgpu's report, which is the innermost cause."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return printable(lines[-1]) if lines else "no reason given"


_module: Any = None


def quiet_drivers() -> None:
    """Without a desktop Mesa's layer that sorts devices writes complaints to stderr: it is left out then."""
    if not os.environ.keys() & {"XDG_RUNTIME_DIR", "MESA_VK_DEVICE_SELECT"}:
        os.environ.setdefault("NODEVICE_SELECT", "1")


def _wgpu() -> Any:
    """The wgpu module, told once which interfaces to look at."""
    global _module
    if _module is None:
        quiet_drivers()
        try:
            import wgpu  # type: ignore[import-untyped,unused-ignore]
            from wgpu.backends.wgpu_native.extras import (  # type: ignore[import-untyped,unused-ignore]
                set_instance_extras,
            )
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(f"wgpu can't be loaded: {_reason(str(error))}; use --backend numpy") from error
        # No effect where something else in the process has made the instance already.
        with contextlib.suppress(RuntimeError):
            set_instance_extras(backends=_INTERFACES)
        _module = wgpu
    return _module
