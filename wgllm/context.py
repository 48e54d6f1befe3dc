"""How many tokens of context are aimed at."""

from __future__ import annotations

from wgllm.errors import UsageError
from wgllm.models import ModelGraph

DEFAULT_CTX = 8192
LEAST_CTX = 512
"""A context that nobody asked for is not made smaller than this where memory is short."""
# Positions are int32.
_MAX_CTX = 2**31 - 1


def wanted_ctx_size(model: ModelGraph, asked: int | None) -> int:
    """The context in tokens that is aimed at: what was asked (0: the model's own), else min(that, 8192)."""
    trained = model.config.n_ctx_train
    if asked is None:
        return min(trained, DEFAULT_CTX)
    if model.most_positions is not None and asked > model.most_positions:
        raise UsageError(
            f"a context of {asked} tokens is too large: the model has learned {model.most_positions} positions"
        )
    if asked < 0:
        raise UsageError(f"a context of {asked} tokens makes no sense")
    if (ctx := asked or trained) > _MAX_CTX:
        raise UsageError(f"a context of {ctx} tokens is too large; {_MAX_CTX} are the most")
    return ctx
