"""What a vocabulary file says: token texts, their types, special ids; and how GGUF metadata spells it."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wgllm.errors import ModelFileError


class TokenType(IntEnum):
    """The values of ``tokenizer.ggml.token_type``, which are SentencePiece's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "fim_pre": "fim_pre_token_id",
    "fim_suf": "fim_suf_token_id",
    "fim_mid": "fim_mid_token_id",
    "fim_pad": "fim_pad_token_id",
    "fim_rep": "fim_rep_token_id",
    "fim_sep": "fim_sep_token_id",
}
"""Role → GGUF key after ``tokenizer.ggml.`` (the spelling of the separator's is GGUF's)."""

_ABSENT = 0xFFFFFFFF  # what old converters wrote for -1


@dataclass
class Vocabulary:
    """A vocabulary as its file has it, checked: texts are unique and not empty, ids are in range."""

    path: Path
    texts: list[str]
    types: NDArray[np.uint8]  # [len(texts)], values of TokenType
    ids: dict[str, int] = field(default_factory=dict)
    """Special ids by role (the keys of ID_KEYS); a role that the file leaves out is absent."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()
    """Tokens that swallow the white space before or after them, when special tokens are parsed."""
    extra_eog: frozenset[int] = frozenset()
    chat_template: str | None = None

    @property
    def index(self) -> dict[str, int]:
        """Text → id."""
        if self._index is None:
            self._index = dict(zip(self.texts, range(len(self.texts)), strict=True))
        return self._index

    _index: dict[str, int] | None = field(default=None, repr=False)

    def of_type(self, *types: TokenType) -> list[int]:
        return [int(i) for i in np.flatnonzero(np.isin(self.types, types))]


class GgufVocabularyReader:
    """Reads ``tokenizer.ggml.*``; whatever is missing or wrong becomes a ModelFileError with its key."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.metadata = metadata

    def fail(self, name: str, problem: str) -> ModelFileError:
        return ModelFileError(self.path, f"tokenizer.ggml.{name}", problem)

    def get(self, name: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.fail(name, "is not a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, (bool, np.bool_)):
            raise self.fail(name, "is not a boolean")
        return bool(value)

    def strings(self, name: str) -> list[str]:
        """A string array, decoded; raises ModelFileError when it is missing or not UTF-8."""
        value = self._string_array(name)
        # Decoding one long text takes half the time of decoding each, unless a string has the separator.
        texts = self._joined(value, "\0").split("\0")
        return texts if len(texts) == len(value) else list(value)

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """A string array whose elements are two words each, with a space between."""
        value = self._string_array(name)
        if not len(value):
            return []
        words = self._joined(value, " \n ").split(" ")
        if len(words) != 3 * len(value) - 1 or words[2::3] != ["\n"] * (len(value) - 1):
            at = next(i for i, text in enumerate(value) if text.count(" ") != 1)
            raise self.fail(f"{name}[{at}]", f"{value[at]!r} is not two tokens with a space between")
        return list(zip(words[0::3], words[1::3], strict=True))

    def _string_array(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise self.fail(name, "is missing")
        if isinstance(value, (str, np.ndarray)) or not isinstance(value, Sequence):
            raise self.fail(name, "is not an array of strings")
        if not hasattr(value, "bytes_list") and not all(isinstance(text, str) for text in value):
            raise self.fail(name, "is not an array of strings")
        return value

    @staticmethod
    def _joined(value: Any, separator: str) -> str:
        if not hasattr(value, "bytes_list"):
            return separator.join(value)
        try:
            return str(separator.encode().join(value.bytes_list()), "utf-8")
        except UnicodeDecodeError:
            return separator.join(value)  # raises ModelFileError, which names the element

    def numbers(self, name: str, length: int) -> NDArray[Any] | None:
        """A numeric array with one element per token, or None when the file has none."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, str) or not isinstance(value, (np.ndarray, list, tuple)):
            raise self.fail(name, "is not an array of numbers")
        array = np.asarray(value)
        if array.ndim != 1 or array.dtype.kind not in "iuf":
            raise self.fail(name, "is not an array of numbers")
        if len(array) != length:
            raise self.fail(name, f"has {len(array)} elements for {length} tokens")
        return array

    def token_id(self, name: str, n_tokens: int) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise self.fail(name, "is not a token id")
        if value in (_ABSENT, -1):
            return None
        if not 0 <= value < n_tokens:
            raise self.fail(name, f"{value} is outside the vocabulary of {n_tokens} tokens")
        return int(value)

    def read(self, *, add_bos: bool, default_ids: Mapping[str, int], unique: bool) -> Vocabulary:
        """The parts that all kinds of vocabularies share.

        Texts that are not ``unique`` are fillers of real files, as llama.cpp takes them: the last of them is meant.
        """
        texts = self.strings("tokens")
        n = len(texts)
        if not n:
            raise self.fail("tokens", "is empty")
        vocabulary = Vocabulary(self.path, texts, self._types(n))
        if unique:
            self._check_unique(vocabulary)
        vocabulary.index.pop("", None)
        for role, key in ID_KEYS.items():
            value = self.token_id(key, n)
            if value is None and role in default_ids and default_ids[role] < n and key not in self._keys():
                value = default_ids[role]
            if value is not None:
                vocabulary.ids[role] = value
        vocabulary.add_bos = self.flag("add_bos_token", add_bos) and "bos" in vocabulary.ids
        vocabulary.add_eos = self.flag("add_eos_token", False) and "eos" in vocabulary.ids
        template = self.metadata.get("tokenizer.chat_template")
        vocabulary.chat_template = template if isinstance(template, str) else None
        return vocabulary

    def _keys(self) -> set[str]:
        prefix = "tokenizer.ggml."
        return {key[len(prefix) :] for key in self.metadata if key.startswith(prefix)}

    def _types(self, n_tokens: int) -> NDArray[np.uint8]:
        types = self.numbers("token_type", n_tokens)
        if types is None:
            return np.full(n_tokens, TokenType.NORMAL, np.uint8)
        if types.dtype.kind == "f" or types.min() < 0 or types.max() > TokenType.BYTE:
            raise self.fail("token_type", "has a value that is not a token type (0 to 6)")
        return np.maximum(types.astype(np.uint8), np.uint8(TokenType.NORMAL))  # 0 says undefined

    def _check_unique(self, vocabulary: Vocabulary) -> None:
        index = vocabulary.index
        if "" in index:
            raise self.fail(f"tokens[{index['']}]", "is empty")
        if len(index) < len(vocabulary.texts):
            twice = next(i for i, text in enumerate(vocabulary.texts) if index[text] != i)
            text = vocabulary.texts[twice]
            raise self.fail("tokens", f"has {text!r} twice, as {twice} and {index[text]}")


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collections while hundreds of thousands of tuples are made cost more than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
