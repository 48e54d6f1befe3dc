"""What the state of every program has in common: which position each cell holds, and saving and loading a slot."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np

from wgllm.backends.base import Array, Ints, LoadOptions, StateArray
from wgllm.errors import UsageError
from wgllm.graph import Graph, Tensor
from wgllm.kv_types import KV_TYPES
from wgllm.ops import Dim
from wgllm.quant import format_by_name


class KvState(abc.ABC):
    """Positions are int32 [S, C] (-1: empty) and on the host; cells are float32 wherever a program keeps them."""

    def __init__(self, graph: Graph, options: LoadOptions) -> None:
        self.options = options
        check_kv_types(graph, options)
        # Cell positions come before the cells that they are of.
        self.tensors = sorted(graph.of_kind("state"), key=lambda t: t.dtype != "i32")
        self.positions: dict[str, Ints] = {}
        for tensor in self.tensors:
            if tensor.dtype == "i32":
                self.positions[tensor.name] = np.full(self.shape(tensor), -1, np.int32)

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else self.options.sizes[d] for d in tensor.shape)

    @abc.abstractmethod
    def read_cells(self, tensor: Tensor, slot: int) -> Array:
        """[Hkv, C, D]; not to be written to."""

    @abc.abstractmethod
    def put_cells(self, tensor: Tensor, slot: int, cells: Ints, values: Array | StateArray) -> None:
        """``values`` [Hkv, n, D] into the cells [n]. Others may be forgotten: no position is in them."""

    @abc.abstractmethod
    def clear_cells(self, tensor: Tensor, slot: int) -> None:
        """Takes NaNs and infinities out of a slot's cells."""

    def positions_changed(self, name: str, slot: int) -> None:
        """Called after ``positions[name][slot]`` was changed by something else than a step."""
        return

    def truncate(self, slot: int, length: int) -> None:
        """Forgets positions from ``length`` on."""
        for name, positions in self.positions.items():
            row = positions[slot]
            if (row >= length).any():
                row[row >= length] = -1
                self.positions_changed(name, slot)

    def wipe(self, slot: int) -> None:
        """Forgets everything, and takes NaNs and infinities out of the cells: even unseen they would spread,
        since a weight of zero times NaN is NaN."""
        self.truncate(slot, 0)
        for tensor in self.tensors:
            if tensor.dtype != "i32":
                self.clear_cells(tensor, slot)

    def save(self, slot: int) -> dict[str, StateArray]:
        """Copies of what the slot holds, in order of positions."""
        held: dict[Dim, Ints] = {}
        made: dict[str, StateArray] = {}
        for tensor in self.tensors:
            if tensor.dtype == "i32":
                row = self.positions[tensor.name][slot]
                positions: Ints = np.sort(row[row >= 0])
                gaps = np.flatnonzero(np.diff(positions) != 1)
                held[tensor.shape[1]] = positions[gaps[-1] + 1 :] if len(gaps) else positions
                made[tensor.name] = held[tensor.shape[1]]
            else:
                cells = self.read_cells(tensor, slot)[:, held[tensor.shape[2]] % self.shape(tensor)[2]]
                f16 = self._saved_dtype(tensor) is np.float16
                made[tensor.name] = cells.astype(np.float16) if f16 else cells
        return made

    def load(self, slot: int, arrays: Mapping[str, StateArray], length: int, lost: Mapping[str, int]) -> None:
        """Puts back what ``save`` gave. Raises ValueError, before anything is changed, when it does not fit."""
        if {t.name for t in self.tensors} != set(arrays):
            raise ValueError("it has other layers")
        held: dict[Dim, Ints] = {}
        for tensor in self.tensors:
            array = arrays[tensor.name]
            if array.dtype != self._saved_dtype(tensor):
                raise ValueError(f"{tensor.name} has another type")
            if tensor.dtype == "i32":
                cells = tensor.shape[1]
                first = length - array.size
                if not np.array_equal(array, np.arange(first, length)):
                    raise ValueError("its positions are in disorder")
                if not 0 <= first <= lost.get(str(cells), 0):
                    raise ValueError("positions are missing")
                held[cells] = array.astype(np.int32)
            else:
                _, kv_heads, _, head_dim = self.shape(tensor)
                if array.shape != (kv_heads, len(held[tensor.shape[2]]), head_dim):
                    raise ValueError(f"{tensor.name} has another shape")
        for tensor in self.tensors:
            array = arrays[tensor.name]
            if tensor.dtype == "i32":
                row = self.positions[tensor.name][slot]
                positions = array[-len(row) :]
                row[:] = -1
                row[positions % len(row)] = positions
                self.positions_changed(tensor.name, slot)
            else:  # a smaller ring takes the last positions
                n_cells = self.shape(tensor)[2]
                positions = held[tensor.shape[2]][-n_cells:]
                self.put_cells(tensor, slot, positions % n_cells, array[:, array.shape[1] - len(positions) :])

    def _saved_dtype(self, tensor: Tensor) -> type[np.float16] | type[np.float32] | type[np.int32]:
        """Values of the block types are multiples of a scale, which a half float does not hold."""
        if tensor.dtype == "i32":
            return np.int32
        return np.float16 if self.options.kv_type_of(tensor.name) == "f16" else np.float32


S = TypeVar("S", bound=KvState)


class KeepsState(Generic[S]):
    """What a program hands on to its state."""

    _state: S

    def truncate(self, slot: int, length: int) -> None:
        self._state.truncate(slot, length)

    def wipe(self, slot: int) -> None:
        self._state.wipe(slot)

    def save_state(self, slot: int) -> dict[str, StateArray]:
        return self._state.save(slot)

    def load_state(
        self, slot: int, arrays: Mapping[str, StateArray], length: int, lost: Mapping[str, int]
    ) -> None:
        self._state.load(slot, arrays, length, lost)


def check_kv_types(graph: Graph, options: LoadOptions) -> None:
    """Raises UsageError for a KV type that there is not, or that does not go with the size of the heads."""
    for tensor in graph.of_kind("state"):
        if tensor.dtype == "i32":
            continue
        kv_type, head_dim = options.kv_type_of(tensor.name), tensor.shape[-1]
        assert isinstance(head_dim, int)
        if kv_type not in KV_TYPES:
            raise UsageError(f"KV cache type {kv_type!r} is not one of {', '.join(KV_TYPES)}")
        if kv_type.startswith("q") and head_dim % format_by_name(kv_type).block_size:
            raise UsageError(
                f"KV cache type {kv_type} needs a head dimension divisible by 32; this model has {head_dim}"
            )
