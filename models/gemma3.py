"""Gemma 3 (text): norms before and after each block, QK-norm, five windowed layers to one that sees everything."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys

ARCHITECTURES = ("gemma3",)

# The 27B model alone scales its queries by d_model / n_heads, not by the head dimension; only its depth tells.
_LAYERS_27B = 62


def build(b: Blocks) -> None:
    c = b.config
    keys = Keys(b.file)
    window = keys.integer("attention.sliding_window")
    period = keys.integer("attention.sliding_window_pattern", 6)
    # Windowed layers have a rope base of their own and are never scaled.
    local = replace(c.rope, theta=keys.number("rope.freq_base_swa", 10000.0), scale=1.0)
    query_scale = 1 / math.sqrt(c.d_model / c.n_heads if c.n_layers == _LAYERS_27B else c.head_dim)
    x = b.embed(scale=float(np.float32(c.d_model**0.5)))
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        full = (i + 1) % period == 0
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(
            y,
            i,
            rope=c.rope if full else local,
            window=None if full else window,
            scale=query_scale,
            qk_norm=True,
        )
        y = b.norm(f"{p}.attn_out.normed", y, f"{p}.post_attention_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        y = b.gated_mlp(y, i, "gelu_tanh")
        y = b.norm(f"{p}.ffn_out.normed", y, f"{p}.post_ffw_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, y)
    b.head(x)
