"""What the model picker lists: installed models and the catalogue's, as lines of any width."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.cells import set_cell_size
from textual.content import Content

from wgllm import hub
from wgllm.catalog import Catalog, Entry, HubEntry, WheelEntry, load_catalog
from wgllm.hub import HubName, Installed
from wgllm.hub_progress import Progress, size_text
from wgllm.tui.text import clean, clean_line

if TYPE_CHECKING:
    from wgllm.hub_hf import Described

_PARAMETERS = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?(?:x\d+)?[MB])(?![A-Za-z0-9])", re.IGNORECASE)
_WIDE, _MEDIUM = 70, 56
"""Widths from which a line has all columns, and all but the licence."""
_MOST_PATHS = 50


class ModelStore(Protocol):
    """Where models come from and lie. Everything but ``catalog`` is called from threads."""

    def catalog(self) -> Catalog: ...

    def installed(self) -> list[Installed]: ...

    def identify(self, name: str) -> Entry | HubName | Path: ...

    def is_here(self, target: Entry | HubName) -> bool: ...

    def folder(self, target: Entry | HubName) -> Path:
        """Where its file will lie."""

    def look_up(self, target: Entry | HubName) -> Described | None:
        """What its source tells of it; None where there is nothing to ask."""

    def fetch(self, name: str, progress: Progress) -> Path: ...

    def files_of(self, name: str) -> tuple[Path, ...]: ...

    def remove(self, name: str) -> int: ...


class HubStore:
    """``wgllm.hub``."""

    def catalog(self) -> Catalog:
        return load_catalog()

    def installed(self) -> list[Installed]:
        return hub.installed()

    def identify(self, name: str) -> Entry | HubName | Path:
        return hub.identify(name)

    def is_here(self, target: Entry | HubName) -> bool:
        if isinstance(target, Entry):
            return hub.find_installed(target) is not None
        from wgllm.hub_hf import find_cached

        return bool(find_cached(target.repo, target.quant))

    def folder(self, target: Entry | HubName) -> Path:
        if isinstance(target, WheelEntry):
            return hub.place(target).parent
        from wgllm.hub_hf_cache import hub_folder

        return hub_folder()

    def look_up(self, target: Entry | HubName) -> Described | None:
        if not isinstance(target, (HubEntry, HubName)):
            return None
        from wgllm.hub_hf import describe

        return describe(target.repo, target.quant, getattr(target, "file", None))

    def fetch(self, name: str, progress: Progress) -> Path:
        return hub.resolve(name, progress=progress)

    def files_of(self, name: str) -> tuple[Path, ...]:
        return hub.files_of(name)

    def remove(self, name: str) -> int:
        return hub.remove(name)


@dataclass(frozen=True)
class ModelRow:
    """A model of the list."""

    name: str
    """What ``wgllm.hub.resolve`` takes for it."""
    title: str
    parameters: str
    """``1.5B``; empty where the name doesn't say."""
    quant: str
    size: int | None
    licence: str
    path: Path | None
    """None: not here."""
    entry: Entry | None
    fits: bool | None
    """Whether its file is smaller than the memory there is; None where either is unknown."""
    fetching: bool = False

    @property
    def runs(self) -> bool:
        return self.entry is None or self.entry.runs

    @property
    def state(self) -> str:
        if not self.runs:
            return "can't run yet"
        if self.fetching:
            return "being fetched"
        if self.fits is False:
            return "here, too large" if self.path else "too large"
        return "here" if self.path else ""

    @property
    def size_shown(self) -> str:
        return "size unknown" if self.size is None else size_text(self.size)

    def has(self, words: list[str]) -> bool:
        """Whether each word stands in anything that is known of it."""
        entry = self.entry
        known = (*entry.aliases, entry.architecture, getattr(entry, "repo", "")) if entry else ()
        text = "\n".join((self.name, self.title, self.quant, self.licence, self.state, *known)).casefold()
        return all(word.casefold() in text for word in words)

    def line(self, width: int) -> Content:
        """Its columns, or in a narrow list two lines."""
        here = self.path is not None
        mark, name = ("● " if here else "○ "), clean_line(self.name, 200)
        size = "?" if self.size is None else self.size_shown
        if width < _MEDIUM:
            known = [self.parameters, self.quant, size, self.state]
            under = " · ".join(clean_line(part) for part in known if part)
            return Content.assemble(
                (mark, "$success" if here else "dim"), _cut(name, width - 2),
                "\n  " + _cut(under, width - 2),
            )  # fmt: skip
        cells = [(self.parameters, 6), (self.quant, 8), (size, 8)]
        if width >= _WIDE:
            cells.append((self.licence, min(27, width - 61)))
        room = width - 2 - sum(w + 1 for _, w in cells) - 15
        rest = "".join(" " + column(text, w) for text, w in cells)
        state = "" if self.state == "here" else "$text-warning"
        return Content.assemble(
            (mark, "$success" if here else "dim"), column(name, room), rest,
            (" " + column(self.state, 14), state),
        )  # fmt: skip

    def detail(self) -> str:
        """What the line has no room for."""
        kind = "" if self.entry is None or self.entry.chat else "base model, no chat"
        licence = self.licence and f"licence {self.licence}"
        known = [self.title or self.name, self.entry.architecture if self.entry else "", kind, licence]
        first = " · ".join(clean_line(part) for part in known if part)
        place = clean_line(str(self.path)) if self.path else f"not here; {self.size_shown} to fetch"
        return f"{first}\n{place}" if first else place


