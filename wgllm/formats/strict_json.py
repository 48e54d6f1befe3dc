"""JSON from a stranger: bounded, and none of what Python's reader lets pass."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from wgllm.errors import ModelFileError, ModelNotFoundError

# Longer than any number that a model's files need; a 64-bit one has 20 digits.
_MAX_DIGITS = 32
# What bounds memory: each list and object takes some hundred bytes however short its text is.
_MAX_CONTAINERS = 1 << 20
_MAX_ITEMS = 1 << 20


def parse_json(text: bytes, path: Path, field: str, *, integers: bool = False) -> Any:
    """The value that ``text`` (UTF-8) means. ``integers`` allows no numbers but whole ones from 0 on.

    Raises ModelFileError, naming ``field`` of ``path``, for what is not JSON, has a key twice, NaN or infinities,
    lone surrogates in a key, numbers beyond a float64, or more items than memory should hold. How deep it may nest is
    bounded by Python's own reader.
    """

    def fail(problem: str) -> NoReturn:
        raise ModelFileError(path, field, problem)

    def an_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            fail(f"has the key {next(k for k, _ in pairs if k in seen or seen.add(k))!r} twice")  # type: ignore[func-returns-value]
        for key in found:
            if not key.isascii() and any("\ud800" <= char <= "\udfff" for char in key):
                fail("has a key with half of a surrogate pair")
        return found

    def a_whole_number(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            fail("has a number that is far too large")
        if integers and digits.startswith("-"):
            fail(f"has the negative number {digits}")
        return int(digits)

    def a_float(digits: str) -> float:
        value = float(digits)
        if integers or not math.isfinite(value):
            fail(f"has the number {digits[:40]}" + (", which is not a whole one" if integers else ""))
        return value

    def a_constant(name: str) -> NoReturn:
        fail(f"has {name}, which is no JSON")

    if text.count(b"{") + text.count(b"[") > _MAX_CONTAINERS or text.count(b",") > _MAX_ITEMS:
        fail("has too many items")
    try:
        return json.loads(
            text.decode(), object_pairs_hook=an_object, parse_int=a_whole_number, parse_float=a_float,
            parse_constant=a_constant,
        )  # fmt: skip
    except UnicodeDecodeError:
        fail("is not UTF-8")
    except (ValueError, RecursionError) as error:
        fail(f"is not JSON: {error}")


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The object in a JSON file of at most ``limit`` bytes. Raises ModelNotFoundError, ModelFileError."""
    try:
        if not path.is_file():
            raise ModelNotFoundError(f"no file at {str(path)!r}")
        with path.open("rb") as file:
            text = file.read(limit + 1)
    except OSError as error:
        raise ModelFileError(path, "file", f"cannot be read: {error.strerror}") from None
    if len(text) > limit:
        raise ModelFileError(path, "file", f"is larger than {limit} bytes")
    value = parse_json(text.removeprefix(b"\xef\xbb\xbf"), path, "file")
    if not isinstance(value, dict):
        raise ModelFileError(path, "file", "is not a JSON object")
    return value
