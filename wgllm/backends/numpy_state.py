"""The state of a NumPy program: cells of keys and values as float32, rounded by whoever writes them."""

from __future__ import annotations

import numpy as np

from wgllm.backends.base import Array, Ints, LoadOptions, StateArray
from wgllm.backends.kv_state import KvState
from wgllm.backends.numpy_weights import allocate
from wgllm.graph import Graph, Tensor


class NumpyState(KvState):
    """Arrays by name: int32 [S, C] cell positions (-1: empty), float32 [S, Hkv, C, D] keys and values."""

    def __init__(self, graph: Graph, options: LoadOptions) -> None:
        super().__init__(graph, options)
        self.arrays: dict[str, Array | Ints] = {
            t.name: self.positions[t.name] if t.dtype == "i32" else allocate(self.shape(t), huge_pages=False)
            for t in self.tensors
        }

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())

    def read_cells(self, tensor: Tensor, slot: int) -> Array:
        cells: Array = self.arrays[tensor.name][slot]
        return cells

    def put_cells(self, tensor: Tensor, slot: int, cells: Ints, values: Array | StateArray) -> None:
        self.arrays[tensor.name][slot][:, cells] = values

    def clear_cells(self, tensor: Tensor, slot: int) -> None:
        for head in self.arrays[tensor.name][slot]:
            head[~np.isfinite(head)] = 0
