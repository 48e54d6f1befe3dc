"""A loaded model with the command's options: prompts to tokens, generations to an output, the prompt cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgllm.cli.generate_options import GenerateOptions
from wgllm.cli.logprobs import noting_logprobs
from wgllm.cli.render import Messages, Output, how_it_went
from wgllm.cli.signals import Interrupts
from wgllm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wgllm.check_report import Summary
    from wgllm.engine import Event, Request
    from wgllm.llm import Llm
    from wgllm.sampling import SamplingParams


@dataclass
class Session:
    """What the ways to generate (once, interactive, many prompts) have in common."""

    llm: Llm
    options: GenerateOptions
    sampling: SamplingParams
    messages: Messages
    interrupts: Interrupts
    logprobs: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        options = self.options
        if options.conversation and not self.llm.has_template:
            raise UsageError("this model has no chat template; leave -cnv out")
        self.uses_template = self.llm.has_template if options.conversation is None else options.conversation
        self._checked = self._check() if options.check else None
        self._saved = False
        self._cached: list[int] = []
        """What the file of the prompt cache holds."""
        if options.prompt_cache:
            self._cached = self.llm.load_state(options.prompt_cache)
            how = f"{len(self._cached)} tokens" if self._cached else "empty"
            self.messages.info(f"prompt cache {options.prompt_cache}: {how}")

    def _check(self) -> Summary:
        """Has every node compared with NumPy from now on; what is returned counts them."""
        from wgllm.check import watch
        from wgllm.check_report import Summary
        from wgllm.engine import Engine

        engine, model, summary = self.llm.engine, self.llm.model, Summary()
        assert isinstance(engine, Engine) and model is not None
        watch(engine.pipeline, model.weights, summary.add)
        return summary

    def chat_tokens(
        self, conversation: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        return self.llm.chat_tokens(conversation, tools=tools, parse_special=self.options.parse_special)

    def text_tokens(self, text: str, *, add_special: bool = True) -> list[int]:
        return self.llm.tokenize(text, add_special=add_special, parse_special=self.options.parse_special)

    def request(self, tokens: Sequence[int], sampling: SamplingParams | None = None) -> Request:
        from wgllm.engine import Request

        options = self.options
        return Request(
            tokens=tokens,
            max_tokens=None if options.max_tokens < 0 else options.max_tokens,
            sampling=sampling or self.sampling,
            stop=self.stop,
            ignore_eos=options.ignore_eos,
            special=options.special or options.ignore_eos,
            continuation=not self.uses_template,
            context_shift=options.context_shift and options.max_tokens != -2,
            keep=options.keep,
            logprobs=self.logprobs,
        )

    def show_prompt(self, tokens: Sequence[int], output: Output) -> None:
        """The prompt on stdout and its tokens among the messages, where they were asked for."""
        tokenizer = self.llm.tokenizer
        if self.options.display_prompt:
            output.prompt(tokenizer.detokenize(tokens, skip_special=not self.options.special))
        if self.messages.verbose:
            self.messages.detail(f"sampling {self.sampling}")
            for token in tokens:
                self.messages.detail(f"{token:6} {tokenizer.token_text(token)!r}")

    def run(self, request: Request, output: Output) -> Event:
        """Runs a request to its end; Ctrl-C ends it with what has been made."""
        saving = self._saver(request)
        lines: list[str] = []
        last = None
        try:
            for event in noting_logprobs(self.stream(request), lines, self.llm.tokenizer):
                output.event(event)
                saving(event)
                last = event
        finally:
            if last is None or last.finish is None or not self.options.interactive:
                output.end()
        assert last is not None
        if not self.options.as_json:
            for line in lines:
                self.messages.warn(line)
        return last

    def tell(self, last: Event) -> None:
        """Statistics as asked for; that the context was full is told in any case."""
        if self.options.show_timings is None:
            self.messages.info(how_it_went(last))
        elif self.options.show_timings:
            self.messages.warn(how_it_went(last))
        if self._checked is not None:
            self.messages.info(f"check: {self._checked.count} results of nodes are as NumPy makes them")
        if last.finish is not None and last.finish.value == "context":
            self.messages.warn(
                f"stopped: the context of {self.llm.ctx_size} tokens is full (-c takes a larger one, "
                "--context-shift drops the older half and goes on)"
            )

    def stream(self, request: Request) -> Iterator[Event]:
        """The events of a request; Ctrl-C cancels it, and so does leaving early."""
        from wgllm.engine import run_request

        engine = self.llm.engine

        def cancel() -> None:
            if not engine.mail:
                raise KeyboardInterrupt
            for number in list(engine.mail):
                engine.cancel(number)

        with self.interrupts.cancelling(cancel):
            yield from run_request(engine, request)

    def reply_text(self, request: Request, ids: Sequence[int], last: Event) -> str:
        """What the tokens of a reply say, without special ones and what stopped it, whatever was shown."""
        tokenizer = self.llm.tokenizer
        known = [i for i in ids if i < tokenizer.vocab_size]  # as the engine does: others stand for no text
        text = tokenizer.detokenize(known, skip_special=True, continuation=request.continuation)
        return text.partition(last.stopped_by)[0] if last.stopped_by else text

    def _saver(self, request: Request) -> Callable[[Event], None]:
        """What writes the prompt cache: once the prompt has been read, or at the end."""
        path, everything = self.options.prompt_cache, self.options.prompt_cache_all
        done = path is None or self.options.prompt_cache_ro or (self._saved and not everything)

        def save(event: Event) -> None:
            nonlocal done
            if done or (everything and event.finish is None):
                return
            done = self._saved = True
            from wgllm.engine import Engine

            engine = self.llm.engine
            assert path is not None and isinstance(engine, Engine)
            held = engine.cache.tokens(0)
            if held and held != self._cached:
                self.llm.save_state(Path(path))
                self._cached = held

        return save
