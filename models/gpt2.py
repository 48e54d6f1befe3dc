"""GPT-2: learned positions, layer norms, queries, keys and values in one matrix, an MLP without a gate."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.hf_family import HfConfig, HfFamily, Rule, Transposed

ARCHITECTURES = ("gpt2",)
NORM = "layer_norm"

_TENSORS: dict[str, Rule] = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "h.{i}.ln_1": "blk.{i}.attn_norm",
    "h.{i}.attn.c_attn": Transposed("blk.{i}.attn_qkv"),
    "h.{i}.attn.c_proj": Transposed("blk.{i}.attn_output"),
    "h.{i}.ln_2": "blk.{i}.ffn_norm",
    "h.{i}.mlp.c_fc": Transposed("blk.{i}.ffn_up"),
    "h.{i}.mlp.c_proj": Transposed("blk.{i}.ffn_down"),
    "lm_head": "output",
}


def _d_ff(config: HfConfig) -> int:
    return 4 * config.d_model if config.get("n_inner") is None else config.integer("n_inner")


HF = (
    HfFamily(
        model_types=("gpt2",),
        architecture="gpt2",
        tensors=_TENSORS,
        keys={"feed_forward_length": _d_ff, "attention.layer_norm_epsilon": "layer_norm_epsilon"},
        defaults={"n_positions": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        expects={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        rope_types=("default",),
        # The first checkpoints were saved without their head, and with the causal mask.
        renames=(("transformer.", ""),),
        skip=("*.attn.bias", "*.attn.masked_bias"),
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    x = b.add_positions(b.embed())
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, b.attention(y, i, rope=None))
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.mlp(y, i, "gelu_tanh"))
    b.head(x)
