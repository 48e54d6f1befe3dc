"""SentencePiece vocabularies, from GGUF tables or a ``tokenizer.model``, run by the sentencepiece library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wgllm.errors import ModelFileError
from wgllm.tokenizer import spm_proto
from wgllm.tokenizer.base import Tokenizer
from wgllm.tokenizer.special import make_ends_control
from wgllm.tokenizer.vocabulary import GgufVocabularyReader, TokenType, Vocabulary

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_SPACE = "▁"
BYTE_TEXTS = {f"<0x{i:02X}>": i for i in range(256)}


class SpmTokenizer(Tokenizer):
    """Tokens with ``▁`` for a space and ``<0x0A>`` for a byte that no other token covers."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        scores: NDArray[np.float32],
        *,
        remove_extra_whitespaces: bool = False,
        settings: bytes | None = None,
    ) -> None:
        """``scores`` [vocabulary]; ``settings``: the model file's own, serialized (see spm_proto)."""
        super().__init__(vocabulary)
        self._remove_extra_whitespaces = remove_extra_whitespaces
        self._processor = _build(self._vocabulary, scores, set(self._user_defined[0]), settings)

    def _encode_text(self, text: str, first: bool) -> list[int]:
        if self._remove_extra_whitespaces:
            text = re.sub(" +", " ", text).strip(" ")
        if not self._vocabulary.add_space_prefix:
            return self._processor.encode(text)  # type: ignore[no-any-return]
        # Each text between special tokens gets its own space, as in llama.cpp and transformers' "legacy".
        ids: list[int] = []
        for piece in self._splitter_text.split(text):
            ids += [piece] if isinstance(piece, int) else self._processor.encode(" " + piece)
        return ids

    def _token_bytes(self, token_id: int) -> bytes:
        return spm_token_bytes(self._vocabulary.texts[token_id], int(self._vocabulary.types[token_id]))


def spm_token_bytes(text: str, token_type: int) -> bytes:
    """What a token of a SentencePiece-like vocabulary adds to a text."""
    if token_type == TokenType.BYTE:
        return bytes([BYTE_TEXTS[text]])
    if token_type == TokenType.UNUSED:
        return b""
    return (text.replace(_SPACE, " ") if token_type == TokenType.NORMAL else text).encode()


def spm_from_gguf(path: Path, metadata: Mapping[str, Any]) -> SpmTokenizer:
    """The tokenizer of a GGUF file whose ``tokenizer.ggml.model`` is ``llama``."""
    reader = GgufVocabularyReader(path, metadata)
    vocabulary = reader.read(add_bos=True, default_ids={"bos": 1, "eos": 2}, unique=True)
    unknown = vocabulary.of_type(TokenType.UNKNOWN)
    if unknown:
        vocabulary.ids.setdefault("unk", unknown[0])
    n = len(vocabulary.texts)
    scores = reader.numbers("scores", n)
    if scores is None:
        raise reader.fail("scores", "is missing")
    if not np.isfinite(scores).all():
        at = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise reader.fail(f"scores[{at}]", f"is {scores[at]}")
    vocabulary.add_space_prefix = reader.flag("add_space_prefix", True)
    make_ends_control(vocabulary)
    name = metadata.get("general.name")
    if isinstance(name, str) and re.search(r"phi-?3", name, re.IGNORECASE):
        # GGUF has no such flags per token; llama.cpp knows these by the model's name too.
        special = {*vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)}
        plain = {vocabulary.index.get(text, -1) for text in ("<unk>", "<s>", "<|endoftext|>")}
        vocabulary.rstrip = frozenset(special - plain)
    return SpmTokenizer(
        vocabulary,
        scores.astype(np.float32),
        remove_extra_whitespaces=reader.flag("remove_extra_whitespaces", False),
    )


def _build(
    vocabulary: Vocabulary, scores: NDArray[np.float32], markers: set[int], settings: bytes | None
) -> SentencePieceProcessor:
    """A processor that encodes plain text only: special tokens are split off before it sees a text."""
    import sentencepiece

    if hasattr(sentencepiece, "set_min_log_level"):
        sentencepiece.set_min_log_level(2)  # it would comment on odd pieces on stderr
    types = vocabulary.types.copy()
    types[list(markers)] = TokenType.CONTROL
    # The library wants exactly one unknown token, at most; GGUF has any number of them.
    types[types == TokenType.UNKNOWN] = TokenType.CONTROL
    _check_bytes(vocabulary)
    unknown = vocabulary.ids.get("unk")
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    elif not (types == TokenType.BYTE).any():
        raise ModelFileError(
            vocabulary.path, "tokenizer.ggml.unknown_token_id", "is missing, and there are no byte tokens"
        )
    texts = [text.encode() for text in vocabulary.texts]
    for i in vocabulary.of_type(TokenType.USER_DEFINED):
        texts[i] = texts[i].replace(b" ", _SPACE.encode())
    if len(set(texts)) < len(texts):
        raise ModelFileError(
            vocabulary.path, "tokenizer.ggml.tokens", "has a token twice, with ▁ and a space"
        )
    if settings is None:
        settings = spm_proto.bpe_settings(len(texts), bool((types == TokenType.BYTE).any()))
    proto = spm_proto.write_model(texts, scores, types, settings)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(proto)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).removeprefix("INTERNAL: ")
        raise ModelFileError(vocabulary.path, "tokenizer.ggml.tokens", f"unusable: {reason}") from None
    return processor


def _check_bytes(vocabulary: Vocabulary) -> None:
    found = vocabulary.of_type(TokenType.BYTE)
    if found and {vocabulary.texts[i] for i in found} != BYTE_TEXTS.keys():
        problem = f"marks {len(found)} tokens as bytes, which are not <0x00> to <0xFF>"
        raise ModelFileError(vocabulary.path, "tokenizer.ggml.token_type", problem)
