"""What the settings panel sets: the values, what is said of each, and how it is typed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import Any, Protocol

from wgllm.errors import UsageError, printable
from wgllm.sampling import SamplingParams, value_range

_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """What holds for the replies of a conversation."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    system_prompt: str = ""
    max_tokens: int | None = None
    """None: until the reply ends or the context is full."""
    ctx_size: int | None = None
    """None: what the model and the memory allow."""

    def to_json(self) -> dict[str, Any]:
        """All but the system prompt, as JSON can hold it: for a preset or a conversation."""
        values = {f.name: getattr(self.sampling, f.name) for f in fields(self.sampling)}
        bias = [[token, "-inf" if b == -math.inf else b] for token, b in self.sampling.logit_bias.items()]
        lists = {name: list(values[name]) for name in ("samplers", "dry_sequence_breakers")}
        return values | lists | {"logit_bias": bias, "max_tokens": self.max_tokens, "ctx_size": self.ctx_size}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], system_prompt: str = "") -> Settings:
        """What ``to_json`` gave; what it lacks is as by default, what is unknown left out. Raises UsageError."""
        known = {f.name for f in fields(SamplingParams)}
        sampling = {name: value for name, value in values.items() if name in known}
        try:
            if not all(isinstance(text, str) for text in sampling.get("dry_sequence_breakers", ())):
                raise UsageError("a dry sequence breaker must be a text")
            if "logit_bias" in sampling:
                sampling["logit_bias"] = {int(t): float(b) for t, b in sampling["logit_bias"]}
            params = SamplingParams(**sampling)
            sizes = {name: values.get(name) for name in ("max_tokens", "ctx_size")}
            for name, size in sizes.items():
                if size is not None and (type(size) is not int or not 1 <= size <= _INT32):
                    raise UsageError(
                        f"{name} is {printable(repr(size), 40)}; it must lie between 1 and {_INT32}"
                    )
            return cls(params, system_prompt, **sizes)
        except (TypeError, ValueError) as error:
            raise UsageError(f"these settings make no sense: {printable(str(error))}") from None


