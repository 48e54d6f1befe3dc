"""The catalogue: which names wgllm knows, and where each model's file comes from."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

# What stands here ends up in file names and in a requirements file, so nothing but plain names may pass.
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.gguf")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(:[A-Za-z0-9._-]+)?")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._]*")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"https://\S+")
_ANY = re.compile(r".+")


@dataclass(frozen=True)
class Part:
    """One member of one wheel; ``sha256`` and ``size`` are the member's."""

    requirement: str
    """``name==version``"""
    wheel_size: int
    wheel_sha256: str
    member: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A model that can be fetched by name; a ``WheelEntry`` or a ``HubEntry``."""

    name: str
    aliases: tuple[str, ...]
    title: str
    chat: bool
    """Tuned to follow instructions; else a base model that only continues text."""
    quant: str
    licence: str
    licence_url: str
    homepage: str
    architecture: str
    runs: bool
    """Whether this version of wgllm has the architecture."""
    size: int | None
    """Bytes of the file; None where the catalogue doesn't know."""

    @property
    def download_size(self) -> int | None:
        """Bytes that come over the network."""
        return self.size

    @property
    def licence_text(self) -> str:
        """``Apache-2.0``, or the name and the address of a licence that is no common one."""
        return f"{self.licence} ({self.licence_url})"


@dataclass(frozen=True)
class WheelEntry(Entry):
    """A model out of wheels of a package index. ``parts`` joined in order are its file."""

    size: int
    file: str
    sha256: str
    parts: tuple[Part, ...]
    terms: Part | None = None
    """The text of a licence that has to come with the model; kept beside it."""

    @property
    def download_size(self) -> int:
        return sum(p.wheel_size for p in self.parts) + (self.terms.wheel_size if self.terms else 0)

    @property
    def licence_text(self) -> str:
        return self.licence if self.terms is None else super().licence_text


@dataclass(frozen=True)
class HubEntry(Entry):
    """A model in a repository on Hugging Face, which also knows its hash. ``size`` is approximate."""

    repo: str
    file: str | None
    """The file's name; None: the one file of the entry's quantization."""


@dataclass(frozen=True)
class Catalog:
    entries: tuple[Entry, ...]
    default: Entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def find(self, name: str) -> Entry | None:
        """The entry of that name or alias, in any case."""
        key = name.casefold()
        for entry in self.entries:
            if key in (n.casefold() for n in (entry.name, *entry.aliases)):
                return entry
        return None

    def matching(self, words: Sequence[str]) -> list[Entry]:
        """The entries in whose names, title, licence or source each of ``words`` stands."""
        return [e for e in self.entries if all(w.casefold() in _searched(e) for w in words)]

    def variants(self, name: str) -> list[str]:
        """Names ``name:tag``."""
        return [e.name for e in self.entries if e.name.casefold().startswith(name.casefold() + ":")]

    def similar(self, name: str) -> list[str]:
        """Names that ``name`` is the beginning, a part or a misspelling of; best first."""
        key = name.casefold()
        owners = {n.casefold(): e.name for e in self.entries for n in (e.name, *e.aliases)}
        found = [n for n in owners if key and n.startswith(key)]
        found += [n for n in owners if len(key) > 2 and key in n]
        found += difflib.get_close_matches(key, owners, n=5, cutoff=0.6)
        return list(dict.fromkeys(owners[n] for n in found))


def _searched(entry: Entry) -> str:
    source = entry.repo if isinstance(entry, HubEntry) else ""
    texts = (entry.name, *entry.aliases, entry.title, entry.licence, entry.quant, entry.architecture, source)
    return "\n".join(texts).casefold()


def load_catalog(path: Path | None = None) -> Catalog:
    """Reads the given catalogue, else wgllm's own. Raises ``ValueError`` that names the entry and the key."""
    return _own_catalog() if path is None else _parse(path.read_text(encoding="utf-8"))


