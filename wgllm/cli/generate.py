"""``wgllm generate``: text from a prompt, streaming on stdout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from wgllm.cli.console import read_text, say, stdin_is_piped, use_utf8, write_text
from wgllm.cli.options import load_model, model_options
from wgllm.errors import UsageError

if TYPE_CHECKING:
    from wgllm.engine import Event
    from wgllm.llm import Llm


@click.command("generate", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt_argument", metavar="[PROMPT|-]", required=False)
@model_options
@click.option("-p", "--prompt", default=None, metavar="TEXT", help="The prompt; - reads stdin.")
@click.option(
    "-f", "--file", "files", multiple=True, metavar="FILE", help="A file with a prompt; - reads stdin."
)
@click.option(
    "-n",
    "--predict",
    "max_tokens",
    type=click.IntRange(min=-1),
    default=-1,
    show_default=True,
    metavar="N",
    help="Tokens to make at most; -1 until the end.",
)
@click.option(
    "-s",
    "--seed",
    type=int,
    default=-1,
    show_default=True,
    metavar="N",
    help="Same seed, same text; -1 draws one.",
)
@click.option(
    "--temp", type=float, default=0.8, show_default=True, metavar="T", help="Temperature; 0 is greedy."
)
@click.option(
    "--top-k", type=int, default=40, show_default=True, metavar="K", help="Keep the K best tokens; 0: all."
)
@click.option(
    "--top-p",
    type=float,
    default=0.95,
    show_default=True,
    metavar="P",
    help="Keep the best tokens that reach P; 1: all.",
)
@click.option(
    "--min-p",
    type=float,
    default=0.05,
    show_default=True,
    metavar="P",
    help="Drop tokens less than P times as probable as the best; 0: none.",
)
@click.option("--ignore-eos", is_flag=True, help="Go on after the end of the text.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the model's chat template.")
@click.option("-q", "--quiet", is_flag=True, help="No messages on stderr.")
def generate_command(
    prompt_argument: str | None, prompt: str | None, files: tuple[str, ...], max_tokens: int, seed: int,
    temp: float, top_k: int, top_p: float, min_p: float, ignore_eos: bool, raw: bool, quiet: bool, **model_args: Any,
) -> None:  # fmt: skip
    """Generate text from a prompt: the argument, -p, -f and a pipe are joined in this order.

    \b
    wgllm generate -p "Write a haiku about rain."
    wgllm generate --raw -n 32 --temp 0 "The capital of France is"
    wgllm generate -p "Summarise this:" < notes.txt
    """
    use_utf8()
    text = _join_prompts([prompt_argument, prompt], files)
    from wgllm.sampling import SamplingParams

    sampling = SamplingParams(temp, top_k, top_p, min_p, seed)
    started = time.perf_counter()
    with load_model(**model_args) as llm:
        if not quiet:
            say(_what_runs(llm, time.perf_counter() - started))
        if raw or not llm.has_template:
            tokens = llm.tokenize(text)
        else:
            tokens = llm.chat_tokens([{"role": "user", "content": text}])
        last = _stream(llm.generate(tokens, max_tokens=max_tokens, sampling=sampling, ignore_eos=ignore_eos))
        if not quiet and last is not None and last.stats is not None:
            say(_how_it_went(last))


def _stream(events: Iterator[Event]) -> Event | None:
    """Writes the text of events as they come and ends the last line; returns the last event."""
    written = "\n"
    event = None
    try:
        for event in events:
            if event.text:
                write_text(event.text)
                written = event.text
    finally:
        if not written.endswith("\n"):
            write_text("\n")
    return event


def _join_prompts(prompts: list[str | None], files: tuple[str, ...]) -> str:
    """The parts of the prompt in order; stdin once, where it is named or else at the end when it is piped."""
    sources = [("-" if p == "-" else None, p) for p in prompts if p is not None] + [(f, None) for f in files]
    if sum(path == "-" for path, _ in sources) > 1:
        raise UsageError("stdin (-) can be read once only")
    if not any(path == "-" for path, _ in sources) and stdin_is_piped():
        sources.append(("-", None))
    parts = [(text or "") if path is None else read_text(path) for path, text in sources]
    parts = [part for part in parts if part]
    if not parts:
        raise UsageError("there is no prompt; give one as an argument, with -p, -f or through a pipe")
    return (
        "\n\n".join(part.rstrip("\n") for part in parts[:-1]) + ("\n\n" if len(parts) > 1 else "") + parts[-1]
    )


def _what_runs(llm: Llm, seconds: float) -> str:
    trained = llm.model.config.n_ctx_train if llm.model else llm.ctx_size
    context = f"context {llm.ctx_size}"
    if llm.ctx_size < trained:
        context += f" of the model's {trained} (-c sets it)"
    elif llm.ctx_size > trained:
        context += f", beyond the {trained} that the model was trained for"
    return f"numpy on the CPU (this version has no GPU backend) · {context} · loaded in {seconds:.2f} s"


def _how_it_went(event: Event) -> str:
    stats = event.stats
    assert stats is not None
    cached = f" ({stats.cached_tokens} cached)" if stats.cached_tokens else ""
    parts = [
        f"prompt {stats.prompt_tokens} tokens{cached}, {stats.prefill_rate:.1f} tok/s",
        f"generated {stats.generated_tokens}, {stats.decode_rate:.1f} tok/s",
        f"context {stats.context_used}/{stats.context_size}",
        f"seed {stats.seed}",
    ]
    if stats.first_token_seconds is not None:
        parts.insert(2, f"first token after {stats.first_token_seconds:.2f} s")
    if event.finish is not None and event.finish.value == "context":
        parts.append("stopped: the context is full")
    return " · ".join(parts)