def model_rows(
    catalog: Catalog, installed: list[Installed], memory: int | None, fetching: Collection[str] = ()
) -> list[ModelRow]:
    """Installed models first, then what can be fetched, then what cannot run yet."""
    here = {model.name: model for model in installed}
    rows = []
    for entry in catalog:
        found = here.pop(entry.name, None)
        size = found.size if found else entry.size
        rows.append(
            ModelRow(
                entry.name, entry.title, _parameters(entry.title), entry.quant, size, entry.licence,
                found.path if found else None, entry, _fits(size, memory), entry.name in fetching,
            )
        )  # fmt: skip
    for other in here.values():
        name, _, quant = other.name.partition(":")[2].partition(":")
        rows.append(
            ModelRow(
                other.name, "", _parameters(name), quant, other.size, "", other.path, None,
                _fits(other.size, memory),
            )
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row.path is None, not row.runs))


def is_source(text: str) -> bool:
    """Whether what was typed is meant as a path or a repository."""
    return text.startswith(("hf:", "~")) or "/" in text or "\\" in text or text.lower().endswith(".gguf")


def paths_like(typed: str) -> list[str]:
    """The folders and GGUF files that a path may go on as; a folder ends with a slash. Reads one folder."""
    folder, name = os.path.split(typed)
    folders, files = [], []
    try:
        with os.scandir(Path(folder or ".").expanduser()) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".") and not name.startswith(".")
                if (
                    hidden
                    or not entry.name.lower().startswith(name.lower())
                    or clean(entry.name) != entry.name
                ):
                    continue
                full = os.path.join(folder, entry.name)  # noqa: PTH118 -- as it was typed
                if entry.is_dir():
                    folders.append(f"{full}/")
                elif entry.name.lower().endswith(".gguf"):
                    files.append(full)
    except (OSError, ValueError, RuntimeError):
        return []
    return [*sorted(files, key=str.lower), *sorted(folders, key=str.lower)][:_MOST_PATHS]


def _parameters(text: str) -> str:
    found = _PARAMETERS.search(text)
    return found[1].upper() if found else ""


def _fits(size: int | None, memory: int | None) -> bool | None:
    return None if size is None or memory is None else size < memory


def _cut(text: str, width: int) -> str:
    """At most so many cells of it."""
    return text if Content(text).cell_length <= width else set_cell_size(text, max(0, width - 1)) + "…"


def column(text: str, width: int) -> str:
    """``text`` in exactly so many cells."""
    return set_cell_size(_cut(clean_line(text), width), width)
