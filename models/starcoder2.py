"""StarCoder2: layer norms, biases everywhere, rope, an MLP without a gate."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.hf_family import ATTENTION_TENSORS, HfFamily, same_window
from wgllm.models.hf_rope import whole_heads

ARCHITECTURES = ("starcoder2",)
NORM = "layer_norm"

HF = (
    HfFamily(
        model_types=("starcoder2",),
        architecture="starcoder2",
        tensors={
            **ATTENTION_TENSORS,
            "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
            "model.layers.{i}.mlp.c_fc": "blk.{i}.ffn_up",
            "model.layers.{i}.mlp.c_proj": "blk.{i}.ffn_down",
        },
        keys={"attention.sliding_window": same_window, "rope.dimension_count": whole_heads},
        defaults={
            "max_position_embeddings": 4096,
            "norm_epsilon": 1e-5,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        expects={
            "hidden_act": ("gelu_pytorch_tanh",),
            "mlp_type": ("default",),
            "norm_type": ("layer_norm",),
            # transformers has no such switch here: a window that is given is used.
            "use_sliding_window": (True,),
        },
        rope_types=("default", "linear", "dynamic", "yarn"),
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    window = Keys(b.file).integer("attention.sliding_window", 0, low=0) or None
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, b.attention(y, i, rope=c.rope, window=window))
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.mlp(y, i, "gelu_tanh"))
    b.head(x)
