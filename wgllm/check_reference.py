"""What a node should make of its inputs, by the textbook operators in NumPy, and how far it may be from that.

Every number comes with a *size*: what its error is divided by, so that one tolerance per operator decides. The size
follows what rounding does: of a product Σ |x w|, of most operators the largest number of the row. In the body of a
fused node, whose temporaries nobody sees, the sizes of inputs go into those of outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wgllm.backends import numpy as kernels
from wgllm.backends.base import Array, Ints
from wgllm.formats.model_file import TensorView
from wgllm.graph import Node

HIDDEN = np.float32(np.finfo(np.float32).min)
"""What a shader's mask makes of scores that are not to be seen, where NumPy's makes -inf."""

# Numbers of a weight dequantized at a time.
_PIECE = 1 << 22
# Numbers that share a scale in every block format.
_GROUP = 32

Value = Any
"""An array, or the TensorView of a matrix."""


class Made(NamedTuple):
    want: Any
    """float32, or int32 for ids of experts."""
    size: Array
    """Broadcasts to ``want``."""


def make(node: Node, inputs: Mapping[str, Value]) -> list[Made]:
    """What each output of a node that writes no state should be."""
    if node.op == "top_experts":
        ids, weights = kernels.top_experts(inputs[node.inputs[0]], **node.attrs)
        return [Made(ids, np.ones_like(weights)), Made(weights, _largest(weights))]
    if not node.body:
        return [_make(node, [inputs[n] for n in node.inputs], [None] * len(node.inputs))]
    made = make_body(node, inputs)
    return [made[name] for name in node.outputs]


def make_body(node: Node, inputs: Mapping[str, Value]) -> dict[str, Made]:
    """What the nodes of a fused one's body make, by name; but for state."""
    made: dict[str, Made] = {}
    for inner in node.body:
        if inner.op != "kv_write":
            args = [made[n].want if n in made else inputs[n] for n in inner.inputs]
            grown = [made[n].size if n in made else None for n in inner.inputs]
            made[inner.outputs[0]] = _make(inner, args, grown)
    return made


def _make(node: Node, args: Sequence[Value], grown: Sequence[Array | None]) -> Made:
    """``grown``: the sizes of the inputs that are not exact."""
    if node.op == "matmul":
        return _product(*args)
    if node.op == "expert_matmul":
        return _expert_product(*args)
    if node.op == "embed":
        want = args[0].gather(args[1])
        return Made(want, _largest_of_group(want))
    attrs = dict(node.attrs)
    if node.op == "reshape":
        attrs["shape"] = tuple(-1 if isinstance(d, str) else d for d in attrs["shape"])
    want = kernels.KERNELS[node.op](*args, **attrs)
    return Made(want, _size(node, args, grown, want))


