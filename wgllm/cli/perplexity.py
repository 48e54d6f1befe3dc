"""``wgllm perplexity``: how well a model foretells a text."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from wgllm.cli.console import CONTEXT, read_text, say, stdin_is_piped, use_utf8
from wgllm.cli.options import load_model, model_options
from wgllm.errors import UsageError
from wgllm.hub_progress import animates

if TYPE_CHECKING:
    from wgllm.perplexity import Perplexity

_CHUNK = 512


@click.command("perplexity", context_settings=CONTEXT)
@click.option("-f", "--file", default=None, metavar="FILE", help="The text; - reads stdin, as a pipe does.")
@model_options
@click.option("--chunks", type=click.IntRange(min=1), default=None, metavar="N", help="Stop after N chunks.")
@click.option("--all-tokens", is_flag=True, help="Count every token of a chunk, not only its second half.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def perplexity_command(
    file: str | None, chunks: int | None, all_tokens: bool, as_json: bool, **model_args: Any
) -> None:
    """Measure how well a model foretells a text: the perplexity, with its standard error.

    As llama.cpp does it: the text is cut into chunks of the context (-c, 512 unless given), and of each chunk the
    second half is counted. A text shorter than that is one chunk whose tokens are all counted. Lower is better;
    compare only what was measured on the same text, with the same chunks and vocabulary. Quantized KV caches (-ctk,
    -ctv) show here what they cost.

    \b
    Examples:
      wgllm perplexity -f notes.txt
      wgllm perplexity -m gemma3:270m -c 1024 --chunks 4 -f book.txt
      wgllm perplexity -ctk q8_0 -ctv q8_0 --json < notes.txt

    \b
    See also:
      wgllm tokenize    the tokens of a text
      wgllm bench       how fast a model is
    """
    use_utf8()
    if file is None and not stdin_is_piped():
        raise UsageError("there is no text; give it with -f or through a pipe")
    text = read_text(file or "-", tell=file is None)
    if model_args["ctx_size"] is None:
        model_args["ctx_size"] = _CHUNK
    started = time.perf_counter()
    with load_model(**model_args) as llm:
        from wgllm.engine import Engine
        from wgllm.perplexity import measure

        assert isinstance(llm.engine, Engine)
        chunk = llm.ctx_size
        tokens = llm.tokenize(text)
        if len(tokens) < chunk and not as_json:
            say(f"the text has {len(tokens)} tokens, fewer than a chunk of {chunk}: all are counted")
        last = None
        for last in measure(llm.engine, tokens, chunk, every_token=all_tokens, max_chunks=chunks):
            _progress(last, time.perf_counter() - started)
        assert last is not None
    seconds = time.perf_counter() - started
    if as_json:
        facts = {
            "perplexity": last.value, "error": last.error, "nll": last.nll, "nll_error": last.nll_error,
            "tokens": last.tokens, "chunks": last.chunks, "chunk_size": min(chunk, len(tokens)),
            "text_tokens": len(tokens), "seconds": round(seconds, 3),
        }  # fmt: skip
        click.echo(json.dumps(facts))
    else:
        counted = f"{last.tokens} tokens, {last.chunks} chunk{'s' * (last.chunks > 1)}"
        click.echo(f"perplexity {last.value:.4f} ± {last.error:.5f} ({counted})")


def _progress(state: Perplexity, seconds: float) -> None:
    """One line that changes where a terminal can do that, elsewhere a line for each tenth."""
    left = seconds / state.chunks * (state.n_chunks - state.chunks)
    line = (
        f"chunk {state.chunks} of {state.n_chunks}: {state.value:.4f} ± {state.error:.4f}, {left:.0f} s left"
    )
    if animates(sys.stderr):
        end = "\n" if state.chunks == state.n_chunks else ""
        click.echo(f"\r{line}\x1b[K{end}", err=True, nl=False)
    elif 10 * state.chunks // state.n_chunks > 10 * (state.chunks - 1) // state.n_chunks:
        say(line)
