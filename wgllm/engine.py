"""The engine: requests in, events out. Each ``step()`` runs one step of the model."""

from __future__ import annotations

import enum
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn, Protocol

import numpy as np

from wgllm import debug
from wgllm.backends.base import Array, StateArray, Step
from wgllm.backends.segments import Pipeline, numeric_error
from wgllm.cache import KVCache, SlotState
from wgllm.errors import Cancelled, NumericError, UsageError
from wgllm.run_ahead import RunAhead
from wgllm.sampling import Sampler, SamplingParams, chances, fresh_seed, log_probabilities
from wgllm.tokenizer import IncrementalDecoder, StopScanner, Tokenizer

# Logits of many rows are computed in steps whose own logits take at most this much.
_LOGITS_BYTES = 64 << 20


class FinishReason(str, enum.Enum):
    """Why a generation ended."""

    STOP = "stop"
    """An end-of-generation token or a stop string."""
    LENGTH = "length"
    """``max_tokens`` were made."""
    CONTEXT = "context"
    """The context is full."""
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Stats:
    """Counts and times (seconds) of one request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, those that the cache still held."""
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    """From the first token to the last: generated_tokens - 1 steps."""
    first_token_seconds: float | None = None
    """From submitting to the first token."""
    context_used: int = 0
    context_size: int = 0
    context_shifts: int = 0
    """How often the context was full and half of it was dropped."""
    seed: int = 0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second, those from the cache not counted."""
        return (
            (self.prompt_tokens - self.cached_tokens) / self.prefill_seconds if self.prefill_seconds else 0.0
        )

    @property
    def decode_rate(self) -> float:
        """Generated tokens per second, without the first, which prefill makes."""
        return (self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Event:
    """One token with the text that it completes, or (``finish`` set) the end of a request."""

    request: int
    text: str
    """May be empty: a token that ends inside a character, or whose text may begin a stop string."""
    token_id: int | None
    finish: FinishReason | None = None
    stats: Stats | None = None
    """On the last event."""
    stopped_by: str | None = None
    """On the last event: the stop string that ended the text, which is not part of it."""
    logprob: float | None = None
    """Natural logarithm of the token's probability before all samplers, if ``logprobs`` was asked for."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """(token id, logprob) of the most probable tokens, best first."""
    kept: tuple[tuple[int, float], ...] = ()
    """(token id, probability) of this token and those of ``top_logprobs`` that the samplers left to draw from."""
    n_kept: int | None = None
    """How many tokens the samplers left, if ``logprobs`` was asked for."""


@dataclass(frozen=True)
class Request:
    """What to generate. ``max_tokens`` None goes on until the end, or until the context is full."""

    tokens: Sequence[int]
    max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: int = 0
    """Of how many tokens each event tells the probabilities; 0 tells none, not even the token's own."""
    special: bool = False
    """Show control tokens, the one that ends the text too."""
    continuation: bool = True
    """The text goes on the prompt's: the space before its first word is its own. A reply begins a text instead."""
    context_shift: bool = False
    """When the context is full, drop the older half of it and go on."""
    keep: int = 0
    """Tokens at the beginning that a context shift keeps; negative: the whole prompt."""
    given: Sequence[int] = ()
    """What goes on from ``tokens`` already. With it nothing is generated: each of these tokens gets the event that it
    would have had, had the samplers drawn it."""
    exact: bool = False
    """Re-use of the cache only what an empty one would come to by the same steps: what ran before then does not
    change even the rounding."""


