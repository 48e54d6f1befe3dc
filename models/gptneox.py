"""GPT-NeoX and Pythia: layer norms, rope of a part of each head, an MLP without a gate beside attention or after it."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys

ARCHITECTURES = ("gptneox",)
NORM = "layer_norm"


def build(b: Blocks) -> None:
    c = b.config
    parallel = Keys(b.file).boolean("use_parallel_residual", True)
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        attended = b.add(f"{p}.attn.sum", x, b.attention(y, i, rope=c.rope))
        y = b.norm(f"{p}.ffn_norm", x if parallel else attended, f"{p}.ffn_norm.weight", c.d_model)
        # The models were trained with the exact form.
        x = b.add(f"{p}.ffn.sum", attended, b.mlp(y, i, "gelu"))
    b.head(x)
