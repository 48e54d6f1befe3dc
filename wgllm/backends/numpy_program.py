"""The NumPy executor: a graph's nodes bound to kernels, run in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from wgllm.backends import numpy as kernels
from wgllm.backends.base import Array, Ints, LoadOptions, Trace
from wgllm.backends.blas_threads import BlasThreads
from wgllm.backends.kv_state import KeepsState
from wgllm.backends.numpy_state import NumpyState
from wgllm.backends.numpy_weights import Experts, Matrix, Workers, available_memory, cpu_count, make_dense
from wgllm.formats.model_file import TensorView
from wgllm.fuse import fuse
from wgllm.graph import OUT_ROWS, ROWS, Graph, Node
from wgllm.ops import Dim

# Of the memory that is free at loading, less what the KV state will take, weights get at most this share.
_MEMORY_SHARE = 0.8


class NumpyExecutor:
    """Runs graphs on the CPU in float32."""

    fused_ops = frozenset({"attention", "matmul_concat", "gated", "expert_gated"})

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


class NumpyProgram(KeepsState[NumpyState]):
    backend = "numpy"

    def __init__(self, graph: Graph, weights: Mapping[str, TensorView], options: LoadOptions) -> None:
        self.graph = graph
        self.options = options
        self._outputs = [t.name for t in graph.of_kind("output")]
        self._interrupt: Callable[[], None] | None = None
        self._state = NumpyState(graph, options)
        self._constants: dict[str, Any] = dict(self._state.arrays)
        self._workers = Workers(options.threads or cpu_count(), self._pause)
        self._stacks = self._make_weights(weights)
        self._plan = self._bind(self._stacks)
        self._blas = BlasThreads(options.threads)

    def _make_weights(self, weights: Mapping[str, TensorView]) -> dict[str, Matrix]:
        """Loads every weight; returns the stacked matrices of fused products by their first output's name."""
        multiplied: dict[str, None] = {}
        stacks: dict[str, Matrix] = {}
        stacked: set[str] = set()
        for node in self.graph.nodes:
            if node.op == "matmul":
                multiplied[node.inputs[1]] = None
            elif node.op in ("expert_matmul", "expert_gated"):
                multiplied.update(
                    dict.fromkeys(n for n in node.inputs if len(self.graph.tensors[n].shape) == 3)
                )
            elif node.op == "matmul_concat":
                names = node.inputs[1 : 1 + len(node.attrs["biased"])]
                stacks[node.outputs[0]] = Matrix([weights[n] for n in names], self._workers)
                stacked.update(names)
        matrices: list[Matrix] = []
        for tensor in self.graph.of_kind("weight"):
            view = weights[tensor.name]
            if len(tensor.shape) == 1:
                self._constants[tensor.name] = view.array()
                continue
            matrix = Experts(view, self._workers) if len(tensor.shape) == 3 else Matrix([view], self._workers)
            self._constants[tensor.name] = matrix
            if tensor.name in multiplied and tensor.name not in stacked:
                matrices.append(matrix)
        options = self.options
        budget = options.memory
        if budget is None:
            budget = max(0, int((available_memory() - self._state.nbytes) * _MEMORY_SHARE))
        matrices = sorted([*matrices, *stacks.values()], key=lambda m: m.size)
        make_dense(matrices, budget, self._workers.threads, options.progress)
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

    def steps_ahead(self) -> None:
        return None

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
        self._interrupt = interrupt
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
        return sum(int(m.nbytes * share) for m, _, share in self._products())

    @property
    def head_bytes(self) -> int:
        return sum(m.nbytes for m, rows, _ in self._products() if rows == OUT_ROWS)

    @property
    def products(self) -> tuple[int, int]:
        sizes = {ROWS: 0, OUT_ROWS: 0}
        for matrix, rows, share in self._products():
            sizes[str(rows)] += int(matrix.size * share)
        return sizes[ROWS], sizes[OUT_ROWS]

    def _products(self) -> Iterator[tuple[Matrix, Dim, Fraction]]:
        """The matrices of all products, the name of the row count of their input, and the share that a row reads."""
        for bound in self._plan:
            node = bound.node
            rows = self.graph.tensors[node.inputs[0]].shape[0]
            if node.op in ("matmul", "matmul_concat"):
                yield self._stacks.get(node.outputs[0]) or self._constants[node.inputs[1]], rows, Fraction(1)
            elif node.op in ("expert_matmul", "expert_gated"):
                for name in node.inputs:
                    if isinstance(matrix := self._constants.get(name), Experts):
                        yield matrix, rows, self.graph.share_read(node)

    def _pause(self) -> None:
        """Within a long node: gives the step up when it was interrupted."""
        if self._interrupt is not None:
            self._interrupt()

    def close(self) -> None:
        self._plan.clear()
        self._constants.clear()
        self._stacks.clear()
        self._state.arrays.clear()
        self._workers.close()
        self._blas.restore()


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