@functools.cache
def _own_catalog() -> Catalog:
    # Not importlib.resources, which would import the package and with it every model family.
    spec = importlib.util.find_spec("wgllm.models")
    assert spec is not None and spec.submodule_search_locations is not None
    return load_catalog(Path(next(iter(spec.submodule_search_locations))) / "catalog.toml")


def _parse(text: str) -> Catalog:
    data = tomllib.loads(text)
    runs = data.get("runs")
    entries = tuple(_entry(table, runs) for table in data["model"])
    names = [n.casefold() for e in entries for n in (e.name, *e.aliases)]
    files = [e.file.casefold() for e in entries if isinstance(e, WheelEntry)]
    for seen in (names, files):
        if twice := {n for n in seen if seen.count(n) > 1}:
            raise ValueError(f"catalogue: twice there: {', '.join(sorted(twice))}")
    default = next((e for e in entries if e.name == data["default"]), None)
    if default is None:
        raise ValueError(f"catalogue: default: no model {data['default']!r}")
    return Catalog(entries, default)


def _entry(table: Mapping[str, Any], runs: Mapping[str, str] | None) -> Entry:
    name = _text(table, "name", _NAME, "model")
    architecture = _text(table, "architecture", _ANY, name) if "architecture" in table else ""
    common: dict[str, Any] = {
        "name": name,
        "aliases": tuple(_text({"aliases": a}, "aliases", _NAME, name) for a in table.get("aliases", ())),
        "title": _text(table, "title", _ANY, name),
        "chat": _value(table, "chat", bool, name),
        "quant": _text(table, "quant", _ANY, name),
        "licence": _text(table, "licence", _ANY, name),
        "licence_url": _text(table, "licence_url", _URL, name),
        "homepage": _text(table, "homepage", _URL, name),
        "architecture": architecture,
        "runs": runs is None or architecture in runs,
        "size": _size(table, "size", name) if "size" in table or "part" in table else None,
    }
    if ("hf" in table) == ("part" in table):
        raise ValueError(f"catalogue: {name}: hf: either that or parts must say where the model is")
    if "hf" in table:
        source = table["hf"]
        file = _text(source, "file", _FILE, name) if "file" in source else None
        return HubEntry(**common, repo=_text(source, "repo", _REPO, name), file=file)
    entry = WheelEntry(
        **common,
        file=_text(table, "file", _FILE, name),
        sha256=_text(table, "sha256", _SHA256, name),
        parts=tuple(_part(p, name) for p in table["part"]),
        terms=_part(table["terms"], name) if "terms" in table else None,
    )
    if sum(p.size for p in entry.parts) != entry.size:
        raise ValueError(f"catalogue: {name}: the sizes of the parts do not add up to {entry.size}")
    return entry


def _part(table: Mapping[str, Any], name: str) -> Part:
    return Part(
        requirement=_text(table, "requirement", _REQUIREMENT, name),
        wheel_size=_size(table, "wheel_size", name),
        wheel_sha256=_text(table, "wheel_sha256", _SHA256, name),
        member=_text(table, "member", _ANY, name),
        size=_size(table, "size", name),
        sha256=_text(table, "sha256", _SHA256, name),
    )


def _value(table: Mapping[str, Any], key: str, kind: type[T], name: str) -> T:
    value = table.get(key)
    if type(value) is not kind:
        raise ValueError(f"catalogue: {name}: {key}: {value!r} is no {kind.__name__}")
    return value


def _text(table: Mapping[str, Any], key: str, pattern: re.Pattern[str], name: str) -> str:
    value = _value(table, key, str, name)
    if not pattern.fullmatch(value):
        raise ValueError(f"catalogue: {name}: {key}: {value!r} does not fit")
    return value


def _size(table: Mapping[str, Any], key: str, name: str) -> int:
    value = _value(table, key, int, name)
    if value <= 0:
        raise ValueError(f"catalogue: {name}: {key}: {value} is no size")
    return value
