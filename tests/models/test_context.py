"""A full context, control tokens in a text, and what is re-used exactly."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models.test_engine import prompt, small_engine, tokens_of
from wgllm.engine import Engine, Event, FinishReason, Request, run_request
from wgllm.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0)


def run(engine: Engine, ids: list[int], n: int | None, **options: object) -> list[Event]:
    return list(run_request(engine, Request(ids, n, GREEDY, ignore_eos=True, **options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["qwen2.f32", "gemma3.f32"])
@pytest.mark.parametrize("keep", [0, 3, -1])
def test_a_shift_goes_on_as_a_prompt_of_the_kept_tokens_would(name: str, keep: int) -> None:
    ctx = 64
    engine = small_engine(name, ctx=ctx)
    ids = prompt(40)
    *events, last = run(engine, ids, 60, context_shift=True, keep=keep)
    made = tokens_of(events)
    assert last.finish == FinishReason.LENGTH and len(made) == 60
    assert last.stats is not None and last.stats.context_shifts >= 1
    assert last.stats.context_used <= ctx
    # The first 25 tokens fill the context: 40 + 24 are read then, and the 25th waits.
    kept = 40 if keep < 0 else keep
    if keep == 0 and ids[0] == engine.tokenizer.bos_id:
        kept = 1
    held = [*ids, *made[:24]]
    rest = [*held[:kept], *held[kept + (ctx - kept) // 2 :], made[24]]
    again = run(small_engine(name, ctx=ctx), rest, 10)
    assert made[25:35] == tokens_of(again)[:10]


def test_a_prompt_that_fills_the_context_and_is_kept_whole_can_not_be_shifted() -> None:
    engine = small_engine("qwen2.f32", ctx=32)
    *_, last = run(engine, prompt(32), None, context_shift=True, keep=-1)
    assert last.finish == FinishReason.CONTEXT and last.stats is not None
    assert last.stats.context_shifts == 0


def test_without_a_shift_a_full_context_is_the_end() -> None:
    *_, last = run(small_engine("qwen2.f32", ctx=32), prompt(20), None)
    assert last.finish == FinishReason.CONTEXT


def test_control_tokens_are_shown_only_when_asked_for() -> None:
    engine = small_engine("llama-tied.f32")
    free = tokens_of(run(engine, prompt(20), 12))
    control = free[3]
    engine.tokenizer._hidden.add(control)
    hidden = "".join(e.text for e in run(engine, prompt(20), 12))
    shown = "".join(e.text for e in run(engine, prompt(20), 12, special=True))
    assert hidden == engine.tokenizer.detokenize(free, skip_special=True, continuation=True)
    assert shown == engine.tokenizer.detokenize(free, continuation=True) != hidden


def test_the_end_token_is_shown_with_special() -> None:
    engine = small_engine("llama-tied.f32")
    free = tokens_of(run(engine, prompt(20), 12))
    engine.tokenizer.eog_ids = frozenset({free[4]})
    events = list(run_request(engine, Request(prompt(20), 12, GREEDY, special=True)))
    assert events[-1].finish == FinishReason.STOP
    assert events[-1].text.endswith(engine.tokenizer.token_text(free[4]))


def test_the_last_event_names_the_stop_string() -> None:
    engine = small_engine("llama-tied.f32")
    text = "".join(e.text for e in run(engine, prompt(20), 12))
    stop = text[3:6]
    events = run(engine, prompt(20), 12, stop=("not there", stop))
    assert events[-1].stopped_by == stop
    assert events[-1].finish == FinishReason.STOP


def test_exact_reuse_takes_whole_steps_of_an_earlier_prompt_only() -> None:
    engine = small_engine("qwen2.f32")  # steps of 8
    ids = prompt(60)

    def cached(tokens: list[int]) -> int:
        *_, last = run(engine, tokens, 4, exact=True)
        assert last.stats is not None
        return last.stats.cached_tokens

    assert cached(ids) == 0
    assert cached(ids) == 56
    assert cached([*ids[:30], 9, 9, 9]) == 24
    assert cached(ids) == 24  # positions 24 on are those of the other prompt, the last step not a whole one
    run(engine, ids[:5], 20)
    assert cached([*ids[:5], *tokens_of(run(engine, ids[:5], 20))]) == 0


def test_exact_results_do_not_depend_on_what_ran_before() -> None:
    ids = prompt(61)
    engine = small_engine("qwen2.f32")
    run(engine, prompt(50), 9)
    run(engine, ids[:35], 7, exact=True)
    run(engine, ids, 1, exact=True)
    fresh = small_engine("qwen2.f32")
    run(fresh, ids, 1, exact=True)
    for (_, ours), (_, theirs) in zip(
        [(s, a) for own in engine.save_state()[1] for s, a in own.items()],
        [(s, a) for own in fresh.save_state()[1] for s, a in own.items()],
        strict=True,
    ):
        assert np.array_equal(ours, theirs)
