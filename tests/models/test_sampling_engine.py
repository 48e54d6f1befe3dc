"""Sampling through the engine: history, log probabilities, and what a file asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import wgllm
from tests.tiny import tiny
from wgllm import engine as engine_module
from wgllm.engine import Event, FinishReason, Request, run_request
from wgllm.errors import ModelFileError, UsageError
from wgllm.formats.gguf import open_gguf
from wgllm.llm import Llm
from wgllm.sampling import SamplingParams


@pytest.fixture(scope="module")
def llm() -> Iterator[Llm]:
    with wgllm.load(tiny("llama-tied.f32").path) as loaded:
        yield loaded


IDS = tiny("llama-tied.f32").cases()[0]["ids"][:12]


def run(llm: Llm, n: int = 12, **options: Any) -> list[Event]:
    return list(llm.generate(IDS, max_tokens=n, ignore_eos=True, **options))[:-1]


def tokens(events: list[Event]) -> list[int]:
    return [e.token_id for e in events if e.token_id is not None]


def test_logprobs_are_those_of_the_models_logits_before_all_samplers(llm: Llm) -> None:
    events = run(llm, 5, logprobs=3, seed=1, temperature=2.0, top_k=4, repeat_penalty=1.5)
    made = tokens(events)
    rows = llm.logits([*IDS, *made]).astype(np.float64)[len(IDS) - 1 : -1]
    for event, row in zip(events, rows, strict=True):
        expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
        best = np.argsort(-row, kind="stable")[:3]
        assert event.logprob == pytest.approx(expected[event.token_id], abs=1e-3)
        assert [t for t, _ in event.top_logprobs] == best.tolist()
        assert [p for _, p in event.top_logprobs] == pytest.approx(expected[best].tolist(), abs=1e-3)
    silent = run(llm, 5, seed=1, temperature=2.0, top_k=4, repeat_penalty=1.5)
    assert tokens(silent) == made
    assert all(e.logprob is None and e.top_logprobs == () and e.kept == () for e in silent)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 2, "temperature": 2.0},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "presence_penalty": 9.0, "repeat_last_n": -1},
        {"xtc_probability": 0.5, "xtc_threshold": 0.01},
        {"mirostat": 1},
        {"mirostat": 2, "mirostat_ent": 2.0},
        {"temperature": 0},
    ],
)
def test_what_the_samplers_kept_is_what_was_drawn_from(llm: Llm, options: dict[str, Any]) -> None:
    everything = run(llm, 12, logprobs=512, seed=1, **options)
    for event in everything:
        kept = dict(event.kept)
        assert len(kept) == event.n_kept and event.token_id in kept
        assert sum(kept.values()) == pytest.approx(1)
        assert list(kept.values()) == sorted(kept.values(), reverse=True)
    some = run(llm, 12, logprobs=3, seed=1, **options)
    for event, of in zip(some, everything, strict=True):
        asked = {event.token_id, *dict(event.top_logprobs)}
        assert event.kept == tuple(pair for pair in of.kept if pair[0] in asked)
        assert event.n_kept == of.n_kept
    assert tokens(run(llm, 12, seed=1, **options)) == tokens(everything)
    if options.get("top_k") == 2:
        assert all(e.n_kept == 2 for e in everything)
    if options.get("temperature") == 0:
        assert all(e.kept == ((e.token_id, 1.0),) for e in everything)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 5, "temperature": 2.0, "presence_penalty": 9.0, "repeat_last_n": -1},
        {"xtc_probability": 0.5, "xtc_threshold": 0.01},
        {"mirostat": 2, "mirostat_ent": 2.0},
        {"temperature": 0},
    ],
)
@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_a_given_reply_has_the_events_that_it_was_made_with(
    llm: Llm, options: dict[str, Any], rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(llm, 12, logprobs=4, seed=1, **options)
    monkeypatch.setattr(engine_module, "_LOGITS_BYTES", 4 * 512 * rows_at_once)
    params = llm.sampling_params(seed=1, **options)
    request = Request(IDS, given=tokens(made), logprobs=4, sampling=params)
    *seen, last = run_request(llm.engine, request)
    assert [e.token_id for e in seen] == tokens(made) and [e.n_kept for e in seen] == [e.n_kept for e in made]
    for event, of in zip(seen, made, strict=True):
        assert event.logprob == pytest.approx(of.logprob, abs=1e-3)
        assert dict(event.top_logprobs) == pytest.approx(dict(of.top_logprobs), abs=1e-3)
        assert dict(event.kept) == pytest.approx(dict(of.kept), abs=1e-3)
    text = "".join(e.text for e in [*seen, last])
    assert text == llm.tokenizer.detokenize(tokens(made), continuation=True)
    assert last.finish is FinishReason.LENGTH and last.stats is not None and last.stats.generated_tokens == 0
    # A token that no sampler would have left.
    other = [next(t for t in range(512) if t not in dict(made[0].top_logprobs)), *tokens(made)[1:]]
    *seen, _ = run_request(llm.engine, Request(IDS, given=other, logprobs=4, sampling=params))
    assert seen[0].token_id == other[0] and seen[0].n_kept == made[0].n_kept
    if seen[0].n_kept < 512:
        assert other[0] not in dict(seen[0].kept)
    assert tokens(run(llm, 12, seed=1, **options)) == tokens(made), "the cache is still whole"


def test_given_tokens_must_fit(llm: Llm) -> None:
    with pytest.raises(UsageError, match="outside the vocabulary"):
        llm.engine.submit(Request(IDS, given=[1, 512]))
    with pytest.raises(UsageError, match="the context"):
        llm.engine.submit(Request(IDS, given=[1] * (llm.ctx_size - len(IDS) + 2)))
    assert not llm.engine.busy


def test_penalties_know_prompt_and_answer(llm: Llm) -> None:
    made = tokens(run(llm, 40, temperature=0, presence_penalty=1000.0, repeat_last_n=-1))
    assert len({*made, *IDS}) == len(made) + len(set(IDS))


def test_a_forbidden_token_is_never_made(llm: Llm) -> None:
    first = tokens(run(llm, temperature=0))[0]
    assert first not in tokens(run(llm, temperature=0, logit_bias={first: float("-inf")}))


@pytest.mark.parametrize(
    "options", [{"mirostat": 2}, {"mirostat": 1}, {"dry_multiplier": 1.0}, {"typical_p": 0.5}]
)
def test_the_same_seed_gives_the_same_tokens(llm: Llm, options: dict[str, Any]) -> None:
    assert tokens(run(llm, seed=3, **options)) == tokens(run(llm, seed=3, **options))
    assert tokens(run(llm, seed=3, **options)) != tokens(run(llm, seed=4, **options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"logit_bias": {512: 1.0}}, "512"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 513}, "512"),
        ({"tempratur": 1.0}, "tempratur"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_and_leaves_the_engine_free(
    llm: Llm, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        run(llm, **options)
    assert not llm.engine.busy
    assert len(run(llm, 2)) == 2


def test_a_files_own_sampling_is_the_default(llm: Llm) -> None:
    assert llm.sampling_params() == SamplingParams()
    with open_gguf(tiny("llama-tied.f32").path) as file:
        file.metadata = {**file.metadata, "general.sampling.top_k": 1}
        advised = Llm(llm.engine, file=file)
        assert tokens(run(advised, seed=1)) == tokens(run(llm, temperature=0))
        assert tokens(run(advised, seed=1, top_k=0, top_p=1.0)) == tokens(
            run(llm, seed=1, top_k=0, top_p=1.0)
        )
        assert tokens(run(advised, sampling=SamplingParams(seed=1))) == tokens(run(llm, seed=1))
        file.metadata = {**file.metadata, "general.sampling.temp": float("nan")}
        with pytest.raises(ModelFileError, match=r"general\.sampling\.temp"):
            run(advised)
