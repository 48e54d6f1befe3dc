"""Every operator: its name, its inputs, its shape rule, its mathematics in one line.

``wgllm.backends.numpy`` is their definition in code. Names of sizes: R rows of the step, N rows with logits, H heads,
G = H / Hkv query heads per KV head, D head dimension, S slots, C cells (the KV state's positions), V vocabulary; of
mixtures of experts A experts in all, of which each row chooses M.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Dim = int | str
Shape = tuple[Dim, ...]
ShapeRule = Callable[[Sequence[Shape], Mapping[str, Any]], list[Shape]]


@dataclass(frozen=True)
class Op:
    name: str
    signature: str
    """Inputs and outputs with shapes; ``?`` marks an optional input, ``!`` a state that is written."""
    attrs: tuple[str, ...]
    math: str
    shape: ShapeRule
    fused: bool = False
    """Stands for a body of textbook nodes; an executor may take it or run the body."""
    dtypes: tuple[str, ...] = ("f32",)
    """Of the temporaries that it makes; the last stands for all that follow."""


OPS: dict[str, Op] = {}


class ShapeError(ValueError):
    """Inputs that an operator can't take: a mistake in a family file, or a model file that lies."""


def _need(condition: bool, op: str, shapes: Sequence[Shape]) -> None:
    if not condition:
        raise ShapeError(f"{op} can't take {', '.join(map(str, shapes))}")


def _define(
    name: str,
    signature: str,
    attrs: tuple[str, ...],
    math: str,
    *,
    fused: bool = False,
    dtypes: tuple[str, ...] = ("f32",),
) -> Callable[[ShapeRule], ShapeRule]:
    def add(rule: ShapeRule) -> ShapeRule:
        OPS[name] = Op(name, signature, attrs, math, rule, fused, dtypes)
        return rule

    return add


@_define("embed", "table [V, E], token [R] -> [R, E]", (), "y[r] = table[token[r]]")
def _embed(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[0]) == 2 and len(s[1]) == 1, "embed", s)
    return [(s[1][0], s[0][1])]


@_define("select_rows", "x [R, E], out_rows [N] -> [N, E]", (), "y[i] = x[out_rows[i]]")
def _select_rows(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[0]) == 2 and len(s[1]) == 1, "select_rows", s)
    return [(s[1][0], s[0][1])]


@_define("matmul", "x [R, K], w [O, K] -> [R, O]", (), "y = x wᵀ")
def _matmul(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[0]) == 2 and len(s[1]) == 2 and s[0][1] == s[1][1], "matmul", s)
    return [(s[0][0], s[1][0])]


