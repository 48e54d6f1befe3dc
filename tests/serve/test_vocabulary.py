"""The table of tokens, read as a page reads it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import ALL, Tiny, tiny
from wgllm.formats.gguf import open_gguf
from wgllm.serve.vocabulary import vocabulary_table
from wgllm.tokenizer import IncrementalDecoder, Tokenizer, load_tokenizer, tokenizer_from_model

TOKENIZERS = sorted(p for p in (Path(__file__).parents[1] / "data" / "tok").iterdir() if p.is_dir())


class Page:
    """What a page makes of the table."""

    def __init__(self, data: bytes) -> None:
        magic, version, self.count, flags = struct.unpack_from("<4I", data)
        assert (magic, version, flags & ~1) == (0x4C4F5657, 1, 0)
        self.strips_space = bool(flags & 1)
        self.offsets = np.frombuffer(data, "<u4", self.count + 1, 16).tolist()
        at = 16 + 4 * (self.count + 1)
        self.kinds = data[at : at + self.count]
        end = at + self.count
        assert not any(data[end : end + -end % 4])
        self.texts = data[end + -end % 4 :]
        assert self.offsets[0] == 0 and self.offsets[-1] == len(self.texts)

    def token(self, i: int) -> bytes:
        return self.texts[self.offsets[i] : self.offsets[i + 1]]


def check(tokenizer: Tokenizer, more: int) -> None:
    table = vocabulary_table(tokenizer, tokenizer.vocab_size + more)
    page = Page(table.data)
    assert page.count == tokenizer.vocab_size + more
    for i in range(tokenizer.vocab_size):
        assert page.token(i) == tokenizer.token_bytes(i)
        assert page.kinds[i] == tokenizer.is_control(i)
    assert all(page.token(i) == b"" and page.kinds[i] == 0 for i in range(tokenizer.vocab_size, page.count))
    assert page.strips_space == tokenizer.strips_space
    assert vocabulary_table(tokenizer, page.count) == table
    assert vocabulary_table(tokenizer, page.count + 1).etag != table.etag


@pytest.mark.parametrize(
    "model", [tiny(n) for n in ("gemma3.f32", "qwen2.f32", "llama-tied.q8_0")], ids=lambda t: t.id
)
@pytest.mark.parametrize("more", [0, 1, 2, 3, 64])
def test_every_token_of_a_model(model: Tiny, more: int) -> None:
    with open_gguf(model.path) as file:
        check(tokenizer_from_model(file), more)


@pytest.mark.parametrize("path", TOKENIZERS, ids=lambda p: p.name)
def test_every_token_of_each_kind_of_vocabulary(path: Path) -> None:
    check(load_tokenizer(path), 5)


def test_a_reply_is_the_one_that_python_decodes() -> None:
    """With control tokens, characters of several tokens, and the leading space that some vocabularies take away."""
    text = " Grüße, 世界! 🙂 <|x|>\n  end"
    for name in {t.path.parent.name: t.id for t in ALL}.values():
        with open_gguf(tiny(name).path) as file:
            tokenizer = tokenizer_from_model(file)
        page = Page(vocabulary_table(tokenizer, tokenizer.vocab_size).data)
        ids = [*tokenizer.tokenize(text), *tokenizer.special_tokens.values()]
        said = b"".join(page.token(i) for i in ids if not page.kinds[i])
        said = said.removeprefix(b" ") if page.strips_space else said
        decoder = IncrementalDecoder(tokenizer, skip_special=True)
        assert said.decode("utf-8", "replace") == "".join(map(decoder.push, ids)) + decoder.flush()
