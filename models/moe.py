"""Qwen3-MoE, Qwen2-MoE and OLMoE: the layers of Qwen and OLMo with mixtures of experts for MLPs."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.experts import has_experts, read_mixture, shared_mlp, some_mlp
from wgllm.models.hf_family import (
    EXPERT_KEYS,
    EXPERT_TENSORS,
    LLAMA_TENSORS,
    NORMALIZED_KEYS,
    HfConfig,
    HfFamily,
    Source,
    dense_layers,
    never_window,
)

ARCHITECTURES = ("olmoe", "qwen2moe", "qwen3moe")

_KEYS: dict[str, Source] = {
    **EXPERT_KEYS,
    **NORMALIZED_KEYS,
    "attention.sliding_window": never_window,
    "dense_layers": dense_layers,
}
_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
_SILU = {"hidden_act": ("silu", "swish")}


def _no_clip(config: HfConfig) -> None:
    if (bound := config.get("clip_qkv")) is not None:
        raise config.fail("clip_qkv", f"{bound!r}: clamped queries, keys and values are not supported")


HF = (
    HfFamily(
        model_types=("qwen3_moe",),
        architecture="qwen3moe",
        tensors=EXPERT_TENSORS | LLAMA_TENSORS,
        keys={k: v for k, v in _KEYS.items() if "shared" not in k},
        defaults={
            **_DEFAULTS,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        expects=_SILU | {"attention_bias": (False,)},
    ),
    HfFamily(
        model_types=("qwen2_moe",),
        architecture="qwen2moe",
        tensors=EXPERT_TENSORS
        | LLAMA_TENSORS
        | {
            "model.layers.{i}.mlp.shared_expert_gate": "blk.{i}.ffn_gate_inp_shexp",
            "model.layers.{i}.mlp.shared_expert.gate_proj": "blk.{i}.ffn_gate_shexp",
            "model.layers.{i}.mlp.shared_expert.up_proj": "blk.{i}.ffn_up_shexp",
            "model.layers.{i}.mlp.shared_expert.down_proj": "blk.{i}.ffn_down_shexp",
        },
        keys=_KEYS,
        defaults={
            **_DEFAULTS,
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        expects=_SILU | {"qkv_bias": (True,)},
    ),
    HfFamily(
        model_types=("olmoe",),
        architecture="olmoe",
        tensors=EXPERT_TENSORS,
        # Experts are as wide as the configuration's one width.
        keys={k: v for k, v in EXPERT_KEYS.items() if "feed_forward" not in k}
        | NORMALIZED_KEYS
        | {"attention.clamp_kqv": _no_clip},
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "tie_word_embeddings": False,
        },
        expects=_SILU | {"attention_bias": (False,)},
    ),
)


def build(b: Blocks) -> None:
    c, keys = b.config, Keys(b.file)
    shared = keys.integer("expert_shared_feed_forward_length", 0, low=0)
    if not keys.integer("expert_count", 0, low=0):
        raise keys.fail("expert_count", "missing")
    if c.architecture == "olmoe" and keys.number("attention.clamp_kqv", 0.0, low=0):
        raise keys.fail("attention.clamp_kqv", "clamped queries, keys and values are not supported")
    # What checkpoints say (`norm_topk_prob`) where the file says nothing; llama.cpp takes the same for granted.
    mixture = read_mixture(
        b, normalized=c.architecture == "qwen3moe", d_ff=c.d_ff if c.architecture == "olmoe" else 0
    )
    # Files say by their tensors which layers have no experts; config.json says it as well.
    dense = b.file.metadata.get(f"{keys.prefix}dense_layers")
    if isinstance(dense, list):
        for i in range(c.n_layers):
            if has_experts(b, i) == (i in dense):
                problem = f"layer {i} should have {'no ' if i in dense else ''}experts by the configuration"
                raise keys.fail("dense_layers", problem)
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        if c.architecture == "qwen2moe":
            y = b.attention(y, i, rope=c.rope, bias=True)
        else:
            y = b.attention(y, i, rope=c.rope, qk_norm="head" if c.architecture == "qwen3moe" else "row")
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        if c.architecture == "qwen2moe" and b.has(f"{p}.ffn_gate_inp_shexp.weight"):
            x = b.add(f"{p}.shared.sum", x, shared_mlp(b, y, i, "silu", shared or c.d_ff))
        x = b.add(f"{p}.ffn.sum", x, some_mlp(b, y, i, "silu", mixture))
    b.head(x)
