"""What is generated, in the forms of OpenAI's answers: chunks of a stream, or one object."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from wgllm import __version__
from wgllm.engine import Event, FinishReason, Stats
from wgllm.serve.engine_child import Progress
from wgllm.serve.engine_host import EngineHost
from wgllm.serve.sse import Outflow

_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.CONTEXT: "length"}
# What OpenAI writes where JSON has no number.
_IMPOSSIBLE = -9999.0


@dataclass(frozen=True)
class Seen:
    """A token with its probability, and those of others that might have come."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass
class Piece:
    """Text that belongs together."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)


class Form(Protocol):
    """How one kind of answer is written. ``seen`` is None where no probabilities were asked for."""

    prefix: str
    object: str
    chunk_object: str

    def opening(self) -> dict[str, Any] | None:
        """The choice of a stream's first chunk."""

    def part(self, text: str, seen: Sequence[Seen] | None) -> dict[str, Any]:
        """The choice of a chunk."""

    def ending(self, reason: str) -> dict[str, Any]:
        """The choice of the last chunk that has one."""

    def whole(self, text: str, seen: Sequence[Seen] | None, reason: str) -> dict[str, Any]:
        """The choice of an answer in one."""


class ChatForm:
    prefix, object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def opening(self) -> dict[str, Any] | None:
        return self._choice({"role": "assistant", "content": ""}, None, None)

    def part(self, text: str, seen: Sequence[Seen] | None) -> dict[str, Any]:
        return self._choice({"content": text}, seen, None)

    def ending(self, reason: str) -> dict[str, Any]:
        return self._choice({}, None, reason)

    def whole(self, text: str, seen: Sequence[Seen] | None, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(seen),
            "finish_reason": reason,
        }

    def _choice(
        self, delta: dict[str, Any], seen: Sequence[Seen] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": self._logprobs(seen), "finish_reason": reason}

    def _logprobs(self, seen: Sequence[Seen] | None) -> dict[str, Any] | None:
        if seen is None:
            return None
        return {
            "content": [
                {
                    **_token(one.token, one.logprob),
                    "top_logprobs": [_token(*other) for other in one.top],
                }
                for one in seen
            ],
            "refusal": None,
        }


class TextForm:
    prefix, object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def __init__(self) -> None:
        self._offset = 0

    def opening(self) -> dict[str, Any] | None:
        return None

    def part(self, text: str, seen: Sequence[Seen] | None) -> dict[str, Any]:
        return self._choice(text, seen, None)

    def ending(self, reason: str) -> dict[str, Any]:
        return self._choice("", None, reason)

    def whole(self, text: str, seen: Sequence[Seen] | None, reason: str) -> dict[str, Any]:
        return self._choice(text, seen, reason)

    def _choice(self, text: str, seen: Sequence[Seen] | None, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": self._logprobs(seen), "finish_reason": reason}

    def _logprobs(self, seen: Sequence[Seen] | None) -> dict[str, Any] | None:
        if seen is None:
            return None
        offsets = []
        for one in seen:
            offsets.append(self._offset)
            self._offset += len(_text(one.token))
        return {
            "tokens": [_text(one.token) for one in seen],
            "token_logprobs": [_number(one.logprob) for one in seen],
            "top_logprobs": [{_text(token): _number(value) for token, value in one.top} for one in seen],
            "text_offset": offsets,
        }


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(token), "logprob": _number(logprob), "bytes": list(token)}


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def _number(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE


class _Answer:
    """What both ways of answering share: the head of each object, and text with what belongs to it."""

    def __init__(self, host: EngineHost, form: Form, model: str, *, top_logprobs: int | None) -> None:
        """``top_logprobs`` None: no probabilities at all."""
        self._host, self._form = host, form
        self._top = top_logprobs
        self._head = {
            "id": form.prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"wgllm-{__version__}",
        }

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices, **more}

    async def _read(self, events: Sequence[Event], piece: Piece) -> Event | None:
        """Adds events to ``piece``; returns the last of all."""
        for event in events:
            piece.text += event.text
            if event.token_id is not None:
                piece.ids.append(event.token_id)
            if event.logprob is not None and event.token_id is not None and self._top is not None:
                top = event.top_logprobs[: self._top]
                own, *others = await self._host.token_bytes([event.token_id, *(i for i, _ in top)])
                values = (value for _, value in top)
                piece.seen.append(Seen(own, event.logprob, tuple(zip(others, values, strict=True))))
        return events[-1] if events and events[-1].finish is not None else None

    def _seen(self, piece: Piece) -> Sequence[Seen] | None:
        return None if self._top is None else piece.seen


class StreamedAnswer(_Answer):
    """Chunks, as they come, into a flow."""

    def __init__(
        self,
        host: EngineHost,
        form: Form,
        model: str,
        flow: Outflow,
        *,
        top_logprobs: int | None,
        usage: bool,
        progress: bool,
    ) -> None:
        super().__init__(host, form, model, top_logprobs=top_logprobs)
        self._flow = flow
        self._usage, self._progress = usage, progress
        self._held = Piece()

    def tell(self, progress: Progress) -> None:
        if self._progress and not self._flow.begun:
            told = {
                "stage": progress.stage,
                "done": progress.done,
                "total": progress.total,
                "label": progress.label,
            }
            self._flow.progress(self._object("wgllm.progress", [], **told))

    async def add(self, events: Sequence[Event]) -> None:
        last = await self._read(events, self._held)
        held = self._held
        # Tokens without text wait for those that complete a character, unless somebody counts them.
        if held.text or (held.ids and (self._progress or last is not None)):
            more = {"token_ids": held.ids} if self._progress else {}
            self._chunk(self._form.part(held.text, self._seen(held)), **more)
            self._held = Piece()
        if last is not None:
            self._end(last)

    def again(self) -> bool:
        self._held = Piece()
        return not self._flow.begun

    def _chunk(self, choice: dict[str, Any] | None, **more: Any) -> None:
        if not self._flow.begun and (opening := self._form.opening()) is not None:
            self._flow.put(self._object(self._form.chunk_object, [opening]))
        self._flow.put(self._object(self._form.chunk_object, [] if choice is None else [choice], **more))

    def _end(self, event: Event) -> None:
        assert event.finish is not None and event.stats is not None
        figures = end_figures(event.finish, event.stats)
        self._chunk(self._form.ending(_REASONS[event.finish]), **figures)
        if self._usage:
            self._chunk(None, usage=usage_of(event.stats), **figures)


class WholeAnswer(_Answer):
    """One object, when all has come."""

    def __init__(self, host: EngineHost, form: Form, model: str, *, top_logprobs: int | None) -> None:
        super().__init__(host, form, model, top_logprobs=top_logprobs)
        self._piece = Piece()
        self._last: Event | None = None

    def tell(self, progress: Progress) -> None:
        """Nobody is listening yet."""

    async def add(self, events: Sequence[Event]) -> None:
        self._last = await self._read(events, self._piece)

    def again(self) -> bool:
        self._piece = Piece()
        return True

    def body(self) -> dict[str, Any]:
        """The answer. ``generate`` has ended."""
        last, piece = self._last, self._piece
        assert last is not None and last.finish is not None and last.stats is not None
        choice = self._form.whole(piece.text, self._seen(piece), _REASONS[last.finish])
        figures = end_figures(last.finish, last.stats)
        return self._object(self._form.object, [choice], usage=usage_of(last.stats), **figures)


def usage_of(stats: Stats) -> dict[str, Any]:
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.generated_tokens,
        "total_tokens": stats.prompt_tokens + stats.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
    }


def end_figures(finish: FinishReason, stats: Stats) -> dict[str, Any]:
    """What OpenAI has not: llama.cpp's ``timings``, how full the context is, the seed, and what ``length`` means."""
    read, made = stats.prompt_tokens - stats.cached_tokens, stats.generated_tokens
    steps = max(made - 1, 0)
    return {
        "timings": {
            "cache_n": stats.cached_tokens,
            "prompt_n": read,
            "prompt_ms": 1e3 * stats.prefill_seconds,
            "prompt_per_token_ms": 1e3 * stats.prefill_seconds / max(read, 1),
            "prompt_per_second": stats.prefill_rate,
            "predicted_n": made,
            "predicted_ms": 1e3 * stats.decode_seconds,
            "predicted_per_token_ms": 1e3 * stats.decode_seconds / max(steps, 1),
            "predicted_per_second": stats.decode_rate,
        },
        "context_used": stats.context_used,
        "context_size": stats.context_size,
        "ended_by": finish.value,
        "seed": stats.seed,
    }
