"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: queries, keys and values in one matrix, gate and up in another; part of each
head may be turned, with frequency factors for long and for short contexts."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.hf_family import LLAMA_TENSORS, HfConfig, HfFamily

ARCHITECTURES = ("phi3",)


def _window(config: HfConfig) -> int | None:
    return None if config.get("sliding_window") is None else config.integer("sliding_window")


_SPLIT = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "gate_proj", "up_proj")

HF = (
    HfFamily(
        model_types=("phi3",),
        architecture="phi3",
        tensors={name: rule for name, rule in LLAMA_TENSORS.items() if not name.endswith(_SPLIT)}
        | {
            "model.layers.{i}.self_attn.qkv_proj": "blk.{i}.attn_qkv",
            "model.layers.{i}.mlp.gate_up_proj": "blk.{i}.ffn_up",
        },
        keys={"attention.sliding_window": _window},
        defaults={
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        expects={"hidden_act": ("silu", "swish"), "attention_bias": (False,)},
        # transformers takes "yarn" for LongRoPE here, which no checkpoint needs, and refuses the others.
        rope_types=("default", "longrope"),
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    keys = Keys(b.file)
    # All layers attend to it; files of models that have none say 0.
    window = keys.integer("attention.sliding_window", 0, low=0) or None
    rope = b.with_factors(c.rope)
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, b.attention(y, i, rope=rope, window=window))
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.gated_mlp(y, i, "silu"))
    b.head(x)
