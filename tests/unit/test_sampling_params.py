"""What can be asked of the samplers, what a model file says about them, and the command line's options."""

from __future__ import annotations

import ast
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from wgllm.cli.sampling_options import NUMBERS, sampling_options
from wgllm.errors import ModelFileError, UsageError
from wgllm.fake import FakeEngine
from wgllm.formats.model_file import ModelFile
from wgllm.llm import Llm
from wgllm.sampling import (
    DEFAULT_SAMPLERS,
    SAMPLER_LETTERS,
    Sampler,
    SamplingOptions,
    SamplingParams,
    samplers_from_letters,
)

DEFAULTS = {
    "seed": None, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 1.0, "top_n_sigma": -1.0,
    "xtc_probability": 0.0, "xtc_threshold": 0.1, "repeat_last_n": 64, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2,
    "dry_penalty_last_n": 64, "dry_sequence_breakers": ("\n", ":", '"', "*"), "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0, "mirostat": 0, "mirostat_lr": 0.1, "mirostat_ent": 5.0, "logit_bias": {},
    "samplers": (
        "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature",
    ),
}  # fmt: skip


def test_the_defaults_are_llama_cpps() -> None:
    assert {f.name: getattr(SamplingParams(), f.name) for f in fields(SamplingParams)} == DEFAULTS


def test_every_field_is_an_option() -> None:
    assert SamplingOptions.__annotations__.keys() == DEFAULTS.keys()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "warm"}, "'warm', which is not a number"),
        ({"top_p": math.inf}, "top_p is inf"),
        ({"top_p": -0.1}, "between 0 and"),
        ({"min_p": 2.0}, "between 0 and 1"),
        ({"top_k": 1.5}, "whole number"),
        ({"top_k": 10**400}, "top_k"),
        ({"top_k": True}, "not a number"),
        ({"repeat_penalty": 0.0}, "repeat_penalty is 0.0"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"dry_sequence_breakers": [""]}, "empty"),
        ({"mirostat": 3}, "between 0 and 2"),
        ({"mirostat_lr": -1}, "mirostat_lr"),
        ({"samplers": "top_k;bottom_k"}, "'bottom_k'"),
        ({"samplers": ["top_k", "\x1b[2J"]}, "no sampler"),
        ({"logit_bias": {-1: 1.0}}, "-1 is no token"),
        ({"logit_bias": {1: math.nan}}, "nan"),
        ({"logit_bias": {1: math.inf}}, "inf"),
        ({"seed": 2**64}, "64 bits"),
        ({"seed": 1.5}, "64 bits"),
    ],
)
def test_senseless_values_are_refused(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        SamplingParams(**bad)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5), top_k=np.int64(3), logit_bias={np.int64(3): np.float32(1)}
    )  # type: ignore[dict-item]
    assert (params.temperature, params.top_k) == (0.5, 3)
    assert type(params.top_k) is int and type(params.temperature) is float


def test_samplers_by_name_alias_and_letter() -> None:
    assert SamplingParams(samplers="top-k; nucleus ;temp").samplers == ("top_k", "top_p", "temperature")
    assert SamplingParams(samplers=["typical", "min-p"]).samplers == ("typ_p", "min_p")
    assert SamplingParams(samplers="").samplers == ()
    assert samplers_from_letters("edskypmxt") == DEFAULT_SAMPLERS
    assert samplers_from_letters("tk") == ("temperature", "top_k")
    assert len(SAMPLER_LETTERS) == 9
    with pytest.raises(UsageError, match="'z'"):
        samplers_from_letters("kz")


def test_a_sampler_refuses_what_does_not_fit_the_model() -> None:
    with pytest.raises(UsageError, match="token id 9 is outside"):
        Sampler(SamplingParams(logit_bias={9: 1.0}), 1, vocab_size=9)
    with pytest.raises(UsageError, match="every token"):
        Sampler(SamplingParams(logit_bias={0: -math.inf, 1: -math.inf}), 1, vocab_size=2)
    with pytest.raises(UsageError, match="tokenizer"):
        Sampler(SamplingParams(dry_multiplier=1.0), 1)


