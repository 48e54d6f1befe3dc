"""``--logprobs N``: one line per token with its log probability and those of the N most probable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wgllm.engine import Event
    from wgllm.tokenizer import Tokenizer

logprobs_option = click.option(
    "--logprobs", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
    help="After the text, tell (on stderr) each token's log probability and the N most probable tokens.",
)  # fmt: skip


def noting_logprobs(events: Iterator[Event], lines: list[str], tokenizer: Tokenizer) -> Iterator[Event]:
    """The events as they come; ``lines`` gets one for each that has a log probability."""
    for event in events:
        if event.token_id is not None and event.logprob is not None:
            pairs = [(event.token_id, event.logprob), *event.top_logprobs]
            lines.append("  ".join(f"{_shown(token, tokenizer)} {logprob:.4f}" for token, logprob in pairs))
        yield event


def _shown(token: int, tokenizer: Tokenizer) -> str:
    """The token's text in quotes; embeddings may have rows beyond the tokenizer's last token."""
    if token >= tokenizer.vocab_size:
        return f"#{token}"
    return json.dumps(tokenizer.detokenize([token], continuation=True), ensure_ascii=False)
