"""SmolLM3: Llama's layers, every fourth without rope."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.hf_family import LLAMA_TENSORS, HfConfig, HfFamily
from wgllm.models.hf_rope import whole_heads

ARCHITECTURES = ("smollm3",)

# Files have no key for it.
_WITHOUT_ROPE = 4


def _with_rope(layer: int) -> bool:
    return (layer + 1) % _WITHOUT_ROPE != 0


def _rope_dim(config: HfConfig) -> int:
    """Layers must have rope as the graph gives it to them."""
    layers, n = config.get("no_rope_layers"), config.n_layers
    if layers is None:
        same = config.integer("no_rope_layer_interval") == _WITHOUT_ROPE
    else:
        same = isinstance(layers, list) and len(layers) >= n
        same = same and all(turned == _with_rope(i) for i, turned in enumerate(layers[:n]))
    if not same:
        raise config.fail("no_rope_layers", f"other than each {_WITHOUT_ROPE}th layer is not supported")
    return whole_heads(config)


def _no_window(config: HfConfig) -> None:
    windowed = config.windowed_layers()
    given = config.flag("use_sliding_window") and config.get("sliding_window") is not None
    if given if windowed is None else any(windowed):
        raise config.fail("sliding_window", "is not supported for smollm3")


HF = (
    HfFamily(
        model_types=("smollm3",),
        architecture="smollm3",
        tensors=LLAMA_TENSORS,
        keys={"attention.sliding_window": _no_window, "rope.dimension_count": _rope_dim},
        defaults={
            "max_position_embeddings": 32768,
            "no_rope_layer_interval": 4,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
        },
        expects={"hidden_act": ("silu", "swish")},
        rope_types=("default", "linear", "dynamic", "yarn"),
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    x = b.embed()
    for i in range(c.n_layers):
        b.graph.layer = i
        p = f"blk.{i}"
        y = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        y = b.attention(y, i, rope=c.rope if _with_rope(i) else None)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_norm", x, f"{p}.ffn_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, b.gated_mlp(y, i, "silu"))
    b.head(x)
