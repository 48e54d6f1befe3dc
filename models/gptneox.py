"""GPT-NeoX and Pythia: layer norms, rope of a part of each head, an MLP without a gate beside attention or after it."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.hf_family import HfConfig, HfFamily, Rows, grouped_heads
from wgllm.models.hf_rope import same_rope

ARCHITECTURES = ("gptneox",)
NORM = "layer_norm"

# GPT-NeoX 20B has the approximation, Pythia the exact form.
_GELU_TANH = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")


def _activation(config: HfConfig) -> str | None:
    return "gelu_tanh" if config.get("hidden_act") in _GELU_TANH else None


def _same_base(config: HfConfig) -> None:
    """Of two different bases, versions of transformers take one or the other."""
    same_rope(config)
    base, other = config.number("rotary_emb_base"), config.number("rope_theta")
    if base is not None and other is not None and base != other:
        raise config.fail("rotary_emb_base", f"{base:g}, but rope_theta says {other:g}")


HF = (
    HfFamily(
        model_types=("gpt_neox",),
        architecture="gptneox",
        tensors={
            "gpt_neox.embed_in": "token_embd",
            "gpt_neox.final_layer_norm": "output_norm",
            "embed_out": "output",
            "lm_head": "output",
            "gpt_neox.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
            "gpt_neox.layers.{i}.attention.query_key_value": Rows(
                "blk.{i}.attn_qkv", lambda c: grouped_heads(c, c.n_heads)
            ),
            "gpt_neox.layers.{i}.attention.dense": "blk.{i}.attn_output",
            "gpt_neox.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
            "gpt_neox.layers.{i}.mlp.dense_h_to_4h": "blk.{i}.ffn_up",
            "gpt_neox.layers.{i}.mlp.dense_4h_to_h": "blk.{i}.ffn_down",
        },
        keys={
            "attention.head_count_kv": lambda c: c.n_heads,
            "hidden_activation": _activation,
            "rope.freq_base": _same_base,
            "use_parallel_residual": lambda c: c.flag("use_parallel_residual"),
        },
        defaults={
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
        },
        expects={"hidden_act": ("gelu", *_GELU_TANH)},
        rope_types=("default", "linear", "dynamic", "yarn"),
        # Older files hold the causal mask.
        skip=("*.attention.bias", "*.attention.masked_bias"),
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    keys = Keys(b.file)
    parallel = keys.boolean("use_parallel_residual", True)
    # Files have no word for it, and most models were trained with the exact form.
    activation = keys.text("hidden_activation", "gelu")
    if activation not in ("gelu", "gelu_tanh"):
        raise keys.fail("hidden_activation", f"{activation!r} is not supported (gelu and gelu_tanh are)")
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        attended = b.add(f"{p}.attn.sum", x, b.attention(y, i, rope=c.rope))
        y = b.norm(f"{p}.ffn_norm", x if parallel else attended, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", attended, b.mlp(y, i, activation))
    b.head(x)
