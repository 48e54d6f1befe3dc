"""``wgllm tokenize``: text to token ids, and back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from wgllm.cli.console import CONTEXT, print_json, read_text, stdin_is_piped, use_utf8, write_text
from wgllm.cli.options import DEFAULT_MODEL, complete_models, model_name
from wgllm.cli.prompts import Escapes
from wgllm.errors import UsageError, printable

if TYPE_CHECKING:
    from wgllm.tokenizer import Tokenizer


@click.command("tokenize", context_settings=CONTEXT)
@click.argument("text", required=False, metavar="[TEXT|-]")
@click.option(
    "-m",
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME|PATH",
    shell_complete=complete_models,
    help="Whose tokenizer; a tokenizer.json or tokenizer.model will do.",
)
@click.option(
    "-hf", "--hf-repo", default=None, metavar="USER/MODEL[:QUANT]", help="A repository on Hugging Face."
)
@click.option("--offline", is_flag=True, help="Download nothing: the model must be here.")
@click.option("-f", "--file", default=None, metavar="FILE", help="A file with the text; - reads stdin.")
@click.option("--no-special", "--no-bos", is_flag=True, help="Add no BOS or EOS.")
@click.option("--parse-special", is_flag=True, help="Read special tokens that the text writes out.")
@click.option("--ids", "only_ids", is_flag=True, help="One list on one line, as [1, 2, 3].")
@click.option("--decode", is_flag=True, help="The other way: token ids to text.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with ids, pieces and text.")
def tokenize_command(
    text: str | None, model: str, hf_repo: str | None, offline: bool, file: str | None, no_special: bool,
    parse_special: bool, only_ids: bool, decode: bool, as_json: bool,
) -> None:  # fmt: skip
    """Turn text into a model's tokens: one line for each, its id and what it stands for.

    The text is the argument, -f's or a pipe's. Special tokens in it are text like any other unless --parse-special is
    given. With --decode the input is ids, with any of spaces, commas, brackets and line breaks between them; special
    tokens are left out of the text unless --parse-special is given.

    \b
    Examples:
      wgllm tokenize "Hello world"
      wgllm tokenize --ids -m gemma3:270m < notes.txt
      wgllm tokenize --ids "Hello" | wgllm tokenize --decode
      wc -w < notes.txt; wgllm tokenize < notes.txt | wc -l

    \b
    See also:
      wgllm perplexity    how well a model foretells a text
      wgllm show          a model's special tokens
    """
    use_utf8()
    source = _read(text, file)
    from wgllm.hub import resolve
    from wgllm.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve(model_name(model, hf_repo), download=not offline))
    if decode:
        ids = _parse_ids(source, tokenizer.vocab_size)
        decoded = tokenizer.detokenize(ids, skip_special=not parse_special)
        if as_json:
            _print_json(tokenizer, ids, decoded)
        else:
            write_text(decoded)
        return
    ids = tokenizer.tokenize(source, add_special=not no_special, parse_special=parse_special)
    if as_json:
        _print_json(tokenizer, ids, source)
    elif only_ids:
        click.echo(ids)
    else:
        for i in ids:
            click.echo(f"{i:6d}  {_shown(tokenizer.token_bytes(i))}")


def _read(text: str | None, file: str | None) -> str:
    if text is not None and file is not None:
        raise UsageError("the text is given twice, as an argument and with -f")
    if text == "-":
        file = "-"
    elif text is not None:
        return Escapes(False).typed(text)
    elif file is None and not stdin_is_piped():
        raise UsageError("there is no text; give it as an argument, with -f or through a pipe")
    return read_text(file or "-", tell=file is None)


def _parse_ids(text: str, vocab_size: int) -> list[int]:
    words = re.split(r"[\s,\[\]]+", text.strip(" \t\r\n,[]"))
    ids = []
    for word in filter(None, words):
        if not re.fullmatch(r"\d{1,9}", word, re.ASCII) or int(word) >= vocab_size:
            raise UsageError(f"{printable(word)!r} is no token id; they go from 0 to {vocab_size - 1}")
        ids.append(int(word))
    return ids


def _shown(piece: bytes) -> str:
    """A token as a Python string or, where it is only a part of a character, as Python bytes."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)


def _print_json(tokenizer: Tokenizer, ids: list[int], text: str) -> None:
    pieces = [tokenizer.token_bytes(i) for i in ids]
    tokens = [
        {"id": i, "piece": p.decode("utf-8", "replace"), "bytes": list(p)}
        for i, p in zip(ids, pieces, strict=True)
    ]
    print_json({"ids": ids, "tokens": tokens, "text": text})
