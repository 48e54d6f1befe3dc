"""The blocks that families are made of: embedding, attention, gated MLP, head. They know no family's name."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wgllm.errors import ModelFileError
from wgllm.formats.model_file import ModelFile
from wgllm.graph import OUT_ROWS, ROWS, SLOTS, GraphBuilder
from wgllm.models.config import Config, Rope
from wgllm.quant import QuantFormat


@dataclass
class Blocks:
    """A graph under construction for one opened file. Names of temporaries follow the file's tensor names."""

    file: ModelFile
    config: Config

    def __post_init__(self) -> None:
        self.graph = GraphBuilder()
        for name in ("token", "pos", "slot"):
            self.graph.input(name, (ROWS,))
        self.graph.input("out_rows", (OUT_ROWS,))

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """Declares a tensor of the file. Raises ModelFileError when it is missing or has another shape."""
        view = self.file.tensors.get(name)
        if view is None:
            raise ModelFileError(self.file.path, f"tensor {name}", "missing")
        if view.shape != shape:
            raise ModelFileError(
                self.file.path,
                f"tensor {name}",
                f"its shape is {view.shape}, expected {shape} by the metadata",
            )
        fmt: QuantFormat = view.format
        return self.graph.weight(name, shape, fmt.name)

    def has(self, name: str) -> bool:
        return name in self.file.tensors

    def embed(self, scale: float | None = None) -> str:
        """Token embeddings [R, d_model], multiplied by ``scale`` where a family does that."""
        c, g = self.config, self.graph
        x = g.op("embd", "embed", self.weight("token_embd.weight", (c.vocab_size, c.d_model)), "token")
        return x if scale is None else g.op("embd.scaled", "scale", x, factor=scale)

    def norm(self, name: str, x: str, weight: str, dim: int) -> str:
        c = self.config
        return self.graph.op(
            name, "rms_norm", x, self.weight(weight, (dim,)), eps=c.norm_eps, offset=c.norm_offset
        )

    def linear(
        self, name: str, x: str, weight: str, shape: tuple[int, int], *, bias: bool | None = None
    ) -> str:
        """x wᵀ, plus the bias of the same name: if the file has one (None), always (True). Shape is (out, in)."""
        y = self.graph.op(name, "matmul", x, self.weight(f"{weight}.weight", shape))
        if self.has(f"{weight}.bias") if bias is None else bias:
            y = self.graph.op(f"{name}.biased", "add", y, self.weight(f"{weight}.bias", shape[:1]))
        return y

    def attention(
        self,
        x: str,
        layer: int,
        *,
        rope: Rope,
        scale: float | None = None,
        window: int | None = None,
        bias: bool | None = None,
        qk_norm: bool = False,
        softcap: float | None = None,
        factors: str | None = None,
    ) -> str:
        """Grouped-query attention over the KV state, with its output projection: [R, d_model] -> [R, d_model].

        ``scale`` defaults to 1 / √head_dim; ``factors`` is a weight of rope frequency factors.
        """
        c, g, p = self.config, self.graph, f"blk.{layer}"
        sizes = {"q": c.n_heads, "k": c.n_kv_heads, "v": c.n_kv_heads}
        heads = {}
        for part, n in sizes.items():
            flat = self.linear(f"{p}.{part}", x, f"{p}.attn_{part}", (n * c.head_dim, c.d_model), bias=bias)
            heads[part] = g.op(f"{p}.{part}.heads", "reshape", flat, shape=(ROWS, n, c.head_dim))
        for part in ("q", "k"):
            if qk_norm:
                heads[part] = self.norm(
                    f"{p}.{part}.normed", heads[part], f"{p}.attn_{part}_norm.weight", c.head_dim
                )
            extra = (factors,) if factors else ()
            heads[part] = g.op(
                f"{p}.{part}.rope", "rope", heads[part], "pos", *extra,
                theta=rope.theta, dim=rope.dim, interleaved=rope.interleaved, scale=rope.scale,
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
        """down(activation(gate x) · up x): [R, d_model] -> [R, d_model]."""
        c, g, p = self.config, self.graph, f"blk.{layer}"
        gate = self.linear(f"{p}.gate", x, f"{p}.ffn_gate", (c.d_ff, c.d_model))
        up = self.linear(f"{p}.up", x, f"{p}.ffn_up", (c.d_ff, c.d_model))
        gate = g.op(f"{p}.gate.act", activation, gate)
        y = g.op(f"{p}.gated", "mul", gate, up)
        return self.linear(f"{p}.down", y, f"{p}.ffn_down", (c.d_model, c.d_ff))

    def add(self, name: str, a: str, b: str) -> str:
        return self.graph.op(name, "add", a, b)

    def head(self, x: str, *, softcap: float | None = None) -> None:
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
        if softcap is not None:
            steps.append(("softcap", (), {"cap": softcap}))
        for i, (op, inputs, attrs) in enumerate(steps, 1):
            y = g.op("logits" if i == len(steps) else f"logits.{op}", op, y, *inputs, **attrs)
        g.output(y)
