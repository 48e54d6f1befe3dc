"""The state of a NumPy program: which position each cell holds, and the cells of keys and values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wgllm.backends.base import Array, Ints, LoadOptions, StateArray
from wgllm.backends.numpy_weights import allocate
from wgllm.errors import UsageError
from wgllm.graph import Graph, Tensor
from wgllm.kv_types import KV_TYPES
from wgllm.ops import Dim
from wgllm.quant import format_by_name


class NumpyState:
    """Arrays by name: int32 [S, C] cell positions (-1: empty), float32 [S, Hkv, C, D] keys and values."""

    def __init__(self, graph: Graph, options: LoadOptions) -> None:
        self.options = options
        # Cell positions come before the cells that they are of.
        self._tensors = sorted(graph.of_kind("state"), key=lambda t: t.dtype != "i32")
        self.arrays: dict[str, Array | Ints] = {}
        for tensor in self._tensors:
            shape = tuple(d if isinstance(d, int) else options.sizes[d] for d in tensor.shape)
            if tensor.dtype == "i32":
                self.arrays[tensor.name] = np.full(shape, -1, np.int32)
            else:
                _check_kv_type(options.kv_type_of(tensor.name), shape[-1])
                self.arrays[tensor.name] = allocate(shape, huge_pages=False)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())

    def truncate(self, slot: int, length: int) -> None:
        """Forgets positions from ``length`` on."""
        for tensor in self._tensors:
            if tensor.dtype == "i32":
                row = self.arrays[tensor.name][slot]
                row[row >= length] = -1

    def wipe(self, slot: int) -> None:
        """Forgets everything, and takes NaNs and infinities out of the cells: even unseen they would spread,
        since a weight of zero times NaN is NaN."""
        self.truncate(slot, 0)
        for tensor in self._tensors:
            if tensor.dtype != "i32":
                for head in self.arrays[tensor.name][slot]:
                    head[~np.isfinite(head)] = 0

    def save(self, slot: int) -> dict[str, StateArray]:
        """Copies of what the slot holds, in order of positions."""
        held: dict[Dim, Ints] = {}
        made: dict[str, StateArray] = {}
        for tensor in self._tensors:
            state = self.arrays[tensor.name][slot]
            if tensor.dtype == "i32":
                positions = np.sort(state[state >= 0])
                gaps = np.flatnonzero(np.diff(positions) != 1)
                held[tensor.shape[1]] = positions[gaps[-1] + 1 :] if len(gaps) else positions
                made[tensor.name] = held[tensor.shape[1]]
            else:
                made[tensor.name] = state[:, held[tensor.shape[2]] % state.shape[1]].astype(
                    self._saved_dtype(tensor)
                )
        return made

    def load(self, slot: int, arrays: Mapping[str, StateArray], length: int, lost: Mapping[str, int]) -> None:
        """Puts back what ``save`` gave. Raises ValueError, before anything is changed, when it does not fit."""
        if {t.name for t in self._tensors} != set(arrays):
            raise ValueError("it has other layers")
        held: dict[Dim, Ints] = {}
        for tensor in self._tensors:
            array, state = arrays[tensor.name], self.arrays[tensor.name][slot]
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
            elif array.shape != (state.shape[0], len(held[tensor.shape[2]]), state.shape[2]):
                raise ValueError(f"{tensor.name} has another shape")
        for tensor in self._tensors:
            array, state = arrays[tensor.name], self.arrays[tensor.name][slot]
            if tensor.dtype == "i32":
                positions = array[-len(state) :]
                state[:] = -1
                state[positions % len(state)] = positions
            else:  # a smaller ring takes the last positions
                positions = held[tensor.shape[2]][-state.shape[1] :]
                state[:, positions % state.shape[1]] = array[:, array.shape[1] - len(positions) :]

    def _saved_dtype(self, tensor: Tensor) -> type[np.float16] | type[np.float32] | type[np.int32]:
        """Values of the block types are multiples of a scale, which a half float does not hold."""
        if tensor.dtype == "i32":
            return np.int32
        return np.float16 if self.options.kv_type_of(tensor.name) == "f16" else np.float32


def _check_kv_type(kv_type: str, head_dim: int) -> None:
    if kv_type not in KV_TYPES:
        raise UsageError(f"KV cache type {kv_type!r} is not one of {', '.join(KV_TYPES)}")
    if kv_type.startswith("q") and head_dim % format_by_name(kv_type).block_size:
        raise UsageError(
            f"KV cache type {kv_type} needs a head dimension divisible by 32; this model has {head_dim}"
        )
