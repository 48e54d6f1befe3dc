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
    window = keys.integer("attention.sliding_window", 0, low=0) or None
    full = _full_layers(keys, c.n_layers)
    # Ollama's older files name the two rope bases differently.
    theta = keys.number("rope.freq_base", keys.number("rope.global.freq_base", 1e6))
    local_theta = keys.number("rope.freq_base_swa", keys.number("rope.local.freq_base", 10000.0))
    everywhere = replace(c.rope, theta=theta)
    # Windowed layers have a base of their own and are never scaled.
    local = replace(c.rope, theta=local_theta, scale=1.0)
    query_scale = 1 / math.sqrt(c.d_model / c.n_heads if c.n_layers == _LAYERS_27B else c.head_dim)
    x = b.embed(scale=float(np.float32(c.d_model**0.5)))
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(
            y,
            i,
            rope=everywhere if full[i] else local,
            window=None if full[i] else window,
            scale=query_scale,
            qk_norm=True,
        )
        y = b.norm(f"{p}.attn_out.normed", y, f"{p}.post_attention_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        y = b.gated_mlp(y, i, "gelu_tanh")
        y = b.norm(f"{p}.ffn_out.normed", y, f"{p}.post_ffw_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, y)
    b.head(x, softcap=keys.number("final_logit_softcapping", 0.0, low=0) or None)


def _full_layers(keys: Keys, n_layers: int) -> list[bool]:
    """Which layers see everything: each sixth, or as the file says by a period or a list of windowed layers."""
    key = "attention.sliding_window_pattern"
    pattern = keys.file.metadata.get(keys.prefix + key)
    if isinstance(pattern, (np.ndarray, list, tuple)):
        if len(pattern) != n_layers:
            raise keys.fail(key, f"{len(pattern)} values for {n_layers} layers")
        return [not windowed for windowed in pattern]
    period = keys.integer(key, 6)
    return [(i + 1) % period == 0 for i in range(n_layers)]