def _product(x: Array, w: TensorView) -> Made:
    rows, width = w.shape
    want, size = (np.empty((len(x), rows), np.float32) for _ in range(2))
    step = max(1, _PIECE // width)
    for first in range(0, rows, step):
        part = w.rows(first, min(rows, first + step))
        np.matmul(x, part.T, out=want[:, first : first + len(part)])
        np.matmul(np.abs(x), np.abs(part).T, out=size[:, first : first + len(part)])
    return Made(want, size)


def _expert_product(x: Array, w: TensorView, ids: Ints) -> Made:
    height, width = w.shape[1:]
    x = np.broadcast_to(x.reshape(len(x), -1, width), (*ids.shape, width))
    want, size = (np.empty((*ids.shape, height), np.float32) for _ in range(2))
    for expert in np.unique(ids):
        mine = ids == expert
        part = w.rows(expert * height, (expert + 1) * height)
        want[mine], size[mine] = x[mine] @ part.T, np.abs(x[mine]) @ np.abs(part).T
    return Made(want, size)


def _size(node: Node, args: Sequence[Value], grown: Sequence[Array | None], want: Array) -> Array:
    x, first = args[0], grown[0]
    size: Array
    match node.op:
        case "reshape":
            size = (
                np.zeros_like(want) if first is None else np.broadcast_to(first, x.shape).reshape(want.shape)
            )
        case "columns":
            size = np.zeros_like(want)
            if first is not None:
                size = kernels.columns(np.broadcast_to(first, x.shape), **node.attrs)
        case "concat":
            sizes = (np.zeros_like(a) if g is None else g for a, g in zip(args, grown, strict=True))
            size = np.concatenate(
                [np.broadcast_to(g, a.shape) for g, a in zip(sizes, args, strict=True)], axis=-1
            )
        case "add":
            a, b = (np.abs(x) if g is None else g for x, g in zip(args, grown, strict=True))
            size = a + b
        case "mul":
            size = np.abs(want)
            for other, g in zip(reversed(args), grown, strict=True):
                if g is not None:
                    size = size + g * np.abs(other)
        case "scale":
            size = (np.abs(x) if first is None else first) * np.float32(abs(node.attrs["factor"]))
        case "weighted_sum":
            size = kernels.weighted_sum(np.abs(x) if first is None else first, np.abs(args[1]))
        case "gate_rows":
            # The gate is off by some of its long sum, and no slope of it is above 1/4.
            long = np.abs(args[1]) @ np.abs(args[2])
            size = np.abs(want) * (1 + long[:, None])
        case "softcap":
            # Of small numbers too tanh may be off by some of what it makes of large ones.
            size = np.full_like(want, node.attrs["cap"]) if first is None else first + node.attrs["cap"]
        case "silu" | "gelu_tanh" | "gelu":
            # Where 1 + tanh cancels, the error is one of x.
            size = _largest(x) if first is None else first + np.abs(x)
        case "layer_norm":
            # What is left of numbers far from zero when their mean is taken away has their rounding.
            spread = np.sqrt(x.var(axis=-1, keepdims=True) + np.float32(node.attrs["eps"]))
            size = _largest(x) / spread * np.abs(args[1].reshape(-1, x.shape[-1]))
            if len(args) > 2:
                size = size + np.abs(args[2])
        case "attn_scores":
            size = kernels.attn_scores(np.abs(x), np.abs(args[1]), args[2])
        case "mask":
            size = np.ones_like(want) if first is None else np.where(want > HIDDEN, first, 0)
        case "softmax":
            # exp makes relative errors of absolute ones.
            size = _largest(want) if first is None else want * (1 + first.max(axis=-1, keepdims=True))
        case "attn_values":
            size = kernels.attn_values(np.abs(x) if first is None else first, np.abs(args[1]), args[2])
        case _:
            size = _largest(want)
    return size


def _largest(x: Array) -> Array:
    """Of each row [..., 1], infinities and NaNs left out."""
    size: Array = np.where(np.isfinite(x), np.abs(x), 0).max(axis=-1, keepdims=True)
    return size


def _largest_of_group(x: Array) -> Array:
    """Of each 32 numbers of a row, which share a scale."""
    width = x.shape[-1]
    groups = np.pad(x, ((0, 0), (0, -width % _GROUP))).reshape(len(x), -1, _GROUP)
    return _largest(groups).repeat(_GROUP, axis=-1).reshape(len(x), -1)[:, :width]


class Written(NamedTuple):
    """What a step should write to a KV state: [R, Hkv, D], with errors counted in steps of the state's type."""

    want: Array
    step: Array


def written(x: Array, kv_type: str) -> Written:
    want = x if kv_type == "f32" else kernels.round_as(x, kv_type)
    step: Array
    if kv_type in ("q8_0", "q4_0"):
        steps = np.float32(127 if kv_type == "q8_0" else 8)
        step = _largest_of_group(want.reshape(-1, want.shape[-1])).reshape(want.shape) / steps
    else:
        # Numbers that are subnormal in float16 may become 0.
        step = (np.abs(want).clip(min=np.float32(2.0**-4)) * np.float32(2.0**-10)).astype(np.float32)
    return Written(want, step)


def lacks_cells(cell_pos: Ints, pos: Ints, slot: Ints, window: int | None, seen: int) -> bool:
    """Whether a row sees a cell beyond the first ``seen``."""
    return bool(kernels.visible(cell_pos[slot][:, seen:], pos, window).any())
