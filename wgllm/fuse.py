"""Fusion: Graph → Graph. A fused node keeps the textbook nodes that it stands for as its body."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from typing import Any

from wgllm import debug
from wgllm.graph import Graph, Node, Tensor

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


def unfused(graph: Graph, known: Container[str]) -> Graph:
    """The graph with the bodies of fused nodes in place of those whose operators are not ``known``."""
    nodes = (n for node in graph.nodes for n in (node.body if node.op not in known else ()) or (node,))
    return replace(graph, nodes=tuple(nodes))


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
        found = self.follow(self.graph.nodes[start].outputs[0], *steps)
        return None if found is None else [start, *found]

    def follow(self, name: str, *steps: str) -> list[int] | None:
        """Like ``chain``, from the temporary ``name`` on."""
        found: list[int] = []
        for step in steps:
            following = self.only_reader(name)
            if following is not None and self.graph.nodes[following].op == step.rstrip("?"):
                found.append(following)
                name = self.graph.nodes[following].outputs[0]
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
    groups: dict[tuple[str, int], list[int]] = {}
    attended = 0
    for i, node in enumerate(graph.nodes):
        attended += node.op in ("attention", "attn_scores")
        if node.op == "matmul":
            # An MLP beside attention reads what queries, keys and values are made of, and is a group of its own.
            groups.setdefault((node.inputs[0], attended), []).append(i)
    for (x, _), members in groups.items():
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


def fuse_norm_gated(graph: Graph) -> Graph:
    """rms_norm · matmul_concat(gate, up) · gated → ``norm_gated``."""
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    for i, node in enumerate(graph.nodes):
        if node.op != "rms_norm":
            continue
        chain = uses.chain(i, "matmul_concat", "gated")
        if chain is None:
            continue
        product, gated = graph.nodes[chain[1]], graph.nodes[chain[2]]
        formats = {graph.tensors[name].dtype for name in product.inputs[1:]}
        if any(product.attrs["biased"]) or product.outputs != gated.inputs or len(formats) > 1:
            continue
        x, norm = node.inputs
        attrs = {**node.attrs, "activation": gated.attrs["activation"]}
        inputs = (x, norm, *product.inputs[1:])
        body = (node, *product.body, *gated.body)
        replaced.update(dict.fromkeys(chain[:-1]))
        replaced[chain[-1]] = Node("norm_gated", inputs, gated.outputs, attrs, gated.layer, body)
    return _rewrite(graph, replaced)


def fuse_matmul_gated(graph: Graph) -> Graph:
    """matmul_concat(gate, up) · gated → ``matmul_gated``, where ``norm_gated`` takes no norm with them."""
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    for i, node in enumerate(graph.nodes):
        chain = uses.chain(i, "gated") if node.op == "matmul_concat" else None
        if chain is None:
            continue
        gated = graph.nodes[chain[1]]
        formats = {graph.tensors[name].dtype for name in node.inputs[1:]}
        if any(node.attrs["biased"]) or node.outputs != gated.inputs or len(formats) > 1:
            continue
        body = (*node.body, *gated.body)
        replaced[i] = None
        replaced[chain[1]] = Node("matmul_gated", node.inputs, gated.outputs, gated.attrs, gated.layer, body)
    return _rewrite(graph, replaced)


def fuse_rope_write(graph: Graph) -> Graph:
    """rms_norm? · matmul_concat(q, k, v) · reshape · norms? · rope? · kv_write → ``norm_matmul``, or ``matmul_row``
    where others read the norm too or it is of another kind, and ``rope_write``."""
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    tensors = dict(graph.tensors)
    norms_at = {n.outputs[0]: i for i, n in enumerate(graph.nodes) if n.op == "rms_norm"}
    for i, product in enumerate(graph.nodes):
        if product.op != "matmul_concat" or len(product.outputs) != 3:
            continue
        q, k, v = product.outputs
        paths = (
            uses.follow(q, "reshape", "rms_norm?", "rope?"),
            uses.follow(k, "reshape", "rms_norm?", "rope?", "kv_write"),
            uses.follow(v, "reshape", "kv_write"),
        )
        if paths[0] is None or paths[1] is None or paths[2] is None:
            continue
        of_q, of_k, of_v = ([graph.nodes[j] for j in path or ()] for path in paths)
        shared = _rope_attrs(of_q, of_k)
        if shared is None:
            continue
        x = product.inputs[0]
        qkv = f"{x}.qkv"
        widths = [tensors[name].shape[1] for name in product.outputs]
        ends = [sum(w for w in widths[: n + 1] if isinstance(w, int)) for n in range(3)]
        tensors[qkv] = Tensor(qkv, "temp", (tensors[q].shape[0], ends[2]), "f32")
        joined = Node("concat", product.outputs, (qkv,), {}, product.layer)
        parts = [
            Node("columns", (qkv,), (name,), {"start": start, "stop": stop}, product.layer)
            for name, start, stop in zip(product.outputs, (0, *ends), ends, strict=False)
        ]
        if x in norms_at and uses.only_reader(x) == i:
            norm = graph.nodes[norms_at[x]]
            replaced[norms_at[x]] = None
            replaced[i] = _norm_matmul(norm, product, (qkv,), (norm, *product.body, joined))
        else:
            body = (*product.body, joined)
            replaced[i] = Node("matmul_row", product.inputs, (qkv,), product.attrs, product.layer, body)
        body = (*parts, *of_q, *of_k, *of_v)
        norms = tuple(n.inputs[1] for n in (*of_q, *of_k) if n.op == "rms_norm")
        factors = of_q[-1].inputs[2:] if of_q[-1].op == "rope" else ()
        (k_state, _, pos, slot), v_state = of_k[-1].inputs, of_v[-1].inputs[0]
        nodes = [j for path in paths for j in path or ()]
        replaced.update(dict.fromkeys(nodes))
        replaced[max(nodes)] = Node(
            "rope_write",
            (qkv, k_state, v_state, pos, slot, *norms, *factors),
            (of_q[-1].outputs[0], k_state, v_state),
            {"heads": tensors[of_q[-1].outputs[0]].shape[1], **shared},
            product.layer,
            body,
        )
    return _rewrite(replace(graph, tensors=tensors), replaced)


def _norm_matmul(norm: Node, product: Node, outputs: tuple[str, ...], body: tuple[Node, ...]) -> Node:
    """``product`` is a matmul or a matmul_concat of what ``norm`` makes."""
    attrs = {**norm.attrs, "biased": product.attrs.get("biased", (False,))}
    return Node("norm_matmul", (*norm.inputs, *product.inputs[1:]), outputs, attrs, product.layer, body)


# Of heads that are not turned.
_NO_ROPE = {"theta": 1.0, "dim": 0, "interleaved": False, "scale": 1.0, "magnitude": 1.0}


def _rope_attrs(of_q: list[Node], of_k: list[Node]) -> dict[str, Any] | None:
    """What the ways of q and k have in common; None when they differ."""
    ropes = [next((n for n in path if n.op == "rope"), None) for path in (of_q, of_k)]
    norms = [next((n for n in path if n.op == "rms_norm"), None) for path in (of_q, of_k)]
    turns = [(_NO_ROPE, ()) if n is None else (dict(n.attrs), n.inputs[1:]) for n in ropes]
    normed = [None if n is None else dict(n.attrs) for n in norms]
    return {**turns[0][0], "norm": normed[0]} if turns[0] == turns[1] and normed[0] == normed[1] else None


def fuse_norm_matmul(graph: Graph) -> Graph:
    """rms_norm · matmul → ``norm_matmul``: the last norm and the head."""
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    for i, node in enumerate(graph.nodes):
        chain = uses.chain(i, "matmul") if node.op == "rms_norm" else None
        if chain is not None:
            product = graph.nodes[chain[1]]
            replaced[i] = None
            replaced[chain[1]] = _norm_matmul(node, product, product.outputs, (node, product))
    return _rewrite(graph, replaced)


def fuse_matmul_row(graph: Graph) -> Graph:
    """matmul · add, of a product and its bias → ``matmul_row``; those of a ``matmul_concat`` that is left too."""
    nodes = [n for node in graph.nodes for n in (node.body if node.op == "matmul_concat" else (node,))]
    graph = replace(graph, nodes=tuple(nodes))
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    for i, node in enumerate(graph.nodes):
        chain = uses.chain(i, "add") if node.op == "matmul" else None
        if chain is None:
            continue
        add = graph.nodes[chain[1]]
        bias = add.inputs[1]
        if graph.tensors[bias].kind == "weight":
            replaced[i] = None
            inputs = (*node.inputs, bias)
            replaced[chain[1]] = Node(
                "matmul_row", inputs, add.outputs, {"biased": (True,)}, add.layer, (node, add)
            )
    return _rewrite(graph, replaced)


def fuse_expert_gated(graph: Graph) -> Graph:
    """expert_matmul(gate) and expert_matmul(up) of the same rows and experts · gated → ``expert_gated``."""
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    made_by = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs}
    for i, node in enumerate(graph.nodes):
        if node.op != "gated":
            continue
        parts = [made_by.get(name) for name in node.inputs if uses.only_reader(name) == i]
        products = [graph.nodes[j] for j in parts if j is not None and graph.nodes[j].op == "expert_matmul"]
        if len(products) < 2:
            continue
        (x, gate, ids), (other, up, other_ids) = (n.inputs for n in products)
        weights = [graph.tensors[name] for name in (gate, up)]
        alike = (x, ids) == (other, other_ids) and len(graph.tensors[x].shape) == 2
        if not alike or weights[0].dtype != weights[1].dtype:
            continue
        replaced.update(dict.fromkeys(j for j in parts if j is not None))
        body = (*products, *node.body)
        replaced[i] = Node("expert_gated", (x, gate, up, ids), node.outputs, node.attrs, node.layer, body)
    return _rewrite(graph, replaced)


def fuse_expert_add(graph: Graph) -> Graph:
    """expert_matmul · weighted_sum · add, of another temporary → ``expert_add``."""
    uses, replaced = _Uses(graph), dict[int, Node | None]()
    for i, node in enumerate(graph.nodes):
        chain = uses.chain(i, "weighted_sum", "add") if node.op == "expert_matmul" else None
        if chain is None or len(graph.tensors[node.inputs[0]].shape) != 3:
            continue
        total, add = graph.nodes[chain[1]], graph.nodes[chain[2]]
        if node.outputs[0] != total.inputs[0]:
            continue
        (residual,) = (n for n in add.inputs if n != total.outputs[0])
        if graph.tensors[residual].shape == graph.tensors[total.outputs[0]].shape:
            replaced.update(dict.fromkeys(chain[:-1]))
            inputs = (*node.inputs, total.inputs[1], residual)
            body = (node, total, add)
            replaced[chain[2]] = Node("expert_add", inputs, add.outputs, {}, add.layer, body)
    return _rewrite(graph, replaced)


def _fuse_residual(op: str, fused: str) -> Pass:
    """``op`` · add, of what ``op`` makes and another temporary → ``fused``."""

    def one_pass(graph: Graph) -> Graph:
        uses, replaced = _Uses(graph), dict[int, Node | None]()
        for i, node in enumerate(graph.nodes):
            chain = uses.chain(i, "add") if node.op == op else None
            if chain is None:
                continue
            add = graph.nodes[chain[1]]
            (residual,) = (n for n in add.inputs if n != node.outputs[0])
            if graph.tensors[residual].shape == graph.tensors[node.outputs[0]].shape:
                replaced[i] = None
                inputs = (*node.inputs, residual)
                body = (*(node.body or (node,)), add)
                replaced[chain[1]] = Node(fused, inputs, add.outputs, node.attrs, add.layer, body)
        return _rewrite(graph, replaced)

    return one_pass


PASSES: dict[str, Pass] = {
    "attention": fuse_attention,
    "matmul_concat": fuse_parallel_matmuls,
    "gated": fuse_gated,
    "norm_gated": fuse_norm_gated,
    "matmul_gated": fuse_matmul_gated,
    "rope_write": fuse_rope_write,
    "norm_matmul": fuse_norm_matmul,
    "matmul_row": fuse_matmul_row,
    "matmul_add": _fuse_residual("matmul", "matmul_add"),
    "matmul_row_add": _fuse_residual("matmul_row", "matmul_row_add"),
    "norm_add": _fuse_residual("rms_norm", "norm_add"),
    "expert_gated": fuse_expert_gated,
    "expert_add": fuse_expert_add,
}
"""By the operator that a pass makes, in their order: some take what others have made."""
