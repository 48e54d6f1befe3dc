"""A model that is not here: what is known of it before it is fetched."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wgllm.catalog import Entry, HubEntry, WheelEntry
from wgllm.hub import HubName
from wgllm.hub_progress import size_text
from wgllm.tui.text import clean_line

if TYPE_CHECKING:
    from wgllm.tui.picker_models import ModelStore


@dataclass(frozen=True)
class Missing:
    """What a dialog tells before it fetches a model."""

    name: str
    """What ``wgllm.hub.resolve`` takes for it, the same for all of its aliases."""
    title: str
    target: Entry | HubName
    licence: str
    source: str
    place: Path
    """The folder where it will lie."""
    free: int | None
    """Bytes on that folder's disk."""
    size: int | None
    """Bytes of all of it; None where nobody has asked yet."""
    exact: bool
    here: int = 0
    """Bytes that an earlier try has left."""

    @property
    def facts(self) -> list[tuple[str, str]]:
        if self.size is None:
            size = "asking …"
        else:
            size = f"{'' if self.exact else 'about '}{size_text(self.size)}"
            size += f", {size_text(self.here)} of it are here" if self.here else ""
        free = "" if self.free is None else f"{size_text(self.free)} free"
        facts = [
            ("Model", self.title), ("Download", size), ("Licence", self.licence), ("From", self.source),
            ("Kept in", str(self.place)), ("Disk", free),
        ]  # fmt: skip
        return [(name, clean_line(value, 300)) for name, value in facts if value]

    @property
    def fits(self) -> bool:
        """Whether the disk has room for it, as far as is known."""
        return self.size is None or self.free is None or self.size - self.here < self.free


def missing(name: str, store: ModelStore) -> Missing | None:
    """What is to be fetched before ``name`` runs, None when it is here. Raises ModelNotFoundError."""
    target = store.identify(name)
    return None if isinstance(target, Path) or store.is_here(target) else missing_target(target, store)


def missing_target(target: Entry | HubName, store: ModelStore) -> Missing:
    """What is known of it without asking anybody."""
    place = store.folder(target)
    free = _free(place)
    if isinstance(target, HubName):
        name = f"hf:{target.repo}{f':{target.quant}' if target.quant else ''}"
        source = f"https://huggingface.co/{target.repo}"
        return Missing(name, name, target, "asking …", source, place, free, None, exact=False)
    licence = target.licence_text
    if isinstance(target, WheelEntry):
        source = "the Python package index"
        if target.terms is not None:
            licence += "; its text comes with the model"
    else:
        source = f"Hugging Face, {target.repo}" if isinstance(target, HubEntry) else ""
    return Missing(
        target.name, f"{target.title} ({target.quant})", target, licence, source, place, free,
        target.download_size, exact=isinstance(target, WheelEntry),
    )  # fmt: skip


def looked_up(what: Missing, store: ModelStore) -> Missing:
    """The same with what its source tells. Raises ModelNotFoundError (with candidates) and DownloadError."""
    told = store.look_up(what.target)
    if told is None:
        return what
    title = what.title
    if isinstance(what.target, HubName):
        title = f"{what.target.repo}: {', '.join(told.files[:1])}"
        title += f" and {len(told.files) - 1} more" if len(told.files) > 1 else ""
    licence = what.licence if isinstance(what.target, HubEntry) else told.licence
    return replace(
        what, title=title, licence=licence, size=told.size, exact=True, here=told.size - told.missing
    )


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free
    except (OSError, StopIteration):
        return None
