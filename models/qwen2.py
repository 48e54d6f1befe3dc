"""Qwen2 and Qwen2.5: Llama's layers with biases on queries, keys and values."""

from __future__ import annotations

from wgllm.models.blocks import Blocks

ARCHITECTURES = ("qwen2",)


def build(b: Blocks) -> None:
    c = b.config
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, b.attention(y, i, rope=c.rope, bias=True))
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.gated_mlp(y, i, "silu"))
    b.head(x)
