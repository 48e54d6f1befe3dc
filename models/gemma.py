"""Gemma 1 and 2: scaled embeddings, a GELU-gated MLP; 2 has norms after each block too, softcaps, and every second
layer attends to a window."""

from __future__ import annotations

import math

import numpy as np

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys

ARCHITECTURES = ("gemma", "gemma2")

# The 27B model alone scales its queries by d_model / n_heads, not by the head dimension; only its depth tells.
_LAYERS_27B = 46


def build(b: Blocks) -> None:
    c = b.config
    keys = Keys(b.file)
    second = c.architecture == "gemma2"
    windows: list[int | None] = [None] * c.n_layers
    scores_cap = logits_cap = None
    if second:
        windows = keys.windows(c.n_layers, 2, 4096)
        scores_cap = keys.number("attn_logit_softcapping", 50.0, low=0) or None
        logits_cap = keys.number("final_logit_softcapping", 30.0, low=0) or None
    per_head = c.d_model / c.n_heads if second and c.n_layers == _LAYERS_27B else c.head_dim
    x = b.embed(scale=float(np.float32(c.d_model**0.5)))
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(
            y, i, rope=c.rope, window=windows[i], scale=1 / math.sqrt(per_head), softcap=scores_cap
        )
        if second:
            y = b.norm(f"{p}.attn_out.normed", y, f"{p}.post_attention_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        y = b.gated_mlp(y, i, "gelu_tanh")
        if second:
            y = b.norm(f"{p}.ffn_out.normed", y, f"{p}.post_ffw_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, y)
    b.head(x, softcap=logits_cap)
