"""Fusion: Graph → Graph. A fused node keeps the textbook nodes that it stands for as its body."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from wgllm import debug
from wgllm.graph import Graph, Node

Pass = Callable[[Graph], Graph]


def fuse(graph: Graph, fused_ops: frozenset[str]) -> Graph:
    """Applies every pass whose operator the executor takes, but for those that ``WGLLM_FUSE`` turns off."""
    off = debug.fusion_off()
    if off is None:
        return graph
    for name, one_pass in PASSES.items():
        if name in fused_ops and name not in off:
            graph = one_pass(graph)
    graph.check()
    return graph


class _Uses:
    """Who reads what in a graph: a temporary that one node reads may disappear into a fused node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.count = Counter(name for node in graph.nodes for name in node.inputs)
        self.reader = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}

    def only_reader(self, name: str) -> int | None:
        """The index of the single node that reads the temporary ``name``."""
        if self.count[name] == 1 and self.graph.tensors[name].kind == "temp":
            return self.reader[name]
        return None

    def chain(self, start: int, *steps: str) -> list[int] | None:
        """Node indices from ``start`` on along ``steps`` (``op`` or optional ``op?``), each the only reader."""
        found = [start]
        for step in steps:
            following = self.only_reader(self.graph.nodes[found[-1]].outputs[0])
            if following is not None and self.graph.nodes[following].op == step.rstrip("?"):
                found.append(following)
            elif not step.endswith("?"):
                return None
        return found


def _rewrite(graph: Graph, replaced: dict[int, Node | None]) -> Graph:
    """The graph with nodes replaced, or dropped where the replacement is None."""

    def nodes() -> Iterator[Node]:
        for i, node in enumerate(graph.nodes):
            new = replaced.get(i, node)
            if new is not None:
                yield new

    return replace(graph, nodes=tuple(nodes()))


def fuse_attention(graph: Graph) -> Graph:
    """scores · scale · softcap? · mask · softmax · values → ``attention``."""
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    for i, node in enumerate(graph.nodes):
        if node.op != "attn_scores":
            continue
        chain = uses.chain(i, "scale", "softcap?", "mask", "softmax", "attn_values")
        if chain is None:
            continue
        body = tuple(graph.nodes[j] for j in chain)
        by_op = {n.op: n for n in body}
        q, k, slot = node.inputs
        _, cell_pos, pos, _ = by_op["mask"].inputs
        attrs = {
            "scale": by_op["scale"].attrs["factor"],
            "softcap": by_op["softcap"].attrs["cap"] if "softcap" in by_op else None,
            "window": by_op["mask"].attrs["window"],
        }
        inputs = (q, k, body[-1].inputs[1], cell_pos, pos, slot)
        replaced.update(dict.fromkeys(chain[:-1]))
        replaced[chain[-1]] = Node("attention", inputs, body[-1].outputs, attrs, node.layer, body)
    return _rewrite(graph, replaced)


def fuse_parallel_matmuls(graph: Graph) -> Graph:
    """Products of one input with several weights (Q, K, V; gate, up), with their biases → ``matmul_concat``."""
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    groups: dict[str, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        if node.op == "matmul":
            groups.setdefault(node.inputs[0], []).append(i)
    for x, members in groups.items():
        if len(members) < 2:
            continue
        body: list[Node] = []
        outputs, weights, biases, biased = [], [], [], []
        for i in members:
            product = graph.nodes[i]
            last = product
            reader = uses.only_reader(product.outputs[0])
            if reader is not None and graph.nodes[reader].op == "add":
                bias = graph.nodes[reader].inputs[1]
                if graph.tensors[bias].kind == "weight":
                    last = graph.nodes[reader]
                    biases.append(bias)
                    replaced[reader] = None
            biased.append(last is not product)
            body += [product] if last is product else [product, last]
            weights.append(product.inputs[1])
            outputs.append(last.outputs[0])
            replaced[i] = None
        first = graph.nodes[members[0]]
        replaced[members[0]] = Node(
            "matmul_concat",
            (x, *weights, *biases),
            tuple(outputs),
            {"biased": tuple(biased)},
            first.layer,
            tuple(body),
        )
    return _rewrite(graph, replaced)


def fuse_gated(graph: Graph) -> Graph:
    """activation(gate) · up → ``gated``."""
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    for i, node in enumerate(graph.nodes):
        if node.op not in ("silu", "gelu_tanh"):
            continue
        chain = uses.chain(i, "mul")
        if chain is None or graph.nodes[chain[1]].inputs[0] != node.outputs[0]:
            continue
        product = graph.nodes[chain[1]]
        replaced[i] = None
        replaced[chain[1]] = Node(
            "gated",
            (node.inputs[0], product.inputs[1]),
            product.outputs,
            {"activation": node.op},
            node.layer,
            (node, product),
        )
    return _rewrite(graph, replaced)


PASSES: dict[str, Pass] = {
    "attention": fuse_attention,
    "matmul_concat": fuse_parallel_matmuls,
    "gated": fuse_gated,
}
"""By the operator that a pass makes."""
