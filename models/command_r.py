"""Command R, R+ and R7B: layer norms without biases, attention and MLP beside each other, scaled logits. R+ norms each
head with a weight of its own; of R7B (cohere2) three of four layers attend to a window, and only those have rope."""

from __future__ import annotations

from wgllm.models.blocks import Blocks, QkNorm
from wgllm.models.config import Keys
from wgllm.models.hf_family import LLAMA_TENSORS, HfConfig, HfFamily, sliding_window
from wgllm.models.hf_rope import whole_heads

ARCHITECTURES = ("cohere2", "command-r")
NORM = "layer_norm"


def _logit_scale(config: HfConfig) -> float | None:
    """GGUF's 0 says that there is none; here it would be a mistake."""
    scale = config.number("logit_scale")
    if scale is not None and scale <= 0:
        raise config.fail("logit_scale", f"{scale} makes no sense")
    return scale


def _pattern(config: HfConfig) -> list[bool] | int:
    """Which layers have a window, or each how many sees everything."""
    windowed = config.windowed_layers()
    return config.integer("sliding_window_pattern") if windowed is None else windowed


_DEFAULTS = {"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "tie_word_embeddings": True}

HF = (
    HfFamily(
        model_types=("cohere",),
        architecture="command-r",
        tensors=LLAMA_TENSORS,
        keys={
            # Command R was trained for more than its max_position_embeddings says.
            "context_length": lambda c: c.integer("model_max_length", "max_position_embeddings"),
            "logit_scale": _logit_scale,
            "rope.dimension_count": whole_heads,
        },
        defaults=_DEFAULTS | {"max_position_embeddings": 8192, "rope_theta": 500000.0},
        expects={"hidden_act": ("silu", "swish")},
        rope_types=("default", "linear", "dynamic", "yarn"),
        rope_interleaved=True,
    ),
    HfFamily(
        model_types=("cohere2",),
        architecture="cohere2",
        tensors=LLAMA_TENSORS,
        keys={
            "context_length": lambda c: c.integer("model_max_length", "max_position_embeddings"),
            "attention.sliding_window": sliding_window,
            "attention.sliding_window_pattern": _pattern,
            "logit_scale": _logit_scale,
            "rope.dimension_count": whole_heads,
        },
        defaults=_DEFAULTS
        | {
            "max_position_embeddings": 8192,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
        expects={"hidden_act": ("silu", "swish")},
        rope_types=("default", "linear", "dynamic", "yarn"),
        rope_interleaved=True,
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    keys = Keys(b.file)
    second = c.architecture == "cohere2"
    windows: list[int | None] = [None] * c.n_layers
    if second:
        windows = keys.windows(c.n_layers, 4)
    if second and not any(windows):
        raise keys.fail("attention.sliding_window", "missing, or no layer has one")
    logit_scale = keys.number("logit_scale", low=0) or None
    x = b.embed()
    for i, window in enumerate(windows):
        b.graph.layer = i
        p = f"blk.{i}"
        normed = b.norm(f"{p}.attn_norm", x, f"{p}.attn_norm.weight", c.d_model)
        qk_norm: QkNorm | None = "heads" if b.has(f"{p}.attn_q_norm.weight") else None
        rope = None if second and window is None else c.rope
        x = b.add(f"{p}.attn.sum", x, b.attention(normed, i, rope=rope, window=window, qk_norm=qk_norm))
        x = b.add(f"{p}.ffn.sum", x, b.gated_mlp(normed, i, "silu"))
    b.head(x, scale=logit_scale)
