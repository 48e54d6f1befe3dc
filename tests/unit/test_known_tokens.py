"""Replies told again as the tokens that they were made of: the text stays, whatever the ids are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from wgllm.builtin_templates import template_source
from wgllm.fake import ByteTokenizer, FakeEngine
from wgllm.known_tokens import with_known_tokens
from wgllm.llm import Llm
from wgllm.tokenizer import Tokenizer, load_tokenizer

TINY = Path(__file__).parents[1] / "data" / "tiny"
MODELS = ["qwen2/qwen2.f32.gguf", "llama-q/llama-q.q8_0.gguf"]


@pytest.fixture(scope="module", params=["bytes", *MODELS])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bytes":
        return ByteTokenizer()
    return load_tokenizer(TINY / request.param)


def spelled(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    return b"".join(map(tokenizer.token_bytes, ids))


def otherwise(tokenizer: Tokenizer, text: str, rng: random.Random) -> list[int]:
    """Ids of ``text`` as a model may sample them: from pieces cut anywhere."""
    ids: list[int] = []
    while text:
        n = rng.randint(1, 4)
        piece, text = text[:n], text[n:]
        data = piece.encode()
        made = tokenizer.tokenize(piece, add_special=False)
        while made and not data.endswith(spelled(tokenizer, made)):
            made = made[1:]
        ids += made if spelled(tokenizer, made) == data else tokenizer.tokenize(piece, add_special=False)
    return ids


WORDS = ["the ", "cat", " ", "\n", "é", "日本", "🙂", "a", "assistant", "user", ".", "<|im_end|>", "</s>"]


def test_the_text_never_changes(tokenizer: Tokenizer) -> None:
    rng = random.Random(7)
    control = next(iter(tokenizer.special_tokens.values()))
    for _ in range(150):
        said, prompt = [], []
        for _ in range(rng.randint(1, 5)):
            text = "".join(rng.choices(WORDS, k=rng.randint(0, 8)))
            ids = otherwise(tokenizer, text, rng)
            hostile = [rng.randrange(-3, tokenizer.vocab_size + 3) for _ in range(rng.randint(1, 3))]
            said.append((text, rng.choice([ids, ids, ids, hostile, [*ids, control], []])))
            prompt += [control, *tokenizer.tokenize(f"user\n{text}", add_special=False), control]
        made = with_known_tokens(prompt, said, tokenizer)
        assert spelled(tokenizer, made) == spelled(tokenizer, prompt)
        special = set(tokenizer.special_tokens.values())
        assert [i for i in made if i in special] == [i for i in prompt if i in special]


def test_replies_become_what_they_were_made_of() -> None:
    tokenizer = load_tokenizer(TINY / MODELS[0])
    control = next(iter(tokenizer.special_tokens.values()))
    reply = "the other one"
    canonical = tokenizer.tokenize(reply, add_special=False)
    sampled = [i for letter in reply for i in tokenizer.tokenize(letter, add_special=False)]
    assert sampled != canonical and spelled(tokenizer, sampled) == spelled(tokenizer, canonical)
    # The user said the same before, which stays as it is.
    prompt = [control, *canonical, control, *canonical, control]
    made = with_known_tokens(prompt, [(reply, []), (reply, sampled)], tokenizer)
    assert made == [control, *canonical, control, *sampled, control]
    # A text that spells a special token does not become one, and none is taken from the ids.
    assert with_known_tokens(prompt, [(reply, [*sampled, control])], tokenizer) == prompt
    # A reply that the template has cut is not found.
    assert with_known_tokens(prompt, [(reply, [*sampled, *sampled])], tokenizer) == prompt


def test_chats_take_them() -> None:
    bpe = load_tokenizer(TINY / MODELS[0])

    class Engine(FakeEngine):
        @property
        def tokenizer(self) -> Tokenizer:
            return bpe

    llm = Llm(Engine([""]))
    llm.use_template(template_source("chatml"))
    sampled = [i for letter in "the cat" for i in bpe.tokenize(letter, add_special=False)]
    said = [
        {"role": "user", "content": "Say the cat"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "Again"},
    ]
    known = [said[0], {**said[1], "token_ids": sampled}, said[2]]
    plain, made = llm.chat_tokens(said), llm.chat_tokens(known)
    assert made != plain and bpe.detokenize(made) == bpe.detokenize(plain)
    assert any(made[i : i + len(sampled)] == sampled for i in range(len(made)))
