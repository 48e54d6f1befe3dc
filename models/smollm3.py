"""SmolLM3: Llama's layers, every fourth without rope."""

from __future__ import annotations

from wgllm.models.blocks import Blocks

ARCHITECTURES = ("smollm3",)

# Files have no key for it.
_WITHOUT_ROPE = 4


def build(b: Blocks) -> None:
    c = b.config
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(y, i, rope=None if (i + 1) % _WITHOUT_ROPE == 0 else c.rope)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.gated_mlp(y, i, "silu"))
    b.head(x)
