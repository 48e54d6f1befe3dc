"""Mixtures of experts: a router sends each row to a few of many gated MLPs, whose results are added up, weighted."""

from __future__ import annotations

from dataclasses import dataclass

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys

# Shaders keep a number for each expert in 16 KiB.
_MOST_EXPERTS = 2048
# llama.cpp: llama_expert_gating_func_type. The third is a softmax of the chosen logits alone.
_SOFTMAX, _SOFTMAX_OF_CHOSEN = 1, 3


@dataclass(frozen=True)
class Mixture:
    """The experts of every layer that has some."""

    experts: int
    """In all; 0: there are none."""
    chosen: int
    """For each row."""
    d_ff: int
    """Of an expert."""
    normalized: bool
    """Whether the weights of a row's experts make 1 together."""
    scale: float


def read_mixture(b: Blocks, *, normalized: bool, d_ff: int = 0) -> Mixture:
    """What the file says of its experts; 0 of them if it has no such key.

    ``normalized`` and ``d_ff`` stand where it says nothing; ``d_ff`` 0 is then the width of all chosen ones together
    divided by their number. Raises ModelFileError.
    """
    keys = Keys(b.file)
    experts = keys.integer("expert_count", 0, low=0, high=_MOST_EXPERTS)
    if not experts:
        return Mixture(0, 0, 0, normalized, 1.0)
    chosen = keys.integer("expert_used_count", high=experts)
    gating = keys.integer("expert_gating_func", _SOFTMAX, low=0) or _SOFTMAX
    if gating not in (_SOFTMAX, _SOFTMAX_OF_CHOSEN):
        raise keys.fail("expert_gating_func", f"{gating} is not supported (1 and 3, softmax, are)")
    if keys.integer("expert_group_count", 0, low=0) > 1:
        raise keys.fail("expert_group_count", "groups of experts are not supported")
    says = b.file.metadata.get(f"{keys.prefix}expert_weights_norm", normalized)
    if not isinstance(says, bool):
        raise keys.fail("expert_weights_norm", "should be true or false")
    return Mixture(
        experts,
        chosen,
        keys.integer("expert_feed_forward_length", 0, low=0) or d_ff or max(1, b.config.d_ff // chosen),
        says or gating == _SOFTMAX_OF_CHOSEN,
        keys.number("expert_weights_scale", 0.0, low=0) or 1.0,
    )


def some_mlp(b: Blocks, x: str, layer: int, activation: str, mixture: Mixture) -> str:
    """The layer's experts, or its one gated MLP where it has no router: [R, d_model] -> [R, d_model]."""
    if has_experts(b, layer):
        return expert_mlp(b, x, layer, activation, mixture)
    return b.gated_mlp(x, layer, activation)


def has_experts(b: Blocks, layer: int) -> bool:
    """Whether the layer has a router."""
    return b.has(f"blk.{layer}.ffn_gate_inp.weight")


def expert_mlp(b: Blocks, x: str, layer: int, activation: str, mixture: Mixture) -> str:
    """Σ over the chosen experts of weight · down(activation(gate x) · up x): [R, d_model] -> [R, d_model]."""
    c, g, p = b.config, b.graph, f"blk.{layer}"
    logits = b.linear(f"{p}.router", x, f"{p}.ffn_gate_inp", (mixture.experts, c.d_model))
    ids, weights = g.several(
        (f"{p}.experts", f"{p}.expert_weights"), "top_experts", logits,
        count=mixture.chosen, normalized=mixture.normalized, scale=mixture.scale,
    )  # fmt: skip

    def product(part: str, x: str, outputs: int, inputs: int) -> str:
        name = f"{p}.ffn_{part}_exps.weight"
        if not b.has(name) and b.has(f"{p}.ffn_{part}.0.weight"):
            # Converters of 2023 and early 2024 wrote a tensor for each expert.
            b.stack(name, [f"{p}.ffn_{part}.{e}.weight" for e in range(mixture.experts)], (outputs, inputs))
        w = b.weight(name, (mixture.experts, outputs, inputs))
        return g.op(f"{p}.experts.{part}", "expert_matmul", x, w, ids)

    gate, up = (product(part, x, mixture.d_ff, c.d_model) for part in ("gate", "up"))
    y = g.op(f"{p}.experts.gated", "mul", g.op(f"{p}.experts.act", activation, gate), up)
    return g.op(f"{p}.experts.sum", "weighted_sum", product("down", y, c.d_model, mixture.d_ff), weights)


def shared_mlp(b: Blocks, x: str, layer: int, activation: str, d_ff: int) -> str:
    """The expert that takes every row, let through by a gate of its own: [R, d_model] -> [R, d_model]."""
    c, g, p = b.config, b.graph, f"blk.{layer}"
    gate = b.linear(f"{p}.shared.gate", x, f"{p}.ffn_gate_shexp", (d_ff, c.d_model))
    up = b.linear(f"{p}.shared.up", x, f"{p}.ffn_up_shexp", (d_ff, c.d_model))
    y = g.op(f"{p}.shared.gated", "mul", g.op(f"{p}.shared.act", activation, gate), up)
    y = b.linear(f"{p}.shared.down", y, f"{p}.ffn_down_shexp", (c.d_model, d_ff))
    name = f"{p}.ffn_gate_inp_shexp.weight"
    # A matrix of one row in some files, a vector in others.
    as_matrix = b.has(name) and b.file.tensors[name].shape == (1, c.d_model)
    w = b.vector(name, (1, c.d_model)) if as_matrix else b.weight(name, (c.d_model,))
    return g.op(f"{p}.shared.let", "gate_rows", y, x, w)