# ── What a file says ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_fills_in_what_was_not_asked_for() -> None:
    metadata = {
        "general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.top_p": 0.9,
        "general.sampling.min_p": 0.0, "general.sampling.xtc_probability": 0.25, "general.sampling.xtc_threshold": 0.2,
        "general.sampling.penalty_last_n": -1, "general.sampling.penalty_repeat": 1.05, "general.sampling.mirostat": 2,
        "general.sampling.mirostat_tau": 4.0, "general.sampling.mirostat_eta": 0.2,
        "general.sampling.sequence": "top-k;min_p;temp", "general.name": "x",
    }  # fmt: skip
    made = SamplingParams.from_metadata(metadata, temperature=0.0, top_k=None, seed=7)
    assert made == SamplingParams(
        temperature=0.0, seed=7, top_k=20, top_p=0.9, min_p=0.0, xtc_probability=0.25, xtc_threshold=0.2,
        repeat_last_n=-1, repeat_penalty=1.05, mirostat=2, mirostat_ent=4.0, mirostat_lr=0.2,
        samplers=("top_k", "min_p", "temperature"),
    )  # fmt: skip
    assert SamplingParams.from_metadata({}) == SamplingParams()
    assert SamplingParams.from_metadata({"general.sampling.top_k": 20.0}).top_k == 20
    with pytest.raises(UsageError, match="'temp'"):
        SamplingParams.from_metadata({}, temp=1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", math.nan), ("temp", -1.0), ("temp", 1e30), ("temp", "hot"), ("temp", True), ("top_k", -2),
        ("top_k", 1.5), ("top_k", 2**40), ("top_p", -0.5), ("top_p", 2.0), ("min_p", math.inf), ("penalty_repeat", 0.0),
        ("penalty_last_n", -5), ("xtc_probability", 1.5), ("mirostat", 9), ("mirostat_tau", -1.0),
        ("mirostat_eta", 1e9), ("sequence", "top_k;nonsense\n"), ("sequence", 5), ("top_k", np.arange(3)),
    ],
)  # fmt: skip
def test_senseless_values_of_a_file_name_their_key(key: str, value: object) -> None:
    metadata = {f"general.sampling.{key}": value}
    with pytest.raises(ModelFileError) as caught:
        SamplingParams.from_metadata(metadata, path="models/bad.gguf")
    assert str(caught.value).startswith(f"bad.gguf: general.sampling.{key}: ") and "\n" not in str(
        caught.value
    )
    # A value of the user's own goes before it.
    own = {
        "temp": "temperature", "sequence": "samplers", "penalty_repeat": "repeat_penalty",
        "penalty_last_n": "repeat_last_n", "mirostat_tau": "mirostat_ent", "mirostat_eta": "mirostat_lr",
    }  # fmt: skip
    name = own.get(key, key)
    assert SamplingParams.from_metadata(metadata, **{name: DEFAULTS[name]}) == SamplingParams()


def test_generate_samples_as_asked_else_as_the_file_says() -> None:
    engine = FakeEngine("ab")
    file = ModelFile(Path("m.gguf"), {"general.sampling.temp": 0.25, "general.sampling.top_k": 7}, {})
    llm = Llm(engine, file=file)
    list(llm.generate("x", top_k=3, repeat_penalty=1.5))
    *events, last = llm.generate("x", sampling=SamplingParams(min_p=0.5), logprobs=2)
    first, second = (request.sampling for request in engine.requests)
    assert first == SamplingParams(temperature=0.25, top_k=3, repeat_penalty=1.5)
    assert second == SamplingParams(min_p=0.5)
    assert [e.logprob for e in events] == [0.0, 0.0] and last.logprob is None
    with pytest.raises(UsageError, match="top_k"):
        llm.generate("x", sampling=SamplingParams(), top_k=3)


# ── The command line ──────────────────────────────────────────────────────────────────────────────────────────────


@click.command()
@sampling_options
@click.option("--other", default=1)
def command(sampling: SamplingOptions, other: int) -> None:
    click.echo(repr(dict(sorted(sampling.items()))))


def given(*args: str) -> Any:
    run = CliRunner().invoke(command, args)
    if run.exception is not None:
        raise run.exception
    return ast.literal_eval(run.output)


def test_what_is_not_given_stays_unset() -> None:
    assert given() == {}
    assert given("--other", "2") == {}


def test_help_shows_the_real_defaults() -> None:
    defaults = SamplingParams()
    for number in NUMBERS:
        value = getattr(defaults, number.field)
        assert number.default == str(-1 if value is None else value), number.names
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert ";".join(DEFAULT_SAMPLERS) in text.replace(" ", "")
    assert "".join(SAMPLER_LETTERS) in text


def test_every_option_reaches_its_field() -> None:
    for number in NUMBERS:
        for name in number.names:
            value = {"mirostat": 2, "dry_base": 2.0}.get(number.field, 1)
            assert given(name, str(value)) == {number.field: value}
    named = {number.field for number in NUMBERS} | {"samplers", "logit_bias", "dry_sequence_breakers"}
    assert named == DEFAULTS.keys()


def test_options_that_are_no_numbers() -> None:
    assert given("-l", "15+1.5", "--logit-bias", "7-2") == {"logit_bias": {15: 1.5, 7: -2.0}}
    assert "{9: -inf}" in CliRunner().invoke(command, ["-l", "9-inf"]).output
    assert given("-l", "9-1e5", "-l", "9+1") == {"logit_bias": {9: 1.0}}
    assert given("--samplers", "top_k;temp") == {"samplers": "top_k;temp"}
    assert given("--sampler-seq", "kt") == {"samplers": ("top_k", "temperature")}
    assert given("--dry-sequence-breaker", "none") == {"dry_sequence_breakers": []}
    # As typed: escapes are read, or not, with those of all other arguments.
    assert given("--dry-sequence-breaker", "\\n") == {"dry_sequence_breakers": ["\\n"]}


@pytest.mark.parametrize(
    "args",
    [
        ("--temp", "nan"), ("--mirostat", "3"), ("--samplers", "top_q"), ("--sampler-seq", "q"), ("-l", "5"),
        ("-l", "x+1"), ("-l", "5+much"), ("-l", "5+nan"), ("--samplers", "top_k", "--sampler-seq", "k"),
    ],
)  # fmt: skip
def test_senseless_options_are_refused_before_the_command_runs(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        given(*args)
    assert "\n" not in str(caught.value)
