"""Falcon 7B, 40B and 180B: attention and an MLP without a gate beside each other, with one norm for both or each."""

from __future__ import annotations

from wgllm.models.blocks import Blocks

ARCHITECTURES = ("falcon",)
NORM = "layer_norm"


def build(b: Blocks) -> None:
    c = b.config
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        normed = of_attention = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        if b.has(f"{p}.attn_norm_2.weight"):
            of_attention = b.norm(f"{p}.attn_norm_2", x, f"{p}.attn_norm_2.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, b.attention(of_attention, i, rope=c.rope))
        # The models were trained with the exact form.
        x = b.add(f"{p}.ffn.sum", x, b.mlp(normed, i, "gelu"))
    b.head(x)
