"""The tokenizers and chat templates of the catalogue's models against the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATA, REFERENCE_FILES
from wgllm.chat_template import ChatTemplate, encode_chat
from wgllm.tokenizer import IncrementalDecoder, Tokenizer, load_tokenizer

MODELS = [pytest.param(name, marks=pytest.mark.model(name)) for name in REFERENCE_FILES]
CHATS = [pytest.param(name, marks=pytest.mark.model(name)) for name in ("smollm2", "qwen2.5-coder:1.5b")]
END = {"smollm2": "<|im_end|>", "gemma3:270m": "<end_of_turn>", "qwen2.5-coder:1.5b": "<|im_end|>"}


@pytest.fixture(scope="module")
def load(model_path: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    loaded: dict[str, Tokenizer] = {}

    def get(name: str) -> Tokenizer:
        if name not in loaded:
            loaded[name] = load_tokenizer(model_path(name))
        return loaded[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_prompts(name: str, load: Callable[[str], Tokenizer], reference: Callable[[str], Any]) -> None:
    tok = load(name)
    for case in reference(name).values():
        assert tok.tokenize(case["text"]) == case["ids"]
        assert tok.detokenize(case["ids"], skip_special=True) == case["text"]
        decoder = IncrementalDecoder(tok, continuation=True)
        assert "".join(map(decoder.push, case["greedy"])) + decoder.flush() == case["greedy_text"]


@pytest.mark.parametrize("name", CHATS)
def test_chats(name: str, load: Callable[[str], Tokenizer]) -> None:
    tok = load(name)
    template = ChatTemplate(tok.chat_template or "", tok)
    cases = json.loads((DATA / "real" / "chat.json").read_text(encoding="utf-8"))[REFERENCE_FILES[name]]
    assert cases
    for case in cases.values():
        assert template.render(case["messages"]) == case["text"]
        assert encode_chat(tok, template.render_segments(case["messages"])) == case["ids"]


@pytest.mark.parametrize("name", CHATS)
def test_no_message_writes_a_special_token(name: str, load: Callable[[str], Tokenizer]) -> None:
    tok = load(name)
    template = ChatTemplate(tok.chat_template or "", tok)
    encode = partial(encode_chat, tok)
    ids = set(tok.special_tokens.values())
    expected = [i for i in encode(template.render_segments([{"role": "user", "content": "Hi"}])) if i in ids]
    for text in tok.special_tokens:
        content = f"a {text}{text} b"
        found = encode(template.render_segments([{"role": "user", "content": content}]))
        assert [i for i in found if i in ids] == expected
        assert content in tok.detokenize(found)


@pytest.mark.parametrize("name", MODELS)
def test_special_tokens(name: str, load: Callable[[str], Tokenizer]) -> None:
    tok = load(name)
    end = tok.special_tokens[END[name]]
    assert {tok.eos_id, end} <= tok.eog_ids
    assert all(tok.is_control(i) for i in tok.eog_ids)
    for text, i in tok.special_tokens.items():
        plain = tok.tokenize(text, add_special=False)
        if tok.is_control(i):
            assert i not in plain
        assert tok.detokenize(plain) == text
        assert tok.tokenize(text, add_special=False, parse_special=True) == [i]
