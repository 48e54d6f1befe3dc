"""Byte-level BPE vocabularies, run by the tokenizers library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgllm.errors import ModelFileError, WgllmError, printable
from wgllm.tokenizer.base import Tokenizer
from wgllm.tokenizer.pretokenizers import DEFAULT, KINDS, PRE_TOKENIZERS, PreTokenizer
from wgllm.tokenizer.special import make_ends_control
from wgllm.tokenizer.vocabulary import GgufVocabularyReader, TokenType, Vocabulary

if TYPE_CHECKING:
    import tokenizers

_LONG_TEXT = 4096  # characters from which the way without offsets pays


class BpeTokenizer(Tokenizer):
    """Tokens whose characters each stand for a byte (``Ġ`` for a space)."""

    def __init__(self, vocabulary: Vocabulary, pipeline: tokenizers.Tokenizer) -> None:
        """``pipeline`` has a normalizer, a pre-tokenizer and a model, but no added tokens."""
        super().__init__(vocabulary)
        self._pipeline = pipeline

    def _encode_text(self, text: str, first: bool) -> list[int]:
        ids: list[int] = []
        for piece in self._splitter_text.split(text):
            ids += [piece] if isinstance(piece, int) else run_pipeline(self._pipeline, piece)
        return ids

    def _token_bytes(self, token_id: int) -> bytes:
        kind = self._vocabulary.types[token_id]
        return byte_level_bytes(self._vocabulary.texts[token_id], int(kind))


def run_pipeline(pipeline: tokenizers.Tokenizer, text: str) -> list[int]:
    if len(text) < _LONG_TEXT:
        return pipeline.encode(text, add_special_tokens=False).ids
    return pipeline.encode_batch_fast([text], add_special_tokens=False)[0].ids


def byte_level_bytes(text: str, token_type: int) -> bytes:
    """What a token of a byte-level vocabulary adds to a text."""
    if token_type == TokenType.UNUSED:
        return b""
    if token_type == TokenType.NORMAL:
        try:
            return bytes([BYTE_OF_CHAR[char] for char in text])
        except KeyError:
            pass  # not written in the byte alphabet, so it stands for itself
    return text.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_alphabet()


def bpe_from_gguf(path: Path, metadata: Mapping[str, Any]) -> BpeTokenizer:
    """The tokenizer of a GGUF file whose ``tokenizer.ggml.model`` is ``gpt2``."""
    reader = GgufVocabularyReader(path, metadata)
    name = reader.text("pre")
    kind = DEFAULT if name is None else PRE_TOKENIZERS.get(name)
    if kind is None:
        known = ", ".join(KINDS)
        raise reader.fail("pre", f"{printable(repr(name), 30)} is unknown; known: {known}")
    vocabulary = reader.read(add_bos=kind.add_bos, default_ids={}, unique=False)
    make_ends_control(vocabulary)
    pipeline = make_pipeline(vocabulary, reader.pairs("merges"), ignore_merges=kind.ignore_merges)
    pipeline.pre_tokenizer = _pre_tokenizer(kind)
    return BpeTokenizer(vocabulary, pipeline)


def make_pipeline(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], *, ignore_merges: bool
) -> tokenizers.Tokenizer:
    no_threads()
    import tokenizers
    from tokenizers.models import BPE

    with library_errors(vocabulary.path, "tokenizer.ggml.merges"):
        return tokenizers.Tokenizer(BPE(vocab=vocabulary.index, merges=merges, ignore_merges=ignore_merges))


def no_threads() -> None:
    """One text at a time needs no thread pool, which warns when the process forks."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def library_errors(path: Path, field: str) -> Iterator[None]:
    """Makes ModelFileErrors of what the tokenizers library raises, a panic in its Rust code included."""
    try:
        yield
    except WgllmError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).removeprefix("Error while initializing BPE: ")
        raise ModelFileError(path, field, f"unusable: {reason}") from None


def _pre_tokenizer(kind: PreTokenizer) -> tokenizers.pre_tokenizers.PreTokenizer:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    splits = [Split(Regex(pattern), "isolated") for pattern in kind.patterns]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
