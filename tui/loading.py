"""The model behind the conversation: loading it, its progress, its death."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from textual import on

from wgllm.errors import WgllmError, WorkerError
from wgllm.hub_progress import size_text
from wgllm.tui.banner import Banner
from wgllm.tui.base import ChatBase
from wgllm.tui.offer import Missing, Offer, missing
from wgllm.tui.text import clean_line, short_name

if TYPE_CHECKING:
    from wgllm.tui.model import ModelClient
    from wgllm.worker_protocol import ModelFacts

_AFTER_DEATH = (("reload", "Reload (F5)"), ("numpy", "Go on with NumPy (F6)"))
_AFTER_ERROR = (("reload", "Try again (F5)"), ("numpy", "Use NumPy (F6)"), ("model", "Another model"))


class Loading(ChatBase):
    """Loads a model while one types already."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.model_name = ""
        self._loading: asyncio.Task[None] | None = None
        self._load_error: WgllmError | None = None
        self.load_changes: dict[str, Any] = {}
        """Options that were changed since the start: the context, the backend."""
        self._warned_full = False

    @property
    def facts(self) -> ModelFacts | None:
        return self.client.facts if self.client is not None else None

    async def connect(self) -> ModelClient:
        """The client; importing what it needs takes a while, which is why a thread does it."""
        if self.client is None:

            def make() -> ModelClient:
                from wgllm.tui.model import ModelClient

                if self._make_worker is not None:
                    return ModelClient(self.post_message, self._make_worker)
                return ModelClient(self.post_message)

            client = await asyncio.to_thread(make)
            self.client = self.client or client
        return self.client

    async def begin_loading(self, name: str) -> None:
        """Loads ``name``, or offers to fetch it first."""
        self.model_name = name
        self.status.show(model=short_name(name), where="", doing="looking for the model …")
        found: Missing | None = None
        try:
            if not self.start.offline:
                found = await asyncio.to_thread(missing, name)
        except WgllmError as error:
            await self._failed(error)
            return
        if found is None:
            self.start_loading()
        else:
            self.status.show(doing="not fetched yet")
            self.push_screen(Offer(found), self._offered)

    def _offered(self, answer: str | None) -> None:
        if answer == "other":
            self.call_later(self.choose_model)
        elif answer == "cancel":
            self.call_later(self._cancel_download)
        elif answer == "later":
            self.call_later(self._not_fetched)

    async def _not_fetched(self) -> None:
        self._load_error = WorkerError("no model is loaded; /model chooses one")
        self.status.show(doing="no model")
        await self.query_one(Banner).show(
            "No model is loaded: what you type waits here.",
            (("fetch", f"Fetch {short_name(self.model_name)}"), ("model", "Another model")),
        )

    async def _cancel_download(self) -> None:
        if self.client is not None:
            await self.client.unload()
        await self._not_fetched()

    async def choose_model(self) -> None:
        """Asks for another model."""

    def start_loading(self, **changes: Any) -> None:
        """Loads the model in the background, what is loaded is given up."""
        self.load_changes |= changes
        options = {**self.start.options, "offline": self.start.offline, **self.load_changes}
        if options.get("backend") == "numpy":
            options = {k: v for k, v in options.items() if k not in ("device", "gpu_layers", "device_memory")}
        self._start(options, again=False)

    def reload(self, **changes: Any) -> None:
        """Loads the model in a new process."""
        self.load_changes |= changes
        self._start(self.load_changes, again=True)

    def _start(self, options: dict[str, Any], *, again: bool) -> None:
        self.query_one(Banner).hide()
        self._load_error = None
        self._loading = asyncio.create_task(self._load(options, again))

    async def _load(self, options: dict[str, Any], again: bool) -> None:
        this = asyncio.current_task()
        name = self.model_name
        self.status.show(model=short_name(name), where="", doing="loading …", used=0, size=0)
        try:
            client = await self.connect()
            if again and client.name == name:
                facts = await client.restart(**options)
            else:
                facts = await client.load(name, options)
        except WgllmError as error:
            if self._loading is this and not self.gone:
                await self._failed(error)
            return
        if self._loading is not this or self.gone:
            return
        self._close_offer()
        self._warned_full = False
        self.status.show(model=short_name(name), where=facts.where, doing="", size=facts.ctx_size)
        if self.session is not None and self.session.model != name:
            self.session = self.store.update_session(self.session.id, model=name)
        self.measure()

    async def _failed(self, error: WgllmError) -> None:
        self._load_error = error
        self._close_offer()
        self.status.show(doing="no model")
        await self.query_one(Banner).show(
            f"{short_name(self.model_name)} could not be loaded: {clean_line(str(error), 400)}", _AFTER_ERROR
        )

    def _close_offer(self) -> None:
        if isinstance(self.screen, Offer):
            self.screen.dismiss("done")

    async def model_ready(self) -> ModelClient:
        """Waits for the model. Raises the error that loading it ended with."""
        while self._loading is None or not self._loading.done():
            if self._load_error is not None:
                raise self._load_error
            await (
                asyncio.sleep(0.05) if self._loading is None else asyncio.wait([self._loading], timeout=0.2)
            )
        if self._load_error is not None:
            raise self._load_error
        assert self.client is not None
        return self.client

    @property
    def loading(self) -> bool:
        return self._loading is not None and not self._loading.done()

    # Messages of the worker

    async def on_model_progress(self, event: Any) -> None:
        if self.gone:
            return
        share = event.done / event.total if event.total else 0.0
        if event.stage == "download":
            self.status.show(doing=f"downloading {share:.0%} of {size_text(event.total)}")
            if isinstance(self.screen, Offer) and self.screen.fetching:
                self.screen.show_progress(event.done, event.total)
        else:
            self._close_offer()
            self.status.show(doing=f"loading {share:.0%}")

    def on_model_notice(self, event: Any) -> None:
        self.tell(event.text)

    async def on_model_died(self, event: Any) -> None:
        if self.gone:
            return
        self._loading = None
        self._load_error = WorkerError(
            f"{event.text}; F5 loads the model again, F6 without the graphics card"
        )
        self.status.show(doing="stopped", where="")
        last = f" — its last words: {clean_line(event.stderr[-1], 200)}" if event.stderr else ""
        await self.query_one(Banner).show(
            f"{event.text[:1].upper()}{event.text[1:]}. The conversation is saved.{last}", _AFTER_DEATH
        )

    @on(Banner.Chosen)
    async def _chosen(self, event: Banner.Chosen) -> None:
        self.prompt_bar.prompt.focus()
        if event.what == "model":
            await self.choose_model()
        elif event.what == "fetch":
            await self.begin_loading(self.model_name)
        elif event.what == "numpy":
            self.action_numpy()
        else:
            self.action_reload()

    def action_reload(self) -> None:
        self.reload()

    def action_numpy(self) -> None:
        self.reload(backend="numpy")

    async def close_model(self) -> None:
        if self.client is not None:
            await self.client.close()

    def now(self) -> float:
        return time.monotonic()
