"""What can be asked of the samplers: names, defaults, ranges, and what a model file says about them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypedDict

from wgllm.errors import ModelFileError, UsageError, printable

SAMPLER_LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
}
"""llama.cpp's letters and names, in the default order."""

DEFAULT_SAMPLERS = tuple(SAMPLER_LETTERS.values())
DEFAULT_BREAKERS = ("\n", ":", '"', "*")

_ALIASES = {
    "top-k": "top_k", "top-p": "top_p", "nucleus": "top_p", "top-n-sigma": "top_n_sigma", "min-p": "min_p",
    "typical-p": "typ_p", "typical": "typ_p", "typ-p": "typ_p", "typ": "typ_p", "temp": "temperature",
}  # fmt: skip

_INT32 = 2**31 - 1
# Lowest and highest value of each number. The bounds of what is not a share only keep float32 finite.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (-1e6, 1e6),
    "top_k": (-_INT32, _INT32),
    "top_p": (0, 1e6),
    "min_p": (0, 1),
    "typical_p": (0, 1e6),
    "top_n_sigma": (-1e6, 1e6),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "repeat_penalty": (1e-3, 1e3),
    "repeat_last_n": (-1, _INT32),
    "presence_penalty": (-1e3, 1e3),
    "frequency_penalty": (-1e3, 1e3),
    "dry_multiplier": (0, 1e6),
    "dry_base": (1, 1e6),
    "dry_allowed_length": (0, _INT32),
    "dry_penalty_last_n": (-1, _INT32),
    "dynatemp_range": (0, 1e6),
    "dynatemp_exponent": (0, 1e3),
    "mirostat": (0, 2),
    "mirostat_lr": (0, 1e3),
    "mirostat_ent": (0, 1e3),
}

_KEYS = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "xtc_probability": "xtc_probability", "xtc_threshold": "xtc_threshold",
    "penalty_last_n": "repeat_last_n", "penalty_repeat": "repeat_penalty",
    "mirostat": "mirostat", "mirostat_tau": "mirostat_ent", "mirostat_eta": "mirostat_lr",
}  # fmt: skip
# A file's values come from anyone: narrower than what a user may ask for.
_FILE_RANGES = {"temperature": (0.0, 100.0), "top_k": (-1.0, float(_INT32)), "top_p": (0.0, 1.0)}


