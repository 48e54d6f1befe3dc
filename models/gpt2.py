"""GPT-2: learned positions, layer norms, queries, keys and values in one matrix, an MLP without a gate."""

from __future__ import annotations

from wgllm.models.blocks import Blocks

ARCHITECTURES = ("gpt2",)
NORM = "layer_norm"


def build(b: Blocks) -> None:
    c = b.config
    x = b.add_positions(b.embed())
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, b.attention(y, i, rope=None))
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.mlp(y, i, "gelu_tanh"))
    b.head(x)
