"""StableLM 1 and 2: layer norms, rope of a part of each head; the 12B norms each head with a weight of its own and
has its MLP beside attention, not after it."""

from __future__ import annotations

from wgllm.models.blocks import Blocks, QkNorm

ARCHITECTURES = ("stablelm",)
NORM = "layer_norm"


def build(b: Blocks) -> None:
    c = b.config
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        normed = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        qk_norm: QkNorm | None = "heads" if b.has(f"{p}.attn_q_norm.weight") else None
        x = b.add(f"{p}.attn.sum", x, b.attention(normed, i, rope=c.rope, qk_norm=qk_norm))
        if b.has(f"{p}.ffn_norm.weight"):
            normed = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.gated_mlp(normed, i, "silu"))
    b.head(x)
