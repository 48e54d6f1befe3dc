"""What a request says of the copy that its client has, and ranges of bytes that it asks for (RFC 9110, 13 and 14)."""

from __future__ import annotations

import re

_BYTES = re.compile(r"\s*bytes\s*=(.*)", re.IGNORECASE | re.DOTALL)
_ONE = re.compile(r"[ \t]*([0-9]*)-([0-9]*)[ \t]*")
# Longer numbers are beyond any file.
_MOST_DIGITS = 18


def is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has the copy of this tag (RFC 9110, 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    return etag in tags or "*" in tags


class UnsatisfiableRange(Exception):
    """Nothing of the file lies in the range, or it is none."""


def wanted_range(header: str | None, if_range: str | None, etag: str, size: int) -> tuple[int, int] | None:
    """The first byte and the last (exclusive) of a single range; None: the whole is to be sent.

    The whole is also what several ranges get, other units, and a copy (``if_range``) of another file. Raises
    UnsatisfiableRange.
    """
    if header is None or (if_range is not None and if_range.strip() != etag):
        return None
    unit = _BYTES.fullmatch(header)
    if unit is None or "," in unit[1]:
        return None
    found = _ONE.fullmatch(unit[1])
    if found is None:
        raise UnsatisfiableRange
    return _between(_number(found[1]), _number(found[2]), size)


def _number(digits: str) -> int | None:
    if not digits:
        return None
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS


def _between(first: int | None, last: int | None, size: int) -> tuple[int, int]:
    if first is None:
        if not last or not size:
            raise UnsatisfiableRange
        return max(0, size - last), size
    if first >= size or (last is not None and last < first):
        raise UnsatisfiableRange
    return first, size if last is None else min(last + 1, size)
