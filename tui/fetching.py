"""Models that are not here: offered, fetched behind the conversation, and then loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from textual import on
from textual.timer import Timer

from wgllm.errors import DownloadError, ModelNotFoundError, WgllmError, WorkerError
from wgllm.hub import HubName
from wgllm.tui.banner import Banner
from wgllm.tui.download import FAILED, HERE, Download, DownloadEnded, Downloads
from wgllm.tui.loading import Loading
from wgllm.tui.missing import Missing, missing, missing_target
from wgllm.tui.offer import Offer, WentBehind
from wgllm.tui.picker_models import HubStore, ModelStore
from wgllm.tui.text import clean_line, short_name

_SHOW_SECONDS = 0.25


class Fetching(Loading):
    """Asks before it fetches; the model's process never does."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.models: ModelStore = HubStore()
        self.downloads = Downloads(
            lambda name, progress: self.models.fetch(name, progress), self.post_message
        )
        self._latest: object = None
        """Of all calls of ``begin_loading`` the one that counts."""
        self._awaited = ""
        """What is loaded as soon as it is here; else the user is asked."""
        self._behind: Download | None = None
        """What the banner's buttons mean."""
        self._fetch_timer: Timer | None = None

    async def begin_loading(self, name: str) -> None:
        """Loads ``name``, or offers to fetch it first. Of two calls the later one holds.

        A model that works stays until the other one is here; an unknown name changes nothing then.
        """
        self._latest = this = object()
        if not self.works:
            self.model_name = name
            self.status.show(model=short_name(name), where="", doing="looking for the model …")
        try:
            found = await asyncio.to_thread(missing, name, self.models)
        except (WgllmError, OSError) as error:
            if self._latest is this and not self.gone:
                await self._unknown(error)
            return
        if self._latest is not this or self.gone:
            return
        self._awaited = ""
        # Without the network, the only model of a repository that is here is what its name means.
        any_quant = found is not None and isinstance(found.target, HubName) and found.target.quant is None
        if found is None or (self.start.offline and any_quant):
            self._close_offer()
            self.switch(name)
        else:
            await self._offer(name, found)

    async def _unknown(self, error: Exception) -> None:
        if self.works:
            self.tell(error, error=True)
        else:
            await self._failed(error if isinstance(error, WgllmError) else WorkerError(str(error)))

    async def _offer(self, name: str, found: Missing) -> None:
        if self.start.offline:
            await self._unknown(
                ModelNotFoundError(
                    f"{short_name(name)} is not here, and --offline lets nothing be fetched: leave it out, or "
                    "/model opens a GGUF file"
                )
            )
            return
        self._close_offer()
        if not self.works:
            self.status.show(doing="not fetched yet")
        this, offer = self._latest, Offer(found, self.models, self.downloads)

        def offered(answer: str | None) -> None:
            if self._latest is this:
                self.call_later(self._offered, name, answer)

        self.push_screen(offer, offered)

    def _close_offer(self) -> None:
        """That of an earlier model; another question is asked now."""
        if isinstance(self.screen, Offer):
            self.screen.leave_with("later")

    async def _offered(self, name: str, answer: str | None) -> None:
        if answer == "here":
            self.switch(name)
        elif answer != "behind" and not self.works:
            await self._nothing_loaded(name)
        if answer == "other":
            await self.choose_model()

    async def _nothing_loaded(self, name: str) -> None:
        self._load_error = WorkerError("no model is loaded; /model chooses one")
        self.status.show(doing="no model")
        await self.query_one(Banner).show(
            "No model is loaded: what you type waits here.",
            (("fetch", f"Fetch {short_name(name)}"), ("model", "Another model")),
        )

    # Behind

    def on_went_behind(self, event: WentBehind) -> None:
        self._go_behind(event.download)

    def _go_behind(self, download: Download) -> None:
        self._awaited = download.name
        if not self.works:  # a question waits for it
            self.model_name = download.name
            self._load_error, self._loading = None, None
            self.status.show(model=short_name(download.name), doing="")
        self.query_one(Banner).hide()
        self._show_fetching()
        if self._fetch_timer is None:
            self._fetch_timer = self.set_interval(_SHOW_SECONDS, self._show_fetching)

    def _show_fetching(self) -> None:
        """How far downloads without a dialog are, in the status line."""
        if self.gone:
            return
        shown = {s.download for s in self.screen_stack if isinstance(s, Offer)}
        running = [d for d in self.downloads.all_running() if d not in shown]
        self.status.show(fetching=" · ".join(f"fetching {short_name(d.name)} {d.share}" for d in running))
        if not self.downloads.all_running() and self._fetch_timer is not None:
            self._fetch_timer.stop()
            self._fetch_timer = None

    async def on_download_ended(self, event: DownloadEnded) -> None:
        download = event.download
        shown = any(isinstance(s, Offer) and s.download is download for s in self.screen_stack)
        if self.gone or shown:
            return
        self._show_fetching()
        self._behind = download
        short = short_name(download.name)
        if download.state == FAILED:
            if not self.works and self._awaited == download.name:
                self._load_error = DownloadError(download.problem)
                self.status.show(doing="no model")
            await self.query_one(Banner).show(
                f"{short} could not be fetched: {clean_line(download.problem, 400)}",
                (("again", "Try again"), ("model", "Another model"), ("close", "Not now")),
            )
        elif download.state == HERE and not self.works and self._awaited == download.name:
            await self.begin_loading(download.name)
        else:
            await self.query_one(Banner).show(f"{short} is here.", (("use", "Use it"), ("close", "Not now")))

    # What the banner offers

    @on(Banner.Chosen)
    async def _chosen_to_fetch(self, event: Banner.Chosen) -> None:
        if event.what == "fetch":
            await self._fetch_anyway(self.model_name)
        elif event.what == "use" and self._behind is not None:
            self.query_one(Banner).hide()
            await self.begin_loading(self._behind.name)
        elif event.what == "again" and self._behind is not None:
            self._go_behind(self.downloads.begin(self._behind.name))
        elif event.what == "close":
            self.query_one(Banner).hide()

    async def _fetch_anyway(self, name: str) -> None:
        """Offers a model also where a file seems to be there: it may be damaged."""
        try:
            target = await asyncio.to_thread(self.models.identify, name)
            if isinstance(target, Path):
                await self.begin_loading(name)
            else:
                self._latest = object()
                await self._offer(name, missing_target(target, self.models))
        except WgllmError as error:
            await self._unknown(error)

    def action_reload(self) -> None:
        """Where there was nothing to load, that is offered again."""
        if self.client is None or self.client.name != self.model_name:
            self.run_worker(self.begin_loading(self.model_name))
        else:
            super().action_reload()

    async def close_model(self) -> None:
        await asyncio.to_thread(self.downloads.close)
        await super().close_model()
