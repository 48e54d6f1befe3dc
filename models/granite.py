"""Granite 3: Llama's layers with factors for embeddings, attention, residuals and logits."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.hf_family import ATTENTION_BIASES, LLAMA_TENSORS, ROPE_TYPES, HfFamily

ARCHITECTURES = ("granite",)

HF = (
    HfFamily(
        model_types=("granite",),
        architecture="granite",
        tensors=LLAMA_TENSORS,
        keys={
            "embedding_scale": lambda c: c.positive("embedding_multiplier"),
            "residual_scale": lambda c: c.positive("residual_multiplier"),
            "attention.scale": lambda c: c.positive("attention_multiplier"),
            "logit_scale": lambda c: c.positive("logits_scaling"),
        },
        defaults={
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
            "tie_word_embeddings": False,
        },
        expects={"hidden_act": ("silu", "swish")},
        rope_types=(*ROPE_TYPES, "llama3"),
        present={
            **ATTENTION_BIASES,
            **{f"blk.{{i}}.ffn_{part}.bias": lambda c: c.flag("mlp_bias") for part in ("gate", "up", "down")},
        },
    ),
)


def build(b: Blocks) -> None:
    c, g = b.config, b.graph
    keys = Keys(b.file)
    # 0, as where there is no such key, leaves numbers as they are.
    embedding, residual, attention = (
        keys.number(key, 0.0, low=0) or None
        for key in ("embedding_scale", "residual_scale", "attention.scale")
    )
    logits = 1 / keys.number("logit_scale")
    # The key's name is about something else; it is how files say that positions do not matter.
    rope = b.with_factors(c.rope) if keys.boolean("rope.scaling.finetuned", True) else None

    def added(name: str, x: str, y: str) -> str:
        if residual is not None:
            y = g.op(f"{name}.scaled", "scale", y, factor=residual)
        return b.add(f"{name}.sum", x, y)

    x = b.embed(scale=embedding)
    for i in range(c.n_layers):
        g.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        x = added(f"{p}.attn", x, b.attention(y, i, rope=rope, scale=attention))
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = added(f"{p}.ffn", x, b.gated_mlp(y, i, "silu"))
    b.head(x, scale=logits)
