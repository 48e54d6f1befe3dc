"""Block formats of GGUF tensors: one class each, registered by importing it here."""

from __future__ import annotations

from wgllm.quant import grid_quants, k_quants, legacy, levels, plain, ternary  # noqa: F401
from wgllm.quant.base import QuantFormat, all_formats, format_by_id, format_by_name

__all__ = ["QuantFormat", "all_formats", "format_by_id", "format_by_name"]
