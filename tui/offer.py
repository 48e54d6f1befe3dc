"""The one dialog that fetches a model: what it is, how far it is, what went wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Button, ProgressBar, Static

from wgllm.errors import WgllmError
from wgllm.tui.download import FAILED, HERE, Download, Downloads
from wgllm.tui.lists import ClickButton
from wgllm.tui.missing import Missing, looked_up
from wgllm.tui.text import clean_line

if TYPE_CHECKING:
    from wgllm.tui.picker_models import ModelStore

_LOOK_SECONDS = 0.1
_NO_ROOM = "There is not enough room on that disk."


@dataclass
class WentBehind(Message):
    """A download goes on without its dialog. For the application."""

    download: Download


class Offer(ModalScreen[str]):
    """Asks before anything is fetched, then shows how far it is.

    Dismisses with ``here``, ``behind`` (it goes on, and ``WentBehind`` is told), ``stopped``, ``later`` or ``other``
    (another model is wanted; only with ``others``). Shows a download that runs already as it is.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,y", "fetch", "Fetch it"),
        Binding("m", "other", "Other model"),
        Binding("b", "behind", "Go on behind"),
        Binding("escape,n", "leave", "Not now"),
    ]
    DEFAULT_CSS = """
    Offer #offer-box { height: auto; max-height: 45vh; }
    Offer #offer-facts, Offer #offer-hint { width: 1fr; }
    Offer #offer-hint { margin-bottom: 1; }
    Offer #offer-news { color: $text-muted; width: 1fr; }
    Offer #offer-problem { color: $text-error; width: 1fr; margin-top: 1; max-height: 6; }
    Offer .buttons { height: auto; width: 100%; margin-top: 1; }
    Offer .buttons Button { margin-right: 1; min-width: 0; width: auto; }
    """

    def __init__(
        self, what: Missing, store: ModelStore, downloads: Downloads, *, others: bool = True, hint: str = ""
    ) -> None:
        """``hint`` stands above the facts: what is to be thought of."""
        super().__init__()
        self.what = what
        self.download = downloads.running(what.name)
        self._store, self._downloads = store, downloads
        self._others, self._hint = others, hint
        self._problem = ""
        self._left = False

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(
                clean_line(f"{self.what.name} is not here yet"), markup=False, classes="dialog-title"
            )
            with VerticalScroll(id="offer-box", can_focus=False):
                yield Static(self._hint, markup=False, id="offer-hint")
                yield Static("", markup=False, id="offer-facts")
            yield ProgressBar(total=None, show_eta=False, id="offer-bar")
            yield Static("", markup=False, id="offer-progress")
            yield Static("", markup=False, id="offer-news")
            yield Static("", markup=False, id="offer-problem")
            with Horizontal(classes="buttons"):
                yield ClickButton("Fetch ⏎", id="fetch", variant="primary", compact=True)
                yield ClickButton("Other models m", id="other", compact=True)
                yield ClickButton("Go on behind b", id="behind", compact=True)
                yield ClickButton("Not now Esc", id="leave", compact=True)

    def on_mount(self) -> None:
        self._show()
        self._look()
        self.set_interval(_LOOK_SECONDS, self._look)
        if self.download is None:
            self.run_worker(self._look_up())

    @property
    def fetching(self) -> bool:
        return self.download is not None

    async def _look_up(self) -> None:
        """Asks the source for what is not known yet: the size, the licence, whether there is such a model at all."""
        try:
            self.what = await asyncio.to_thread(looked_up, self.what, self._store)
        except (WgllmError, OSError) as error:
            if not self.fetching:
                self._problem = str(error)
        if self.what.size is not None and self.what.here >= self.what.size and not self.fetching:
            self.action_fetch()  # nothing is to come: it only gets its name, once it is checked
        else:
            self._show()

    def _show(self) -> None:
        facts, problem = self.what.facts, self._problem
        if not problem and not self.fetching and not self.what.fits:
            problem = _NO_ROOM
        width = max(len(name) for name, _ in facts)
        rows = "\n".join(f"{name.ljust(width)}  {value}" for name, value in facts)
        self.query_one("#offer-facts", Static).update(rows)
        self.query_one("#offer-problem", Static).update(clean_line(problem, 600))
        shown = {
            "offer-hint": bool(self._hint) and not self.fetching, "offer-problem": bool(problem),
            "offer-bar": self.fetching, "offer-progress": self.fetching, "offer-news": self.fetching,
            "fetch": not self.fetching, "other": self._others and not self.fetching, "behind": self.fetching,
        }  # fmt: skip
        for name, there in shown.items():
            self.query_one(f"#{name}").display = there
        self.query_one("#fetch", Button).label = "Try again ⏎" if self._problem else "Fetch ⏎"
        self.query_one("#leave", Button).label = "Stop Esc" if self.fetching else "Not now Esc"
        self.refresh_bindings()

    def _look(self) -> None:
        """How far it is."""
        download = self.download
        if download is None:
            return
        if download.state == HERE:
            self.leave_with("here")
        elif download.state == FAILED:
            self.download, self._problem = None, download.problem
            self._show()
        else:
            self.query_one(ProgressBar).update(total=download.total or None, progress=download.done)
            self.query_one("#offer-progress", Static).update(download.line())
            self.query_one("#offer-news", Static).update(download.news if download.total else "")

    def leave_with(self, answer: str) -> None:
        """Once only, since a second time would take the screen below it away; not from under another screen."""
        if not self._left and self.is_current:
            self._left = True
            self.dismiss(answer)

    # Keys and buttons

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "behind":
            return self.fetching
        if action == "other":
            return self._others and not self.fetching
        return not (action == "fetch" and self.fetching)

    @on(Button.Pressed)
    async def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        await self.run_action(str(event.button.id))

    def action_fetch(self) -> None:
        self._problem = ""
        self.download = self._downloads.begin(self.what.name)
        self._show()
        self._look()

    def action_other(self) -> None:
        self.leave_with("other")

    def action_leave(self) -> None:
        if self.download is None:
            self.leave_with("later")
            return
        self.download.stop()
        if self.download.state in (HERE, FAILED):  # it ended in this moment
            self._look()
        else:
            self.leave_with("stopped")

    def action_behind(self) -> None:
        if self.download is not None and self.download.running:
            self.app.post_message(WentBehind(self.download))
            self.leave_with("behind")
