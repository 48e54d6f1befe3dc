"""StableLM 1 and 2: layer norms, rope of a part of each head; the 12B norms each head with a weight of its own and
has its MLP beside attention, not after it."""

from __future__ import annotations

from wgllm.models.blocks import Blocks, QkNorm
from wgllm.models.hf_family import LLAMA_TENSORS, PLAIN_ROPE_TYPES, HfFamily

ARCHITECTURES = ("stablelm",)
NORM = "layer_norm"

HF = (
    HfFamily(
        model_types=("stablelm",),
        architecture="stablelm",
        tensors=LLAMA_TENSORS
        | {
            "model.layers.{i}.self_attn.q_layernorm.norms.{e}": "blk.{i}.attn_q_norm",
            "model.layers.{i}.self_attn.k_layernorm.norms.{e}": "blk.{i}.attn_k_norm",
        },
        defaults={
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "partial_rotary_factor": 0.25,
            "layer_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        expects={"hidden_act": ("silu", "swish")},
        rope_types=PLAIN_ROPE_TYPES,
        present={
            **{f"blk.{{i}}.attn_{part}.bias": lambda c: c.flag("use_qkv_bias") for part in "qkv"},
            **{f"blk.{{i}}.attn_{part}_norm.weight": lambda c: c.flag("qk_layernorm") for part in "qk"},
            "blk.{i}.ffn_norm.weight": lambda c: not c.flag("use_parallel_residual"),
        },
    ),
)


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
