"""Hugging Face directories: ``tokenizer.json``, ``tokenizer.model``, and the settings that lie beside them."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wgllm.errors import ModelFileError, WgllmError
from wgllm.tokenizer.base import Tokenizer
from wgllm.tokenizer.bpe import byte_level_bytes, no_garbage_collection, no_threads, run_pipeline
from wgllm.tokenizer.special import SpecialSplitter
from wgllm.tokenizer.spm import BYTE_TEXTS, SpmTokenizer, spm_token_bytes
from wgllm.tokenizer.spm_proto import parse_model
from wgllm.tokenizer.vocabulary import TokenType, Vocabulary

if TYPE_CHECKING:
    import tokenizers

_MAX_ID = 1 << 22  # tables are made for every id up to the largest
_MAX_BYTES = 1 << 28
_ROLES = ("bos", "eos", "unk", "pad", "sep", "mask")


class JsonTokenizer(Tokenizer):
    """The pipeline of a ``tokenizer.json``; its added tokens are split off before."""

    def __init__(self, vocabulary: Vocabulary, data: dict[str, Any]) -> None:
        """``data``: the parsed file; its ``added_tokens`` and ``post_processor`` are not used."""
        super().__init__(vocabulary)
        self._byte_level = _find(data.get("decoder"), "ByteLevel") is not None
        self._pipeline = _pipeline(data)
        # "first" puts a space before the text, but not after each special token in it.
        metaspace = _find(data.get("pre_tokenizer"), "Metaspace")
        self._rest = self._pipeline
        if metaspace is not None and metaspace.get("prepend_scheme") == "first":
            metaspace["prepend_scheme"] = "never"
            self._rest = _pipeline(data)
        self._started = self._rest is not self._pipeline

    def _encode(self, pieces: list[str | int]) -> list[int]:
        if not self._started or not pieces or isinstance(pieces[0], str):
            return super()._encode(pieces)
        # A text that begins with a special token has no "first" words.
        return [pieces[0], *super()._encode([*pieces[1:]])] if len(pieces) > 1 else [pieces[0]]

    def _encode_text(self, text: str, after_special: bool) -> list[int]:
        raise NotImplementedError

    @cached_property
    def _splitter_text(self) -> SpecialSplitter:
        return SpecialSplitter((self._vocabulary.texts[i], i) for i in self._user_defined[1])

    def _token_bytes(self, token_id: int) -> bytes:
        text, kind = self._vocabulary.texts[token_id], int(self._vocabulary.types[token_id])
        return (byte_level_bytes if self._byte_level else spm_token_bytes)(text, kind)
