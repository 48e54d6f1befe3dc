"""The NumPy executor: a graph's nodes bound to kernels, run in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgllm.backends import numpy as kernels
from wgllm.backends.base import Array, Ints, LoadOptions, StateArray, Trace
from wgllm.backends.blas_threads import BlasThreads
from wgllm.backends.numpy_weights import Matrix, allocate, available_memory, cpu_count, make_dense
from wgllm.errors import UsageError
from wgllm.formats.model_file import TensorView
from wgllm.fuse import fuse
from wgllm.graph import OUT_ROWS, ROWS, Graph, Node, Tensor
from wgllm.ops import Dim
from wgllm.quant import format_by_name

KV_TYPES = ("f32", "f16", "q8_0", "q4_0")

# Of the memory that is free at loading, weights take at most this share; the rest is for the cache and for work.
_MEMORY_SHARE = 0.8


class NumpyExecutor:
    """Runs graphs on the CPU in float32."""

    name = "numpy"
    fused_ops = frozenset({"attention", "matmul_concat", "gated"})

    def load(self, graph: Graph, weights: Mapping[str, TensorView], options: LoadOptions) -> NumpyProgram:
        ops = self.fused_ops if options.fused_attention else self.fused_ops - {"attention"}
        return NumpyProgram(fuse(graph, ops), weights, options)


@dataclass(frozen=True)
class _Bound:
    """A node with its kernel."""

    node: Node
    kernel: Callable[..., Any]
    writes_state: bool
    dead: tuple[str, ...]
    """Temporaries that nothing reads after this node."""


class NumpyProgram:
    def __init__(self, graph: Graph, weights: Mapping[str, TensorView], options: LoadOptions) -> None:
        self.graph = graph
        self.options = options
        self._constants: dict[str, Any] = {}
        self._cell_positions: list[Ints] = []
        self._outputs = [t.name for t in graph.of_kind("output")]
        self._make_state()
        self._stacks = self._make_weights(weights)
        self._plan = self._bind(self._stacks)
        self._blas = BlasThreads(options.threads)

    def _make_state(self) -> None:
        for tensor in self.graph.of_kind("state"):
            shape = tuple(d if isinstance(d, int) else self.options.sizes[d] for d in tensor.shape)
            if tensor.dtype == "i32":
                positions = np.full(shape, -1, np.int32)
                self._cell_positions.append(positions)
                self._constants[tensor.name] = positions
            else:
                _check_kv_type(self.options.kv_type_of(tensor.name), shape[-1])
                self._constants[tensor.name] = allocate(shape, huge_pages=False)

    def _make_weights(self, weights: Mapping[str, TensorView]) -> dict[str, Matrix]:
        """Loads every weight; returns the stacked matrices of fused products by their first output's name."""
        multiplied: dict[str, None] = {}
        stacks: dict[str, Matrix] = {}
        stacked: set[str] = set()
        for node in self.graph.nodes:
            if node.op == "matmul":
                multiplied[node.inputs[1]] = None
            elif node.op == "matmul_concat":
                names = node.inputs[1 : 1 + len(node.attrs["biased"])]
                stacks[node.outputs[0]] = Matrix([weights[n] for n in names])
                stacked.update(names)
        matrices: list[Matrix] = []
        for tensor in self.graph.of_kind("weight"):
            view = weights[tensor.name]
            if len(tensor.shape) == 1:
                self._constants[tensor.name] = view.array()
                continue
            matrix = Matrix([view])
            self._constants[tensor.name] = matrix
            if tensor.name in multiplied and tensor.name not in stacked:
                matrices.append(matrix)
        options = self.options
        budget = int(available_memory() * _MEMORY_SHARE) if options.memory is None else options.memory
        matrices = sorted([*matrices, *stacks.values()], key=lambda m: m.size)
        make_dense(matrices, budget, options.threads or cpu_count(), options.progress)
        for node in self.graph.nodes:
            if node.op == "matmul_concat":
                self._share_stack(stacks[node.outputs[0]], node)
        return stacks

    def _share_stack(self, stack: Matrix, node: Node) -> None:
        """Bodies of fused products, when they are run, use the rows of the stack."""
        at = 0
        for name, view in zip(node.inputs[1:], stack.views, strict=False):
            if stack.dense is not None:
                self._constants[name].dense = stack.dense[at : at + view.shape[0]]
            at += view.shape[0]

    def _bind(self, stacks: Mapping[str, Matrix]) -> list[_Bound]:
        bound: list[tuple[Node, Callable[..., Any]]] = []
        for node in self.graph.nodes:
            if node.op == "matmul_concat":
                sizes = [self.graph.tensors[n].shape[1] for n in node.outputs]
                bound.append((node, _concat_kernel(stacks[node.outputs[0]], sizes, node.attrs["biased"])))
            elif node.op in kernels.KERNELS:
                bound.append((node, self._kernel(node)))
            else:
                bound += [(n, self._kernel(n)) for n in node.body]
        last_reader = {name: i for i, (node, _) in enumerate(bound) for name in node.inputs}
        dead: list[list[str]] = [[] for _ in bound]
        for name, i in last_reader.items():
            if self.graph.tensors[name].kind == "temp":
                dead[i].append(name)
        return [
            _Bound(node, kernel, self.graph.tensors[node.outputs[0]].kind == "state", tuple(dead[i]))
            for i, (node, kernel) in enumerate(bound)
        ]

    def _kernel(self, node: Node) -> Callable[..., Any]:
        attrs = dict(node.attrs)
        if node.op == "kv_write":
            attrs["kv_type"] = self.options.kv_type_of(node.outputs[0])
        elif node.op == "reshape":
            attrs["shape"] = tuple(-1 if isinstance(d, str) else d for d in attrs["shape"])
        kernel = kernels.KERNELS[node.op]
        return functools.partial(kernel, **attrs) if attrs else kernel

    def run(
        self,
        inputs: Mapping[str, Array | Ints],
        *,
        interrupt: Callable[[], None] | None = None,
        trace: Trace | None = None,
    ) -> dict[str, Array]:
        if len(inputs["pos"]) > 1:
            return self._run(inputs, interrupt, trace)
        with self._blas.token():
            return self._run(inputs, interrupt, trace, self._blas.tick)

    def _run(
        self,
        inputs: Mapping[str, Array | Ints],
        interrupt: Callable[[], None] | None,
        trace: Trace | None,
        tick: Callable[[], None] | None = None,
    ) -> dict[str, Array]:
        values: dict[str, Any] = {**self._constants, **inputs}
        with np.errstate(all="ignore"):  # infinities are looked for in the logits
            for bound in self._plan:
                if interrupt is not None:
                    interrupt()
                if tick is not None:
                    tick()
                node = bound.node
                made = bound.kernel(*[values[n] for n in node.inputs])
                if not bound.writes_state:
                    if len(node.outputs) == 1:
                        values[node.outputs[0]] = made
                    else:
                        values.update(zip(node.outputs, made, strict=True))
                if trace is not None:
                    trace(node, {n: values[n] for n in node.outputs})
                for name in bound.dead:
                    values.pop(name, None)
        return {name: values[name] for name in self._outputs}

    @property
    def weight_bytes(self) -> int:
        return sum(m.nbytes for m, _ in self._products())

    @property
    def products(self) -> tuple[int, int]:
        sizes = {ROWS: 0, OUT_ROWS: 0}
        for matrix, rows in self._products():
            sizes[str(rows)] += matrix.size
        return sizes[ROWS], sizes[OUT_ROWS]

    def _products(self) -> Iterator[tuple[Matrix, Dim]]:
        """The matrices of all products, with the name of the row count of their input."""
        for bound in self._plan:
            node = bound.node
            if node.op in ("matmul", "matmul_concat"):
                matrix = self._stacks.get(node.outputs[0]) or self._constants[node.inputs[1]]
                yield matrix, self.graph.tensors[node.inputs[0]].shape[0]

    def truncate(self, slot: int, length: int) -> None:
        for positions in self._cell_positions:
            row = positions[slot]
            row[row >= length] = -1

    def save_state(self, slot: int) -> dict[str, StateArray]:
        held: dict[Dim, Ints] = {}
        made: dict[str, StateArray] = {}
        for tensor in self._state_tensors():
            state = self._constants[tensor.name][slot]
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

    def load_state(
        self, slot: int, arrays: Mapping[str, StateArray], length: int, lost: Mapping[str, int]
    ) -> None:
        tensors = self._state_tensors()
        if {t.name for t in tensors} != set(arrays):
            raise ValueError("it has other layers")
        held: dict[Dim, Ints] = {}
        for tensor in tensors:
            array, state = arrays[tensor.name], self._constants[tensor.name][slot]
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
        for tensor in tensors:
            array, state = arrays[tensor.name], self._constants[tensor.name][slot]
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

    def _state_tensors(self) -> list[Tensor]:
        """State, cell positions before the cells."""
        return sorted(self.graph.of_kind("state"), key=lambda t: t.dtype != "i32")

    def close(self) -> None:
        self._constants.clear()
        self._plan.clear()


def _concat_kernel(stack: Matrix, sizes: Sequence[Any], biased: Sequence[bool]) -> Callable[..., list[Array]]:
    ends = np.cumsum(sizes).tolist()
    n = len(ends)

    def matmul_concat(x: Array, *weights_and_biases: Any) -> list[Array]:
        y = stack.product(x)
        parts = [y[:, end - size : end] for end, size in zip(ends, sizes, strict=True)]
        biases = iter(weights_and_biases[n:])
        for part, has_bias in zip(parts, biased, strict=True):
            if has_bias:
                part += next(biases)
        return parts

    return matmul_concat


def _check_kv_type(kv_type: str, head_dim: int) -> None:
    if kv_type not in KV_TYPES:
        raise UsageError(f"KV cache type {kv_type!r} is not one of {', '.join(KV_TYPES)}")
    if kv_type.startswith("q") and head_dim % format_by_name(kv_type).block_size:
        raise UsageError(
            f"KV cache type {kv_type} needs a head dimension divisible by 32; this model has {head_dim}"
        )
