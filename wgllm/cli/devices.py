"""``wgllm devices``: what could compute here, and what does."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from wgllm.cli.console import CONTEXT, use_utf8
from wgllm.errors import printable

# Run in a process of its own: a broken driver may abort or hang the process that asks it.
_ASK = """
import sys
sys.path[:] = [p for p in sys.path if p]  # no modules from the folder the user happens to be in
import json
import wgpu
found = []
for adapter in wgpu.gpu.enumerate_adapters_sync():
    found.append({"info": dict(adapter.info), "limits": dict(adapter.limits), "features": sorted(adapter.features)})
sys.stdout.write("\\n" + json.dumps(found, default=str))
"""
_SECONDS = 30
# As wgllm.backends.device.adapters() takes them, so that an index means the same; a test holds them equal.
_INTERFACES = ("Vulkan", "Metal", "D3D12")
_LIMITS = {
    "max-buffer-size": "largest buffer",
    "max-storage-buffer-binding-size": "largest binding",
    "max-storage-buffers-per-shader-stage": "buffers per shader",
    "max-compute-workgroup-storage-size": "workgroup memory",
    "max-compute-invocations-per-workgroup": "workgroup size",
}


@click.command("devices", context_settings=CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def devices_command(as_json: bool) -> None:
    """Show what could compute: the adapters that WebGPU sees, and the CPU.

    An adapter is a graphics card as one of the system's interfaces (Vulkan, Metal, DirectX 12) shows it, so one card
    may stand here more than once. An adapter of type CPU is software that imitates a card.

    \b
    Examples:
      wgllm devices
      wgllm devices --json | jq '.adapters[].device'

    \b
    See also:
      wgllm check    whether it computes rightly
      wgllm bench    how fast one is with a model
    """
    use_utf8()
    print_devices(as_json=as_json)


def print_devices(*, as_json: bool) -> None:
    """The list of devices on stdout; also what ``--list-devices`` shows."""
    adapters, problem = find_adapters()
    cpu = cpu_facts()
    used, reason = _what_auto_takes(adapters)
    if as_json:
        found = {
            "used": "cpu" if used is None else used,
            "cpu": cpu,
            "adapters": adapters,
            "problem": problem,
        }
        click.echo(json.dumps(found))
        return
    name = "the CPU, with NumPy" if used is None else f"adapter {used}, {adapters[used]['device']}"
    click.echo(f"Used unless --backend or --device says otherwise: {name} ({reason})")
    click.echo(f"\nCPU: {cpu['name']}")
    click.echo(
        f"  {cpu['cores']} cores usable · {_size(cpu['memory'])} of memory · {_size(cpu['free'])} free"
    )
    click.echo(f"  NumPy {cpu['numpy']} · BLAS {cpu['blas']} · SIMD {' '.join(cpu['simd']) or 'none'}")
    for i, adapter in enumerate(adapters):
        click.echo(f"\nAdapter {i}: {adapter['device']}")
        click.echo(f"  {adapter['type']} · {adapter['backend']} · driver {adapter['driver'] or 'unknown'}")
        limits = [
            f"{text} {_limit(adapter['limits'][key])}"
            for key, text in _LIMITS.items()
            if key in adapter["limits"]
        ]
        click.echo(f"  {' · '.join(limits)}")
        click.echo(f"  16-bit floats in shaders: {'yes' if 'shader-f16' in adapter['features'] else 'no'}")
    if not adapters:
        click.echo(f"\nNo adapter: {problem}")


def _what_auto_takes(found: list[dict[str, Any]]) -> tuple[int | None, str]:
    """The index of the adapter that the backend ``auto`` takes, None for NumPy; and why."""
    from wgllm.backends.device import Adapter, NoGraphicsCard, adapter_kind, choose

    cards = [
        Adapter(i, a["device"], adapter_kind(a["type"]), a["backend"], None) for i, a in enumerate(found)
    ]
    try:
        taken = choose(cards)
    except NoGraphicsCard as error:
        return None, error.reason
    return taken.index, taken.kind


def find_adapters() -> tuple[list[dict[str, Any]], str | None]:
    """The adapters that wgpu sees, and why there are none. Never raises, whatever the drivers do."""
    from wgllm.backends.device import quiet_drivers

    quiet_drivers()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return [], f"the graphics drivers did not answer within {_SECONDS} s"
    except OSError as error:
        return [], f"the adapters could not be asked for: {error.strerror}"
    last = done.stdout.rpartition("\n")[2]
    if done.returncode != 0 or not last.startswith("["):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"code {done.returncode}"
        return [], f"asking the graphics drivers failed ({reason})"
    adapters = [_adapter(raw) for raw in json.loads(last) if raw["info"].get("backend_type") in _INTERFACES]
    return adapters, None if adapters else "no Vulkan, Metal or DirectX 12 driver shows one"


def _adapter(raw: dict[str, Any]) -> dict[str, Any]:
    info = raw["info"]
    return {
        "device": printable(str(info.get("device") or info.get("description") or "unnamed")),
        "vendor": info.get("vendor"),
        "type": info.get("adapter_type"),
        "backend": info.get("backend_type"),
        "driver": info.get("description"),
        "limits": {key: raw["limits"][key] for key in _LIMITS if key in raw["limits"]},
        "features": raw["features"],
    }


def cpu_facts() -> dict[str, Any]:
    """What NumPy has to compute with."""
    import numpy as np
    import psutil

    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    config = numpy_config()
    simd = config.get("SIMD Extensions", {})
    return {
        "name": _cpu_name(),
        "cores": cores,
        "memory": memory.total,
        "free": memory.available,
        "numpy": np.__version__,
        "blas": blas_name(config),
        "simd": [*simd.get("baseline", []), *simd.get("found", [])],
    }


def numpy_config() -> dict[str, Any]:
    """How NumPy was built; empty where it doesn't say."""
    import numpy as np

    with contextlib.suppress(Exception):
        return dict(np.show_config(mode="dicts") or {})
    return {}


def blas_name(config: dict[str, Any]) -> str:
    """Name and version of the BLAS that NumPy was built with."""
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB"


def _limit(value: Any) -> str:
    if isinstance(value, int) and value >= 1 << 20:
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,}" if isinstance(value, int) else str(value)
