"""Falcon 7B, 40B and 180B: attention and an MLP without a gate beside each other, with one norm for both or each."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.hf_family import HfConfig, HfFamily, Rows, grouped_heads
from wgllm.models.hf_rope import whole_heads

ARCHITECTURES = ("falcon",)
NORM = "layer_norm"


def _kv_heads(config: HfConfig) -> int:
    """Falcon 7B has one, whatever num_kv_heads says."""
    new = config.flag("new_decoder_architecture")
    if not config.flag("parallel_attn"):
        raise config.fail("parallel_attn", "an MLP after attention is not supported for falcon")
    if not new and config.get("num_ln_in_parallel_attn") == 2:
        raise config.fail("num_ln_in_parallel_attn", "2 needs the new decoder architecture")
    if not new and config.flag("multi_query"):
        return 1
    n_heads, n_kv_heads = config.n_heads, config.n_kv_heads
    if n_heads % n_kv_heads or (not new and n_kv_heads != n_heads):
        raise config.fail("num_kv_heads", f"{n_kv_heads} makes no sense with {n_heads} heads")
    return n_kv_heads


HF = (
    HfFamily(
        model_types=("falcon",),
        architecture="falcon",
        tensors={
            "transformer.word_embeddings": "token_embd",
            "transformer.ln_f": "output_norm",
            "lm_head": "output",
            # One norm for both blocks, or one for each.
            "transformer.h.{i}.input_layernorm": "blk.{i}.attn_norm",
            "transformer.h.{i}.ln_mlp": "blk.{i}.attn_norm",
            "transformer.h.{i}.ln_attn": "blk.{i}.attn_norm_2",
            "transformer.h.{i}.self_attention.query_key_value": Rows(
                "blk.{i}.attn_qkv", lambda c: grouped_heads(c, _kv_heads(c))
            ),
            "transformer.h.{i}.self_attention.dense": "blk.{i}.attn_output",
            "transformer.h.{i}.mlp.dense_h_to_4h": "blk.{i}.ffn_up",
            "transformer.h.{i}.mlp.dense_4h_to_h": "blk.{i}.ffn_down",
        },
        keys={
            "attention.head_count_kv": _kv_heads,
            "feed_forward_length": lambda c: (
                4 * c.d_model if c.get("ffn_hidden_size") is None else c.integer("ffn_hidden_size")
            ),
            "rope.dimension_count": whole_heads,
        },
        defaults={
            "layer_norm_epsilon": 1e-5,
            "max_position_embeddings": 2048,
            "multi_query": True,
            "parallel_attn": True,
            "tie_word_embeddings": True,
        },
        expects={
            "activation": ("gelu",),
            "alibi": (False,),
            "apply_residual_connection_post_layernorm": (False,),
        },
        rope_types=("default", "linear", "dynamic", "yarn"),
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        normed = of_attention = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        if b.has(f"{p}.attn_norm_2.weight"):
            of_attention = b.norm(f"{p}.attn_norm_2", x, f"{p}.attn_norm_2.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, b.attention(of_attention, i, rope=c.rope))
        # The models were trained with the exact form.
        x = b.add(f"{p}.ffn.sum", x, b.mlp(normed, i, "gelu"))
    b.head(x)
