"""Gemma 1 and 2: scaled embeddings, a GELU-gated MLP; 2 has norms after each block too, softcaps, and every second
layer attends to a window."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.hf_family import (
    ATTENTION_BIASES,
    LLAMA_TENSORS,
    PLAIN_ROPE_TYPES,
    SANDWICH_TENSORS,
    HfConfig,
    HfFamily,
    query_scale,
)

ARCHITECTURES = ("gemma", "gemma2")


def _window(config: HfConfig) -> int | None:
    """The window, which Gemma 2 has by its class: only a list of layers says that none is needed."""
    windowed = config.windowed_layers()
    return None if windowed is not None and not any(windowed) else config.integer("sliding_window")


def _cap(key: str) -> Callable[[HfConfig], float]:
    """A softcap; null says that there is none, where GGUF's graph has one by itself."""

    def cap(config: HfConfig) -> float:
        return 0.0 if config.get(key) is None else config.positive(key)

    return cap


HF = (
    HfFamily(
        model_types=("gemma",),
        architecture="gemma",
        tensors=LLAMA_TENSORS,
        defaults={
            "num_key_value_heads": 16,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
        # The first checkpoints say "gelu" and mean its approximation by tanh (transformers' issue 29402).
        expects={
            "hidden_act": ("gelu_pytorch_tanh", "gelu", "gelu_new"),
            "hidden_activation": ("gelu_pytorch_tanh", "gelu_new"),
            "use_bidirectional_attention": (False,),
        },
        rope_types=PLAIN_ROPE_TYPES,
        norm_offset=1.0,
        present=ATTENTION_BIASES,
    ),
    HfFamily(
        model_types=("gemma2",),
        architecture="gemma2",
        tensors=SANDWICH_TENSORS,
        keys={
            "attention.sliding_window": _window,
            "attention.sliding_window_pattern": lambda c: c.windowed_layers(),
            "attention.scale": query_scale,
            "attn_logit_softcapping": _cap("attn_logit_softcapping"),
            "final_logit_softcapping": _cap("final_logit_softcapping"),
        },
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        },
        expects={
            "hidden_activation": ("gelu_pytorch_tanh", "gelu_new"),
            "use_bidirectional_attention": (False,),
        },
        rope_types=PLAIN_ROPE_TYPES,
        norm_offset=1.0,
        present=ATTENTION_BIASES,
    ),
)

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
    # What a checkpoint says goes before what the depth tells.
    scale = keys.number("attention.scale", 1 / math.sqrt(per_head))
    x = b.embed(scale=float(np.float32(c.d_model**0.5)))
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(y, i, rope=c.rope, window=windows[i], scale=scale, softcap=scores_cap)
        if second:
            y = b.norm(f"{p}.attn_out.normed", y, f"{p}.post_attention_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        y = b.gated_mlp(y, i, "gelu_tanh")
        if second:
            y = b.norm(f"{p}.ffn_out.normed", y, f"{p}.post_ffw_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, y)
    b.head(x, softcap=logits_cap)
