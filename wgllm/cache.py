"""Bookkeeping of the KV state: what each slot holds, how far it can go back, how large its rings are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wgllm.errors import UsageError
from wgllm.graph import SLOTS, Graph


def cell_counts(
    windows: Mapping[str, int | None], ctx_size: int, largest_step: int, slots: int
) -> dict[str, int]:
    """Values of a graph's named sizes. A windowed layer's ring holds its window and the largest step.

    While a step of T rows is written, its first row must still see window - 1 positions before it.
    """
    sizes = {
        name: ctx_size if window is None else min(ctx_size, window + largest_step)
        for name, window in windows.items()
    }
    sizes[SLOTS] = slots
    return sizes


def state_bytes(graph: Graph, sizes: Mapping[str, int], bytes_per_number: float) -> int:
    """Memory of the keys and values of a graph whose named sizes have these values."""
    numbers = sum(
        math.prod(d if isinstance(d, int) else sizes[d] for d in tensor.shape)
        for tensor in graph.of_kind("state")
        if tensor.dtype == "kv"
    )
    return int(numbers * bytes_per_number)


@dataclass(frozen=True)
class SlotState:
    """What a slot holds, to be kept in a file."""

    tokens: list[int]
    lost: dict[str, int]
    """Per ring: positions below this are not there; nothing is lost elsewhere."""


@dataclass
class _Slot:
    tokens: list[int] = field(default_factory=list)
    """The token at each position that the state holds."""
    lost: dict[str, int] = field(default_factory=dict)
    """Per ring: positions below this have been overwritten."""


class KVCache:
    """What the slots hold. It tells what to run; the programs hold the numbers."""

    def __init__(self, windows: Mapping[str, int | None], sizes: Mapping[str, int], ctx_size: int) -> None:
        self.ctx_size = ctx_size
        self._windows = dict(windows)
        self._rings = {n: (sizes[n], w) for n, w in windows.items() if w is not None and sizes[n] < ctx_size}
        self._slots = [_Slot(lost=dict.fromkeys(self._rings, 0)) for _ in range(sizes[SLOTS])]

    def length(self, slot: int) -> int:
        return len(self._slots[slot].tokens)

    def tokens(self, slot: int) -> list[int]:
        """The tokens that the slot holds (a copy)."""
        return list(self._slots[slot].tokens)

    def begin(self, slot: int, n: int) -> None:
        """A step is about to write ``n`` positions after what the slot holds; rings lose what lay in those cells."""
        state = self._slots[slot]
        end = len(state.tokens) + n
        for name, (cells, _) in self._rings.items():
            state.lost[name] = max(state.lost[name], end - cells)

    def commit(self, slot: int, tokens: Sequence[int]) -> None:
        """The step that was begun has run."""
        self._slots[slot].tokens.extend(tokens)

    def truncate(self, slot: int, length: int) -> int:
        """Keeps at most the first ``length`` positions; returns how many are kept.

        Fewer are kept (none) when a window that a later row sees is no longer whole: after that the caller runs the
        tokens again from where the slot now ends. The programs must be told the same length.
        """
        state = self._slots[slot]
        length = min(length, len(state.tokens))
        for name, (_, window) in self._rings.items():
            assert window is not None
            # The next row, at position `length`, sees positions from here on.
            if max(0, length - window + 1) < min(state.lost[name], length):
                length = 0
        if length == 0:
            state.lost = dict.fromkeys(self._rings, 0)
        del state.tokens[length:]
        return length

    def state(self, slot: int) -> SlotState:
        """A copy of what ``restore`` takes."""
        state = self._slots[slot]
        return SlotState(list(state.tokens), dict(state.lost))

    def restore(self, slot: int, saved: SlotState) -> None:
        """Makes ``saved`` what the slot holds; the programs load it too. Raises UsageError for what can't be."""
        n = len(saved.tokens)
        if n > self.ctx_size:
            raise UsageError(f"it holds {n} tokens, the context {self.ctx_size}; a larger one (-c) is needed")
        lost = {}
        for name, window in self._windows.items():
            cells, _ = self._rings.get(name, (self.ctx_size, None))
            first = max(saved.lost.get(name, 0), n - cells)
            if first > (0 if window is None else max(0, n - window + 1)):
                raise UsageError("it holds too little of a sliding window")
            if name in self._rings:
                lost[name] = first
            elif first:
                raise UsageError("it was made with a larger context (-c)")
        self._slots[slot] = _Slot(list(saved.tokens), lost)

    def common_prefix(self, slot: int, tokens: Sequence[int]) -> int:
        """How many of ``tokens``, from the first on, the slot holds."""
        held = self._slots[slot].tokens
        n = min(len(held), len(tokens))
        return next((i for i in range(n) if held[i] != tokens[i]), n)
