"""Decoding token by token, and stop strings that lie across pieces."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tokenizer_tables import TOK, bpe_metadata, spm_metadata, tokenizer
from wgllm.tokenizer import IncrementalDecoder, StopScanner, Tokenizer, load_tokenizer

NAMES = ("bpe", "spm", "spm-gemma", "gguf-bpe", "gguf-spm")


@cache
def get(name: str) -> Tokenizer:
    if name.startswith("gguf"):
        return tokenizer(bpe_metadata() if name == "gguf-bpe" else spm_metadata())
    return load_tokenizer(TOK / name)


def decode(tok: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    decoder = IncrementalDecoder(tok, **options)
    return [*(decoder.push(i) for i in ids), decoder.flush()]


def odd_texts() -> list[str]:
    """1,000 strings of what is cut badly: joined emoji, flags, several scripts, combining marks, surrogates."""
    rng = random.Random(11)
    emoji = ("👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "🇨🇳🇩🇪", "👍🏽", "\u200d", "\ufe0f")
    scripts = ("中文，世界", "日本語", "العربية", "עברית", "हिन्दी", "ไทย", "한국어", "𝔘", "ﬁ", "Ω", "ß", "Ⅷ")
    marks = ("e\u0301", "\u00e9", "n\u0303", "\u0301", "\ufeff", "\u200b", "\u00a0", "\u2028", "\u3000")
    invalid = ("\x00", "\ufffd", "\ud800", "\udfff", "\udc80", "\uffff", "\U0010ffff")
    tokens = ("<s>", "</s>", "<|im_end|>", "<0x0A>", "▁", "Ġ")
    plain = (" ", "  ", "\n", "\r\n", "\t", " the", "ing", "1", "'", '"', "\\", "½", "²", "a")
    parts = emoji + scripts + marks + invalid + tokens + plain
    return ["".join(rng.choices(parts, k=rng.randint(1, 30))) for _ in range(1000)]


class TestIncrementalDecoder:
    @pytest.mark.parametrize("name", NAMES)
    def test_pieces_of_1000_odd_texts_are_the_full_decode(self, name: str) -> None:
        tok = get(name)
        for i, text in enumerate(odd_texts()):
            ids = tok.tokenize(text, add_special=i % 2 == 0, parse_special=i % 3 == 0)
            for skip_special in (False, True):
                for continuation in (False, True):
                    options = {"skip_special": skip_special, "continuation": continuation}
                    assert "".join(decode(tok, ids, **options)) == tok.detokenize(ids, **options), text

    @pytest.mark.parametrize("name", NAMES)
    def test_any_ids(self, name: str) -> None:
        tok = get(name)
        rng = random.Random(3)
        tokens = [tok.token_bytes(i) for i in range(tok.vocab_size)]
        # Parts of characters in any order, among them bytes that begin what they can't end.
        broken = [i for i, data in enumerate(tokens) if data and not data.isascii()]
        for _ in range(1000):
            ids = rng.choices(broken if rng.random() < 0.7 else range(tok.vocab_size), k=rng.randint(1, 12))
            assert "".join(decode(tok, ids)) == tok.detokenize(ids)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_character_comes_with_its_last_byte(self, name: str) -> None:
        tok = get(name)
        text = "é中😀 🇨🇳"
        ids = tok.tokenize(text, add_special=False)
        assert len(ids) > len(text)
        pieces = decode(tok, ids)
        assert "\ufffd" not in "".join(pieces) and pieces[-1] == ""
        assert "".join(pieces) == text
        assert "" in pieces[:-1]

    def test_a_cut_character_is_one_replacement_at_the_end(self) -> None:
        tok = get("gguf-spm")
        ids = [3 + byte for byte in "😀".encode()]  # <0xF0> …
        assert decode(tok, ids) == ["", "", "", "😀", ""]
        assert decode(tok, ids[:3]) == ["", "", "", "\ufffd"]
        assert decode(tok, [*ids[:2], 3 + ord("a")]) == ["", "", "\ufffda", ""]

    def test_leading_space(self) -> None:
        tok = get("spm")
        ids = tok.tokenize("Hello world", add_special=False)
        assert "".join(decode(tok, ids)) == "Hello world"
        assert "".join(decode(tok, ids, continuation=True)) == " Hello world"
        assert "".join(decode(tok, [1, *ids], skip_special=True)) == "Hello world"
        assert "".join(decode(tok, [1, *ids])) == "<s> Hello world" == tok.detokenize([1, *ids])
        # Gemma's and byte-level vocabularies put none there.
        assert "".join(decode(get("spm-gemma"), get("spm-gemma").tokenize(" a", add_special=False))) == " a"


class TestStopScanner:
    def scan(self, stops: list[str], pieces: list[str]) -> tuple[str, bool]:
        scanner = StopScanner(stops)
        text = ""
        for piece in pieces:
            emitted, stopped = scanner.push(piece)
            text += emitted
            if stopped:
                assert scanner.push("more") == ("", True)
                return text, True
        return text + scanner.flush(), False

    def test_across_pieces(self) -> None:
        assert self.scan(["</end>"], ["a<", "/e", "nd", ">b"]) == ("a", True)
        assert self.scan(["</end>"], ["a<", "/e", "nx", "<"]) == ("a</enx<", False)
        assert self.scan(["\n\n", "User:"], ["Hi\n", "Us", "er", ": x"]) == ("Hi\n", True)
        assert self.scan([], ["a", "b"]) == ("ab", False)
        assert self.scan([""], ["a", "b"]) == ("ab", False)

    def test_holds_back_no_more_than_it_must(self) -> None:
        scanner = StopScanner(["abab!", "x"])
        assert [scanner.push(c)[0] for c in "aababab?"] == ["", "a", "", "", "", "ab", "", "abab?"]
        assert scanner.push("ab") == ("", False)
        assert scanner.flush() == "ab"

    def test_the_longest_of_those_that_end_together(self) -> None:
        assert self.scan(["b", "ab"], ["xab"]) == ("x", True)
        assert self.scan(["abcd", "bc"], ["xabcd"]) == ("xa", True)

    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
        st.lists(st.text("abc", max_size=4), max_size=12),
    )
    def test_like_a_search_in_the_whole_text(self, stops: list[str], pieces: list[str]) -> None:
        text = "".join(pieces)
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = (text[: min(ends)[1]], True) if ends else (text, False)
        assert self.scan(stops, pieces) == expected

    def test_long_stop_strings_take_linear_time(self) -> None:
        stop = "a" * 50_000 + "b"
        assert self.scan([stop], ["a" * 100] * 1000) == ("a" * 100_000, False)
