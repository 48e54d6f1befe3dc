"""The JSON and template files beside a tokenizer in a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wgllm.errors import ModelFileError

_MAX_BYTES = 1 << 28
_MAX_TEMPLATE_BYTES = 1 << 24


def chat_template(directory: Path) -> str | None:
    """The chat template of a directory, or None: ``chat_template.jinja``, that of ``tokenizer_config.json`` (of
    several the one named default), ``chat_template.json``, or ``default.jinja`` in a folder of templates."""
    if (text := _template_file(directory / "chat_template.jinja")) is not None:
        return text
    for name in ("tokenizer_config.json", "chat_template.json"):
        value = read_beside(directory, name).get("chat_template")
        if isinstance(value, list):  # several, by name
            named = {str(item.get("name")): item.get("template") for item in value if isinstance(item, dict)}
            value = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
        elif isinstance(value, dict):
            value = value.get("default")
        if isinstance(value, str):
            return value
    for folder in ("chat_templates", "additional_chat_templates"):
        if (text := _template_file(directory / folder / "default.jinja")) is not None:
            return text
    return None


def _template_file(path: Path) -> str | None:
    return read_bytes(path, _MAX_TEMPLATE_BYTES).decode("utf-8", "replace") if path.is_file() else None


def read_beside(directory: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of the directory; an empty one where there is no such file."""
    path = directory / name
    return read_object(path) if path.is_file() else {}


def read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(path, "file", f"is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelFileError(path, "file", "is not a JSON object")
    return data


def read_bytes(path: Path, limit: int = _MAX_BYTES) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise ModelFileError(path, "file", "is too large for a tokenizer")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(path, "file", f"cannot be read: {error.strerror}") from None
