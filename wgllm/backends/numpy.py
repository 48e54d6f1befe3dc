"""The reference: every operator in NumPy. This defines what is right; ``wgllm.ops`` gives the mathematics in a line.

Inputs are float32 arrays (int32 for tokens, positions and slots), weights that are matrices are ``Matrix`` objects.
KV state is [S, Hkv, C, D] with float32 cells whatever its type: values are rounded as that type would.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wgllm.backends.base import Array, Ints
from wgllm.backends.numpy_weights import Experts, Matrix
from wgllm.quant import format_by_name

# Temporaries of attention and of the gated activation are bounded to about this many numbers (1 MiB): they then stay
# in a core's cache.
_BLOCK = 1 << 18


def embed(table: Matrix, token: Ints) -> Array:
    return table.view.gather(token)


def select_rows(x: Array, out_rows: Ints) -> Array:
    return x[out_rows]


def matmul(x: Array, w: Matrix) -> Array:
    return w.product(x)


def scale(x: Array, *, factor: float) -> Array:
    return x * np.float32(factor)


def softcap(x: Array, *, cap: float) -> Array:
    y = x * np.float32(1 / cap)
    np.tanh(y, out=y)
    y *= np.float32(cap)
    return y


def silu(x: Array) -> Array:
    y = np.negative(x)
    np.exp(y, out=y)
    y += np.float32(1)
    return np.divide(x, y, out=y)


def gelu_tanh(x: Array) -> Array:
    y = x * x
    y *= x
    y *= np.float32(0.044715)
    y += x
    y *= np.float32(0.7978845608028654)  # √(2/π)
    np.tanh(y, out=y)
    y += np.float32(1)
    y *= x
    y *= np.float32(0.5)
    return y


def gelu(x: Array) -> Array:
    y = erf(x * np.float32(0.7071067811865476))  # 1 / √2
    y += np.float32(1)
    y *= x
    y *= np.float32(0.5)
    return y


# erf(x) between -4 and 4 is x P(x²) / Q(x²); a fit of least squares, the highest power first.
_ERF_P = (1.9748325e-6, 2.8804145e-4, 4.0036407e-3, 5.346746e-2, 0.19624884, 1.1283790)
_ERF_Q = (3.7480888e-5, 1.2163590e-3, 1.5444411e-2, 0.11647637, 0.50725216, 1.0)


def erf(x: Array) -> Array:
    """The error function; 4e-7 off at most, and ±1 beyond 4, as float32 has it."""
    inside = np.clip(x, np.float32(-4), np.float32(4))
    square = inside * inside
    p, q = (np.full_like(x, terms[0]) for terms in (_ERF_P, _ERF_Q))
    for y, terms in ((p, _ERF_P), (q, _ERF_Q)):
        for term in terms[1:]:
            y *= square
            y += np.float32(term)
    p *= inside
    p /= q
    return np.where(np.abs(x) < 4, p, np.sign(x))


def softmax(x: Array) -> Array:
    y: Array = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def add(a: Array, b: Array) -> Array:
    return a + b


def mul(a: Array, b: Array) -> Array:
    return a * b


def concat(*x: Array) -> Array:
    return np.concatenate(x, axis=-1)


def columns(x: Array, *, start: int, stop: int) -> Array:
    return x[..., start:stop]


def reshape(x: Array, *, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)  # a named size is -1 here: the program has put that in


def rms_norm(x: Array, w: Array, *, eps: float, offset: float) -> Array:
    if offset:
        w = w + np.float32(offset)
    if x.size == len(w):
        # One row, the case of every generated token: a dot product costs half of what the general form does.
        row = x.reshape(-1)
        y: Array = w * np.float32(1 / math.sqrt(float(row.dot(row)) / len(w) + eps))
        y *= row
        return y.reshape(x.shape)
    mean_square = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(len(w))
    y = x * (np.float32(1) / np.sqrt(mean_square + np.float32(eps)))
    y *= w
    return y


def layer_norm(x: Array, w: Array, b: Array | None = None, *, eps: float) -> Array:
    width = x.shape[-1]
    y: Array = x - x.mean(axis=-1, keepdims=True)
    # Of the differences: the mean of squares less the square of the mean cancels where x is far from zero.
    variance = np.einsum("...i,...i->...", y, y)[..., None] / np.float32(width)
    y *= np.float32(1) / np.sqrt(variance + np.float32(eps))
    y *= w if len(w) == width else w.reshape(-1, width)
    if b is not None:
        y += b
    return y


class Turns(NamedTuple):
    """What turns the rows of a step."""

    pairs: np.ndarray[Any, np.dtype[np.complex64]]
    """[R, 1, dim/2], exp(i · angle), for pairs that are neighbours."""
    cos: Array
    sin: Array
    """[R, 1, dim], for pairs half a head apart: y = cos · x + sin · (x with its halves exchanged)."""


class RopeTable:
    """The angles of one kind of rope as complex numbers, for positions up to the largest seen."""

    def __init__(
        self, dim: int, theta: float, scale: float, factors: Array | None, magnitude: float = 1.0
    ) -> None:
        # In float32 as the models were trained and as the reference computes them.
        exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        self.frequency = np.float32(1) / np.float32(theta) ** exponent  # [dim/2]
        if factors is not None:
            self.frequency = self.frequency / factors
        self.frequency = (self.frequency * np.float32(scale)).astype(np.float32)
        self.magnitude = np.float32(magnitude)
        self._turns = np.empty((0, dim // 2), np.complex64)
        self._last: tuple[Ints, Turns] | None = None

    def table(self, first: int, last: int) -> np.ndarray[Any, np.dtype[np.complex64]]:
        """What turns rows at the positions ``first:last``: [last - first, dim/2]."""
        angle = np.arange(first, last, dtype=np.float32)[:, None] * self.frequency
        table: np.ndarray[Any, np.dtype[np.complex64]] = np.cos(angle) + np.complex64(1j) * np.sin(angle)
        return table if self.magnitude == 1 else table * self.magnitude

    def turns(self, pos: Ints) -> Turns:
        """What turns the rows at ``pos``; kept, since every layer of a step asks for the same."""
        if (last := self._last) is not None and last[0] is pos:
            return last[1]
        need = int(pos.max()) + 1
        table = self._turns
        if need > len(table):
            n = max(need, 2 * len(table), 256)
            self._turns = table = self.table(0, n)
        turns = table[pos][:, None]
        cos, sin = turns.real, turns.imag
        found = Turns(turns, np.concatenate((cos, cos), axis=-1), np.concatenate((-sin, sin), axis=-1))
        self._last = (pos, found)
        return found


@functools.lru_cache(maxsize=32)
def _rope_table(dim: int, theta: float, scale: float, factors: bytes | None, magnitude: float) -> RopeTable:
    given = None if factors is None else np.frombuffer(factors, np.float32)
    return RopeTable(dim, theta, scale, given, magnitude)


def rope(
    x: Array,
    pos: Ints,
    factors: Array | None = None,
    *,
    theta: float,
    dim: int,
    interleaved: bool,
    scale: float,
    magnitude: float = 1.0,
) -> Array:
    table = _rope_table(dim, theta, scale, None if factors is None else factors.tobytes(), magnitude)
    turns = table.turns(pos)
    turned = x[..., :dim]
    if interleaved:
        y = (np.ascontiguousarray(turned).view(np.complex64) * turns.pairs).view(np.float32)
    else:
        y = np.concatenate((turned[..., dim // 2 :], turned[..., : dim // 2]), axis=-1)
        y *= turns.sin
        y += turned * turns.cos
    return y if dim == x.shape[-1] else np.concatenate((y, x[..., dim:]), axis=-1)


def cell_write(cell_pos: Ints, pos: Ints, slot: Ints) -> None:
    cell_pos[slot, pos % cell_pos.shape[1]] = pos


def kv_write(state: Array, x: Array, pos: Ints, slot: Ints, *, kv_type: str) -> None:
    if kv_type != "f32":
        x = round_as(x, kv_type)
    if len(pos) == 1:
        state[slot[0], :, pos[0] % state.shape[2]] = x[0]
    else:
        # The indexed axes are split by a slice, so that they come first: [R, Hkv, D].
        state[slot, :, pos % state.shape[2]] = x


def round_as(x: Array, kv_type: str) -> Array:
    """x rounded as storing its last axis in ``kv_type`` does."""
    if kv_type == "f16":
        return x.astype(np.float16).astype(np.float32)
    fmt = format_by_name(kv_type)
    y = np.empty_like(x, order="C")
    fmt.dequantize_blocks(fmt.quantize_blocks(x.reshape(-1, fmt.block_size)), y.reshape(-1, fmt.block_size))
    return y


def _per_slot(slot: Ints) -> list[tuple[int, slice | Ints]]:
    """The slots of a step and the rows of each."""
    first = int(slot[0])
    if len(slot) == 1 or bool((slot == first).all()):
        return [(first, slice(None))]
    return [(int(s), np.flatnonzero(slot == s).astype(np.int32)) for s in np.unique(slot)]


def attn_scores(q: Array, k: Array, slot: Ints) -> Array:
    n_rows, n_heads, _ = q.shape
    n_kv, cells = k.shape[1:3]
    y = np.empty((n_rows, n_heads, cells), np.float32)
    for s, rows in _per_slot(slot):
        for h in range(n_heads):
            y[rows, h] = q[rows, h] @ k[s, h * n_kv // n_heads].T
    return y


def mask(scores: Array, cell_pos: Ints, pos: Ints, slot: Ints, *, window: int | None) -> Array:
    return np.where(visible(cell_pos[slot], pos, window)[:, None], scores, np.float32(-np.inf))


def visible(cell_pos: Ints, pos: Ints, window: int | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which cells [R, C] (cell_pos is [C] or [R, C]) each row sees."""
    at = pos[:, None]
    seen = (cell_pos >= 0) & (cell_pos <= at)
    if window is not None:
        seen &= cell_pos > at - window
    return seen


