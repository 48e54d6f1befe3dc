"""Large language models on any GPU: GGUF files through WebGPU, with NumPy as the reference."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a plain clone models/, shaders/ and tui/ stand beside this folder; installed, they lie inside it.
_source_root = Path(__file__).resolve().parent.parent
if (_source_root / "pyproject.toml").is_file() and (_source_root / "models").is_dir():
    __path__.append(str(_source_root))

if TYPE_CHECKING:
    from wgllm.engine import Event, FinishReason, Stats
    from wgllm.errors import WgllmError
    from wgllm.fake import FakeEngine
    from wgllm.llm import Llm, load
    from wgllm.tokenizer import Tokenizer, load_tokenizer

# Imported on first use, so that `wgllm --help` stays quick.
_exports = {
    "Event": "wgllm.engine",
    "FakeEngine": "wgllm.fake",
    "FinishReason": "wgllm.engine",
    "Llm": "wgllm.llm",
    "Stats": "wgllm.engine",
    "Tokenizer": "wgllm.tokenizer",
    "WgllmError": "wgllm.errors",
    "load": "wgllm.llm",
    "load_tokenizer": "wgllm.tokenizer",
}

__all__ = [
    "Event",
    "FakeEngine",
    "FinishReason",
    "Llm",
    "Stats",
    "Tokenizer",
    "WgllmError",
    "load",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name in _exports:
        value = getattr(importlib.import_module(_exports[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'wgllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_exports})
