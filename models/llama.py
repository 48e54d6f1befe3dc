"""Llama 1 to 3.3, SmolLM2, Mistral, Mixtral: RMS norms, rope, grouped-query attention, SiLU-gated MLP or experts."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.experts import expert_mlp, read_mixture
from wgllm.models.hf_family import (
    EXPERT_KEYS,
    EXPERT_TENSORS,
    LLAMA_TENSORS,
    ROPE_TYPES,
    HfFamily,
    same_window,
)

ARCHITECTURES = ("llama",)

_MIXTRAL_TENSORS = EXPERT_TENSORS | {
    "model.layers.{i}.block_sparse_moe.gate": "blk.{i}.ffn_gate_inp",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w1": "blk.{i}.ffn_gate_exps",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w2": "blk.{i}.ffn_down_exps",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w3": "blk.{i}.ffn_up_exps",
}

HF = (
    HfFamily(
        model_types=("llama",),
        architecture="llama",
        tensors=LLAMA_TENSORS,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "tie_word_embeddings": False},
        expects={"hidden_act": ("silu", "swish")},
        rope_types=(*ROPE_TYPES, "llama3"),
    ),
    HfFamily(
        model_types=("mistral",),
        architecture="llama",
        tensors=LLAMA_TENSORS,
        keys={"attention.sliding_window": same_window},
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 4096 * 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
        },
        expects={"hidden_act": ("silu", "swish")},
        rope_types=(*ROPE_TYPES, "llama3"),
    ),
    HfFamily(
        model_types=("mixtral",),
        architecture="llama",
        tensors=_MIXTRAL_TENSORS,
        # Experts are as wide as the configuration's one width.
        keys={k: v for k, v in EXPERT_KEYS.items() if "feed_forward" not in k}
        | {"attention.sliding_window": same_window},
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096 * 32,
            "num_key_value_heads": 8,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
        },
        expects={"hidden_act": ("silu", "swish")},
        rope_types=(*ROPE_TYPES, "llama3"),
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    keys = Keys(b.file)
    mixture = read_mixture(b, normalized=True, d_ff=c.d_ff)
    # Mistral 7B v0.1 attends to a window; Llama files have no such key.
    window = keys.integer("attention.sliding_window", 0, low=0) or None
    rope = b.with_factors(c.rope)
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(y, i, rope=rope, window=window)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        y = expert_mlp(b, y, i, "silu", mixture) if mixture.experts else b.gated_mlp(y, i, "silu")
        x = b.add(f"{p}.ffn.sum", x, y)
    b.head(x)