class EngineLike(Protocol):
    """What front ends need of an engine: ``Engine``, the worker's proxy, and ``FakeEngine`` have it."""

    mail: dict[int, list[Event]]
    """Events that wait for the reader of their request (``run_request`` keeps it)."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def ctx_size(self) -> int: ...

    @property
    def busy(self) -> bool: ...

    def submit(self, request: Request) -> int: ...

    def step(self) -> list[Event]: ...

    def cancel(self, request: int) -> None: ...

    def close(self) -> None: ...


def run_request(engine: EngineLike, request: Request) -> Iterator[Event]:
    """Submits, yields the request's events until its last; a caller that stops early cancels it.

    Several may be read in turns: what one makes of another's is kept for that one.
    """
    number = engine.submit(request)
    mail = engine.mail[number] = []
    finished = False
    try:
        while not finished:
            if not mail:
                if not engine.busy:
                    raise UsageError("the model was closed while it was generating")
                for event in engine.step():
                    engine.mail.get(event.request, []).append(event)
                continue
            event = mail.pop(0)
            finished = event.finish is not None
            yield event
    finally:
        del engine.mail[number]
        if not finished:
            engine.cancel(number)
            for event in engine.step():  # ends it, if it is the one that runs
                engine.mail.get(event.request, []).append(event)


class _Active:
    """The state of the request that runs."""

    def __init__(
        self, number: int, request: Request, tokenizer: Tokenizer, vocab_size: int, started: float
    ) -> None:
        self.number = number
        self.request = request
        self.pending = [*request.tokens, *request.given[:-1]]
        """Tokens that the model has not read yet."""
        self.first_wanted = len(request.tokens) - 1
        """The first position whose logits are needed."""
        self.decoder = IncrementalDecoder(
            tokenizer, skip_special=not request.special, continuation=request.continuation
        )
        self.scanner = StopScanner(request.stop)
        self.started = started
        seed = request.sampling.seed
        self.seed = fresh_seed() if seed is None or seed < 0 else seed
        self.sampler = Sampler(
            request.sampling, self.seed, request.tokens, vocab_size=vocab_size, tokenizer=tokenizer
        )
        self.stats = Stats(prompt_tokens=len(request.tokens), seed=self.seed)
        self.begun = False
        on_host = request.logprobs or request.given or debug.steps_ahead() == 0
        self.on_device = None if on_host else self.sampler.on_device()
        self.ahead: RunAhead | None = None


class Engine:
    """Runs requests one after the other on slot 0. Not thread-safe, but for ``cancel``."""

    def __init__(
        self, pipeline: Pipeline, cache: KVCache, tokenizer: Tokenizer, *, largest_step: int, vocab_size: int
    ) -> None:
        self.pipeline = pipeline
        self.cache = cache
        self._tokenizer = tokenizer
        self.largest_step = largest_step
        self.vocab_size = vocab_size
        self.mail: dict[int, list[Event]] = {}
        self._closed = False
        self._numbers = itertools.count()
        self._queue: deque[_Active] = deque()
        self._live: set[int] = set()
        self._cancelled: set[int] = set()
        self._aligned = 0
        """Positions that were computed in whole steps of the largest size from 0 on."""

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def ctx_size(self) -> int:
        return self.cache.ctx_size

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._queue)

    def submit(self, request: Request) -> int:
        """Queues a request; returns its number. Raises UsageError for one that can't run."""
        self._check_tokens([*request.tokens, *request.given[:-1]])
        self._check_ids(request.given[-1:])
        if not 0 <= request.logprobs <= self.vocab_size:
            raise UsageError(f"logprobs {request.logprobs} must lie between 0 and {self.vocab_size}")
        active = _Active(next(self._numbers), request, self.tokenizer, self.vocab_size, time.perf_counter())
        self._queue.append(active)
        self._live.add(active.number)
        return active.number

    def cancel(self, request: int) -> None:
        """Ends a request at the next node of its step. May be called from another thread or a signal handler."""
        if request in self._live:
            self._cancelled.add(request)

    def step(self) -> list[Event]:
        """Runs one step of the request that is first in the queue; returns what it made."""
        if not self._queue:
            return []
        active = self._queue[0]
        try:
            if active.number in self._cancelled:
                raise Cancelled
            return self._advance(active)
        except Cancelled:
            return [self._finish(active, FinishReason.CANCELLED)]
        except BaseException:
            self._retire(active)
            raise

    def logits(self, tokens: Sequence[int], out_rows: Sequence[int]) -> Array:
        """Runs ``tokens`` from an empty slot; the logits [len(out_rows), V] of the given (ascending) rows."""
        result = np.empty((len(out_rows), self.vocab_size), np.float32)
        done = 0
        for made in self.each_logits(tokens, out_rows):
            result[done : done + len(made)] = made
            done += len(made)
        return result

    def each_logits(self, tokens: Sequence[int], out_rows: Sequence[int]) -> Iterator[Array]:
        """Like ``logits``, one array for each step, so that not all are in memory at once."""
        if self.busy:
            raise UsageError("the engine is generating: its context is in use")
        self._check_tokens(tokens)
        self._truncate(0)
        at_once = self._rows_at_once
        size = min(self.largest_step, at_once) if len(out_rows) > at_once else self.largest_step
        while (start := self.cache.length(0)) < len(tokens):
            chunk = tokens[start : start + size]
            wanted = [r - start for r in out_rows if start <= r < start + len(chunk)]
            made = self._run(chunk, wanted)
            if wanted:
                yield made

    @property
    def _rows_at_once(self) -> int:
        return max(1, _LOGITS_BYTES // (4 * self.vocab_size))

    def save_state(self) -> tuple[SlotState, list[dict[str, StateArray]]]:
        """A copy of what the cache holds, and the arrays of each program."""
        for active in self._queue:
            self._end_ahead(active)
        return self.cache.state(0), self.pipeline.save_state(0)

    def load_state(self, state: SlotState, arrays: Sequence[Mapping[str, StateArray]]) -> None:
        """Makes a saved state what the cache holds. Raises UsageError when it is not one of this model."""
        if self.busy:
            raise UsageError("the engine is generating: its context is in use")
        self._truncate(0)
        if any(not 0 <= t < self.vocab_size for t in state.tokens):
            raise UsageError("it has tokens outside the vocabulary")
        try:
            self.cache.restore(0, state)
            self.pipeline.load_state(0, arrays, len(state.tokens), state.lost)
        except ValueError as error:
            self._truncate(0)
            raise UsageError(str(error)) from None

    def close(self) -> None:
        self._closed = True
        self._queue.clear()
        self._live.clear()
        self.pipeline.close()

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if self._closed:
            raise UsageError("the model has been closed")
        n = len(tokens)
        if n == 0:
            raise UsageError("the prompt is empty: there is nothing to go on from")
        if n > self.ctx_size:
            raise UsageError(
                f"the prompt has {n} tokens, the context {self.ctx_size}; a larger one is needed"
            )
        self._check_ids(tokens)

    def _check_ids(self, tokens: Sequence[int]) -> None:
        bad = next((t for t in tokens if not 0 <= t < self.vocab_size), None)
        if bad is not None:
            raise UsageError(f"token id {bad} is outside the vocabulary of {self.vocab_size}")

    def _advance(self, active: _Active) -> list[Event]:
        now = time.perf_counter()
        if not active.begun:
            active.begun = True
            self._reuse_prefix(active)
        generated = active.stats.generated_tokens
        if active.request.given:
            events = self._step_given(active)
        else:
            events = self._step_ahead(active) if self._goes_ahead(active) else self._step_alone(active)
        spent = time.perf_counter() - now
        if generated == 0:
            active.stats = replace(active.stats, prefill_seconds=active.stats.prefill_seconds + spent)
        else:
            active.stats = replace(active.stats, decode_seconds=active.stats.decode_seconds + spent)
        if events and events[-1].finish is not None:
            events[-1] = replace(events[-1], stats=self._final_stats(active))
        return events

    def _step_alone(self, active: _Active) -> list[Event]:
        """A step whose logits, if it is the prompt's last, are waited for."""
        self._end_ahead(active)
        last_chunk = len(active.pending) <= self.largest_step
        chunk = active.pending[: self.largest_step]
        logits = self._run(chunk, [len(chunk) - 1] if last_chunk else [], active.number)
        del active.pending[: len(chunk)]
        if not last_chunk:
            return []
        if active.request.max_tokens == 0:
            return [self._finish(active, FinishReason.LENGTH)]
        return self._take(active, active.sampler.sample(logits[0]), logits[0])

    def _step_given(self, active: _Active) -> list[Event]:
        """A step over a prompt and what follows it, of which each row's logits are compared with the token given."""
        given, first = active.request.given, active.first_wanted
        start = self.cache.length(0)
        size = min(self.largest_step, max(0, first - start) + self._rows_at_once)
        chunk = active.pending[:size]
        wanted = [i for i in range(len(chunk)) if start + i >= first]
        logits = self._run(chunk, wanted, active.number)
        del active.pending[: len(chunk)]
        events = []
        for row, i in zip(logits, wanted, strict=True):
            token = given[start + i - first]
            drawn = active.sampler.sample(row, token)
            piece = active.decoder.push(token) if token < self.tokenizer.vocab_size else ""
            events.append(self._seen(active, Event(active.number, piece, token), row, drawn))
        if not active.pending:
            events.append(self._finish(active, FinishReason.LENGTH))
        return events

    def _goes_ahead(self, active: _Active) -> bool:
        """Whether the device chooses the next token: not the first, for which the prompt's step runs alone."""
        return (
            active.on_device is not None
            and active.stats.generated_tokens > 0
            and len(active.pending) == 1
            and (active.ahead is not None or self.pipeline.steps_ahead() is not None)
        )

    def _step_ahead(self, active: _Active) -> list[Event]:
        request = active.request
        if active.ahead is None:
            steps = self.pipeline.steps_ahead()
            assert steps is not None and active.on_device is not None
            (token,) = active.pending
            active.ahead = RunAhead(
                steps, self.cache, active.on_device, active.sampler.step, token, self.largest_step
            )
        most = self.ctx_size - self.cache.length(0)
        if request.max_tokens is not None:
            most = min(most, request.max_tokens - active.stats.generated_tokens)
        chosen = active.ahead.next(most, self._interrupt(active.number))
        if chosen is None:
            self._end_ahead(active)
            self._fail(Step.of(active.pending, self.cache.length(0), out_rows=[0]))
        if active.ahead.slow:
            self._end_ahead(active)
            active.on_device = None
        active.pending.clear()
        active.sampler.drawn_elsewhere()
        return self._take(active, chosen)

    def _end_ahead(self, active: _Active) -> None:
        """What ran ahead of the last token was for nothing."""
        if active.ahead is not None:
            ahead, active.ahead = active.ahead, None
            ahead.end()
            self._drop_partial_step()

    def _interrupt(self, number: int | None) -> Callable[[], None]:
        def interrupt() -> None:
            if number in self._cancelled:
                raise Cancelled

        return interrupt

    def cached_tokens(self, request: int) -> int:
        """How many tokens of a request that is next in the queue, and has not begun, need not be read."""
        active = self._queue[0] if self._queue else None
        if active is None or active.number != request or active.begun:
            return 0
        return self._reusable(active)

    def _reusable(self, active: _Active) -> int:
        """What the cache holds of the prompt; at least its last token is read, for its logits."""
        prefix = min(self.cache.common_prefix(0, active.pending), active.first_wanted)
        if active.request.exact:
            prefix = min(prefix // self.largest_step * self.largest_step, self._aligned)
        return prefix

    def _reuse_prefix(self, active: _Active) -> None:
        """Keeps what the cache holds of the prompt."""
        kept = self._truncate(self._reusable(active))
        del active.pending[:kept]
        active.stats = replace(active.stats, cached_tokens=kept)

    def _run(self, tokens: Sequence[int], out_rows: Sequence[int], number: int | None = None) -> Array:
        """One step of slot 0. On any failure the slot is as it was before; after a NaN it is empty."""
        self.cache.begin(0, len(tokens))
        start = self.cache.length(0)
        step = Step.of(tokens, start, out_rows=out_rows)
        try:
            logits = self.pipeline.run(
                step, interrupt=self._interrupt(number) if number is not None else None
            )
            if not np.isfinite(logits).all():
                self._fail(step)
        except NumericError:
            raise
        except BaseException:
            self._drop_partial_step()
            raise
        self.cache.commit(0, tokens)
        if start == self._aligned and len(tokens) == self.largest_step:
            self._aligned += len(tokens)
        return logits

    def _fail(self, step: Step) -> NoReturn:
        """The logits of ``step`` held a NaN or an infinity: the slot is emptied, and the error raised."""
        try:
            raise numeric_error(self.pipeline.first_bad_node(step))
        finally:
            self._truncate(0)
            self.pipeline.wipe(0)

    def _drop_partial_step(self) -> None:
        self._truncate(self.cache.length(0))

    def _truncate(self, length: int) -> int:
        kept = self.cache.truncate(0, length)
        self.pipeline.truncate(0, kept)
        self._aligned = min(self._aligned, kept // self.largest_step * self.largest_step)
        return kept

    def _shift(self, active: _Active) -> bool:
        """Drops half of a full context, after what is to be kept; the rest is run again. False if nothing is left."""
        request, held = active.request, self.cache.tokens(0)
        keep = request.keep if 0 <= request.keep <= len(request.tokens) else len(request.tokens)
        if held[0] == self.tokenizer.bos_id:
            keep = max(keep, 1)
        dropped = (len(held) - keep) // 2
        if dropped <= 0:
            return False
        self._end_ahead(active)
        rest = [*held[:keep], *held[keep + dropped :], *active.pending]
        active.pending = rest[self._truncate(keep) :]
        active.stats = replace(active.stats, context_shifts=active.stats.context_shifts + 1)
        return True

    def _take(self, active: _Active, token: int, logits: Array | None = None) -> list[Event]:
        """What follows from the token that was chosen; ``logits`` are there where they were asked for."""
        request, stats = active.request, active.stats
        if token in self.tokenizer.eog_ids and not request.ignore_eos:
            text = self.tokenizer.token_text(token) if request.special else ""
            return [self._finish(active, FinishReason.STOP, text)]
        stats = active.stats = replace(stats, generated_tokens=stats.generated_tokens + 1)
        if stats.first_token_seconds is None:
            active.stats = replace(stats, first_token_seconds=time.perf_counter() - active.started)
        # Embeddings may have rows beyond the tokenizer's last token; those stand for no text.
        piece = active.decoder.push(token) if token < self.tokenizer.vocab_size else ""
        text, stopped = active.scanner.push(piece)
        events = [Event(active.number, text, token)]
        if request.logprobs:
            assert logits is not None
            events = [self._seen(active, events[0], logits, token)]
        active.pending.append(token)
        if stopped:
            events.append(self._finish(active, FinishReason.STOP, flush=False))
        elif request.max_tokens is not None and stats.generated_tokens >= request.max_tokens:
            events.append(self._finish(active, FinishReason.LENGTH))
        elif self.cache.length(0) >= self.ctx_size and not (request.context_shift and self._shift(active)):
            events.append(self._finish(active, FinishReason.CONTEXT))
        return events

    def _seen(self, active: _Active, event: Event, logits: Array, drawn: int) -> Event:
        """The event with what else might have been drawn, where that was asked for; ``drawn`` is what was."""
        n, left, token = active.request.logprobs, active.sampler.left, event.token_id
        if not n:
            return event
        assert token is not None
        known = log_probabilities(logits, token, n)
        kept = chances(left, drawn if left is None else token, (other for other, _ in known.top))
        n_kept = 1 if left is None else len(left)
        return replace(event, logprob=known.logprob, top_logprobs=known.top, kept=kept, n_kept=n_kept)

    def _finish(self, active: _Active, reason: FinishReason, last: str = "", *, flush: bool = True) -> Event:
        """The last event, with the text that was held back (none after a stop string) and ``last``."""
        text = ""
        if flush:
            emitted, stopped = active.scanner.push(active.decoder.flush())
            text = emitted if stopped else emitted + active.scanner.flush() + last
            reason = FinishReason.STOP if stopped else reason
        self._retire(active)
        found = active.scanner.found
        return Event(active.number, text, None, reason, self._final_stats(active), stopped_by=found)

    def _retire(self, active: _Active) -> None:
        """Once or, when a Ctrl-C comes meanwhile, twice."""
        if active in self._queue:
            self._queue.remove(active)
        self._live.discard(active.number)
        self._cancelled.discard(active.number)
        self._end_ahead(active)

    def _final_stats(self, active: _Active) -> Stats:
        return replace(active.stats, context_used=self.cache.length(0), context_size=self.ctx_size)
