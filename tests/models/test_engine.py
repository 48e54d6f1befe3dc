"""The engine on tiny models: events, re-use, rollback, cancelling, ends of every kind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import wgllm
from tests.tiny import CTX, engine_on, load_program, run_chunks, tiny
from tests.tolerances import NUMPY_SAME
from wgllm import models
from wgllm.backends.base import Array, LoadOptions, Step
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.backends.segments import Pipeline
from wgllm.cache import KVCache, cell_counts
from wgllm.engine import Engine, Event, FinishReason, Request, run_request
from wgllm.errors import Cancelled, NumericError, UsageError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import TensorView
from wgllm.llm import Llm
from wgllm.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def llm() -> Iterator[Llm]:
    with wgllm.load(tiny("gemma3.f32").path) as loaded:
        yield loaded


def engine_of(llm: Llm) -> Engine:
    assert isinstance(llm.engine, Engine)
    return llm.engine


def small_engine(name: str, *, ctx: int = CTX, largest_step: int = 8) -> Engine:
    """An engine whose windowed layers have small rings."""
    return engine_on(NumpyExecutor(), name, ctx=ctx, largest_step=largest_step)


def tokens_of(events: list[Event]) -> list[int]:
    return [e.token_id for e in events if e.token_id is not None]


def prompt(n: int) -> list[int]:
    ids = tiny("gemma3.f32").cases()[-1]["ids"]
    return (ids * 4)[:n]


def test_each_token_is_an_event_and_the_last_has_reason_and_statistics(llm: Llm) -> None:
    *events, last = llm.generate(prompt(17), max_tokens=5, temperature=0, ignore_eos=True)
    assert len(events) == 5 and all(e.finish is None and e.stats is None for e in events)
    assert last.token_id is None and last.finish == FinishReason.LENGTH
    assert last.stats is not None
    assert (last.stats.prompt_tokens, last.stats.generated_tokens) == (17, 5)
    assert (last.stats.context_used, last.stats.context_size) == (21, CTX)  # the last token was not read
    assert last.stats.prefill_rate > 0 and last.stats.decode_rate > 0
    assert "".join(e.text for e in [*events, last]) == llm.tokenizer.detokenize(
        tokens_of(events), continuation=True
    )


def test_zero_tokens_only_reads_the_prompt(llm: Llm) -> None:
    (last,) = llm.generate(prompt(5), max_tokens=0)
    assert last.finish == FinishReason.LENGTH and last.stats is not None and last.stats.generated_tokens == 0


def test_the_same_seed_gives_the_same_text(llm: Llm) -> None:
    def run(seed: int) -> list[int]:
        return tokens_of(list(llm.generate(prompt(9), max_tokens=20, seed=seed, ignore_eos=True)))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_second_turn_reuses_the_longest_common_prefix(llm: Llm) -> None:
    first = list(llm.generate(prompt(20), max_tokens=4, temperature=0, ignore_eos=True))
    longer = prompt(20) + tokens_of(first) + [9, 10]
    *again, last = llm.generate(longer, max_tokens=4, temperature=0, ignore_eos=True)
    assert last.stats is not None and last.stats.cached_tokens == 23
    with wgllm.load(tiny("gemma3.f32").path) as fresh:
        expected = tokens_of(list(fresh.generate(longer, max_tokens=4, temperature=0, ignore_eos=True)))
    assert tokens_of(again) == expected


def test_the_same_prompt_again_reads_only_its_last_token(llm: Llm) -> None:
    list(llm.generate(prompt(20), max_tokens=1, temperature=0))
    *_, last = llm.generate(prompt(20), max_tokens=1, temperature=0)
    assert last.stats is not None and last.stats.cached_tokens == 19


@pytest.mark.parametrize("back", [1, 3, 8, 9, 30, 69])
def test_truncate_and_regenerate_across_a_rings_border_gives_the_same_tokens(back: int) -> None:
    # A window of 32 and steps of 8: after 70 positions the ring has wrapped, and 9 back it is no longer whole.
    engine = small_engine("gemma3.f32")
    ids = prompt(70)
    list(run_request(engine, Request(ids, 1, GREEDY, ignore_eos=True)))
    changed = [*ids[: 70 - back], *[11] * back]
    *again, last = run_request(engine, Request(changed, 12, GREEDY, ignore_eos=True))
    expected = list(run_request(small_engine("gemma3.f32"), Request(changed, 12, GREEDY, ignore_eos=True)))
    assert tokens_of(again) == tokens_of(expected)
    assert last.stats is not None and last.stats.cached_tokens == (70 - back if back <= 9 else 0)


def test_logits_after_truncation_equal_those_of_a_fresh_run() -> None:
    engine = small_engine("gemma3.f32")
    ids = prompt(100)
    list(run_request(engine, Request(ids, 1, GREEDY)))
    kept = engine.cache.truncate(0, 95)
    engine.pipeline.truncate(0, kept)
    step = Step.of(ids[kept:], kept, out_rows=range(len(ids) - kept))
    fresh = run_chunks(load_program(tiny("gemma3.f32").path), ids, 100)
    assert kept == 95
    assert np.abs(engine.pipeline.run(step) - fresh[kept:]).max() < NUMPY_SAME


def test_a_graph_cut_into_segments_gives_the_same_logits() -> None:
    model = tiny("gemma3.f32")
    file = open_gguf(model.path)
    built = models.build(file)
    sizes = cell_counts(built.graph.windows, CTX, 64, 1)
    first, rest = built.graph.cut(2)
    middle, last = rest.cut(4)
    pipeline = Pipeline(
        [NumpyExecutor().load(g, file.tensors, LoadOptions(sizes)) for g in (first, middle, last)]
    )
    ids = prompt(64)
    expected = run_chunks(load_program(model.path), ids, 64)
    assert np.abs(pipeline.run(Step.of(ids, 0, out_rows=range(64))) - expected).max() < NUMPY_SAME
    pipeline.truncate(0, 40)
    again = pipeline.run(Step.of(ids[40:], 40, out_rows=range(24)))
    assert np.abs(again - expected[40:]).max() < NUMPY_SAME


def test_a_full_context_ends_with_that_reason() -> None:
    engine = small_engine("llama-tied.f32", ctx=24)
    *events, last = run_request(engine, Request(prompt(20), None, GREEDY, ignore_eos=True))
    assert last.finish == FinishReason.CONTEXT
    assert len(events) == 5  # positions 20..23, and one that is not read any more
    assert last.stats is not None and last.stats.context_used == 24


def test_an_end_of_generation_token_stops_and_is_not_shown() -> None:
    with wgllm.load(tiny("llama-tied.f32").path) as llm:
        ids = tiny("llama-tied.f32").cases()[1]["ids"]
        free = tokens_of(list(llm.generate(ids, max_tokens=8, temperature=0, ignore_eos=True)))
        # Make the fourth token (its first occurrence) one that ends.
        end = next(t for t in free[3:] if t not in free[:3])
        llm.tokenizer.eog_ids = frozenset({end})
        *events, last = llm.generate(ids, max_tokens=8, temperature=0)
        assert tokens_of(events) == free[: free.index(end)]
        assert last.finish == FinishReason.STOP


def test_a_stop_string_across_tokens_ends_the_text_before_it(llm: Llm) -> None:
    free = list(llm.generate(prompt(30), max_tokens=30, temperature=0, ignore_eos=True))
    text = "".join(e.text for e in free)
    # From the middle of one token to the middle of a later one.
    middle = len("".join(e.text for e in free[:10]))
    stop = text[middle - 1 : middle + 3]
    events = list(llm.generate(prompt(30), max_tokens=30, temperature=0, ignore_eos=True, stop=stop))
    assert events[-1].finish == FinishReason.STOP
    assert "".join(e.text for e in events) == text[: text.index(stop)]


def test_leaving_the_loop_early_leaves_the_cache_usable(llm: Llm) -> None:
    stream = llm.generate(prompt(20), max_tokens=50, temperature=0, ignore_eos=True)
    for _ in range(3):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not llm.engine.busy
    again = tokens_of(list(llm.generate(prompt(20), max_tokens=5, temperature=0, ignore_eos=True)))
    with wgllm.load(tiny("gemma3.f32").path) as fresh:
        assert again == tokens_of(
            list(fresh.generate(prompt(20), max_tokens=5, temperature=0, ignore_eos=True))
        )


class Watched:
    """A program that calls ``look`` before each node."""

    def __init__(self, program: Any, look: Callable[[], None]) -> None:
        self.program, self.look = program, look

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def run(self, inputs: Mapping[str, Any], *, interrupt: Any = None, trace: Any = None) -> dict[str, Array]:
        def before_node() -> None:
            self.look()
            if interrupt is not None:
                interrupt()

        return dict(self.program.run(inputs, interrupt=before_node, trace=trace))


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_cancel_from_another_thread_is_seen_before_the_next_node(when: str) -> None:
    engine = small_engine("gemma3.f32", largest_step=64)
    quick = engine.pipeline.programs[0]
    list(run_request(engine, Request(prompt(10), 1, GREEDY)))
    request = Request(prompt(64) if when == "prefill" else prompt(10), 100, GREEDY, ignore_eos=True)
    number = engine.submit(request)
    if when == "decode":
        engine.step()
    nodes = 0

    def look() -> None:
        nonlocal nodes
        nodes += 1
        if nodes == 7:
            thread = threading.Thread(target=engine.cancel, args=(number,))
            thread.start()
            thread.join()

    engine.pipeline.programs[0] = Watched(quick, look)
    events: list[Event] = []
    while engine.busy:
        events = engine.step()
    assert events[-1].finish == FinishReason.CANCELLED
    assert nodes == 7
    engine.pipeline.programs[0] = quick
    again = tokens_of(list(run_request(engine, Request(prompt(64), 5, GREEDY, ignore_eos=True))))
    fresh = small_engine("gemma3.f32", largest_step=64)
    assert again == tokens_of(list(run_request(fresh, Request(prompt(64), 5, GREEDY, ignore_eos=True))))


def test_a_long_product_in_pieces_can_be_cancelled_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgllm.backends.numpy_weights._PIECE", 1024)
    program = load_program(tiny("gemma3.f32").path, memory=0, threads=1)
    looks = 0

    def interrupt() -> None:
        nonlocal looks
        looks += 1
        if looks == 200:
            raise Cancelled

    with pytest.raises(Cancelled):
        program.run(Step.of(prompt(8), 0, out_rows=[7]).inputs(), interrupt=interrupt)
    assert len(program._plan) < 200  # it was inside a node


def test_an_error_in_a_step_leaves_the_engine_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine("gemma3.f32")
    program = engine.pipeline.programs[0]
    run = program.run

    def fail(*args: Any, **kwargs: Any) -> Any:
        run(*args, **kwargs)
        raise RuntimeError("the device fell over")

    monkeypatch.setattr(program, "run", fail)
    with pytest.raises(RuntimeError):
        list(run_request(engine, Request(prompt(20), 5, GREEDY)))
    monkeypatch.undo()
    assert not engine.busy
    again = tokens_of(list(run_request(engine, Request(prompt(20), 5, GREEDY, ignore_eos=True))))
    assert again == tokens_of(
        list(run_request(small_engine("gemma3.f32"), Request(prompt(20), 5, GREEDY, ignore_eos=True)))
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_names_its_layer(value: float) -> None:
    file = open_gguf(tiny("llama-tied.f32").path)
    name = "blk.1.ffn_down.weight"
    damaged = file.tensors[name].array().copy()
    damaged[3, 5] = value
    view = TensorView(name, damaged.shape, file.tensors[name].format, damaged.view(np.uint8).reshape(-1))
    built = models.build(file)
    program = NumpyExecutor().load(
        built.graph, {**file.tensors, name: view}, LoadOptions(cell_counts(built.graph.windows, CTX, 64, 1))
    )
    from wgllm.tokenizer import tokenizer_from_model

    sizes = cell_counts(built.graph.windows, CTX, 64, 1)
    engine = Engine(
        Pipeline([program]), KVCache(built.graph.windows, sizes, CTX), tokenizer_from_model(file),
        largest_step=64, vocab_size=512,
    )  # fmt: skip
    with pytest.raises(NumericError, match="layer 1") as caught:
        list(run_request(engine, Request(prompt(5), 3, GREEDY)))
    assert "blk.1.down" in str(caught.value)
    assert not engine.busy


@pytest.mark.parametrize("fused", ["fused", "textbook"])
def test_after_a_nan_the_next_prompt_runs_as_if_nothing_had_been(
    fused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused == "textbook":
        monkeypatch.setenv("WGLLM_FUSE", "0")
    engine = small_engine("gemma3.f32")
    program = engine.pipeline.programs[0]
    # Layer 2's keys and values become NaN, in one step only.
    norm = program._constants["blk.2.attn_norm.weight"]  # type: ignore[attr-defined]
    sound = norm.copy()
    norm[:] = np.nan
    with pytest.raises(NumericError, match="layer 2"):
        list(run_request(engine, Request(prompt(60), 1, GREEDY)))
    norm[:] = sound
    again = tokens_of(list(run_request(engine, Request(prompt(50), 6, GREEDY, ignore_eos=True))))
    fresh = small_engine("gemma3.f32")
    assert again == tokens_of(list(run_request(fresh, Request(prompt(50), 6, GREEDY, ignore_eos=True))))


def test_two_generations_read_in_turns_each_get_their_own_events(llm: Llm) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    alone = [tokens_of(list(llm.generate(p, **options))) for p in (prompt(9), prompt(12)[3:])]
    pairs = list(
        zip(llm.generate(prompt(9), **options), llm.generate(prompt(12)[3:], **options), strict=True)
    )
    assert [tokens_of([p[i] for p in pairs]) for i in (0, 1)] == alone


def test_leaving_one_generation_does_not_run_the_other(llm: Llm) -> None:
    first = llm.generate(prompt(9), max_tokens=50, temperature=0, ignore_eos=True)
    second = llm.generate(prompt(8), max_tokens=3, temperature=0, ignore_eos=True)
    next(first)
    first.close()  # type: ignore[attr-defined]
    assert len(tokens_of(list(second))) == 3


def test_closing_frees_the_weights_and_ends_what_runs() -> None:
    llm = wgllm.load(tiny("gemma3.f32").path)
    program = engine_of(llm).pipeline.programs[0]
    arena = weakref.ref(next(iter(program._stacks.values())).dense.base)  # type: ignore[attr-defined]
    stream = llm.generate(prompt(9), max_tokens=50, temperature=0, ignore_eos=True)
    next(stream)
    llm.close()
    del program
    gc.collect()
    assert arena() is None
    with pytest.raises(UsageError, match="closed"):
        next(stream)
    with pytest.raises(UsageError, match="closed"):
        list(llm.generate(prompt(9)))
    with pytest.raises(UsageError, match="closed"):
        llm.logits(prompt(3))


@pytest.mark.parametrize(
    ("ids", "message"), [([], "empty"), ([5] * (CTX + 1), "513 tokens"), ([5, 512], "512"), ([-1], "-1")]
)
def test_prompts_that_can_not_run_are_refused(llm: Llm, ids: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(llm.generate(ids))


def test_logits_of_chosen_rows_are_those_of_all(llm: Llm) -> None:
    ids = prompt(40)
    everything = llm.logits(ids)
    assert everything.shape == (40, 512) and everything.dtype == np.float32
    assert np.abs(llm.logits(ids, rows=[39, 0, 7, -1]) - everything[[39, 0, 7, 39]]).max() < NUMPY_SAME
    with pytest.raises(UsageError):
        llm.logits(ids, rows=[40])


def test_logits_in_steps_bounded_by_memory_are_the_same(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt(40)
    everything = llm.logits(ids)
    monkeypatch.setattr("wgllm.engine._LOGITS_BYTES", 3 * 4 * 512)
    assert np.abs(llm.logits(ids) - everything).max() < NUMPY_SAME


def test_requests_wait_for_each_other(llm: Llm) -> None:
    engine = engine_of(llm)
    first = engine.submit(Request(prompt(5), 3, GREEDY, ignore_eos=True))
    second = engine.submit(Request(prompt(6), 3, GREEDY, ignore_eos=True))
    order = []
    while engine.busy:
        order += [e.request for e in engine.step()]
    assert order == [first] * 4 + [second] * 4
    assert engine.step() == []


def test_loading_says_what_is_wrong() -> None:
    path = tiny("llama-tied.f32").path
    for options, code in (({"backend": "cuda"}, 2), ({"kv_type": "q3_0"}, 2)):
        with pytest.raises(wgllm.WgllmError) as caught:
            wgllm.load(path, **options)  # type: ignore[arg-type]
        assert caught.value.exit_code == code
    with pytest.raises(UsageError, match="divisible by 32"):
        wgllm.load(path, kv_type="q8_0")  # heads of 16
