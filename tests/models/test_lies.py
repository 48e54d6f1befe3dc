"""Well-formed files whose contents make no sense: each is refused with the field, or harmless."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wgllm
from tests.tiny import tiny
from wgllm import models
from wgllm.errors import ModelFileError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import ModelFile
from wgllm.tokenizer import tokenizer_from_model


def changed(name: str, metadata: Mapping[str, Any], drop: tuple[str, ...] = ()) -> ModelFile:
    file = open_gguf(tiny(name).path)
    merged = {**{k: file.metadata[k] for k in file.metadata}, **metadata}
    return replace(
        file,
        metadata={k: v for k, v in merged.items() if v is not None},
        tensors={k: v for k, v in file.tensors.items() if k not in drop},
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", 3),
        ("llama.attention.head_count", "four"),
        ("llama.attention.head_count", 2**40),
        ("llama.attention.head_count_kv", 0),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.key_length", 0),
        ("llama.attention.key_length", 15),
        ("llama.attention.value_length", 8),
        ("llama.block_count", 0),
        ("llama.block_count", 2**31),
        ("llama.context_length", 2**60),
        ("llama.context_length", 0),
        ("llama.embedding_length", 32),
        ("llama.embedding_length", None),
        ("llama.feed_forward_length", -1),
        ("llama.rope.freq_base", float("nan")),
        ("llama.rope.freq_base", 0.0),
        ("llama.rope.dimension_count", 18),
        ("llama.rope.dimension_count", 7),
        ("llama.rope.scaling.type", "magic"),
        ("llama.attention.layer_norm_rms_epsilon", float("inf")),
        ("llama.attention.layer_norm_rms_epsilon", None),
        ("llama.expert_count", -1),
        ("general.architecture", "clippy"),
        ("general.architecture", None),
    ],
)
def test_senseless_metadata_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ModelFileError) as caught:
        models.build(changed("llama-tied.f32", {key: value}))
    message = str(caught.value)
    named = "token_embd" if key == "llama.embedding_length" and value else key
    assert named in message and "\n" not in message and "llama-tied.f32.gguf" in message


@pytest.mark.parametrize("name", ["llama-tied.f32", "qwen2.f32", "gemma3.f32"])
def test_every_tensor_that_is_missing_is_named(name: str) -> None:
    needed = {t.name for t in models.build(open_gguf(tiny(name).path)).graph.of_kind("weight")}
    assert len(needed) > 10
    for tensor in needed - {"rope_freqs.weight", "output.weight"}:
        with pytest.raises(ModelFileError, match=tensor.replace(".", r"\.")):
            models.build(changed(name, {}, drop=(tensor,)))


def test_frequency_factors_that_a_family_does_not_apply_are_refused() -> None:
    factors = open_gguf(tiny("llama-llama3rope.f32").path).tensors["rope_freqs.weight"]
    file = open_gguf(tiny("qwen2.f32").path)
    with pytest.raises(ModelFileError, match=r"rope_freqs\.weight"):
        models.build(replace(file, tensors={**file.tensors, factors.name: factors}))


def test_a_tensor_of_another_shape_is_refused() -> None:
    file = changed("llama-tied.f32", {})
    view = file.tensors["blk.1.ffn_up.weight"]
    wrong = replace(view, shape=(view.shape[1], view.shape[0]))
    with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_up\.weight.*shape"):
        models.build(replace(file, tensors={**file.tensors, view.name: wrong}))


def test_more_tokens_than_embedding_rows_are_refused() -> None:
    file = changed("llama-tied.f32", {})
    tokens = [*file.metadata["tokenizer.ggml.tokens"], "one too many"]
    with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.tokens"):
        models.build(replace(file, metadata={**file.metadata, "tokenizer.ggml.tokens": tokens}))


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_special_ids_out_of_range_are_refused(key: str) -> None:
    with pytest.raises(ModelFileError, match=key):
        tokenizer_from_model(changed("qwen2.f32", {f"tokenizer.ggml.{key}": 512}))


def test_mutated_headers_never_crash_the_whole_way_to_a_token(tmp_path: Path) -> None:
    """Whatever opens either generates a token or is refused with an error of ours."""
    original = tiny("llama-tied.q8_0").path.read_bytes()
    header = original.index(b"output_norm.weight") + 64
    rng = random.Random(20)
    counts = {"refused": 0, "ran": 0}
    path = tmp_path / "mutated.gguf"
    values = [0, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**32 - 1]
    for _ in range(1000):
        data = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(24, header)
            if rng.random() < 0.5:
                data[at] ^= 1 << rng.randrange(8)
            else:
                data[at : at + 4] = rng.choice(values).to_bytes(4, "little")
        path.write_bytes(data)
        try:
            with wgllm.load(path, ctx_size=64) as llm:
                list(llm.generate([5, 6], max_tokens=1, temperature=0))
            counts["ran"] += 1
        except wgllm.WgllmError as error:
            assert "\n" not in str(error)
            counts["refused"] += 1
    print(f"mutations 1000, crashes 0, {counts}")
    assert counts["refused"] > 50 and counts["ran"] > 50


def test_rows_beyond_the_tokenizers_last_token_can_be_generated() -> None:
    """Embeddings padded to a round number of rows: their ids stand for no text."""
    file = changed("qwen2.f32", {})
    names = ("tokens", "token_type")
    shorter = {f"tokenizer.ggml.{n}": np.array(file.metadata[f"tokenizer.ggml.{n}"][:400]) for n in names[1:]}
    shorter["tokenizer.ggml.tokens"] = list(file.metadata["tokenizer.ggml.tokens"])[:400]  # type: ignore[assignment]
    ids = dict.fromkeys(("eos_token_id", "padding_token_id", "bos_token_id"), 0)
    merges = [
        m
        for m in file.metadata["tokenizer.ggml.merges"]
        if "".join(m.split(" ")) in shorter["tokenizer.ggml.tokens"]
    ]
    metadata = {**file.metadata, **shorter, **{f"tokenizer.ggml.{k}": v for k, v in ids.items()}}
    metadata["tokenizer.ggml.merges"] = merges
    from wgllm.backends.base import LoadOptions
    from wgllm.llm import _load
    from wgllm.placement import Wish

    with _load(replace(file, metadata=metadata), LoadOptions({}), Wish("numpy", ctx_size=64)) as llm:
        events = list(
            llm.generate(
                [1, 2, 3], max_tokens=40, temperature=5.0, top_k=0, top_p=1, min_p=0, seed=1, ignore_eos=True
            )
        )
    beyond = [e for e in events if e.token_id is not None and e.token_id >= 400]
    assert beyond and all(e.text == "" for e in beyond)


def test_a_tensor_that_the_graph_does_not_use_is_refused_by_name() -> None:
    file = changed("llama-tied.f32", {})
    spare = file.tensors["output_norm.weight"]
    tensors = {**file.tensors, "blk.0.attn_sinks.weight": replace(spare, name="blk.0.attn_sinks.weight")}
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_sinks\.weight"):
        models.build(replace(file, tensors=tensors))
    harmless = {**file.tensors, "blk.0.attn_rot_embd.weight": spare}
    models.build(replace(file, tensors=harmless))
