"""The computation of a model as data: tensors, nodes in order, graphs, and the builder that family files use.

A graph is the *textbook*: every step of the mathematics is a node of its own. Fusion (wgllm.fuse) turns graphs into
graphs whose fused nodes keep the textbook nodes they stand for as their ``body``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby
from typing import Any, Literal, TypeVar

from wgllm import ops
from wgllm.ops import Shape

T = TypeVar("T")
Kind = Literal["weight", "state", "input", "temp", "output"]

ROWS = "rows"
"""Rows of a step (R)."""
OUT_ROWS = "out_rows"
"""Rows of a step that get logits (n)."""
SLOTS = "slots"
"""Sequences that the KV state has room for."""


@dataclass(frozen=True)
class Tensor:
    """A value of the graph. ``shape`` may hold names of sizes that are known only when it is loaded or run."""

    name: str
    kind: Kind
    shape: Shape
    dtype: str
    """``f32``, ``i32``; for weights the file's format (``Q4_K``), for KV state ``kv`` until it is loaded."""


@dataclass(frozen=True)
class Node:
    """One operation. A state tensor that is written stands among the inputs and the outputs."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    layer: int | None = None
    """The transformer layer it belongs to, for messages and for cutting a graph between layers."""
    body: tuple[Node, ...] = ()
    """For a fused node: the textbook nodes that define it."""


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    windows: Mapping[str, int | None]
    """Name of a cell count (a ring's size) → the attention window it must hold, None for the whole context."""

    def of_kind(self, kind: Kind) -> Iterator[Tensor]:
        return (t for t in self.tensors.values() if t.kind == kind)

    def share_read(self, node: Node, rows: int = 1) -> Fraction:
        """How much of its matrices a node reads for so many rows, at most: of experts as many as can be chosen."""
        read = [self.tensors[name] for name in node.inputs]
        experts = next((t.shape[0] for t in read if t.kind == "weight" and len(t.shape) == 3), None)
        counts = [t.shape[1] for t in read if t.dtype == "i32" and t.kind != "state" and len(t.shape) == 2]
        if not isinstance(experts, int) or not counts or not isinstance(counts[0], int):
            return Fraction(1)
        return Fraction(min(experts, rows * counts[0]), experts)

    def check(self) -> None:
        """Raises ValueError when a node reads what nothing has made, or an operator's shape rule is broken."""
        known = {t.name for t in self.tensors.values() if t.kind in ("weight", "state", "input")}
        for node in self.nodes:
            for name in node.inputs:
                if name not in known:
                    raise ValueError(f"{node.op}: {name} is read before it is made")
            for inner in node.body:
                self._check_shapes(inner)
            self._check_shapes(node)
            known.update(node.outputs)

    def _check_shapes(self, node: Node) -> None:
        shapes = ops.OPS[node.op].shape([self.tensors[n].shape for n in node.inputs], node.attrs)
        declared = [self.tensors[n].shape for n in node.outputs]
        if declared != shapes:
            raise ValueError(f"{node.op} {node.outputs}: shapes are {shapes}, declared {declared}")

    def cut(self, layer: int) -> tuple[Graph, Graph]:
        """Two graphs: what comes before ``layer``'s first node, and the rest.

        What the second reads of the first becomes an output there and an input here: the boundary of two segments.
        """
        at = next((i for i, n in enumerate(self.nodes) if n.layer is not None and n.layer >= layer), None)
        if not at:
            raise ValueError(f"nothing to cut before layer {layer}")
        (_, first), (_, rest) = self.split([i >= at for i in range(len(self.nodes))])
        return first, rest

    def split(self, where: Sequence[T]) -> list[tuple[T, Graph]]:
        """A graph for each run of nodes that belong to the same place, by ``where`` [nodes], in order.

        Raises ValueError for KV state that two places would have to share.
        """
        runs = [
            (place, tuple(n for _, n in run))
            for place, run in groupby(zip(where, self.nodes, strict=True), key=lambda item: item[0])
        ]
        homes: dict[str, int] = {}
        # Which position each cell holds is state that every segment keeps for itself.
        positions = {n.outputs[0]: n for n in self.nodes if n.op == "cell_write"}
        made: list[tuple[T, Graph]] = []
        for i, (place, nodes) in enumerate(runs):
            touched = dict.fromkeys(
                name for n in nodes for name in n.inputs if self.tensors[name].kind == "state"
            )
            shared = tuple(positions[s] for s in touched if s in positions and positions[s] not in nodes)
            for state in touched:
                if state not in positions and homes.setdefault(state, i) != i:
                    raise ValueError(f"two segments would share {state}")
            later = tuple(n for _, others in runs[i + 1 :] for n in others)
            made.append((place, self._part(shared + nodes, later)))
        return made

    def _part(self, nodes: tuple[Node, ...], later: tuple[Node, ...]) -> Graph:
        """The graph of ``nodes`` alone, when ``later`` run elsewhere afterwards."""
        made = {o for n in nodes for o in n.outputs}
        read_later = {i for n in later for i in n.inputs}
        tensors: dict[str, Tensor] = {}
        for name in _names(nodes):
            tensor = self.tensors[name]
            if tensor.kind == "temp" and name in made and name in read_later:
                tensor = replace(tensor, kind="output")
            elif tensor.kind == "temp" and name not in made:
                tensor = replace(tensor, kind="input")
            tensors[name] = tensor
        cells = {d for t in tensors.values() for d in t.shape if isinstance(d, str)}
        return Graph(nodes, tensors, {c: w for c, w in self.windows.items() if c in cells})


def _names(nodes: Iterable[Node]) -> dict[str, None]:
    """Every tensor that the nodes, and the bodies of fused ones, name; in order of appearance."""
    names: dict[str, None] = {}
    for node in nodes:
        names.update(dict.fromkeys((*node.inputs, *node.outputs)))
        names.update(_names(node.body))
    return names


class GraphBuilder:
    """Builds a graph node by node. Every method of an operator returns the name of what it makes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.windows: dict[str, int | None] = {}
        self.layer: int | None = None

    def input(self, name: str, shape: Shape, dtype: str = "i32") -> str:
        return self._declare(Tensor(name, "input", shape, dtype))

    def weight(self, name: str, shape: tuple[int, ...], dtype: str) -> str:
        return self._declare(Tensor(name, "weight", shape, dtype))

    def state(self, name: str, shape: Shape, dtype: str) -> str:
        return self._declare(Tensor(name, "state", shape, dtype))

    def cells(self, window: int | None) -> str:
        """The name of the cell count of layers with this window; its state of cell positions comes with it."""
        name = "cells" if window is None else f"cells.w{window}"
        if name not in self.windows:
            self.windows[name] = window
            self.state(f"{name}.pos", (SLOTS, name), "i32")
            layer, self.layer = self.layer, None
            self.write(f"{name}.pos", "cell_write", f"{name}.pos", "pos", "slot")
            self.layer = layer
        return name

    def op(self, name: str, op: str, *inputs: str, **attrs: Any) -> str:
        """Adds a node that makes the temporary ``name``."""
        (made,) = self.several((name,), op, *inputs, **attrs)
        return made

    def several(self, names: tuple[str, ...], op: str, *inputs: str, **attrs: Any) -> tuple[str, ...]:
        """Adds a node that makes all temporaries ``names``."""
        made = ops.OPS[op]
        shapes = made.shape([self.tensors[i].shape for i in inputs], attrs)
        for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            self._declare(Tensor(name, "temp", shape, made.dtypes[min(i, len(made.dtypes) - 1)]))
        self.nodes.append(Node(op, inputs, names, attrs, self.layer))
        return names

    def write(self, state: str, op: str, *inputs: str, **attrs: Any) -> None:
        """Adds a node that changes ``state`` (which its inputs name too)."""
        self.nodes.append(Node(op, inputs, (state,), attrs, self.layer))

    def output(self, name: str) -> None:
        """Declares a temporary to be a result of the graph."""
        self.tensors[name] = replace(self.tensors[name], kind="output")

    def build(self) -> Graph:
        graph = Graph(tuple(self.nodes), dict(self.tensors), dict(self.windows))
        graph.check()
        return graph

    def _declare(self, tensor: Tensor) -> str:
        known = self.tensors.setdefault(tensor.name, tensor)
        if known != tensor:
            raise ValueError(f"{tensor.name} is declared twice: {known} and {tensor}")
        return tensor.name
