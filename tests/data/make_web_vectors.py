"""Writes tests/data/web/*.json: what the page's modules must make, by the Python modules that they are counterparts of.

Usage: python tests/data/make_web_vectors.py (from the root of the repository)
"""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

from tests.tiny import tiny
from wgllm.cache import KVCache
from wgllm.formats.gguf import open_gguf
from wgllm.graph import SLOTS
from wgllm.sampling import Sampler, SamplingParams
from wgllm.serve.vocabulary import vocabulary_table
from wgllm.tokenizer import IncrementalDecoder, Tokenizer, tokenizer_from_model

HERE = Path(__file__).parent
OPERATIONS = ("extend", "rewind", "fail", "prefix")


def sampling() -> list[dict[str, Any]]:
    """Request words for settings that the device draws with."""
    asked: list[dict[str, Any]] = [
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 0},
        {"temperature": 0.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 5},
        {"temperature": -1.0, "top_k": 0, "top_p": 0.5, "min_p": 0.5, "seed": 5},
        {"temperature": 1.0, "top_k": 128, "top_p": 1.0, "min_p": 0.0, "seed": 2**64 - 1},
        {"temperature": 0.7, "top_k": 1, "top_p": 2.0, "min_p": 1.0, "seed": 2**53 + 1},
        {"temperature": 1e-7, "top_k": 20, "top_p": 0.0, "min_p": 1e-9, "seed": 2**32},
    ]
    rng = random.Random(0)
    for _ in range(20):
        asked.append(
            {
                "temperature": rng.uniform(0.01, 3),
                "top_k": rng.randint(1, 128),
                "top_p": rng.random(),
                "min_p": rng.random(),
                "seed": rng.getrandbits(64),
            }
        )
    made = []
    for number, each in enumerate(asked):
        sampler = Sampler(SamplingParams(**each), each["seed"])
        on_device = sampler.on_device()
        assert on_device is not None
        words = on_device.words(number).tolist()
        # JSON's numbers have 53 bits in JavaScript.
        made.append({**each, "seed": str(each["seed"]), "step": number, "words": words})
    return made


def cache() -> list[dict[str, Any]]:
    """Random operations on one slot, and what each leaves."""
    made = []
    for number, (cells, window) in enumerate([(64, None), (20, 12), (13, 12), (40, 8)]):
        rng = random.Random(number)
        windows = {"all": None, "ring": window}
        held = KVCache(windows, {"all": 64, "ring": cells, SLOTS: 1}, 64)
        steps = []
        for _ in range(200):
            kind = rng.choice(OPERATIONS)
            n, room = rng.randint(1, 8), 64 - held.length(0)
            tokens = [rng.randint(0, 2) for _ in range(n)]
            told: int
            if kind in ("extend", "fail") and n <= room:
                held.begin(0, n)
                if kind == "extend":
                    held.commit(0, tokens)
                    told = held.length(0)
                else:
                    told = held.truncate(0, held.length(0))
            elif kind == "prefix":
                tokens = held.tokens(0)[: rng.randint(0, 64)] + tokens
                told = held.common_prefix(0, tokens)
            else:
                kind, n = "rewind", rng.randint(0, 64)
                told = held.truncate(0, n)
            steps.append([kind, n, tokens, told, held.length(0)])
        rings = [{"cells": 64, "window": None}, {"cells": cells, "window": window}]
        made.append({"ctx": 64, "rings": rings, "steps": steps})
    return made


class Bytes(Tokenizer):
    """Tokens of foreign bytes, the last one of which is a control token."""

    def __init__(self, tokens: list[bytes], strips: bool) -> None:
        self._tokens = tokens
        self._strips = strips

    vocab_size = property(lambda self: len(self._tokens))  # type: ignore[assignment]
    strips_space = property(lambda self: self._strips)  # type: ignore[assignment]

    def is_control(self, token_id: int) -> bool:
        return token_id == len(self._tokens) - 1

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokens[token_id]

    def _encode_text(self, text: str, first: bool) -> list[int]:
        raise NotImplementedError

    def _token_bytes(self, token_id: int) -> bytes:
        raise NotImplementedError


def decoder() -> list[dict[str, Any]]:
    """Vocabularies, and texts of their tokens one by one."""
    rng = random.Random(1)
    pieces = [bytes([b]) for b in range(256)]
    pieces += ["é".encode(), "日本".encode()[:4], "😀".encode()[:2], "😀".encode()[2:], b" a", b"  b", b""]
    pieces += [b"\xef\xbb\xbf", b" ", b"\xed\xa0\x80", b"\xf4\x90", "😀é".encode()[:5], b"<|end|>"]
    vocabularies: list[tuple[Tokenizer, list[list[int]]]] = []
    for strips in (False, True):
        texts = [[rng.randrange(len(pieces)) for _ in range(rng.randint(0, 12))] for _ in range(60)]
        spoken = list("aé日本😀 z\ufeff".encode())  # every byte a token
        vocabularies.append((Bytes(pieces, strips), [*texts, spoken, [264, 260, 97], [len(pieces) - 1, 260]]))
    with open_gguf(tiny("gemma3.f32").path) as file:
        tokenizer = tokenizer_from_model(file)
    random_ids = [[rng.randrange(tokenizer.vocab_size) for _ in range(20)] for _ in range(10)]
    vocabularies.append((tokenizer, random_ids))
    made = []
    for tokenizer, texts in vocabularies:
        cases = []
        for ids in texts:
            decode = IncrementalDecoder(tokenizer, skip_special=True)
            cases.append([ids, [*map(decode.push, ids), decode.flush()]])
        table = vocabulary_table(tokenizer, tokenizer.vocab_size).data
        made.append({"vocabulary": base64.b64encode(table).decode(), "texts": cases})
    return made


def vectors() -> dict[str, str]:
    """By the file's name, its text."""
    made = {f"{make.__name__}.json": make() for make in (sampling, cache, decoder)}
    return {
        name: json.dumps(each, separators=(",", ":"), ensure_ascii=True) + "\n" for name, each in made.items()
    }


def main() -> None:
    folder = HERE / "web"
    folder.mkdir(exist_ok=True)
    for name, text in vectors().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
