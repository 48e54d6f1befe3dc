"""Qwen3-MoE, Qwen2-MoE and OLMoE: the layers of Qwen and OLMo with mixtures of experts for MLPs."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.experts import read_mixture, shared_mlp, some_mlp

ARCHITECTURES = ("olmoe", "qwen2moe", "qwen3moe")


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
