"""The catalogue's models of Hugging Face: what it says of them, and what it refuses to read."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import tomllib

from wgllm import hub
from wgllm.catalog import HubEntry, load_catalog
from wgllm.errors import ModelNotFoundError
from wgllm.hub_progress import SilentProgress
from wgllm.models import FAMILIES

ENTRY = """
default = "tiny"
runs = {llama = "Llama"}
[[model]]
name = "tiny"
aliases = []
title = "Tiny"
chat = true
quant = "Q8_0"
architecture = "llama"
licence = "MIT"
licence_url = "https://example.org/licence"
homepage = "https://example.org"
[model.hf]
repo = "org/tiny-GGUF"
"""


def test_the_catalogue_knows_what_runs() -> None:
    # It may not import the families to find out, since `wgllm list` must be quick.
    catalog = load_catalog()
    assert all(e.runs == (e.architecture in FAMILIES) for e in catalog)
    source = files("wgllm.models").joinpath("catalog.toml").read_text(encoding="utf-8")
    assert list(tomllib.loads(source)["runs"]) == sorted(FAMILIES)
    assert {"qwen3", "phi3", "gemma2"} <= {e.architecture for e in catalog}


def test_what_does_not_run_yet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of it runs now; the next entry may be ahead of its family.
    catalog = load_catalog()
    entry = replace(catalog.entries[-1], runs=False)
    changed = replace(catalog, entries=(*catalog.entries[:-1], entry))
    monkeypatch.setattr(hub, "load_catalog", lambda: changed)
    with pytest.raises(ModelNotFoundError, match=f"can't run {entry.name}"):
        hub.resolve(entry.name, progress=SilentProgress())


def test_every_family_has_its_common_sizes() -> None:
    names = {e.name for e in load_catalog()}
    for family, sizes in {
        "llama3.2": "1b 3b", "llama3.1": "8b", "qwen2.5": "0.5b 1.5b 3b 7b 14b 32b 72b", "qwen3": "0.6b 1.7b 4b 8b",
        "gemma3": "270m 1b 4b 12b 27b", "gemma2": "2b 9b 27b", "mistral": "7b", "phi3": "mini", "phi4": "14b mini",
    }.items():  # fmt: skip
        assert {f"{family}:{size}" for size in sizes.split()} <= names


def load(text: str, folder: Path) -> HubEntry:
    file = folder / "catalog.toml"
    file.write_text(text, encoding="utf-8")
    entry = load_catalog(file).default
    assert isinstance(entry, HubEntry)
    return entry


def test_an_entry_of_hugging_face(tmp_path: Path) -> None:
    entry = load(ENTRY, tmp_path)
    assert (entry.repo, entry.file, entry.size, entry.runs) == ("org/tiny-GGUF", None, None, True)
    assert entry.download_size is None
    assert entry.licence_text == "MIT (https://example.org/licence)"
    named = load(ENTRY.replace("chat = true", "chat = true\nsize = 5") + 'file = "a-q4.gguf"\n', tmp_path)
    assert (named.file, named.size, named.download_size) == ("a-q4.gguf", 5, 5)
    assert not load(ENTRY.replace("{llama", "{other"), tmp_path).runs


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"org/tiny-GGUF"', '"../tiny"', "repo"),
        ('"org/tiny-GGUF"', '"org"', "repo"),
        ('repo = "org/tiny-GGUF"', 'repo = "org/tiny-GGUF"\nfile = "../x.gguf"', "file"),
        ('[model.hf]\nrepo = "org/tiny-GGUF"\n', "", "hf: either that or parts"),
        ("chat = true", "chat = true\nsize = -1", "size"),
        ("chat = true", 'chat = true\nsize = "1 GB"', "size"),
        ('"https://example.org/licence"', '"javascript:alert(1)"', "licence_url"),
    ],
)
def test_bad_entries_name_the_model_and_the_key(old: str, new: str, says: str, tmp_path: Path) -> None:
    assert old in ENTRY
    with pytest.raises(ValueError, match=f"catalogue: tiny: {says}"):
        load(ENTRY.replace(old, new), tmp_path)