def _elementwise(name: str) -> ShapeRule:
    def rule(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
        _need(len(s) == 1, name, s)
        return [s[0]]

    return rule


for _name, _attrs, _math in (
    ("scale", ("factor",), "y = factor · x"),
    ("softcap", ("cap",), "y = cap · tanh(x / cap)"),
    ("silu", (), "y = x / (1 + exp(-x))"),
    ("gelu_tanh", (), "y = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))  (Hendrycks & Gimpel 2016)"),
    ("gelu", (), "y = x/2 · (1 + erf(x / √2))  (Hendrycks & Gimpel 2016)"),
    ("softmax", (), "y = exp(x - max x) / Σ exp(x - max x), over the last axis"),
):
    _define(_name, "x [...] -> [...]", _attrs, _math)(_elementwise(_name))


@_define("add", "a [..., n], b [..., n] or [n] -> [..., n]", (), "y = a + b")
def _add(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(s[0] == s[1] or (len(s[1]) == 1 and s[0][-1] == s[1][0]), "add", s)
    return [s[0]]


@_define("mul", "a [...], b [...] -> [...]", (), "y = a · b, element by element")
def _mul(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(s[0] == s[1], "mul", s)
    return [s[0]]


@_define("reshape", "x -> shape", ("shape",), "the same numbers in order, as another shape")
def _reshape(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    def counts(shape: Shape) -> tuple[list[str], int]:
        product = 1
        for d in shape:
            product *= d if isinstance(d, int) else 1
        return sorted(d for d in shape if isinstance(d, str)), product

    shape = tuple(a["shape"])
    _need(counts(s[0]) == counts(shape), "reshape", [s[0], shape])
    return [shape]


@_define(
    "rms_norm",
    "x [..., n], w [n] -> [..., n]",
    ("eps", "offset"),
    "y = x / √(mean x² + eps) · (w + offset)  (Zhang & Sennrich 2019)",
)
def _rms_norm(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[1]) == 1 and s[0][-1] == s[1][0], "rms_norm", s)
    return [s[0]]


@_define(
    "layer_norm",
    "x [..., n], w [n] or, for heads [R, H, n] that have a norm each, [H n], b? [n] -> [..., n]",
    ("eps",),
    "y = (x - mean x) / √(var x + eps) · w (+ b)  (Ba et al. 2016)",
)
def _layer_norm(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    width, heads = s[0][-1], s[0][-2]
    own = isinstance(width, int) and isinstance(heads, int) and s[1] == (heads * width,)
    _need(s[1] == (width,) or (own and len(s) == 2), "layer_norm", s)
    _need(len(s) < 3 or s[2] == (width,), "layer_norm", s)
    return [s[0]]


@_define(
    "rope",
    "x [R, H, D], pos [R], factors? [dim/2] -> [R, H, D]",
    ("theta", "dim", "interleaved", "scale", "magnitude"),
    "turns pair i of the first dim numbers by pos · scale · theta^(-2i/dim) / factors[i]  (Su et al. 2021), and"
    " multiplies it by magnitude",
)
def _rope(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    head_dim, dim = s[0][-1], a["dim"]
    _need(len(s[0]) == 3 and isinstance(head_dim, int) and dim <= head_dim and dim % 2 == 0, "rope", s)
    _need(len(s) < 3 or s[2] == (dim // 2,), "rope", s)
    return [s[0]]


@_define("cell_write", "!cell_pos [S, C], pos [R], slot [R]", (), "cell_pos[slot[r]][pos[r] mod C] = pos[r]")
def _cell_write(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[0]) == 2 and s[1] == s[2], "cell_write", s)
    return [s[0]]


@_define(
    "kv_write",
    "!state [S, Hkv, C, D], x [R, Hkv, D], pos [R], slot [R]",
    (),
    "state[slot[r], :, pos[r] mod C] = x[r], rounded to the state's type",
)
def _kv_write(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[0]) == 4 and (s[0][1], s[0][3]) == tuple(s[1][1:]) and s[2] == s[3], "kv_write", s)
    return [s[0]]


def _heads_fit(q: Shape, state: Shape) -> bool:
    h, hkv = q[1], state[1]
    return isinstance(h, int) and isinstance(hkv, int) and h % hkv == 0


@_define(
    "attn_scores",
    "q [R, H, D], k [S, Hkv, C, D], slot [R] -> [R, H, C]",
    (),
    "y[r,h,c] = q[r,h] · k[slot[r],h/G,c]",
)
def _attn_scores(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(
        len(s[0]) == 3 and len(s[1]) == 4 and s[0][2] == s[1][3] and _heads_fit(s[0], s[1]), "attn_scores", s
    )
    return [(s[0][0], s[0][1], s[1][2])]


@_define(
    "mask",
    "scores [R, H, C], cell_pos [S, C], pos [R], slot [R] -> [R, H, C]",
    ("window",),
    "y = scores where 0 <= cell_pos[slot[r],c] <= pos[r] and pos[r] - cell_pos < window (if any), else -inf",
)
def _mask(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[0]) == 3 and s[0][2] == s[1][1], "mask", s)
    return [s[0]]


@_define(
    "attn_values",
    "p [R, H, C], v [S, Hkv, C, D], slot [R] -> [R, H, D]",
    (),
    "y[r,h] = Σ_c p[r,h,c] · v[slot[r],h/G,c]",
)
def _attn_values(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(
        len(s[0]) == 3 and len(s[1]) == 4 and s[0][2] == s[1][2] and _heads_fit(s[0], s[1]), "attn_values", s
    )
    return [(s[0][0], s[0][1], s[1][3])]


@_define(
    "top_experts",
    "logits [R, A] -> ids [R, M], weights [R, M]",
    ("count", "normalized", "scale"),
    "ids[r] = the count largest logits' places, the largest first, of equals the lower; weights[r] = scale · softmax of"
    " all logits at ids[r], or of those alone where normalized  (Shazeer et al. 2017; Jiang et al. 2024)",
    dtypes=("i32", "f32"),
)
def _top_experts(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    rows, experts = s[0] if len(s[0]) == 2 else ("", 0)
    _need(isinstance(experts, int) and 0 < a["count"] <= experts, "top_experts", s)
    return [(rows, a["count"]), (rows, a["count"])]


@_define(
    "expert_matmul",
    "x [R, K] or [R, M, K], w [A, O, K], ids [R, M] -> [R, M, O]",
    (),
    "y[r,m] = x[r] w[ids[r,m]]ᵀ, or x[r,m] w[ids[r,m]]ᵀ",
)
def _expert_matmul(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    x, w, ids = s
    _need(
        len(w) == 3 and len(ids) == 2 and x in ((ids[0], w[2]), (*ids, w[2])),
        "expert_matmul",
        s,
    )
    return [(*ids, w[1])]


@_define("weighted_sum", "x [R, M, n], weights [R, M] -> [R, n]", (), "y[r] = Σ_m weights[r,m] · x[r,m]")
def _weighted_sum(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[0]) == 3 and s[1] == s[0][:2], "weighted_sum", s)
    return [(s[0][0], s[0][2])]


@_define(
    "gate_rows",
    "y [R, n], x [R, K], w [K] -> [R, n]",
    (),
    "y[r] / (1 + exp(-x[r] · w))",
)
def _gate_rows(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[0]) == 2 and len(s[1]) == 2 and s[0][0] == s[1][0] and s[2] == s[1][1:], "gate_rows", s)
    return [s[0]]


@_define("concat", "x_1 [..., n1] ... -> [..., n1 + ...]", (), "the inputs side by side")
def _concat(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    widths = [x[-1] for x in s]
    _need(all(x[:-1] == s[0][:-1] for x in s), "concat", s)
    return [(*s[0][:-1], sum(w for w in widths if isinstance(w, int)))]


@_define("columns", "x [..., n] -> [..., stop - start]", ("start", "stop"), "y = x[..., start:stop]")
def _columns(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    width = s[0][-1]
    _need(isinstance(width, int) and 0 <= a["start"] < a["stop"] <= width, "columns", s)
    return [(*s[0][:-1], a["stop"] - a["start"])]


@_define(
    "attention",
    "q [R, H, D], k [S, Hkv, C, D], v [S, Hkv, C, D], cell_pos [S, C], pos [R], slot [R] -> [R, H, D]",
    ("scale", "softcap", "window"),
    "attn_values(softmax(mask(softcap(scale · attn_scores(q, k)))), v)",
    fused=True,
)
def _attention(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(len(s[0]) == 3 and _heads_fit(s[0], s[1]) and s[1][:3] == s[2][:3], "attention", s)
    return [(s[0][0], s[0][1], s[2][3])]


@_define(
    "matmul_concat",
    "x [R, K], w_1 [O1, K] ... w_n [On, K], the biases [Oi] of those that have one -> [R, O1] ... [R, On]",
    ("biased",),
    "y_i = x w_iᵀ (+ bias_i), as one product with the stacked weights; biased says which have a bias",
    fused=True,
)
def _matmul_concat(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    weights = s[1 : 1 + len(a["biased"])]
    _need(all(len(w) == 2 and w[1] == s[0][1] for w in weights), "matmul_concat", s)
    return [(s[0][0], w[0]) for w in weights]


@_define("gated", "gate [...], up [...] -> [...]", ("activation",), "y = activation(gate) · up", fused=True)
def _gated(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(s[0] == s[1], "gated", s)
    return [s[0]]


@_define(
    "norm_matmul",
    "x [R, K], norm [K], w_1 [O1, K] ... w_n [On, K], the biases [Oi] of those that have one -> [R, O1 + ... + On]",
    ("eps", "offset", "biased"),
    "y = concat(rms_norm(x) w_iᵀ (+ bias_i)); biased says which have a bias",
    fused=True,
)
def _norm_matmul(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    weights = s[2 : 2 + len(a["biased"])]
    _need(s[1] == (s[0][1],) and all(len(w) == 2 and w[1] == s[0][1] for w in weights), "norm_matmul", s)
    return [(s[0][0], sum(w[0] for w in weights if isinstance(w[0], int)))]


@_define(
    "norm_gated",
    "x [R, K], norm [K], gate [F, K], up [F, K] -> [R, F]",
    ("eps", "offset", "activation"),
    "y = activation(rms_norm(x) gateᵀ) · (rms_norm(x) upᵀ)",
    fused=True,
)
def _norm_gated(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(s[1] == (s[0][1],) and s[2] == s[3] and s[2][1] == s[0][1], "norm_gated", s)
    return [(s[0][0], s[2][0])]


@_define(
    "matmul_row",
    "x [R, K], w_1 [O1, K] ... w_n [On, K], the biases [Oi] of those that have one -> [R, O1 + ... + On]",
    ("biased",),
    "y = concat(x w_iᵀ (+ bias_i)); biased says which have a bias",
    fused=True,
)
def _matmul_row(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    weights = s[1 : 1 + len(a["biased"])]
    _need(all(len(w) == 2 and w[1] == s[0][1] for w in weights), "matmul_row", s)
    return [(s[0][0], sum(w[0] for w in weights if isinstance(w[0], int)))]


@_define(
    "matmul_gated",
    "x [R, K], gate [F, K], up [F, K] -> [R, F]",
    ("activation",),
    "y = activation(x gateᵀ) · (x upᵀ)",
    fused=True,
)
def _matmul_gated(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(s[1] == s[2] and s[1][1] == s[0][1], "matmul_gated", s)
    return [(s[0][0], s[1][0])]


@_define(
    "matmul_row_add",
    "x [R, K], w [O, K], bias [O], residual [R, O] -> [R, O]",
    ("biased",),
    "y = residual + x wᵀ + bias",
    fused=True,
)
def _matmul_row_add(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(s[0][1] == s[1][1] and s[2] == s[1][:1] and s[3] == (s[0][0], s[1][0]), "matmul_row_add", s)
    return [s[3]]


@_define("matmul_add", "x [R, K], w [O, K], residual [R, O] -> [R, O]", (), "y = residual + x wᵀ", fused=True)
def _matmul_add(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(s[0][1] == s[1][1] and s[2] == (s[0][0], s[1][0]), "matmul_add", s)
    return [s[2]]


@_define(
    "expert_gated",
    "x [R, K], gate [A, F, K], up [A, F, K], ids [R, M] -> [R, M, F]",
    ("activation",),
    "y[r,m] = activation(x[r] gate[ids[r,m]]ᵀ) · (x[r] up[ids[r,m]]ᵀ)",
    fused=True,
)
def _expert_gated(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    x, gate, up, ids = s
    _need(len(gate) == 3 and gate == up and len(ids) == 2 and x == (ids[0], gate[2]), "expert_gated", s)
    return [(*ids, gate[1])]


@_define(
    "expert_add",
    "x [R, M, K], w [A, O, K], ids [R, M], weights [R, M], residual [R, O] -> [R, O]",
    (),
    "y[r] = residual[r] + Σ_m weights[r,m] · (x[r,m] w[ids[r,m]]ᵀ)",
    fused=True,
)
def _expert_add(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    x, w, ids, weights, residual = s
    _need(
        len(w) == 3 and x == (*ids, w[2]) and weights == ids and residual == (ids[0], w[1]), "expert_add", s
    )
    return [residual]


@_define(
    "norm_add",
    "x [..., n], w [n], residual [..., n] -> [..., n]",
    ("eps", "offset"),
    "y = residual + rms_norm(x)",
    fused=True,
)
def _norm_add(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    _need(s[0] == s[2] and s[1] == (s[0][-1],), "norm_add", s)
    return [s[0]]


@_define(
    "rope_write",
    "qkv [R, (H + 2 Hkv) D], !k [S, Hkv, C, D], !v [S, Hkv, C, D], pos [R], slot [R], norms? [D] [D], factors? [dim/2]"
    " -> q [R, H, D]",
    ("heads", "theta", "dim", "interleaved", "scale", "magnitude", "norm"),
    "k and v are written after rope (of q and k), and before that a norm (of q and k, if norm gives eps and offset)",
    fused=True,
)
def _rope_write(s: Sequence[Shape], a: Mapping[str, Any]) -> list[Shape]:
    kv_heads, head_dim = s[1][1], s[1][3]
    _need(
        isinstance(kv_heads, int)
        and isinstance(head_dim, int)
        and s[1] == s[2]
        and s[0][1] == (a["heads"] + 2 * kv_heads) * head_dim,
        "rope_write",
        s,
    )
    return [(s[0][0], a["heads"], head_dim), s[1], s[2]]
