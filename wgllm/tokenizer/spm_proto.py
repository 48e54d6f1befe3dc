"""SentencePiece's ``ModelProto``, written and read without a protobuf library.

Field numbers: sentencepiece_model.proto. ModelProto {1: pieces, 2: trainer_spec, 3: normalizer_spec};
SentencePiece {1: piece, 2: score, 3: type}.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wgllm.tokenizer.vocabulary import TokenType

_MODEL_TYPE_BPE = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def write_model(
    texts: list[bytes], scores: NDArray[np.float32], types: NDArray[np.uint8], settings: bytes
) -> bytes:
    """A serialized ModelProto of n pieces; ``scores`` [n], ``types`` [n]; ``settings``: fields 2 and 3."""
    # Per piece: tag and length of the message, tag and length of the text | text | score and type.
    tail = np.zeros(len(texts), [("score_tag", "u1"), ("score", "<f4"), ("type_tag", "u1"), ("type", "u1")])
    tail["score_tag"], tail["score"] = 2 << 3 | _FIXED32, scores
    tail["type_tag"], tail["type"] = 3 << 3 | _VARINT, types
    tails = tail.tobytes()
    size = tail.itemsize
    heads: dict[int, bytes] = {}
    for length in {len(text) for text in texts}:
        text_head = _tag(1, _BYTES) + _varint(length)
        heads[length] = _tag(1, _BYTES) + _varint(len(text_head) + length + size) + text_head
    parts = [b""] * (3 * len(texts))
    parts[0::3] = [heads[len(text)] for text in texts]
    parts[1::3] = texts
    parts[2::3] = [tails[i : i + size] for i in range(0, len(tails), size)]
    # The last value of a field counts: spaces at the beginning and in rows are the tokenizer's business.
    override = _field(3, 0) + _field(4, 0) + _field(5, 1)
    return b"".join(parts) + settings + _message(3, override)


def bpe_settings(n_pieces: int, byte_fallback: bool) -> bytes:
    """A trainer_spec {3: model_type, 4: vocab_size, 35: byte_fallback} for merging by score."""
    return _message(2, _field(3, _MODEL_TYPE_BPE) + _field(4, n_pieces) + _field(35, int(byte_fallback)))


@dataclass
class Model:
    """What a ``tokenizer.model`` holds."""

    texts: list[str]
    scores: NDArray[np.float32]
    types: NDArray[np.uint8]
    settings: bytes
    """trainer_spec and normalizer_spec, serialized."""
    special_texts: dict[str, str]
    """Role → text of BOS, EOS, unknown and padding, whether or not there is such a piece."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def parse_model(data: bytes) -> Model:
    """Reads a serialized ModelProto. Raises ValueError or IndexError when it is not one."""
    texts, scores, types = [], [], []
    settings = b""
    special = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    flags = {3: 1, 4: 1}  # add_dummy_prefix, remove_extra_whitespaces
    for number, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            text, score, kind = _piece(value)
            texts.append(text.decode())
            scores.append(score)
            types.append(kind)
        elif number == 2:
            settings += _message(2, value)
            names = {45: "unk", 46: "bos", 47: "eos", 48: "pad"}
            special |= {
                names[n]: v.decode() for n, v in _fields(value) if n in names and isinstance(v, bytes)
            }
        elif number == 3:
            settings += _message(3, value)
            flags |= {n: v for n, v in _fields(value) if n in flags and isinstance(v, int)}
    if not texts:
        raise ValueError("it has no pieces")
    array = np.array(scores, np.float32)
    if not np.isfinite(array).all():
        raise ValueError("a score is not a finite number")
    kinds = np.array(types, np.uint8)
    return Model(texts, array, kinds, settings, special, bool(flags[3]), bool(flags[4]))


def _piece(data: bytes) -> tuple[bytes, float, int]:
    text, score, kind = b"", 0.0, int(TokenType.NORMAL)
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            # Raw spaces, as GGUF has them in user-defined tokens.
            text = value
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    if not TokenType.NORMAL <= kind <= TokenType.BYTE:
        raise ValueError(f"a piece has the type {kind}")
    if kind == TokenType.USER_DEFINED:
        text = text.replace("▁".encode(), b" ")
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a message: (number, value)."""
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == _BYTES:
            length, at = _read_varint(data, at)
            if length > end - at:
                raise ValueError("a field is longer than the file")
            yield key >> 3, data[at : at + length]
            at += length
        elif kind == _VARINT:
            value, at = _read_varint(data, at)
            yield key >> 3, value
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
            if length > end - at:
                raise ValueError("it ends in the middle of a field")
            yield key >> 3, float(struct.unpack_from("<f" if length == 4 else "<d", data, at)[0])
            at += length
        else:
            raise ValueError(f"a field has the unknown wire type {kind}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is longer than 64 bits")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _field(number: int, value: int) -> bytes:
    return _tag(number, _VARINT) + _varint(value)


def _message(number: int, data: bytes) -> bytes:
    return _tag(number, _BYTES) + _varint(len(data)) + data
