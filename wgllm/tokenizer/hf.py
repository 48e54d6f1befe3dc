"""Hugging Face directories: ``tokenizer.json``, ``tokenizer.model``, and the settings beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wgllm.errors import ModelFileError
from wgllm.tokenizer.base import Tokenizer
from wgllm.tokenizer.bpe import (
    byte_level_bytes,
    library_errors,
    no_threads,
    run_pipeline,
)
from wgllm.tokenizer.hf_files import chat_template, read_beside, read_bytes, read_object
from wgllm.tokenizer.spm import BYTE_TEXTS, SpmTokenizer, spm_token_bytes
from wgllm.tokenizer.spm_proto import parse_model
from wgllm.tokenizer.vocabulary import TokenType, Vocabulary, no_garbage_collection

if TYPE_CHECKING:
    import tokenizers

_MAX_ID = 1 << 22  # tables are made for every id up to the largest
_ROLES = ("bos", "eos", "unk", "pad", "sep", "mask")


class JsonTokenizer(Tokenizer):
    """The pipeline of a ``tokenizer.json``; its added tokens are split off before."""

    def __init__(self, vocabulary: Vocabulary, data: dict[str, Any]) -> None:
        """``data``: the parsed file, of which ``added_tokens`` and ``post_processor`` are not used."""
        super().__init__(vocabulary)
        self._byte_level = _find(data.get("decoder"), "ByteLevel") is not None
        self._pipeline = self._pipeline_after_special = _pipeline(data)
        metaspace = _find(data.get("pre_tokenizer"), "Metaspace")
        if metaspace is not None and metaspace.get("prepend_scheme") == "first":
            # The space goes before the text, not before what comes after each special token.
            metaspace["prepend_scheme"] = "never"
            self._pipeline_after_special = _pipeline(data)

    def _encode_text(self, text: str, first: bool) -> list[int]:
        ids: list[int] = []
        for i, piece in enumerate(self._splitter_text.split(text)):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                # Its patterns are the file's: one that backtracks for too long makes the library give up.
                with library_errors(self.path, "pre_tokenizer"):
                    pipeline = self._pipeline if first and i == 0 else self._pipeline_after_special
                    ids += run_pipeline(pipeline, piece)
        return ids

    def _token_bytes(self, token_id: int) -> bytes:
        text, kind = self._vocabulary.texts[token_id], int(self._vocabulary.types[token_id])
        return (byte_level_bytes if self._byte_level else spm_token_bytes)(text, kind)


def from_tokenizer_json(path: Path, n_rows: int | None = None) -> JsonTokenizer:
    """The tokenizer in a ``tokenizer.json``, with the settings beside it; added tokens have ids below ``n_rows``."""
    data = read_object(path)
    with library_errors(path, "tokenizer.json"), no_garbage_collection():
        model = data["model"]
        if model.get("type") not in ("BPE", "Unigram"):
            raise ModelFileError(path, "model.type", f"{model.get('type')!r} is none of BPE and Unigram")
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(name):  # the library aborts the process when merges do not fit them
                raise ModelFileError(path, f"model.{name}", "is not supported")
        words: dict[str, int] = model["vocab"]
        if model["type"] == "Unigram":
            words = {text: i for i, (text, _) in enumerate(model["vocab"])}
        added = _within(data.get("added_tokens") or [], n_rows)
        known = {token.get("content") for token in added}
        if n_rows is not None and len(added) < len(data["added_tokens"]):
            gone = {token.get("content") for token in data["added_tokens"]} - known
            words = {text: i for text, i in words.items() if i < n_rows or text not in gone}
        # transformers adds what only tokenizer_config.json knows, after all others.
        extra = [t for t in _configured(path.parent) if t.get("content") not in known.union(words)]
        vocabulary = _json_vocabulary(path, words, model, added, _within(extra, n_rows))
        prefix = _template_ids(data.get("post_processor"), first=True)
        suffix = _template_ids(data.get("post_processor"), first=False)
        _apply_settings(vocabulary, path.parent, add_bos=bool(prefix), add_eos=bool(suffix))
        if prefix:
            vocabulary.ids.setdefault("bos", prefix[0])
        decoder = data.get("decoder")
        strip = _find(decoder, "Strip") or {}
        metaspace = _find(decoder, "Metaspace") or {"prepend_scheme": "never"}
        vocabulary.add_space_prefix = bool(
            (strip.get("content") == " " and strip.get("start")) or metaspace.get("prepend_scheme") != "never"
        )
        return JsonTokenizer(vocabulary, data)


def from_sentencepiece(path: Path, n_rows: int | None = None) -> SpmTokenizer:
    """The tokenizer in a SentencePiece ``tokenizer.model``, with the settings beside it; added tokens as above."""
    try:
        model = parse_model(read_bytes(path))
    except (ValueError, IndexError) as error:
        raise ModelFileError(path, "pieces", f"is not a SentencePiece model: {error}") from None
    texts, kinds = model.texts, model.types.tolist()
    if len(set(texts)) < len(texts) or "" in texts:
        raise ModelFileError(path, "pieces", "has an empty piece or one twice")
    if kinds.count(TokenType.UNKNOWN) != 1:
        raise ModelFileError(path, "pieces", f"has {kinds.count(TokenType.UNKNOWN)} unknown pieces, not one")
    _add_tokens(path, texts, kinds, _within(_added_beside(path.parent), n_rows))
    vocabulary = Vocabulary(path, texts, np.array(kinds, np.uint8))
    vocabulary.add_space_prefix = model.add_dummy_prefix
    vocabulary.ids["unk"] = kinds.index(TokenType.UNKNOWN)
    for role, text in model.special_texts.items():
        if text in vocabulary.index:
            vocabulary.ids[role] = vocabulary.index[text]
    _apply_settings(vocabulary, path.parent, add_bos=True, add_eos=False)
    scores = np.zeros(len(texts), np.float32)
    scores[: len(model.scores)] = model.scores
    return SpmTokenizer(
        vocabulary,
        scores,
        remove_extra_whitespaces=model.remove_extra_whitespaces,
        settings=model.settings,
    )


def _json_vocabulary(
    path: Path,
    words: dict[str, int],
    model: dict[str, Any],
    added: list[dict[str, Any]],
    extra: list[dict[str, Any]],
) -> Vocabulary:
    texts: list[str] = []
    if words:
        if not 0 <= min(words.values()) <= max(words.values()) < _MAX_ID:
            raise ModelFileError(path, "model.vocab", "has an id that is out of range")
        texts = [""] * (max(words.values()) + 1)
    for text, i in words.items():
        texts[i] = text
    kinds = [TokenType.NORMAL if text else TokenType.UNUSED for text in texts]
    if model.get("byte_fallback"):
        for text in BYTE_TEXTS.keys() & words.keys():
            kinds[words[text]] = TokenType.BYTE
    unknown = model.get("unk_token")
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        unknown = texts[model["unk_id"]]
    if unknown in words:
        kinds[words[unknown]] = TokenType.UNKNOWN
    _add_tokens(path, texts, kinds, added)
    extra = [token for token in extra if token["id"] >= len(texts)]
    _add_tokens(path, texts, kinds, extra)
    added = added + extra
    vocabulary = Vocabulary(path, texts, np.array(kinds, np.uint8))
    vocabulary.lstrip = frozenset(token["id"] for token in added if token.get("lstrip"))
    vocabulary.rstrip = frozenset(token["id"] for token in added if token.get("rstrip"))
    if unknown in words:
        vocabulary.ids["unk"] = words[unknown]
    return vocabulary


def _add_tokens(path: Path, texts: list[str], kinds: list[Any], added: Iterable[dict[str, Any]]) -> None:
    """Puts added tokens ({id, content, special}) into the tables, over what stood there."""
    for token in added:
        i, text = token.get("id"), token.get("content")
        if not isinstance(i, int) or not 0 <= i < _MAX_ID or not isinstance(text, str) or not text:
            raise ModelFileError(path, "added_tokens", f"has a token {text!r} with the id {i!r}")
        for gap in range(len(texts), i + 1):
            texts.append(f"[PAD{gap}]")
            kinds.append(TokenType.UNUSED)
        texts[i] = text
        if kinds[i] != TokenType.UNKNOWN:
            kinds[i] = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED


def _added_beside(directory: Path) -> list[dict[str, Any]]:
    """Tokens that tokenizer_config.json or added_tokens.json add to a ``tokenizer.model``."""
    if configured := _configured(directory):
        return configured
    added = read_beside(directory, "added_tokens.json")
    return [{"id": i, "content": text, "special": False} for text, i in added.items()]


def _configured(directory: Path) -> list[dict[str, Any]]:
    """``added_tokens_decoder`` of tokenizer_config.json, by id."""
    config = read_beside(directory, "tokenizer_config.json").get("added_tokens_decoder")
    # Ten digits are more than any id has, and int() is slow for thousands of them.
    if not isinstance(config, dict) or any(
        not key.isdecimal() or len(key) > 10 or not isinstance(config[key], dict) for key in config
    ):
        return []
    return [{**config[key], "id": int(key)} for key in sorted(config, key=int)]


def _within(added: list[dict[str, Any]], n_rows: int | None) -> list[dict[str, Any]]:
    """Those that the embedding has a row for."""
    if n_rows is None:
        return added
    return [t for t in added if not isinstance(t.get("id"), int) or t["id"] < n_rows]


def _apply_settings(vocabulary: Vocabulary, directory: Path, *, add_bos: bool, add_eos: bool) -> None:
    """Special ids, BOS and EOS, end tokens and the chat template, from the JSON files of the directory."""
    config = read_beside(directory, "tokenizer_config.json")
    names = {**read_beside(directory, "special_tokens_map.json"), **config}
    for role in _ROLES:
        name = names.get(f"{role}_token")
        name = name.get("content") if isinstance(name, dict) else name
        if isinstance(name, str) and name in vocabulary.index:
            vocabulary.ids[role] = vocabulary.index[name]
    for key, default in (("add_bos_token", add_bos), ("add_eos_token", add_eos)):
        value = config.get(key)
        setattr(vocabulary, key.removesuffix("_token"), value if isinstance(value, bool) else default)
    ends: set[Any] = set()
    for file in ("generation_config.json", "config.json"):
        value = read_beside(directory, file).get("eos_token_id")
        ends.update([i for i in value if isinstance(i, int)] if isinstance(value, list) else [value])
    vocabulary.extra_eog = frozenset(i for i in ends if type(i) is int and 0 <= i < len(vocabulary.texts))
    vocabulary.chat_template = chat_template(directory)


def _template_ids(processor: Any, *, first: bool) -> list[int]:
    """The special tokens that a TemplateProcessing puts before (or after) a text."""
    template = _find(processor, "TemplateProcessing")
    if template is None:
        return []
    single = template["single"] if first else template["single"][::-1]
    ids: list[int] = []
    for item in single:
        if "SpecialToken" not in item:
            break
        ids += template["special_tokens"][item["SpecialToken"]["id"]]["ids"]
    return ids


def _pipeline(data: dict[str, Any]) -> tokenizers.Tokenizer:
    no_threads()
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    model: dict[str, Any] = data["model"]
    parts = {"version": "1.0", "added_tokens": []} | {k: data.get(k) for k in ("normalizer", "pre_tokenizer")}
    if model["type"] != "BPE":
        return Tokenizer.from_str(json.dumps({**parts, "model": model}))
    # Handing over the tables directly takes half the time of going through JSON again.
    pipeline = Tokenizer.from_str(json.dumps({**parts, "model": {"type": "BPE", "vocab": {}, "merges": []}}))
    names = ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
    options = {name: model[name] for name in names if model.get(name) is not None}
    merges = [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in model["merges"]]
    pipeline.model = BPE(vocab=model["vocab"], merges=merges, **options)
    return pipeline


def _find(part: Any, kind: str) -> dict[str, Any] | None:
    """The part of a pipeline with that type, which may be one of a sequence."""
    if not isinstance(part, dict):
        return None
    if part.get("type") == kind:
        return part
    for name in ("pretokenizers", "decoders", "processors", "normalizers"):
        for inner in part.get(name) or []:
            if (found := _find(inner, kind)) is not None:
                return found
    return None
