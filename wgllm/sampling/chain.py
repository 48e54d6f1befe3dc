"""The samplers of one request, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from wgllm.errors import UsageError
from wgllm.sampler_words import DeviceSampling
from wgllm.sampling import samplers as s
from wgllm.sampling.candidates import F32, Candidates, Ints
from wgllm.sampling.dry import Breakers, breaker_tokens
from wgllm.sampling.on_device import device_sampling
from wgllm.sampling.params import SamplingParams
from wgllm.sampling.rng import DRAW_WORD, XTC_WORD, uniform
from wgllm.tokenizer import Tokenizer

# Samplers that may take the best candidate away or put another before it.
_CHANGE_THE_BEST = {"penalties", "dry", "typ_p", "xtc"}

Link = Callable[[Candidates], Candidates]


class Sampler:
    """Draws the tokens of one request. Raises UsageError for parameters that do not fit the model."""

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        prompt_ids: Sequence[int] = (),
        *,
        vocab_size: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Penalties and dry look back into ``prompt_ids`` too; dry needs a ``tokenizer`` for its breakers."""
        self.params = params
        self.seed = seed
        self.step = 0
        """How many tokens were drawn: the counter of the next draw."""
        self.left: Candidates | None = None
        """What the samplers left for the last draw; None where the best of all was taken."""
        self.mu = 2 * params.mirostat_ent
        self._bias = {int(token): float(bias) for token, bias in params.logit_bias.items()}
        for token in self._bias:
            if vocab_size is not None and token >= vocab_size:
                raise UsageError(f"logit_bias: token id {token} is outside the vocabulary of {vocab_size}")
        if vocab_size is not None and sum(b == -np.inf for b in self._bias.values()) == vocab_size:
            raise UsageError("logit_bias forbids every token")
        self._breakers: Breakers = {}
        if params.dries and "dry" in params.samplers and not params.mirostat and params.dry_sequence_breakers:
            if tokenizer is None:
                raise UsageError("dry sequence breakers need a tokenizer")
            self._breakers = breaker_tokens(tokenizer, params.dry_sequence_breakers)
        self._links = [] if params.mirostat else self._chain()
        active = {name for name, _ in self._links}
        self._argmax = params.greedy and not self._bias and not active & _CHANGE_THE_BEST
        self._history = np.array(prompt_ids if active & {"penalties", "dry"} else (), np.int64)
        self._length = len(self._history)
        self._remembers = bool(active & {"penalties", "dry"})

    def sample(self, logits: F32, given: int | None = None) -> int:
        """The next token for logits [V]; it, or ``given`` in its place, joins the history."""
        token = int(np.argmax(logits)) if self._argmax else self._choose(logits)
        self.step += 1
        if self._remembers:
            self._remember(token if given is None else given)
        return token

    def drawn_elsewhere(self) -> None:
        """A device has drawn a token as ``on_device`` tells it."""
        self.step += 1

    def on_device(self) -> DeviceSampling | None:
        """How a device draws the same tokens, or None if it can't."""
        if self._argmax:
            return DeviceSampling(self.seed)
        if self._bias or self.params.mirostat or self.params.greedy:
            return None
        return device_sampling(self.params, self.seed, [name for name, _ in self._links])

    def candidates(self, logits: F32) -> Candidates:
        """What the chain leaves of logits [V] for the next draw (mirostat: before its own cut)."""
        c = s.logit_bias(Candidates(logits), self._bias)
        for _, link in self._links:
            c = link(c)
        if self.params.mirostat:
            c = s.temperature(c, self.params.temperature)
        return c.first(1) if self.params.greedy else c

    def _choose(self, logits: F32) -> int:
        p = self.params
        c = self.candidates(logits)
        if p.mirostat == 1:
            c = s.mirostat(c, self.mu, len(logits))
        elif p.mirostat == 2:
            c = s.mirostat_v2(c, self.mu)
        self.left = c
        if len(c) == 1:
            token, share = c.token(0), 1.0
        else:
            token, share = s.draw(c, uniform(self.seed, self.step, DRAW_WORD))
        if p.mirostat:
            self.mu -= p.mirostat_lr * (-math.log2(share) - p.mirostat_ent)
        return token

    def _chain(self) -> list[tuple[str, Link]]:
        """The samplers that do something, in order. In the default chain that is top_k, top_p, min_p, temperature."""
        p = self.params
        links: dict[str, tuple[bool, Link]] = {
            "penalties": (p.penalizes, self._penalties),
            "dry": (p.dries, self._dry),
            "top_n_sigma": (p.top_n_sigma > 0, lambda c: s.top_n_sigma(c, p.top_n_sigma)),
            "top_k": (p.top_k > 0, lambda c: s.top_k(c, p.top_k)),
            "typ_p": (p.typical_p < 1, lambda c: s.typical_p(c, p.typical_p)),
            "top_p": (p.top_p < 1, lambda c: s.top_p(c, p.top_p)),
            "min_p": (p.min_p > 0, lambda c: s.min_p(c, p.min_p)),
            "xtc": (p.xtc_probability > 0 and p.xtc_threshold <= 0.5, self._xtc),
            "temperature": (True, lambda c: s.temperature(c, p.temperature, p.dynatemp_range, p.dynatemp_exponent)),
        }  # fmt: skip
        return [(name, links[name][1]) for name in p.samplers if links[name][0]]

    def _penalties(self, c: Candidates) -> Candidates:
        p = self.params
        window = self._last(p.repeat_last_n)
        return s.penalties(c, window, p.repeat_penalty, p.presence_penalty, p.frequency_penalty)

    def _dry(self, c: Candidates) -> Candidates:
        p = self.params
        window = self._last(p.dry_penalty_last_n)
        return s.dry(c, window, p.dry_multiplier, p.dry_base, p.dry_allowed_length, self._breakers)

    def _xtc(self, c: Candidates) -> Candidates:
        draw = uniform(self.seed, self.step, XTC_WORD)
        return s.xtc(c, self.params.xtc_probability, self.params.xtc_threshold, draw)

    def _last(self, n: int) -> Ints:
        return self._history[0 if n < 0 else max(0, self._length - n) : self._length]

    def _remember(self, token: int) -> None:
        if self._length == len(self._history):
            self._history = np.concatenate([self._history, np.zeros(max(256, self._length), np.int64)])
        self._history[self._length] = token
        self._length += 1


def sample(logits: F32, params: SamplingParams, seed: int, step: int) -> int:
    """The token that ``step`` of a request without history draws from logits [V]."""
    sampler = Sampler(params, seed)
    sampler.step = step
    return sampler.sample(logits)
