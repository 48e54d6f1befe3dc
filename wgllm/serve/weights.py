"""The packed weights of a plan, a piece at a time: nowhere does the whole file exist.

Pieces are cut at the same places for everyone who has the same fills, so that what one browser made the server pack
and hash serves the next one, too.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from wgllm.backends.fills import fill_bytes
from wgllm.formats.model_file import TensorView
from wgllm.plan import Fill, Region

PIECE = 8 << 20
# What was packed last is kept, since who has asked for its hash may download it next.
_KEPT_BYTES = 64 << 20
# Hashes of so many pieces: a thousand gigabytes.
_KEPT_HASHES = 1 << 17
_LOCKS = 16

Key = TypeVar("Key")
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Part:
    """Bytes ``start:stop`` of a fill's region."""

    fill: Fill
    """Wherever its region lies: the same rows make the same bytes."""
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    at: int
    """Where it begins in the packed file."""
    fill: int
    """The index of its first fill."""
    offset: int
    """Where in that fill's region it begins."""
    size: int
    parts: tuple[Part, ...]


def cut(fills: Sequence[Fill], most: int) -> tuple[Piece, ...]:
    """The packed file of ``fills`` in pieces of at most ``most`` bytes. Small fills that follow each other are one."""
    pieces: list[Piece] = []
    joined = False  # whether the last piece may take another fill
    at = 0
    for i, fill in enumerate(fills):
        size = fill.region.size
        anywhere = replace(fill, region=Region(0, 0, size))
        if joined and size <= most - pieces[-1].size:
            last = pieces[-1]
            pieces[-1] = replace(last, size=last.size + size, parts=(*last.parts, Part(anywhere, 0, size)))
        else:
            for start in range(0, size, most):
                stop = min(start + most, size)
                pieces.append(Piece(at + start, i, start, stop - start, (Part(anywhere, start, stop),)))
            joined = size < most
        at += size
    return tuple(pieces)


class _Recent(OrderedDict[Key, Kept]):
    """What was used last, up to a size."""

    def __init__(self, most: int, size_of: Callable[[Kept], int] = lambda kept: 1) -> None:
        super().__init__()
        self._most, self._size_of, self.size = most, size_of, 0

    def find(self, key: Key) -> Kept | None:
        kept = self.get(key)
        if kept is not None:
            self.move_to_end(key)
        return kept

    def keep(self, key: Key, kept: Kept) -> None:
        if key not in self:
            self[key] = kept
            self.size += self._size_of(kept)
        while self.size > self._most:
            self.size -= self._size_of(self.popitem(last=False)[1])


class PieceStore:
    """Pieces that were packed lately, and the hashes of all. For any number of threads."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES, piece: int = PIECE) -> None:
        self.piece = piece
        """The most bytes of a piece."""
        self._lock = threading.Lock()
        # Who asks for what another one is packing waits for it. Different pieces rarely share a lock.
        self._packing = [threading.Lock() for _ in range(_LOCKS)]
        self._recent: _Recent[tuple[object, ...], bytes] = _Recent(kept_bytes, len)
        self._hashes: _Recent[tuple[object, ...], str] = _Recent(_KEPT_HASHES)
        self.packed = 0
        """Pieces that were packed so far."""

    @property
    def size(self) -> int:
        """Bytes of the pieces that are kept."""
        return self._recent.size

    def data(self, model: str, piece: Piece, weights: Mapping[str, TensorView]) -> bytes:
        """The bytes of a piece. ``model`` tells weights from others that have the same names."""
        key = (model, piece.parts)
        with self._packing[hash(key) % _LOCKS]:
            with self._lock:
                found = self._recent.find(key)
            if found is None:
                found = b"".join(
                    fill_bytes(part.fill, weights, part.start, part.stop).data for part in piece.parts
                )
                for name in {row.tensor for part in piece.parts for row in part.fill.rows}:
                    weights[name].forget()
                with self._lock:
                    self.packed += 1
                    self._recent.keep(key, found)
        return found

    def sha256(self, model: str, piece: Piece, weights: Mapping[str, TensorView]) -> str:
        """The hash of a piece's bytes."""
        key = (model, piece.parts)
        with self._lock:
            known = self._hashes.find(key)
        if known is None:
            known = hashlib.sha256(self.data(model, piece, weights)).hexdigest()
            with self._lock:
                self._hashes.keep(key, known)
        return known


class PackedFile:
    """The packed file of a plan."""

    def __init__(
        self, fills: Sequence[Fill], weights: Mapping[str, TensorView], model: str, store: PieceStore
    ) -> None:
        """``model`` is a name for these weights that no other weights have."""
        self.pieces = cut(fills, store.piece)
        self.size = sum(piece.size for piece in self.pieces)
        self._weights = weights
        self._model = model
        self._store = store
        digest = hashlib.sha256(model.encode())
        for piece in self.pieces:
            digest.update(repr(piece).encode())
        self.etag = f'"{digest.hexdigest()[:32]}"'
        """Of RFC 9110, a strong one."""

    def sha256(self, piece: Piece) -> str:
        return self._store.sha256(self._model, piece, self._weights)

    def data(self, piece: Piece) -> bytes:
        return self._store.data(self._model, piece, self._weights)

    def between(self, start: int, stop: int) -> Iterator[tuple[Piece, slice]]:
        """Where the bytes ``start:stop`` of the file are: pieces, and what of each."""
        for piece in self.pieces:
            low, high = max(start, piece.at), min(stop, piece.at + piece.size)
            if low < high:
                yield piece, slice(low - piece.at, high - piece.at)
