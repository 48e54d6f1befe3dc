"""The bytes of all tokens as one table, with which a page turns tokens into text.

Little-endian: u32 magic, version, count V and flags (bit 0: a text loses one leading space), u32 offsets[V + 1],
u8 kinds[V] (1: a control token, hidden in replies), zeros up to a multiple of 4, then the tokens' bytes.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from wgllm.tokenizer import Tokenizer

MAGIC = 0x4C4F5657
VERSION = 1
STRIPS_SPACE = 1
CONTROL = 1


@dataclass(frozen=True)
class VocabularyTable:
    data: bytes
    etag: str


def vocabulary_table(tokenizer: Tokenizer, count: int) -> VocabularyTable:
    """The table of ``count`` tokens, as many as the model has logits: those that the tokenizer lacks are empty."""
    known = min(count, tokenizer.vocab_size)
    texts = [tokenizer.token_bytes(i) for i in range(known)]
    offsets = np.zeros(count + 1, "<u4")
    np.cumsum([len(text) for text in texts], out=offsets[1 : known + 1])
    offsets[known + 1 :] = offsets[known]
    kinds = np.zeros(-(-count // 4) * 4, np.uint8)
    kinds[:known] = [CONTROL if tokenizer.is_control(i) else 0 for i in range(known)]
    head = struct.pack("<4I", MAGIC, VERSION, count, STRIPS_SPACE if tokenizer.strips_space else 0)
    data = b"".join([head, offsets.tobytes(), kinds.tobytes(), *texts])
    return VocabularyTable(data, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
