"""Prompt caches: what is saved is what is loaded, and what is not one of this model's is refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wgllm
from tests.tiny import tiny
from tests.tolerances import NUMPY_SAME
from wgllm.backends.base import Step
from wgllm.engine import Engine
from wgllm.errors import PromptCacheError
from wgllm.llm import Llm


def load(name: str = "gemma3.f32", **options: Any) -> Llm:
    return wgllm.load(tiny(name).path, **options)


def engine(llm: Llm) -> Engine:
    assert isinstance(llm.engine, Engine)
    return llm.engine


def prompt(n: int) -> list[int]:
    return (tiny("gemma3.f32").cases()[-1]["ids"] * 8)[:n]


def read_prompt(llm: Llm, n: int) -> None:
    list(llm.generate(prompt(n), max_tokens=0))


def next_logits(llm: Llm, length: int) -> np.ndarray[Any, Any]:
    return engine(llm).pipeline.run(Step.of([7], length, out_rows=[0]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "cache"
    with load() as llm:
        read_prompt(llm, 60)
        llm.save_state(path)
    return path


@pytest.fixture
def llm() -> Iterator[Llm]:
    with load() as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("name", "options", "n"),
    [
        ("llama-tied.f32", {}, 40),
        ("gemma3.f32", {}, 40),
        ("gemma3.f32", {"batch_size": 8}, 300),  # rings of 40 cells have wrapped
        ("gemma3.f32", {"kv_type": "f16", "batch_size": 8}, 100),
        ("gemma3.f32", {"kv_type": "f16", "kv_type_v": "f32"}, 50),
    ],
)
def test_the_state_is_bit_for_bit_the_same_after_loading(
    tmp_path: Path, name: str, options: dict[str, Any], n: int
) -> None:
    path = tmp_path / "cache"
    with load(name, **options) as first, load(name, **options) as second:
        read_prompt(first, n)
        first.save_state(path)
        assert second.load_state(path) == prompt(n)
        assert engine(second).cache.state(0) == engine(first).cache.state(0)
        assert np.array_equal(next_logits(second, n), next_logits(first, n))


@pytest.mark.parametrize("batch_size", [2, 8, 100])
def test_rings_of_another_size_take_what_fits(tmp_path: Path, batch_size: int) -> None:
    path = tmp_path / "cache"
    with load(batch_size=8) as first, load(batch_size=batch_size, ctx_size=300) as second:
        read_prompt(first, 200)
        first.save_state(path)
        second.load_state(path)
        # The order in which a ring lies in memory is that of the sums.
        assert np.abs(next_logits(second, 200) - next_logits(first, 200)).max() < NUMPY_SAME
        longer = [*prompt(200), 5, 6, 7]
        *events, last = second.generate(longer, max_tokens=6, temperature=0, ignore_eos=True)
        assert last.stats is not None and last.stats.cached_tokens == 200
        again = list(first.generate(longer, max_tokens=6, temperature=0, ignore_eos=True))
        assert [e.token_id for e in events] == [e.token_id for e in again[:-1]]


def test_what_was_truncated_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with load(batch_size=8) as first, load(batch_size=8) as second:
        read_prompt(first, 100)
        changed = [*prompt(95), 9, 9]
        list(first.generate(changed, max_tokens=0))
        first.save_state(path)
        assert second.load_state(path) == changed
        assert np.array_equal(next_logits(second, 97), next_logits(first, 97))


def test_a_state_of_no_tokens_can_be_kept(tmp_path: Path, llm: Llm) -> None:
    llm.save_state(tmp_path / "cache")
    assert llm.load_state(tmp_path / "cache") == []


def test_no_file_is_no_tokens(tmp_path: Path, llm: Llm) -> None:
    assert llm.load_state(tmp_path / "none") == []


def test_other_models_types_and_contexts_are_refused(saved: Path) -> None:
    for options, says in (
        ({"name": "qwen2.f32"}, "another model"),
        ({"name": "llama-tied.f32"}, "another model"),
        ({"kv_type": "f16"}, "f32, not f16"),
        ({"kv_type_v": "f16"}, "not f32/f16"),
        ({"ctx_size": 50}, "60 tokens"),
        ({"rope_scale": 2.0}, "other rope or override settings"),
    ):
        with load(**options) as other, pytest.raises(PromptCacheError, match=says) as caught:  # type: ignore[arg-type]
            other.load_state(saved)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 1


def test_the_same_architecture_with_other_weights_is_another_model(tmp_path: Path, saved: Path) -> None:
    data = bytearray(tiny("gemma3.f32").path.read_bytes())
    data[-len(data) // 2 :] = bytes(b ^ 1 if i % 4 == 0 else b for i, b in enumerate(data[-len(data) // 2 :]))
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(data)
    with wgllm.load(changed) as other, pytest.raises(PromptCacheError, match="another model"):
        other.load_state(saved)


def refused(llm: Llm, path: Path) -> None:
    before = engine(llm).cache.state(0)
    with pytest.raises(PromptCacheError) as caught:
        llm.load_state(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    held = engine(llm).cache.state(0)
    assert held == before or not held.tokens


def test_files_that_are_cut_anywhere_are_refused(tmp_path: Path, saved: Path, llm: Llm) -> None:
    data = saved.read_bytes()
    path = tmp_path / "cut"
    header = struct.unpack_from("<I", data, 12)[0] + 24
    lengths = {*range(0, header, 7), *range(24), *range(header, len(data), len(data) // 40), len(data) - 1}
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        refused(llm, path)
    path.write_bytes(data + b"x")
    refused(llm, path)


def test_files_with_a_wrong_byte_anywhere_are_refused(tmp_path: Path, saved: Path, llm: Llm) -> None:
    data = saved.read_bytes()
    path = tmp_path / "changed"
    header = struct.unpack_from("<I", data, 12)[0] + 24
    rng = random.Random(1)
    places = [*range(24), *range(24, header, 11), *(rng.randrange(header, len(data)) for _ in range(60))]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        refused(llm, path)


def forged(saved: Path, change: Any) -> bytes:
    """The file with a changed header and the hash that it then should have."""
    data = saved.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    header = change(json.loads(data[24 : 24 + size]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = data[24 + size : -32]
    start = struct.pack("<8sIIQ", b"wgllmkv\n", 1, len(text), 24 + len(text) + len(body) + 32)
    return start + text + body + hashlib.sha256(start + text + body).digest()


def set_in(*keys: Any, to: Any) -> Any:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        at: Any = header
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = to
        return header

    return change


def swapped(header: dict[str, Any]) -> dict[str, Any]:
    arrays = header["arrays"]
    arrays[2][1], arrays[3][1] = arrays[3][1], "nothing"
    return header


@pytest.mark.parametrize(
    "change",
    [
        lambda h: b"[" * 100_000,
        lambda h: b"\xff\xfe",
        lambda h: b'{"model": 1e999}',
        lambda h: [],
        lambda h: {},
        set_in("arrays", to=[]),
        set_in("arrays", to=7),
        set_in("arrays", 0, 0, to=3),
        set_in("arrays", 1, 0, to=-1),
        set_in("arrays", 1, 0, to=1),
        set_in("arrays", 1, 2, to="O"),
        set_in("arrays", 1, 2, to="f4"),
        set_in("arrays", 1, 3, to=[-1, -60]),
        set_in("arrays", 1, 3, to=[60.0]),
        set_in("arrays", 1, 3, to=[True]),
        set_in("arrays", 1, 3, to=[1 << 62, 1 << 62]),
        set_in("arrays", 1, 3, to=[0, 1 << 30, 1 << 30, 1 << 30]),
        set_in("arrays", 1, 3, to=[1, 1, 1, 1, 60]),
        set_in("arrays", 3, 3, to=[60, 1, 32]),
        set_in("segments", to=0),
        set_in("segments", to=1 << 30),
        set_in("segments", to=2),
        set_in("lost", to={"cells": 60}),
        set_in("lost", to={"cells.w32": 10**9}),
        set_in("lost", to=[1]),
        set_in("lost", to={"cells.w32": -5}),
        swapped,
    ],
)
def test_forged_headers_are_refused(tmp_path: Path, saved: Path, llm: Llm, change: Any) -> None:
    path = tmp_path / "forged"
    path.write_bytes(forged(saved, change))
    refused(llm, path)


def test_a_header_that_is_only_written_anew_is_taken(tmp_path: Path, saved: Path, llm: Llm) -> None:
    path = tmp_path / "forged"
    path.write_bytes(forged(saved, lambda h: h))
    assert llm.load_state(path) == prompt(60)


def test_what_is_no_file_is_refused(tmp_path: Path, llm: Llm) -> None:
    refused(llm, tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        refused(llm, tmp_path / "fifo")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_the_owner_may_read_it(saved: Path) -> None:
    assert saved.stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, saved: Path, llm: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache"
    path.write_bytes(saved.read_bytes())
    read_prompt(llm, 30)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PromptCacheError, match="No space left"):
        llm.save_state(path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert llm.load_state(path) == prompt(60)
