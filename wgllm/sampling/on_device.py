"""Which requests a device can draw the tokens of.

A shader does greedy choice, and chains that begin with a top_k of at most MOST_CANDIDATES and go on with top_p, min_p
and temperature. Its sums are in float32: a draw within some 1e-6 of a border may fall to the other side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from wgllm.sampler_words import LINKS, MOST_CANDIDATES, MOST_LINKS, DeviceSampling, LinkName
from wgllm.sampling.params import SamplingParams


def device_sampling(params: SamplingParams, seed: int, chain: Sequence[str]) -> DeviceSampling | None:
    """For the samplers ``chain`` that do something, in order; None if the shader has not all of them."""
    if (
        not chain
        or chain[0] != "top_k"
        or len(chain) > MOST_LINKS
        or not set(chain) <= LINKS
        or not 0 < params.top_k <= MOST_CANDIDATES
        or params.dynatemp_range > 0
    ):
        return None
    values = {
        "top_k": float(params.top_k),
        "top_p": params.top_p,
        "min_p": math.log(params.min_p) if params.min_p > 0 else 0.0,
        "temperature": params.temperature,
    }
    return DeviceSampling(seed, tuple((cast(LinkName, name), values[name]) for name in chain))
