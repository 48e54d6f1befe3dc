"""Qwen 2, 2.5 and 3: Llama's layers; 2 has biases on queries, keys and values, 3 a norm of each head instead."""

from __future__ import annotations

from dataclasses import replace

from wgllm.models.blocks import Blocks
from wgllm.models.hf_family import ATTENTION_BIASES, LLAMA_TENSORS, PLAIN_ROPE_TYPES, HfFamily, no_window

ARCHITECTURES = ("qwen2", "qwen3")

_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}
_QWEN2 = HfFamily(
    model_types=("qwen2",),
    architecture="qwen2",
    tensors=LLAMA_TENSORS,
    keys={"attention.sliding_window": no_window},
    defaults=_DEFAULTS,
    expects={"hidden_act": ("silu", "swish")},
    rope_types=PLAIN_ROPE_TYPES,
)
_QWEN3 = replace(
    _QWEN2,
    model_types=("qwen3",),
    architecture="qwen3",
    defaults={**_DEFAULTS, "head_dim": 128},
    present=ATTENTION_BIASES,
)
HF = (_QWEN2, _QWEN3)


def build(b: Blocks) -> None:
    c = b.config
    third = c.architecture == "qwen3"
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(y, i, rope=c.rope, bias=None if third else True, qk_norm="head" if third else None)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.gated_mlp(y, i, "silu"))
    b.head(x)
