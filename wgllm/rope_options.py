"""What a user may say about rope, as metadata of a model file."""

from __future__ import annotations

import math
from typing import Any

from wgllm.errors import UsageError

SCALINGS = ("none", "linear", "yarn")


def rope_overrides(
    architecture: str, scaling: str | None, scale: float | None, freq_base: float | None
) -> dict[str, Any]:
    """The metadata keys to put over a file's. ``scale`` is the factor by which the context grows, linearly unless
    ``scaling`` says yarn. Raises UsageError."""
    if scaling is not None and scaling not in SCALINGS:
        raise UsageError(f"rope scaling {scaling!r} is not one of {', '.join(SCALINGS)}")
    if scaling == "none" and scale is not None:
        raise UsageError("rope scaling none leaves positions as they are; give a scale or none, not both")
    for name, value in (("scale", scale), ("frequency base", freq_base)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"a rope {name} of {value:g} makes no sense; it is a number above 0")
    prefix = f"{architecture}.rope."
    values: dict[str, Any] = {}
    if scale is not None:
        values |= {f"{prefix}scaling.type": scaling or "linear", f"{prefix}scaling.factor": float(scale)}
    elif scaling is not None:
        values[f"{prefix}scaling.type"] = scaling
    if freq_base is not None:
        values[f"{prefix}freq_base"] = float(freq_base)
    return values
