"""Switches of the environment, all in one place.

``WGLLM_DEBUG=1``: tracebacks.
``WGLLM_DEBUG=2``: also, when a model that WebGPU runs is closed, the time of each kernel; see
``wgllm.backends.profile``.
``WGLLM_BACKEND=numpy`` (or ``webgpu``): what the backend ``auto`` means.
``WGLLM_LIMITS=least``: a graphics card's limits are those that every WebGPU device has.
``WGLLM_AHEAD=4``: at most so many steps whose tokens a device chooses are in flight; 0: the host chooses.
``WGLLM_TUNE=0``: shaders are not measured, and what was measured is not used, as with ``--no-tune``.
``WGLLM_FUSE=0``: the textbook graph; ``WGLLM_FUSE=-attention,-gated``: without these passes.
"""

from __future__ import annotations

import os


def level() -> int:
    """``WGLLM_DEBUG`` as a number: 0 when unset or empty, 1 when it is no number."""
    value = os.environ.get("WGLLM_DEBUG") or "0"
    return int(value) if value.isdecimal() else 1


def backend() -> str:
    """``WGLLM_BACKEND``, ``auto`` when unset or empty."""
    return os.environ.get("WGLLM_BACKEND") or "auto"


def least_limits() -> bool:
    return os.environ.get("WGLLM_LIMITS") == "least"


def steps_ahead() -> int | None:
    """The most steps in flight whose tokens the device chooses; 0: the host chooses them. None when unset."""
    value = os.environ.get("WGLLM_AHEAD", "")
    return min(int(value), 8) if value.isdecimal() else None


def tunes() -> bool:
    return os.environ.get("WGLLM_TUNE") != "0"


def fusion_off() -> frozenset[str] | None:
    """Names of fusion passes that are turned off, or None when all are."""
    value = os.environ.get("WGLLM_FUSE", "")
    if value == "0":
        return None
    return frozenset(part[1:] for part in value.split(",") if part.startswith("-"))
