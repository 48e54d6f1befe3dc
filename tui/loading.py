"""The model behind the conversation: loading it, its progress, its death. What is not here is ``Fetching``'s."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual import on

from wgllm.errors import ModelNotFoundError, WgllmError, WorkerError
from wgllm.tui.banner import Banner
from wgllm.tui.guarded import Guarded
from wgllm.tui.text import clean_line, short_name

if TYPE_CHECKING:
    from wgllm.tui.model import ModelClient
    from wgllm.worker_protocol import ModelFacts

_AFTER_DEATH = (("reload", "Reload (F5)"), ("numpy", "Go on with NumPy (F6)"))
_OTHER = ("model", "Another model")
_AFTER_ERROR = (("reload", "Try again (F5)"), ("numpy", "Use NumPy (F6)"), _OTHER)


class Loading(Guarded):
    """Loads a model while one types already."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.model_name = ""
        """What is in use or being loaded; where nothing is, what was asked for."""
        self._loading: asyncio.Task[None] | None = None
        self._load_error: WgllmError | None = None
        self.load_changes: dict[str, Any] = {}
        """Options that were changed since the start: the context, the backend."""
        self._good: tuple[str, dict[str, Any]] | None = None
        """What was loaded last without an error, and with which changes."""
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

    def stop(self) -> bool:
        """Ends the reply that is being made."""
        return False

    async def choose_model(self) -> None:
        """Asks for another model."""

    @property
    def works(self) -> bool:
        """Whether there is a model, or will be one soon."""
        return self.loading or self.facts is not None

    def switch(self, name: str) -> None:
        """Loads a model that is here in place of the one there is. What there is of a reply is kept."""
        if self.works:
            self.stop()
        if name != self.model_name:
            self.load_changes.pop("ctx_size", None)
        self.model_name = name
        self.start_loading()

    @property
    def has_model_before(self) -> bool:
        """Whether loading failed, and another model (or the same with other options) worked before."""
        return self._load_error is not None and self._good not in (None, (self.model_name, self.load_changes))

    def action_model_before(self) -> None:
        if self._good is not None:
            self.model_name, self.load_changes = self._good[0], dict(self._good[1])
            self.start_loading()

    def start_loading(self, **changes: Any) -> None:
        """Loads the model in the background, what is loaded is given up."""
        self.load_changes |= changes
        self._start(again=False)

    def reload(self, **changes: Any) -> None:
        """Loads the model in a new process."""
        self.load_changes |= changes
        self._start(again=True)

    def _options(self) -> dict[str, Any]:
        # The model's process fetches nothing: that could be neither seen nor stopped while it computes.
        options = {**self.start.options, "offline": True, **self.load_changes}
        if options.get("backend") == "numpy":
            options = {k: v for k, v in options.items() if k not in ("device", "gpu_layers", "device_memory")}
        return options

    def _start(self, *, again: bool) -> None:
        self.query_one(Banner).hide()
        self._load_error = None
        self._loading = self.begin(self._load(again))

    async def _load(self, again: bool) -> None:
        this = asyncio.current_task()
        name = self.model_name
        self.status.show(model=short_name(name), where="", doing="loading …", used=0, size=0)
        try:
            client = await self.connect()
            if self._loading is not this or self.gone:
                return
            if again and client.name == name:
                facts = await client.restart(**self.load_changes)
            else:
                facts = await client.load(name, self._options())
        except WgllmError as error:
            if self._loading is this and not self.gone:
                fetch = isinstance(error, ModelNotFoundError) and not self.start.offline
                await self._failed(error, (("fetch", "Fetch it"), _OTHER) if fetch else _AFTER_ERROR)
            return
        except Exception as error:  # else "loading …" would stand there for ever
            self.tell_failure(error)
            if self._loading is this and not self.gone:
                await self._failed(WorkerError(f"{type(error).__name__}: {error}"), _AFTER_ERROR)
            return
        if self._loading is not this or self.gone:
            return
        self._good = name, dict(self.load_changes)
        self._warned_full = False
        self.status.show(model=short_name(name), where=facts.where, doing="", size=facts.ctx_size)
        if self.session is not None and self.session.model != name:
            try:
                self.session = self.store.update_session(self.session.id, model=name)
            except WgllmError as error:
                self.tell(error, error=True)
        self.measure()

    async def _failed(self, error: WgllmError, choices: Sequence[tuple[str, str]] = (_OTHER,)) -> None:
        self._load_error = error
        self.status.show(doing="no model")
        if self.has_model_before and self._good is not None:
            choices = (("before", f"Back to {short_name(self._good[0])} (F7)"), *choices)
        await self.query_one(Banner).show(
            f"{short_name(self.model_name)} could not be loaded: {clean_line(str(error), 400)}", choices
        )

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
        if self.client is None or self.client.facts is None:  # it died, and the news of it are on their way
            raise WorkerError("the model is not loaded any more; F5 loads it again")
        return self.client

    @property
    def loading(self) -> bool:
        return self._loading is not None and not self._loading.done()

    # Messages of the worker

    async def on_model_progress(self, event: Any) -> None:
        if self.gone or not self.loading:  # what comes late would stay
            return
        share = event.done / event.total if event.total else 0.0
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
        elif event.what == "before":
            self.action_model_before()
        elif event.what == "numpy":
            self.action_numpy()
        elif event.what == "reload":
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
