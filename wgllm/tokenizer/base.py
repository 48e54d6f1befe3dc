"""The interface of a tokenizer, and what all kinds share: special tokens, BOS and EOS, decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby

from wgllm.errors import UsageError
from wgllm.tokenizer.special import (
    SpecialSplitter,
    chat_structure,
    end_of_generation,
    looks_like_structure,
)
from wgllm.tokenizer.vocabulary import TokenType, Vocabulary

_ASCII_SPACE = " \t\n\v\f\r"


class Tokenizer(ABC):
    """Text ↔ token ids. Safe to use from several threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._bytes: dict[int, bytes] = {}
        self.path = vocabulary.path
        ids = vocabulary.ids
        self.bos_id = ids.get("bos")
        self.eos_id = ids.get("eos")
        self.eot_id = ids.get("eot")
        self.eom_id = ids.get("eom")
        self.unk_id = ids.get("unk")
        self.pad_id = ids.get("pad")
        self.sep_id = ids.get("sep")
        self.add_bos = vocabulary.add_bos
        self.add_eos = vocabulary.add_eos
        self.chat_template = vocabulary.chat_template
        self.eog_ids = end_of_generation(vocabulary) | vocabulary.extra_eog
        """Every token that ends a generation."""

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary.texts)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text → id of the tokens that are structure and not text: control tokens, ``<tool_call>`` …"""
        return {self._vocabulary.texts[i]: i for i in sorted({*self._hidden, *self._user_defined[0]})}

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary writes it."""
        self._check(token_id)
        return self._vocabulary.texts[token_id]

    def is_control(self, token_id: int) -> bool:
        """Whether the token is structure that is never shown: BOS, ``<|im_end|>``, the unknown token."""
        self._check(token_id)
        return token_id in self._hidden

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of ``text``, with the BOS and EOS that the file asks for if ``add_special``.

        Special tokens in ``text`` are text unless ``parse_special``; only tokens of the type *user-defined*
        are always found. Lone surrogates become U+FFFD.
        """
        text = _valid(text)
        splitter = self._splitter_special if parse_special else self._splitter_marks
        return self._with_ends(self._encode(splitter.split(text)), add_special)

    def tokenize_parts(self, parts: Iterable[tuple[str, bool]], *, add_special: bool = True) -> list[int]:
        """The ids of joined texts, of which only the trusted (flag True) may hold special tokens.

        Where text meets text it is tokenized as one. Less than ``tokenize``, untrusted text can't even write
        user-defined tokens that look like structure (``<tool_call>``).
        """
        pieces: list[str | int] = []
        for text, trusted in parts:
            pieces += self._splitter_special.split(_valid(text)) if trusted else [_valid(text)]
        joined: list[str | int] = []
        for is_text, group in groupby(pieces, lambda piece: isinstance(piece, str)):
            run = list(group)
            joined += ["".join(map(str, run))] if is_text else run
        return self._with_ends(self._encode([piece for piece in joined if piece != ""]), add_special)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text, perhaps only part of a UTF-8 sequence; a control token's name."""
        data = self._bytes.get(token_id)
        if data is None:
            self._check(token_id)
            data = self._bytes[token_id] = self._token_bytes(token_id)
        return data

    def detokenize(
        self, ids: Sequence[int], *, skip_special: bool = False, continuation: bool = False
    ) -> str:
        """The text of ``ids``; invalid UTF-8 becomes U+FFFD.

        ``skip_special`` leaves control tokens out. Vocabularies that put a space before a text lose it here,
        unless ``continuation`` says that other text comes before.
        """
        if skip_special:
            ids = [i for i in ids if not self.is_control(i)]
        data = b"".join(map(self.token_bytes, ids))
        if self.strips_space and not continuation:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    @property
    def strips_space(self) -> bool:
        """Whether encoding put a space before the text, which decoding takes away."""
        return self._vocabulary.add_space_prefix

    @abstractmethod
    def _encode_text(self, text: str, first: bool) -> list[int]:
        """Ids of plain text, which stands at the beginning (``first``) or right after a special token."""

    @abstractmethod
    def _token_bytes(self, token_id: int) -> bytes: ...

    @cached_property
    def _user_defined(self) -> tuple[list[int], list[int]]:
        """User-defined tokens: those that look like structure, those that are text."""
        texts = self._vocabulary.texts
        ids = self._vocabulary.of_type(TokenType.USER_DEFINED)
        marks = [i for i in ids if i in self._hidden or looks_like_structure(texts[i])]
        return marks, sorted(set(ids) - set(marks))

    @cached_property
    def _hidden(self) -> set[int]:
        return chat_structure(self._vocabulary)

    @cached_property
    def _splitter_special(self) -> SpecialSplitter:
        return SpecialSplitter(self.special_tokens.items())

    @cached_property
    def _splitter_marks(self) -> SpecialSplitter:
        return SpecialSplitter((self._vocabulary.texts[i], i) for i in self._user_defined[0])

    @cached_property
    def _splitter_text(self) -> SpecialSplitter:
        return SpecialSplitter((self._vocabulary.texts[i], i) for i in self._user_defined[1])

    def _encode(self, pieces: list[str | int]) -> list[int]:
        ids: list[int] = []
        lstrip, rstrip = self._vocabulary.lstrip, self._vocabulary.rstrip
        if lstrip or rstrip:
            pieces = _strip_around(pieces, lstrip, rstrip)
        for i, piece in enumerate(pieces):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._encode_text(piece, i == 0)
        return ids

    def _with_ends(self, ids: list[int], add_special: bool) -> list[int]:
        if add_special and self.add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < len(self._vocabulary.texts):
            raise UsageError(f"token {token_id} is outside the vocabulary of {self.vocab_size} tokens")


def _strip_around(pieces: list[str | int], lstrip: frozenset[int], rstrip: frozenset[int]) -> list[str | int]:
    """Takes away the white space before tokens of ``lstrip`` and after those of ``rstrip``."""
    stripped: list[str | int] = []
    for i, piece in enumerate(pieces):
        if isinstance(piece, str):
            if i and pieces[i - 1] in rstrip:
                piece = piece.lstrip(_ASCII_SPACE)
            if i + 1 < len(pieces) and pieces[i + 1] in lstrip:
                piece = piece.rstrip(_ASCII_SPACE)
        if piece != "":
            stripped.append(piece)
    return stripped


def _valid(text: str) -> str:
    """``text`` with pairs of surrogates joined and lone ones replaced, so that it is valid UTF-8."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
