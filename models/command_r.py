"""Command R, R+ and R7B: layer norms without biases, attention and MLP beside each other, scaled logits. R+ norms each
head with a weight of its own; of R7B (cohere2) three of four layers attend to a window, and only those have rope."""

from __future__ import annotations

from wgllm.models.blocks import Blocks, QkNorm
from wgllm.models.config import Keys

ARCHITECTURES = ("cohere2", "command-r")
NORM = "layer_norm"


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
