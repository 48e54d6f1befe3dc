"""Gemma 3 (text): norms before and after each block, QK-norm, five windowed layers to one that sees everything."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.hf_family import SANDWICH_TENSORS, HfConfig, HfFamily, query_scale, sliding_window
from wgllm.models.hf_rope import local_theta

ARCHITECTURES = ("gemma3",)


def _pattern(config: HfConfig) -> list[bool] | int | None:
    """Which layers have a window, or each how many sees everything."""
    windowed = config.windowed_layers()
    if windowed is not None:
        return windowed
    keys = ("sliding_window_pattern", "_sliding_window_pattern")
    return None if config.first(*keys) is None else config.integer(*keys)


HF = (
    HfFamily(
        model_types=("gemma3_text", "gemma3"),
        architecture="gemma3",
        tensors=SANDWICH_TENSORS,
        keys={
            "attention.sliding_window": sliding_window,
            "attention.sliding_window_pattern": _pattern,
            "attention.scale": query_scale,
            "rope.freq_base_swa": local_theta,
            "final_logit_softcapping": "final_logit_softcapping",
        },
        # A checkpoint with a vision tower leaves out of its text_config what is as in the class.
        defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "tie_word_embeddings": True,
        },
        expects={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "use_bidirectional_attention": (False,),
        },
        renames=(
            ("language_model.model.", "model."),
            ("model.language_model.", "model."),
            ("language_model.lm_head.", "lm_head."),
        ),
        skip=("*vision_tower.*", "*multi_modal_projector.*"),
        norm_offset=1.0,
    ),
)

# The 27B model alone scales its queries by d_model / n_heads, not by the head dimension; only its depth tells.
_LAYERS_27B = 62


def build(b: Blocks) -> None:
    c = b.config
    keys = Keys(b.file)
    windows = keys.windows(c.n_layers, 6)
    full = keys.full_layers(c.n_layers, 6)
    # Ollama's older files name the two rope bases differently.
    theta = keys.number("rope.freq_base", keys.number("rope.global.freq_base", 1e6))
    local_theta = keys.number("rope.freq_base_swa", keys.number("rope.local.freq_base", 10000.0))
    everywhere = replace(c.rope, theta=theta)
    # Windowed layers have a base of their own and are never scaled.
    local = replace(c.rope.plain(), theta=local_theta)
    # Where the file does not say it (GGUF), the 27B model's depth tells.
    usual = 1 / math.sqrt(c.d_model / c.n_heads if c.n_layers == _LAYERS_27B else c.head_dim)
    scale = keys.number("attention.scale", usual)
    x = b.embed(scale=float(np.float32(c.d_model**0.5)))
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(
            y,
            i,
            rope=everywhere if full[i] else local,
            window=windows[i],
            scale=scale,
            qk_norm="head",
        )
        y = b.norm(f"{p}.attn_out.normed", y, f"{p}.post_attention_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        y = b.gated_mlp(y, i, "gelu_tanh")
        y = b.norm(f"{p}.ffn_out.normed", y, f"{p}.post_ffw_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, y)
    b.head(x, softcap=keys.number("final_logit_softcapping", 0.0, low=0) or None)
