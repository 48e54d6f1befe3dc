"""GLM-4: norms before and after each block, rope of a part of each head, gate and up in one matrix."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.hf_family import ATTENTION_TENSORS, HfFamily

ARCHITECTURES = ("glm4",)

HF = (
    HfFamily(
        model_types=("glm4",),
        architecture="glm4",
        tensors=ATTENTION_TENSORS
        | {
            "model.layers.{i}.post_self_attn_layernorm": "blk.{i}.post_attention_norm",
            "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
            "model.layers.{i}.mlp.gate_up_proj": "blk.{i}.ffn_up",
            "model.layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
            "model.layers.{i}.post_mlp_layernorm": "blk.{i}.post_ffw_norm",
        },
        defaults={
            "num_key_value_heads": 2,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1.5625e-7,
            "partial_rotary_factor": 0.5,
            "tie_word_embeddings": False,
        },
        expects={"hidden_act": ("silu", "swish")},
        rope_interleaved=True,
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(y, i, rope=c.rope)
        y = b.norm(f"{p}.attn_out.normed", y, f"{p}.post_attention_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        y = b.norm(f"{p}.ffn_out.normed", b.gated_mlp(y, i, "silu"), f"{p}.post_ffw_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, y)
    b.head(x)