def attn_values(p: Array, v: Array, slot: Ints) -> Array:
    n_rows, n_heads, _ = p.shape
    n_kv, _, head_dim = v.shape[1:]
    y = np.empty((n_rows, n_heads, head_dim), np.float32)
    for s, rows in _per_slot(slot):
        for h in range(n_heads):
            y[rows, h] = p[rows, h] @ v[s, h * n_kv // n_heads]
    return y


def attention(
    q: Array, k: Array, v: Array, cell_pos: Ints, pos: Ints, slot: Ints,
    *, scale: float, softcap: float | None, window: int | None,
) -> Array:  # fmt: skip
    if len(pos) == 1:
        s = slot[0]
        return _attend_row(q, k[s], v[s], cell_pos[s], int(pos[0]), scale, softcap, window)
    y = np.empty((*q.shape[:2], v.shape[3]), np.float32)
    for s, rows in _per_slot(slot):
        y[rows] = _attend_rows(q[rows], k[s], v[s], cell_pos[s], pos[rows], scale, softcap, window)
    return y


def _attend_row(
    q: Array, k: Array, v: Array, cell_pos: Ints, pos: int,
    scale: float, cap: float | None, window: int | None,
) -> Array:  # fmt: skip
    """One query row q [1, H, D] over k, v [Hkv, C, D]; all heads at once."""
    n_kv, cells, head_dim = k.shape
    seen = None
    if pos < cells:
        # Nothing has wrapped: cell c holds position c.
        low = 0 if window is None else max(0, pos - window + 1)
        k, v = k[:, low : pos + 1], v[:, low : pos + 1]
    else:
        seen = visible(cell_pos, np.array([pos], np.int32), window)[0]
    q = (q * np.float32(scale)).reshape(n_kv, -1, head_dim)  # [Hkv, G, D]
    scores: Array = np.matmul(q, k.transpose(0, 2, 1))  # [Hkv, G, n]
    if cap is not None:
        scores = softcap(scores, cap=cap)
    if seen is not None:
        scores[:, :, ~seen] = -np.inf
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    y: Array = np.matmul(scores, v)  # [Hkv, G, D]
    y /= np.add.reduce(scores, axis=-1, keepdims=True)
    return y.reshape(1, -1, v.shape[2])


def _attend_rows(
    q: Array, k: Array, v: Array, cell_pos: Ints, pos: Ints,
    scale: float, cap: float | None, window: int | None,
) -> Array:  # fmt: skip
    """Rows q [R, H, D] of one slot over k, v [Hkv, C, D], in blocks of rows whose scores stay small."""
    n_rows, n_heads, head_dim = q.shape
    n_kv, cells, _ = k.shape
    group = n_heads // n_kv
    y = np.empty((n_rows, n_heads, v.shape[2]), np.float32)
    last = int(pos[-1])
    wrapped = last >= cells
    used = cells if wrapped else last + 1
    block = max(1, min(n_rows, _BLOCK // (group * used)))
    q = q * np.float32(scale)
    for r0 in range(0, n_rows, block):
        r1 = min(n_rows, r0 + block)
        at = pos[r0:r1]
        low, high = 0, cells
        if not wrapped:
            # Cell c holds position c: keys outside low:high are seen by no row of this block.
            high = int(at[-1]) + 1
            low = 0 if window is None else max(0, int(at[0]) - window + 1)
        hidden = ~visible(cell_pos[low:high], at, window)[:, None]  # [r, 1, n]
        for h in range(n_kv):
            heads = slice(h * group, (h + 1) * group)
            scores = q[r0:r1, heads].reshape(-1, head_dim) @ k[h, low:high].T  # [r·G, n]
            if cap is not None:
                scores = softcap(scores, cap=cap)
            np.copyto(scores.reshape(r1 - r0, group, -1), np.float32(-np.inf), where=hidden)
            scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            total = np.add.reduce(scores, axis=-1, keepdims=True)
            values = scores @ v[h, low:high]
            values /= total
            y[r0:r1, heads] = values.reshape(r1 - r0, group, -1)
    return y


_ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}


def gated(gate: Array, up: Array, *, activation: str) -> Array:
    act = _ACTIVATIONS[activation]
    rows = max(1, _BLOCK // gate.shape[-1])
    if len(gate) <= rows:
        y = act(gate)
        y *= up
        return y
    y = np.empty(gate.shape, np.float32)
    for r in range(0, len(gate), rows):
        np.multiply(act(gate[r : r + rows]), up[r : r + rows], out=y[r : r + rows])
    return y


def top_experts(logits: Array, *, count: int, normalized: bool, scale: float) -> tuple[Ints, Array]:
    # Stable: of equals the first stay first.
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :count].astype(np.int32)
    if normalized:
        weights = softmax(np.take_along_axis(logits, ids, axis=-1))
    else:
        weights = np.take_along_axis(softmax(logits), ids, axis=-1)
    if scale != 1:
        weights *= np.float32(scale)
    return ids, weights


class _Sent(NamedTuple):
    """The rows of a step sent to their experts: each pair of a row and an expert, in order of the experts."""

    order: Ints
    """[R · M], numbers of pairs."""
    rows: Ints
    """[R · M], the row of x of each."""
    runs: list[tuple[int, int, int]]
    """Expert, first and last (exclusive) in ``order``."""

    def back(self, y: Array, ids: Ints) -> Array:
        """y [R · M, n] as [R, M, n], in the order of ``ids``."""
        made = np.empty_like(y)
        made[self.order] = y
        return made.reshape(*ids.shape, -1)


def _sent(ids: Ints, shared: bool) -> _Sent:
    """``shared``: a row's experts take the same row of x."""
    flat = ids.reshape(-1)
    order = np.argsort(flat, kind="stable").astype(np.int32)
    experts, firsts = np.unique(flat[order], return_index=True)
    ends = [*firsts[1:].tolist(), len(flat)]
    rows = order // ids.shape[1] if shared else order
    return _Sent(order, rows, list(zip(experts.tolist(), firsts.tolist(), ends, strict=True)))


def expert_matmul(x: Array, w: Experts, ids: Ints) -> Array:
    sent = _sent(ids, x.ndim == 2)
    return sent.back(w.products(x.reshape(-1, x.shape[-1])[sent.rows], sent.runs), ids)


def expert_gated(x: Array, gate: Experts, up: Experts, ids: Ints, *, activation: str) -> Array:
    sent = _sent(ids, shared=True)
    x = x[sent.rows]
    return sent.back(
        gated(gate.products(x, sent.runs), up.products(x, sent.runs), activation=activation), ids
    )


def weighted_sum(x: Array, weights: Array) -> Array:
    y: Array = np.matmul(weights[:, None], x)[:, 0]
    return y


def gate_rows(y: Array, x: Array, w: Array) -> Array:
    gate = np.exp(-(x @ w))
    gate += np.float32(1)
    made: Array = y / gate[:, None]
    return made


KERNELS: dict[str, Callable[..., Any]] = {
    "embed": embed,
    "select_rows": select_rows,
    "matmul": matmul,
    "scale": scale,
    "softcap": softcap,
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "softmax": softmax,
    "add": add,
    "mul": mul,
    "concat": concat,
    "columns": columns,
    "reshape": reshape,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "rope": rope,
    "cell_write": cell_write,
    "kv_write": kv_write,
    "attn_scores": attn_scores,
    "mask": mask,
    "attn_values": attn_values,
    "attention": attention,
    "gated": gated,
    "top_experts": top_experts,
    "expert_matmul": expert_matmul,
    "expert_gated": expert_gated,
    "weighted_sum": weighted_sum,
    "gate_rows": gate_rows,
}