@dataclass(frozen=True)
class SamplingParams:
    """llama.cpp's samplers with its defaults, under which most of them do nothing. Raises UsageError."""

    temperature: float = 0.8
    """Logits are divided by it; 0 or less takes the best candidate, wherever it stands in ``samplers``."""
    top_k: int = 40
    """Keep the k largest; 0 or less keeps all."""
    top_p: float = 0.95
    """Keep the fewest candidates whose probabilities reach p; 1 or more keeps all."""
    min_p: float = 0.05
    """Keep candidates at least p times as probable as the first; 0 keeps all."""
    seed: int | None = None
    """None or a negative number draws a fresh one."""
    typical_p: float = 1.0
    """Keep the most typical candidates whose probabilities exceed p; 1 or more keeps all."""
    top_n_sigma: float = -1.0
    """Keep logits within n standard deviations of the largest; 0 or less keeps all."""
    xtc_probability: float = 0.0
    """How often xtc acts: it takes away all but the last of the candidates that reach the threshold."""
    xtc_threshold: float = 0.1
    """Above 0.5 xtc never acts."""
    repeat_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens among the last ``repeat_last_n``."""
    repeat_last_n: int = 64
    """How far penalties look back, into the prompt too; 0 turns them off, -1 is everything."""
    presence_penalty: float = 0.0
    """Taken from the logit of a token that is there."""
    frequency_penalty: float = 0.0
    """Taken from the logit for each time that a token is there."""
    dry_multiplier: float = 0.0
    """Tokens that go on with a repetition lose multiplier · base^(length - allowed length); 0 turns dry off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    """How far dry looks back; 0 turns it off, -1 is everything."""
    dry_sequence_breakers: Sequence[str] = DEFAULT_BREAKERS
    """Texts across which dry sees no repetition."""
    dynatemp_range: float = 0.0
    """The temperature moves between temperature ± range, by how even the probabilities are; 0 is off."""
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    """1 or 2: mirostat, which stands for all samplers but the temperature."""
    mirostat_lr: float = 0.1
    """eta, the learning rate."""
    mirostat_ent: float = 5.0
    """tau, the surprise in bits that is aimed at."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id → what is added to its logit before all else; -inf forbids the token."""
    samplers: str | Sequence[str] = DEFAULT_SAMPLERS
    """Which samplers act, in order; a text has them separated by ``;``."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value, whole = getattr(self, name), _is_whole(name)
            if problem := _problem(value, low, high, whole=whole):
                raise UsageError(f"{name} {problem}")
            object.__setattr__(self, name, int(value) if whole else float(value))
        if self.seed is not None and (not isinstance(self.seed, Integral) or self.seed >= 1 << 64):
            raise UsageError(f"seed {_shown(self.seed)} is not a whole number of at most 64 bits")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, Integral) or token < 0:
                raise UsageError(f"logit_bias: {_shown(token)} is no token id")
            if not isinstance(bias, Real) or not (abs(bias) <= 1e6 or bias == -math.inf):
                raise UsageError(
                    f"logit_bias of token {token} is {_shown(bias)}; it must lie between -1e6 and 1e6, or be -inf"
                )
        breakers = self.dry_sequence_breakers
        breakers = (breakers,) if isinstance(breakers, str) else tuple(breakers)
        if "" in breakers:
            raise UsageError("an empty text can't be a dry sequence breaker")
        object.__setattr__(self, "dry_sequence_breakers", breakers)
        object.__setattr__(self, "samplers", _canonical(self.samplers))

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, Any], *, path: str | os.PathLike[str] = "model", **explicit: Any
    ) -> SamplingParams:
        """What was asked for (None: it was not), else what the file's ``general.sampling.*`` says, else defaults.

        Raises ModelFileError naming the key of ``path`` whose value makes no sense. A key for which there is an
        explicit value is not read.
        """
        given = {name: value for name, value in explicit.items() if value is not None}
        if unknown := given.keys() - {f.name for f in fields(cls)}:
            raise UsageError(f"there is no sampling option {min(unknown)!r}")
        merged: dict[str, Any] = {}
        for short, name in _KEYS.items():
            key = f"general.sampling.{short}"
            if name not in given and key in metadata:
                value = metadata[key]
                low, high = _FILE_RANGES.get(name, _RANGES[name])
                if problem := _problem(value, low, high, whole=_is_whole(name)):
                    raise ModelFileError(path, key, f"{problem}; a value of your own takes its place")
                merged[name] = value
        key = "general.sampling.sequence"
        if "samplers" not in given and metadata.get(key, "") != "":
            value = metadata[key]
            try:
                merged["samplers"] = _canonical(value if isinstance(value, str) else [value])
            except UsageError as error:
                raise ModelFileError(path, key, f"{error}; an order of your own takes its place") from None
        return cls(**merged, **given)

    @property
    def greedy(self) -> bool:
        """Whether the best candidate is taken, without a draw."""
        return self.temperature <= 0 and (self.dynatemp_range == 0 or self.mirostat != 0)

    @property
    def penalizes(self) -> bool:
        """Whether any of the three penalties changes a logit."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        )

    @property
    def dries(self) -> bool:
        return self.dry_multiplier != 0 and self.dry_penalty_last_n != 0


class SamplingOptions(TypedDict, total=False):
    """The fields of ``SamplingParams`` as keyword arguments; None is as good as not given."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    typical_p: float | None
    top_n_sigma: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: Sequence[str] | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    mirostat: int | None
    mirostat_lr: float | None
    mirostat_ent: float | None
    logit_bias: Mapping[int, float] | None
    samplers: str | Sequence[str] | None


def value_range(name: str) -> tuple[float, float]:
    """The lowest and the highest value of a field that is a number, other than the seed."""
    return _RANGES[name]


def samplers_from_letters(letters: str) -> tuple[str, ...]:
    """The samplers of llama.cpp's letters: ``edskypmxt`` is the default order."""
    bad = next((c for c in letters if c not in SAMPLER_LETTERS), None)
    if bad is not None:
        known = ", ".join(f"{letter} {name}" for letter, name in SAMPLER_LETTERS.items())
        raise UsageError(f"there is no sampler {printable(bad)!r}; there are {known}")
    return tuple(SAMPLER_LETTERS[c] for c in letters)


def _canonical(samplers: str | Sequence[str]) -> tuple[str, ...]:
    """Names as the default order writes them. Each may stand there several times, as in llama.cpp."""
    if isinstance(samplers, str):
        samplers = [name for name in samplers.split(";") if name.strip()]
    names = []
    for name in samplers:
        plain = str(name).strip().lower()
        plain = _ALIASES.get(plain, plain)
        if plain not in DEFAULT_SAMPLERS:
            raise UsageError(
                f"there is no sampler {printable(str(name), 40)!r}; there are {', '.join(DEFAULT_SAMPLERS)}"
            )
        names.append(plain)
    return tuple(names)


def _is_whole(name: str) -> bool:
    return isinstance(SamplingParams.__dataclass_fields__[name].default, int)


def _problem(value: Any, low: float, high: float, *, whole: bool) -> str | None:
    """What is wrong with a number, to be read after its name."""
    if not _is_number(value):
        return f"is {_shown(value)}, which is not a number"
    if not low <= value <= high:
        return f"is {_shown(value)}; it must lie between {low:g} and {high:g}"
    if whole and value != int(value):
        return f"is {_shown(value)}; it must be a whole number"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return printable(str(value) if isinstance(value, Real) else repr(value), 40)
