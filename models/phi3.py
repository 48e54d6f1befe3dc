"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: queries, keys and values in one matrix, gate and up in another; part of each
head may be turned, with frequency factors for long and for short contexts."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys

ARCHITECTURES = ("phi3",)


def build(b: Blocks) -> None:
    c = b.config
    keys = Keys(b.file)
    # All layers attend to it; files of models that have none say 0.
    window = keys.integer("attention.sliding_window", 0, low=0) or None
    rope = b.with_factors(c.rope)
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, b.attention(y, i, rope=rope, window=window))
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.gated_mlp(y, i, "silu"))
    b.head(x)
