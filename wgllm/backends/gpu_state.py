"""The state of a program on a GPU: cells in its buffers, positions there and on the host."""

from __future__ import annotations

import math

import numpy as np

from wgllm.backends.base import Array, Ints, LoadOptions, StateArray
from wgllm.backends.gpu_memory import GpuMemory
from wgllm.backends.kv_state import KvState
from wgllm.graph import Graph, Tensor
from wgllm.plan import Plan
from wgllm.quant.state_words import StateLayout, decode, encode, state_layout


class GpuState(KvState):
    def __init__(self, graph: Graph, options: LoadOptions, plan: Plan, memory: GpuMemory) -> None:
        super().__init__(graph, options)
        self._plan = plan
        self._memory = memory
        for name, positions in self.positions.items():
            for slot in range(len(positions)):
                self.positions_changed(name, slot)

    def step(self, pos: Ints, slot: Ints) -> None:
        """A step is about to write these rows: the host knows it at once."""
        for positions in self.positions.values():
            positions[slot, pos % positions.shape[1]] = pos

    def read_cells(self, tensor: Tensor, slot: int) -> Array:
        region = self._plan.states[tensor.name].region
        kv_type, layout, first, n = self._cells(tensor, slot)
        numbers, scales = (
            self._memory.read(region, 4 * (words.stop - words.start), 4 * words.start).view(np.uint32)
            if words.stop > words.start
            else np.empty(0, np.uint32)
            for words in layout.ranges(first, n)
        )
        shape = self.shape(tensor)
        return decode(numbers, scales, kv_type, shape[-1]).reshape(shape[1:])

    def put_cells(self, tensor: Tensor, slot: int, cells: Ints, values: Array | StateArray) -> None:
        shape = self.shape(tensor)
        whole = np.zeros(shape[1:], np.float32)
        whole[:, cells] = values
        self._write(tensor, slot, whole)

    def clear_cells(self, tensor: Tensor, slot: int) -> None:
        self._write(tensor, slot, np.zeros(self.shape(tensor)[1:], np.float32))

    def positions_changed(self, name: str, slot: int) -> None:
        row = self.positions[name][slot]
        self._memory.write(self._plan.states[name].region, row, slot * row.nbytes)

    def _write(self, tensor: Tensor, slot: int, cells: Array) -> None:
        region = self._plan.states[tensor.name].region
        kv_type, layout, first, n = self._cells(tensor, slot)
        for words, place in zip(encode(cells.reshape(n, -1), kv_type), layout.ranges(first, n), strict=True):
            if words.size:
                self._memory.write(region, words, 4 * place.start)

    def _cells(self, tensor: Tensor, slot: int) -> tuple[str, StateLayout, int, int]:
        """The type and layout of a state, and which of its cells are a slot's: the first, and how many."""
        shape = self.shape(tensor)
        per_slot = shape[1] * shape[2]
        kv_type = self._plan.states[tensor.name].kv_type
        return kv_type, state_layout(kv_type, math.prod(shape[:-1]), shape[-1]), slot * per_slot, per_slot
