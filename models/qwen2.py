"""Qwen2 and Qwen2.5: Llama's layers with biases on queries, keys and values."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.hf_family import LLAMA_TENSORS, HfFamily, no_window

ARCHITECTURES = ("qwen2",)

HF = (
    HfFamily(
        model_types=("qwen2",),
        architecture="qwen2",
        tensors=LLAMA_TENSORS,
        keys={"attention.sliding_window": no_window},
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "max_window_layers": 28,
            "tie_word_embeddings": False,
        },
        expects={"hidden_act": ("silu", "swish")},
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, b.attention(y, i, rope=c.rope, bias=True))
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.gated_mlp(y, i, "silu"))
    b.head(x)
