"""``wgllm generate``: text from a prompt, streaming on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wgllm.cli.console import CONTEXT, use_utf8
from wgllm.cli.generate_options import GenerateOptions, generate_options
from wgllm.cli.logprobs import logprobs_option
from wgllm.cli.options import chat_options, load_model, model_options
from wgllm.cli.prompts import Escapes, join_prompts, system_prompt
from wgllm.cli.render import JsonOutput, Messages, TextOutput, wants_colour
from wgllm.cli.sampling_options import sampling_options
from wgllm.cli.signals import Interrupts, nudging
from wgllm.errors import UsageError

if TYPE_CHECKING:
    from wgllm.cli.session import Session
    from wgllm.llm import Llm
    from wgllm.sampling import SamplingOptions


@click.command("generate", context_settings=CONTEXT)
@click.argument("prompt_argument", metavar="[PROMPT|-]", required=False)
@generate_options
@chat_options
@sampling_options
@logprobs_option
@model_options
def generate_command(
    prompt_argument: str | None, sampling: SamplingOptions, logprobs: int, **arguments: Any
) -> int:
    """Generate text from a prompt: the argument, -p, -f and a pipe are joined in this order.

    A pipe is read to its end: where stdin stays open but brings nothing, add < /dev/null.

    \b
    Examples:
      wgllm generate -p "Write a haiku about rain."
      wgllm generate --raw -n 32 --temp 0 "The capital of France is"
      wgllm generate -p "Summarise this:" < notes.txt
      wgllm generate -i -sys "You are terse."
      wgllm generate --prompts questions.jsonl --out answers.jsonl -s 1

    \b
    See also:
      wgllm list        the names of models
      wgllm tokenize    how a text becomes tokens
      wgllm bench       how fast it is
    """
    use_utf8()
    options = GenerateOptions.take(arguments)
    _check(options, prompt_argument)
    if logprobs and options.prompts is not None:
        raise UsageError("--prompts has no log probabilities")
    escapes = Escapes(options.escape)
    system = system_prompt(options.system, options.system_file, escapes)
    alone = not options.interactive and options.prompts is None
    piped = alone and options.system_file != "-"
    text = join_prompts(
        [prompt_argument, options.prompt], options.files, escapes, pipe=piped, tell=not options.quiet
    )
    if alone and not text:
        raise UsageError(
            "there is no prompt; give one as an argument, with -p, -f or through a pipe, or talk with -i"
        )
    stops = tuple(escapes.typed(stop) for stop in options.stop)
    if breakers := sampling.get("dry_sequence_breakers"):
        sampling["dry_sequence_breakers"] = [escapes.typed(text) for text in breakers]
    messages = Messages(
        quiet=options.quiet,
        verbose=options.verbose,
        log_file=options.log_file,
        dim=not options.simple_io and wants_colour(options.colour, sys.stderr),
    )
    with contextlib.closing(messages), Interrupts() as interrupts, contextlib.ExitStack() as stack:
        started = time.perf_counter()
        with load_model(**arguments, bar=not (options.quiet or options.simple_io)) as llm:
            messages.info(_what_runs(llm, time.perf_counter() - started))
            from wgllm.cli.session import Session

            params = llm.sampling_params(**sampling)
            session = Session(llm, options, params, messages, interrupts, logprobs, stops)
            if options.prompts is not None:
                from wgllm.cli.batch import Batch

                return Batch(session, system).run()
            output = (
                JsonOutput()
                if options.as_json
                else TextOutput(not options.simple_io and wants_colour(options.colour, sys.stdout))
            )
            if options.interactive:
                from wgllm.cli.interactive import Interactive

                stack.enter_context(nudging())
                return Interactive(session, output, system).run(text)
            return _once(session, output, text, system)


def _once(session: Session, output: TextOutput | JsonOutput, text: str, system: str | None) -> int:
    from wgllm.cli.conversation import start_conversation

    conversation = start_conversation(session, system)
    conversation.ask(text)
    tokens = conversation.tokens()
    session.show_prompt(tokens, output)
    last = session.run(session.request(tokens), output)
    session.tell(last)
    if session.interrupts.seen:
        raise KeyboardInterrupt
    return 0


def _check(options: GenerateOptions, prompt_argument: str | None) -> None:
    """Refuses what does not go together before anything is loaded."""
    if options.prompts is None:
        if options.out is not None:
            raise UsageError("--out goes with --prompts; text goes to stdout")
    elif options.interactive or options.as_json or options.prompt_cache or options.display_prompt:
        raise UsageError("--prompts does not go with -i, --json, --display-prompt or a prompt cache")
    elif prompt_argument is not None or options.prompt is not None or options.files:
        raise UsageError("--prompts has the prompts: give no other one")
    stdin = [prompt_argument, options.prompt, *options.files, options.system_file, options.prompts].count("-")
    if stdin + options.interactive > 1:
        raise UsageError("stdin (-) can be read once only")
    if (options.prompt_cache_all or options.prompt_cache_ro) and not options.prompt_cache:
        raise UsageError("--prompt-cache names the file")
    if options.prompt_cache_all and options.prompt_cache_ro:
        raise UsageError("give either --prompt-cache-all or --prompt-cache-ro")
    if options.prompt_cache and not options.prompt_cache_ro:
        folder = Path(options.prompt_cache).absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UsageError(f"--prompt-cache {options.prompt_cache}: no file can be written in {folder}")
    if options.conversation is False and (options.system is not None or options.system_file is not None):
        raise UsageError("a system prompt needs a chat template; leave --raw (-no-cnv) out")


def _what_runs(llm: Llm, seconds: float) -> str:
    trained = llm.model.config.n_ctx_train if llm.model else llm.ctx_size
    context = f"context {llm.ctx_size}"
    if llm.ctx_size < trained:
        context += f" of the model's {trained} (-c sets it)"
    elif llm.ctx_size > trained:
        context += f", beyond the {trained} that the model was trained for"
    return f"{llm.where} · {context} · loaded in {seconds:.2f} s"
