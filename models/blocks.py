"""The blocks that families are made of: embedding, attention, MLPs, head. They know no family's name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wgllm.errors import ModelFileError
from wgllm.formats.model_file import ModelFile, TensorView
from wgllm.formats.views import StackedView
from wgllm.graph import OUT_ROWS, ROWS, SLOTS, GraphBuilder
from wgllm.models.config import Config
from wgllm.models.rope import Rope
from wgllm.quant import format_by_name

QkNorm = Literal["head", "heads", "row"]
"""Queries and keys are normed head by head with one weight for all, or one for each; or all heads as one row."""


@dataclass
class Blocks:
    """A graph under construction for one opened file. Names of temporaries follow the file's tensor names."""

    file: ModelFile
    config: Config
    ctx: int
    """The context that the graph is for."""

    def __post_init__(self) -> None:
        self.graph = GraphBuilder()
        self.weights: dict[str, TensorView] = {}
        """Those of the graph: tensors of the file, parts of them, and what is computed of its metadata."""
        self.used: set[str] = set()
        """Tensors of the file."""
        self.own: dict[str, TensorView] = {}
        """What weights may be, beside tensors of the file."""
        self.most_positions: int | None = None
        """How many positions the model has room for, where that is not a question of quality."""
        self.ctx_limit: int | None = None
        """Up to which context the graph would be another than beyond it."""
        for name in ("token", "pos", "slot"):
            self.graph.input(name, (ROWS,))
        self.graph.input("out_rows", (OUT_ROWS,))

    # Weights

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """Declares a tensor of the file. Raises ModelFileError when it is missing or has another shape."""
        view = self._view(name, shape)
        self.weights[name] = view
        return self.graph.weight(name, shape, view.format.name)

    def vector(self, name: str, shape: tuple[int, ...]) -> str:
        """Declares a tensor of the file as the vector of its numbers, row by row."""
        view = self._view(name, shape)
        self.weights[name] = view.flat()
        return self.graph.weight(name, (view.size,), view.format.name)

    def computed(self, name: str, values: NDArray[np.float32]) -> str:
        """Declares a vector that no file has."""
        view = TensorView(name, values.shape, format_by_name("F32"), values.view(np.uint8))
        self.weights[name] = view
        return self.graph.weight(name, values.shape, "F32")

    def split(self, name: str, sizes: Mapping[str, int], width: int) -> None:
        """Makes tensors ``name.part`` of the rows of the matrix ``name`` and of its bias, if it has one: ``sizes`` in
        order. Nothing is copied."""
        total = sum(sizes.values())
        whole = self._view(f"{name}.weight", (total, width))
        bias = self._view(f"{name}.bias", (total,)) if self.has(f"{name}.bias") else None
        first = 0
        for part, count in sizes.items():
            self.own[f"{name}.{part}.weight"] = whole.part(first, count)
            if bias is not None:
                if bias.format.block_size != 1:
                    raise ModelFileError(
                        self.file.path, f"tensor {name}.bias", "a bias should not be quantized"
                    )
                self.own[f"{name}.{part}.bias"] = bias.part(first, count)
            first += count

    def stack(self, name: str, parts: Sequence[str], shape: tuple[int, ...]) -> None:
        """Makes the tensor ``name`` [n, *shape] of n tensors of the file. Nothing is copied."""
        views = [self._view(part, shape) for part in parts]
        other = next((v for v in views if v.format is not views[0].format), None)
        if other is not None:
            problem = (
                f"is {other.format.name}, but {views[0].name} is {views[0].format.name}; they should be alike"
            )
            raise ModelFileError(self.file.path, f"tensor {other.name}", problem)
        self.own[name] = StackedView(name, views)

    def _view(self, name: str, shape: tuple[int, ...]) -> TensorView:
        view = self.own.get(name)
        if view is None:
            view = self.file.tensors.get(name)
            self.used.add(name)
        if view is None:
            raise ModelFileError(self.file.path, f"tensor {name}", "missing")
        if view.shape != shape:
            raise ModelFileError(
                self.file.path,
                f"tensor {name}",
                f"its shape is {view.shape}, expected {shape} by the metadata",
            )
        return view

    def has(self, name: str) -> bool:
        return name in self.file.tensors or name in self.own

    # Rows

    def embed(self, scale: float | None = None) -> str:
        """Token embeddings [R, d_model], multiplied by ``scale`` where a family does that."""
        c, g = self.config, self.graph
        x = g.op("embd", "embed", self.weight("token_embd.weight", (c.vocab_size, c.d_model)), "token")
        return x if scale is None else g.op("embd.scaled", "scale", x, factor=scale)

    def add_positions(self, x: str) -> str:
        """Adds the learned vector of each row's position; there are as many as the file has."""
        c, g, name = self.config, self.graph, "position_embd.weight"
        table = self.weight(name, (c.n_ctx_train, c.d_model))
        self.most_positions = c.n_ctx_train
        return self.add("embd.sum", x, g.op("embd.positions", "embed", table, "pos"))

    def norm(self, name: str, x: str, weight: str, dim: int, *, own: int = 0) -> str:
        """The norm of the family's kind; with a bias if the file has one and norms know such. ``own`` > 0 says that as
        many heads have a weight each."""
        c = self.config
        if c.norm == "rms_norm":
            w = self.weight(weight, (dim,))
            return self.graph.op(name, "rms_norm", x, w, eps=c.norm_eps, offset=c.norm_offset)
        w = self.vector(weight, (own, dim)) if own else self.weight(weight, (dim,))
        bias = f"{weight.removesuffix('.weight')}.bias"
        inputs = (w, self.weight(bias, (dim,))) if self.has(bias) else (w,)
        return self.graph.op(name, "layer_norm", x, *inputs, eps=c.norm_eps)

    def linear(
        self, name: str, x: str, weight: str, shape: tuple[int, int], *, bias: bool | None = None
    ) -> str:
        """x wᵀ, plus the bias of the same name: if the file has one (None), always (True). Shape is (out, in)."""
        y = self.graph.op(name, "matmul", x, self.weight(f"{weight}.weight", shape))
        if self.has(f"{weight}.bias") if bias is None else bias:
            y = self.graph.op(f"{name}.biased", "add", y, self.weight(f"{weight}.bias", shape[:1]))
        return y

    def add(self, name: str, a: str, b: str) -> str:
        return self.graph.op(name, "add", a, b)

    # Rope

    def with_factors(self, rope: Rope) -> Rope:
        """The rope with the frequency factors of the file: those for all contexts, or for long or for short ones."""
        if self.has("rope_freqs.weight"):
            return replace(rope, factors="rope_freqs.weight")
        kinds = {"long": "rope_factors_long.weight", "short": "rope_factors_short.weight"}
        if not any(self.has(name) for name in kinds.values()):
            return rope
        self.used.update(kinds.values())
        self.ctx_limit = rope.context
        factors = kinds["long" if self.ctx > rope.context else "short"]
        return replace(rope, factors=factors) if self.has(factors) else rope

    def _factors(self, rope: Rope) -> tuple[str, ...]:
        """The weight, if any, that holds what frequencies are divided by."""
        shape = (rope.dim // 2,)
        if rope.yarn is None:
            return (self.weight(rope.factors, shape),) if rope.factors else ()
        divisors = rope.yarn.divisors(rope.dim, rope.theta)
        if rope.factors:
            divisors = divisors * self._view(rope.factors, shape).array()
        return (self.computed(f"yarn.{rope.theta:g}", divisors),)

    # Layers

    def attention(
        self,
        x: str,
        layer: int,
        *,
        rope: Rope | None,
        scale: float | None = None,
        window: int | None = None,
        bias: bool | None = None,
        qk_norm: QkNorm | None = None,
        softcap: float | None = None,
    ) -> str:
        """Grouped-query attention over the KV state, with its output projection: [R, d_model] -> [R, d_model].

        ``scale`` defaults to 1 / √head_dim; without ``rope`` positions do not matter. Queries, keys and values are
        matrices of their own or the rows of one.
        """
        c, g, p = self.config, self.graph, f"blk.{layer}"
        counts = {"q": c.n_heads, "k": c.n_kv_heads, "v": c.n_kv_heads}
        matrix = f"{p}.attn_"
        if self.has(f"{p}.attn_qkv.weight"):
            matrix = f"{p}.attn_qkv."
            self.split(f"{p}.attn_qkv", {part: n * c.head_dim for part, n in counts.items()}, c.d_model)
        heads = {}
        for part, n in counts.items():
            width = n * c.head_dim
            y = self.linear(f"{p}.{part}", x, f"{matrix}{part}", (width, c.d_model), bias=bias)
            weight = f"{p}.attn_{part}_norm.weight"
            if qk_norm == "row" and part != "v":
                y = self.norm(f"{p}.{part}.normed", y, weight, width)
            y = g.op(f"{p}.{part}.heads", "reshape", y, shape=(ROWS, n, c.head_dim))
            if qk_norm in ("head", "heads") and part != "v":
                own = n if qk_norm == "heads" else 0
                y = self.norm(f"{p}.{part}.normed", y, weight, c.head_dim, own=own)
            heads[part] = y
        for part in ("q", "k") if rope is not None else ():
            assert rope is not None
            heads[part] = g.op(
                f"{p}.{part}.rope", "rope", heads[part], "pos", *self._factors(rope), theta=rope.theta,
                dim=rope.dim, interleaved=rope.interleaved, scale=rope.scale, magnitude=rope.magnitude,
            )  # fmt: skip
        cells = g.cells(window)
        state = (SLOTS, c.n_kv_heads, cells, c.head_dim)
        for part in ("k", "v"):
            g.write(
                g.state(f"{p}.{part}.state", state, "kv"),
                "kv_write",
                f"{p}.{part}.state",
                heads[part],
                "pos",
                "slot",
            )
        y = g.op(f"{p}.scores", "attn_scores", heads["q"], f"{p}.k.state", "slot")
        y = g.op(
            f"{p}.scores.scaled", "scale", y, factor=1 / math.sqrt(c.head_dim) if scale is None else scale
        )
        if softcap is not None:
            y = g.op(f"{p}.scores.capped", "softcap", y, cap=softcap)
        y = g.op(f"{p}.scores.masked", "mask", y, f"{cells}.pos", "pos", "slot", window=window)
        y = g.op(f"{p}.probs", "softmax", y)
        y = g.op(f"{p}.values", "attn_values", y, f"{p}.v.state", "slot")
        y = g.op(f"{p}.values.flat", "reshape", y, shape=(ROWS, c.n_heads * c.head_dim))
        return self.linear(f"{p}.attn_out", y, f"{p}.attn_output", (c.d_model, c.n_heads * c.head_dim))

    def gated_mlp(self, x: str, layer: int, activation: str) -> str:
        """down(activation(gate x) · up x): [R, d_model] -> [R, d_model]. Gate and up are matrices of their own or the
        rows of one."""
        c, g, p = self.config, self.graph, f"blk.{layer}"
        of_gate, of_up = f"{p}.ffn_gate", f"{p}.ffn_up"
        up = self.file.tensors.get(f"{of_up}.weight")
        if up is not None and up.shape[0] == 2 * c.d_ff and not self.has(f"{of_gate}.weight"):
            self.split(of_up, {"gate": c.d_ff, "up": c.d_ff}, c.d_model)
            of_gate, of_up = f"{of_up}.gate", f"{of_up}.up"
        gate = self.linear(f"{p}.gate", x, of_gate, (c.d_ff, c.d_model))
        y = self.linear(f"{p}.up", x, of_up, (c.d_ff, c.d_model))
        y = g.op(f"{p}.gated", "mul", g.op(f"{p}.gate.act", activation, gate), y)
        return self.linear(f"{p}.down", y, f"{p}.ffn_down", (c.d_model, c.d_ff))

    def mlp(self, x: str, layer: int, activation: str) -> str:
        """down(activation(up x)): [R, d_model] -> [R, d_model]."""
        c, p = self.config, f"blk.{layer}"
        y = self.linear(f"{p}.up", x, f"{p}.ffn_up", (c.d_ff, c.d_model))
        y = self.graph.op(f"{p}.up.act", activation, y)
        return self.linear(f"{p}.down", y, f"{p}.ffn_down", (c.d_model, c.d_ff))

    def head(self, x: str, *, scale: float | None = None, softcap: float | None = None) -> None:
        """Logits of the rows in ``out_rows``, through the embedding itself when the file has no output matrix."""
        c, g = self.config, self.graph
        g.layer = None
        y = g.op("last", "select_rows", x, "out_rows")
        y = self.norm("last.normed", y, "output_norm.weight", c.d_model)
        head = "output" if self.has("output.weight") else "token_embd"
        steps: list[tuple[str, tuple[str, ...], dict[str, float]]] = [
            ("matmul", (self.weight(f"{head}.weight", (c.vocab_size, c.d_model)),), {})
        ]
        if self.has("output.bias"):
            steps.append(("add", (self.weight("output.bias", (c.vocab_size,)),), {}))
        if scale is not None:
            steps.append(("scale", (), {"factor": scale}))
        if softcap is not None:
            steps.append(("softcap", (), {"cap": softcap}))
        for i, (op, inputs, attrs) in enumerate(steps, 1):
            y = g.op("logits" if i == len(steps) else f"logits.{op}", op, y, *inputs, **attrs)
        g.output(y)