class PresetLike(Protocol):
    """Settings under a name."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def system_prompt(self) -> str: ...


class PresetStore(Protocol):
    """Where presets are kept: ``Sessions.presets`` is one. Called from threads; may raise WgllmError."""

    def list(self) -> Sequence[PresetLike]: ...

    def save(self, name: str, settings: Mapping[str, Any], system_prompt: str = "") -> object: ...

    def delete(self, name: str) -> None: ...


@dataclass(frozen=True)
class Field:
    """A value that is typed in one line."""

    name: str
    label: str
    help: str
    step: float = 0.0
    """How far an arrow key goes; 0: it is no number."""
    start: int | None = None
    """Of a number that may be left empty: where the first arrow goes."""
    empty: str = ""
    """What it means to leave it empty."""

    def value_in(self, settings: Settings) -> Any:
        return getattr(settings if self.name in _SIZES else settings.sampling, self.name)

    def text_of(self, settings: Settings) -> str:
        """The value as it is typed."""
        return _written(self.name, self.value_in(settings))

    def parse(self, text: str) -> Any:
        """What was typed, as a value. Raises UsageError with what is wrong, to be read after a label."""
        value = _read(self, text.strip())
        if self.name in _SIZES:
            if value is not None and not 1 <= value <= _INT32:
                raise UsageError(f"must lie between 1 and {_INT32:,}")
            return value
        try:
            return getattr(SamplingParams(**{self.name: value}), self.name)
        except UsageError as error:
            raise UsageError(str(error).removeprefix(self.name).strip()) from None

    def limits(self) -> str:
        """The range in words."""
        if self.step == 0:
            return ""
        if self.start is not None:
            return f"empty: {self.empty}" if self.name == "seed" else f"1 or more, empty: {self.empty}"
        low, high = value_range(self.name)
        if high < 1e3:
            return f"{low:g} to {high:g}"
        kind = "whole number" if isinstance(self.value_in(Settings()), int) else "number"
        return f"any {kind}" if low <= -1e3 else f"{kind}, {low:g} or more"

    def stepped(self, text: str, by: int) -> str:
        """The number an arrow key away, within its range."""
        try:
            value = self.parse(text)
        except UsageError:
            return text
        if self.start is not None:
            low, high, step = 0 if self.name == "seed" else 1, _INT32, int(self.step)
            if value is None:
                return str(self.start) if by > 0 else ""
            return str(min(high, value + by * step)) if value + by * step >= low else ""
        least, most = value_range(self.name)
        # Decimal, since 0.1 + 0.2 must not show its error.
        moved = float(Decimal(str(value)) + by * Decimal(str(self.step)))
        moved = min(max(moved, least), most)
        return _written(self.name, type(value)(moved))


_SIZES = ("max_tokens", "ctx_size")

GROUPS: tuple[tuple[str, tuple[Field, ...]], ...] = (
    ("Reply", (
        Field("max_tokens", "longest reply", "How many tokens a reply may have.", 256, 512, "no limit"),
        Field("ctx_size", "context size", "How many tokens the model sees at once; a larger context takes more memory. "
              "The model is loaded again when this changes.", 1024, 4096, "automatic"),
        Field("seed", "seed", "The same seed gives the same reply to the same conversation.", 1, 1, "fresh"),
    )),
    ("Temperature", (
        Field("temperature", "temperature", "Higher is more varied. Logits are divided by it; 0 takes the best token.",
              0.05),
        Field("dynatemp_range", "dynamic range", "The temperature moves up and down by so much, by how even the "
              "probabilities are; 0 is off.", 0.05),
        Field("dynatemp_exponent", "dynamic exponent", "How the temperature follows the entropy.", 0.1),
    )),
    ("Which tokens may be drawn", (
        Field("top_k", "top-k", "Keep the k most probable; 0 keeps all.", 1),
        Field("top_p", "top-p", "Keep the fewest whose probabilities reach p; 1 keeps all.", 0.01),
        Field("min_p", "min-p", "Keep those at least p times as probable as the first; 0 keeps all.", 0.01),
        Field("typical_p", "typical-p", "Keep the most typical whose probabilities exceed p; 1 keeps all.", 0.01),
        Field("top_n_sigma", "top-n-sigma", "Keep logits within n standard deviations of the largest; 0 or less "
              "keeps all.", 0.1),
        Field("xtc_probability", "xtc probability", "How often xtc takes away all but the last of the tokens that "
              "reach its threshold; 0 is off.", 0.05),
        Field("xtc_threshold", "xtc threshold", "From which probability on xtc takes tokens; above 0.5 it never acts.",
              0.05),
    )),
    ("Repetition", (
        Field("repeat_penalty", "repeat penalty", "Divides positive and multiplies negative logits of tokens that were "
              "there; 1 is off.", 0.05),
        Field("presence_penalty", "presence penalty", "Taken from the logit of a token that was there; 0 is off.", 0.1),
        Field("frequency_penalty", "frequency penalty", "Taken from the logit for each time that a token was there; "
              "0 is off.", 0.1),
        Field("repeat_last_n", "look back", "How many tokens these penalties look back; 0 turns them off, -1 is "
              "everything.", 16),
    )),
    ("Repeated passages (DRY)", (
        Field("dry_multiplier", "multiplier", "How strongly a token that goes on with a repetition is held back; 0 is "
              "off.", 0.1),
        Field("dry_base", "base", "How fast that grows with the repetition's length.", 0.05),
        Field("dry_allowed_length", "allowed length", "Repetitions up to so many tokens are left alone.", 1),
        Field("dry_penalty_last_n", "look back", "How many tokens dry looks back; 0 turns it off, -1 is everything.",
              16),
        Field("dry_sequence_breakers", "breakers", "Texts across which dry sees no repetition, with blanks between. "
              "\\n is a line's end, \\s a blank."),
    )),
    ("Mirostat", (
        Field("mirostat", "version", "1 or 2: mirostat in place of all samplers but the temperature; 0 is off.", 1),
        Field("mirostat_ent", "target (tau)", "The surprise in bits that it aims at.", 0.1),
        Field("mirostat_lr", "rate (eta)", "How fast it learns.", 0.01),
    )),
    ("Order and bias", (
        Field("samplers", "samplers", "Which samplers act, in order, with ; between."),
        Field("logit_bias", "logit bias", "Token ids and what is added to their logits, as 15=+1.5 42=-inf; -inf "
              "forbids a token."),
    )),
)  # fmt: skip

FIELDS = {f.name: f for _, group in GROUPS for f in group}


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """``settings`` with the given fields."""
    own = {name: value for name, value in values.items() if name in _SIZES}
    sampling = {name: value for name, value in values.items() if name not in _SIZES}
    return replace(settings, sampling=replace(settings.sampling, **sampling), **own)


_BLANKS = {"\n": "\\n", "\t": "\\t", "\r": "\\r", " ": "\\s", "\\": "\\\\"}
_ESCAPES = {escape: char for char, escape in _BLANKS.items()}


def _written(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "dry_sequence_breakers":
        return " ".join("".join(_BLANKS.get(c, c) for c in text) for text in value)
    if name == "samplers":
        return ";".join(value)
    if name == "logit_bias":
        return " ".join(f"{token}={bias:+g}" for token, bias in value.items())
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _read(setting: Field, text: str) -> Any:
    if setting.name == "dry_sequence_breakers":
        return [re.sub(r"\\[ntrs\\]", lambda m: _ESCAPES[m[0]], word) for word in text.split()]
    if setting.name == "samplers":
        return text
    if setting.name == "logit_bias":
        pairs = [re.fullmatch(r"(\d{1,10})=([+-]?[\w.]+)", word, re.ASCII) for word in text.split()]
        if not all(pairs):
            raise UsageError("must be of the form 15=+1.5 42=-inf")
        return {int(pair[1]): _number(pair[2], float) for pair in pairs if pair}
    if setting.start is not None and not text:
        return None
    return _number(text, type(setting.value_in(Settings())) if setting.start is None else int)


def _number(text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"must be a {'whole number' if kind is int else 'number'}") from None
