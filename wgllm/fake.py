"""An engine without a model, for tests of programs that use wgllm: it answers with scripted text."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from wgllm.engine import Event, FinishReason, Request, Stats
from wgllm.errors import UsageError
from wgllm.tokenizer import IncrementalDecoder, StopScanner, Tokenizer
from wgllm.tokenizer.vocabulary import TokenType, Vocabulary

_EOS = 256


class ByteTokenizer(Tokenizer):
    """One token per byte of UTF-8, and ``<|end|>`` (256) as the end of a text."""

    def __init__(self) -> None:
        texts = [f"<0x{byte:02X}>" for byte in range(256)] + ["<|end|>"]
        types = np.full(len(texts), TokenType.BYTE, np.uint8)
        types[_EOS] = TokenType.CONTROL
        super().__init__(Vocabulary(Path("fake"), texts, types, {"eos": _EOS}))

    def _encode_text(self, text: str, after_special: bool) -> list[int]:
        return list(text.encode("utf-8"))

    def _token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < _EOS else self.token_text(token_id).encode()


class FakeEngine:
    """Answers the n-th request with the n-th of ``replies`` (the last again and again), one byte a step.

    Has the interface of ``Engine``: give it to ``Llm(FakeEngine(["Hello!"]))``. ``requests`` keeps what was asked;
    ``delay`` seconds pass in each step; ``error`` is raised in the first step of every request.
    """

    def __init__(
        self,
        replies: str | Iterable[str] = "Hello!",
        *,
        delay: float = 0.0,
        ctx_size: int = 8192,
        error: Exception | None = None,
    ) -> None:
        self.replies = [replies] if isinstance(replies, str) else list(replies)
        if not self.replies:
            raise UsageError("a FakeEngine needs at least one reply")
        self.delay = delay
        self.error = error
        self.requests: list[Request] = []
        self.mail: dict[int, list[Event]] = {}
        self.closed = False
        self._tokenizer = ByteTokenizer()
        self._ctx_size = ctx_size
        self._waiting: list[_Reply] = []
        self._cancelled: set[int] = set()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def ctx_size(self) -> int:
        return self._ctx_size

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def submit(self, request: Request) -> int:
        if len(request.tokens) > self.ctx_size:
            raise UsageError(f"the prompt has {len(request.tokens)} tokens, the context {self.ctx_size}")
        number = len(self.requests)
        self.requests.append(request)
        text = self.replies[min(number, len(self.replies) - 1)]
        self._waiting.append(_Reply(number, request, list(text.encode()), self._tokenizer))
        return number

    def cancel(self, request: int) -> None:
        self._cancelled.add(request)

    def step(self) -> list[Event]:
        if not self._waiting:
            return []
        time.sleep(self.delay)
        reply = self._waiting[0]
        if self.error is not None:
            self._waiting.pop(0)
            raise self.error
        if reply.number in self._cancelled:
            return [self._end(reply, FinishReason.CANCELLED)]
        if reply.request.given:
            return self._look(reply)
        limit = reply.request.max_tokens
        if limit is not None and reply.made >= limit:
            return [self._end(reply, FinishReason.LENGTH)]
        if len(reply.request.tokens) + reply.made >= self.ctx_size:
            return [self._end(reply, FinishReason.CONTEXT)]
        if reply.made == len(reply.tokens):
            return [self._end(reply, FinishReason.STOP)]
        token = reply.tokens[reply.made]
        reply.made += 1
        text, stopped = reply.scanner.push(reply.decoder.push(token))
        events = [Event(reply.number, text, token)]
        if reply.request.logprobs:
            events = [_certain(events[0])]
        if stopped:
            events.append(self._end(reply, FinishReason.STOP))
        return events

    def _look(self, reply: _Reply) -> list[Event]:
        """The events of tokens that were given."""
        request = reply.request
        events = [Event(reply.number, reply.decoder.push(token), token) for token in request.given]
        if request.logprobs:
            events = [_certain(event) for event in events]
        return [*events, self._end(reply, FinishReason.LENGTH)]

    def close(self) -> None:
        self.closed = True
        self._waiting.clear()

    def _end(self, reply: _Reply, reason: FinishReason) -> Event:
        self._waiting.remove(reply)
        prompt = len(reply.request.tokens)
        stats = Stats(prompt_tokens=prompt, generated_tokens=reply.made, context_size=self.ctx_size)
        stats = replace(stats, context_used=prompt + reply.made, seed=reply.request.sampling.seed or 0)
        text = "" if reply.scanner.stopped else reply.decoder.flush() + reply.scanner.flush()
        return Event(reply.number, text, None, reason, stats, stopped_by=reply.scanner.found)


def _certain(event: Event) -> Event:
    """What is scripted is certain."""
    assert event.token_id is not None
    return replace(event, logprob=0.0, top_logprobs=((event.token_id, 0.0),))


class _Reply:
    """A scripted reply on its way."""

    def __init__(self, number: int, request: Request, tokens: list[int], tokenizer: Tokenizer) -> None:
        self.number = number
        self.request = request
        self.tokens = tokens
        self.made = 0
        self.decoder = IncrementalDecoder(tokenizer)
        self.scanner = StopScanner(request.stop)
