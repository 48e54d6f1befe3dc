"""From logits to a token: llama.cpp's samplers under its names, with its defaults and in its order.

Candidates are ordered by (-logit, id) and step n of a request draws from a counter-based generator of (seed, n), so
that the same logits give the same token on every backend. State is only the history of tokens and mirostat's mu.
"""

from wgllm.sampling.candidates import Candidates, order, probabilities
from wgllm.sampling.chain import Sampler, sample
from wgllm.sampling.logprobs import TokenLogprobs, chances, log_probabilities
from wgllm.sampling.params import (
    DEFAULT_BREAKERS,
    DEFAULT_SAMPLERS,
    SAMPLER_LETTERS,
    SamplingOptions,
    SamplingParams,
    samplers_from_letters,
    value_range,
)
from wgllm.sampling.rng import fresh_seed, philox, uniform

__all__ = [
    "DEFAULT_BREAKERS",
    "DEFAULT_SAMPLERS",
    "SAMPLER_LETTERS",
    "Candidates",
    "Sampler",
    "SamplingOptions",
    "SamplingParams",
    "TokenLogprobs",
    "chances",
    "fresh_seed",
    "log_probabilities",
    "order",
    "philox",
    "probabilities",
    "sample",
    "samplers_from_letters",
    "uniform",
    "value_range",
]
