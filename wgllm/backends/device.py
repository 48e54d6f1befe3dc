"""The GPU as wgpu shows it: which adapter, what it can do, and what it refuses as errors of ours.

Only this file and the executor on top of it import wgpu. Importing this module loads no driver.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wgllm import debug
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
}
# Not OpenGL: it shows the same cards a second time, with fewer abilities.
_INTERFACES = ("Vulkan", "Metal", "DX12")
_KINDS = {"DiscreteGPU": "discrete", "IntegratedGPU": "integrated", "CPU": "software"}
_RANK = ("discrete", "integrated", "unknown", "software")


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
            kind = _KINDS.get(info["adapter_type"], "unknown")
            name = printable(info["device"] or info["description"] or "unnamed")
            found.append(Adapter(len(found), name, kind, info["backend_type"], handle))
    return found


def choose(found: list[Adapter], wanted: str | None = None, *, software: bool = False) -> Adapter:
    """The adapter to use: by index or part of its name, else the first of the best kind.

    Without ``wanted``, software adapters are taken only with ``software`` and when there is nothing else. Raises
    UsageError when ``wanted`` is none of them, DeviceError when there is none to take.
    """
    if wanted is not None:
        matching = [a for a in found if wanted == str(a.index)]
        matching = matching or [a for a in found if wanted and wanted.lower() in a.name.lower()]
        if not matching:
            known = ", ".join(f"{a.index}: {a.name}" for a in found) or "there is none"
            raise UsageError(f"no graphics card {printable(wanted)!r} ({known})")
        return matching[0]
    usable = [a for a in found if software or a.kind != "software"]
    if not usable:
        reason = "only a software adapter, which is slower than NumPy" if found else "no driver shows one"
        raise DeviceError(f"no graphics card: {reason}; use --backend numpy")
    return min(usable, key=lambda a: _RANK.index(a.kind))  # the first of equals


@dataclass(frozen=True)
class Device:
    """An opened adapter."""

    adapter: Adapter
    limits: Mapping[str, int]
    """What shaders and buffers may use, under WebGPU's names with hyphens."""
    features: frozenset[str]
    handle: Any = field(repr=False)

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


@contextlib.contextmanager
def reported(what: str, source: Source | None = None) -> Iterator[None]:
    """Turns what wgpu raises into DeviceError: ``what`` failed, and why."""
    wgpu = _wgpu()
    try:
        yield
    except (wgpu.GPUError, wgpu.GPUPipelineError) as error:
        message = str(error)
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


def _wgpu() -> Any:
    """The wgpu module, told once which interfaces to look at."""
    global _module
    if _module is None:
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
