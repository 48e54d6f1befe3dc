"""The process that computes, kept running: loaded when it is needed, started again when a driver ended it.

A process that dies is started again at once. The second death in a row (no request ended well in between) of one that
computed on a graphics card is the card's last for a while: NumPy goes on. The first request after that while is for the
card again, since a driver that was updated, or a computer that slept, ends processes too. A model that can't be loaded
is not tried again before some time has passed. Both pauses get twice as long after each failure. A process that hangs
without dying is as good as dead, too: one that takes no notice when somebody gives up what it should do, or that does
nothing and tells nothing for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from wgllm.errors import DeviceError, WgllmError, WorkerError
from wgllm.serve.errors import log
from wgllm.serve.refusals import HostClosed, NotLoaded
from wgllm.serve.vigil import cpu_seconds, is_stuck
from wgllm.worker import Listener, Loading, Message, Notice, Worker
from wgllm.worker_child import Died
from wgllm.worker_protocol import ModelFacts

# Deaths in a row that a graphics card is allowed, and any process.
_MOST_DEATHS = 2
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 300.0
# How long NumPy goes on in the place of a card, in seconds.
_FIRST_CARD_PAUSE = 600.0
_LONGEST_CARD_PAUSE = 86400.0
# How long a process may take to end when it is asked to.
_CLOSE_SECONDS = 0.5
_WITHOUT_CARD = "computing without the graphics card, with which the model's process failed"


@dataclass(frozen=True)
class Progress:
    """How far something is that a request waits for."""

    stage: str
    """``download`` and ``weights`` in bytes, ``queue`` in requests that were ahead, ``prefill`` in tokens."""
    done: int
    total: int
    label: str = ""


Tell = Callable[[Progress], None]


def _take_note(done: asyncio.Future[Any]) -> None:
    """Of an error that is nobody's any more, which asyncio would else complain of."""
    if not done.cancelled():
        done.exception()


class EngineChild:
    """A ``Worker`` with its model. Belongs to one event loop."""

    def __init__(
        self,
        model: str,
        options: Mapping[str, Any],
        make: Callable[[Listener], Worker] = Worker,
        *,
        unheard_seconds: float,
        silent_seconds: float,
    ) -> None:
        """``options`` are those of ``wgllm.load`` as plain data; ``unheard_seconds``: see ``give_up``,
        ``silent_seconds``: see ``watch``."""
        self._model, self._options = model, dict(options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.worker = make(self._listen)
        self._watchers: set[Tell] = set()
        self._unheard_seconds, self._silent_seconds = unheard_seconds, silent_seconds
        self._signs = 0
        """How often the process has told something."""
        self._vigils: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None
        self.starts = 0
        """Which start of a process runs, from 1 on."""
        self._counted = 0
        """The last start whose death was counted."""
        self._deaths = 0
        """In a row."""
        self._pause = _FIRST_PAUSE
        self._retry_at = 0.0
        self._error: WgllmError | None = None
        self._closed = False
        self.on_card = self._options.get("backend") != "numpy"
        self.gave_up_card = False
        self._card_pause = _FIRST_CARD_PAUSE
        self._card_again_at = 0.0
        self._returning = False
        """Whether what is loaded next is for the card that was given up."""
        self.restarts = 0
        self.progress: Progress | None = None
        self.notice: str | None = None

    @property
    def state(self) -> str:
        """``idle`` (nothing was loaded yet), ``loading``, ``ready`` or ``failed``."""
        if self._loading is not None:
            return "loading"
        if self.worker.facts is not None:
            return "ready"
        return "idle" if self._error is None else "failed"

    @property
    def message(self) -> str | None:
        """What a user should know: why nothing is loaded, or that the graphics card is not used any more."""
        if self.state == "failed":
            return str(self._error)
        if self.gave_up_card:
            return _WITHOUT_CARD
        return self.notice if self.state == "loading" else None

    def load_soon(self) -> None:
        """Begins to load, unless that has been done."""
        if self._loading is None and self.worker.facts is None and not self._closed:
            self._loop = asyncio.get_running_loop()
            self._loading = self._loop.create_task(self._load())
            self._loading.add_done_callback(_take_note)

    async def ready(self, tell: Tell) -> ModelFacts:
        """The facts of the model, which is loaded first where it is not. Raises a WgllmError."""
        if self.gave_up_card and self._loading is None and time.monotonic() >= self._card_again_at:
            self._return_to_card()
        facts = self.worker.facts
        if facts is not None and self._loading is None:
            return facts
        if self._closed:
            raise HostClosed("the server is shutting down")
        if self._loading is None:
            if (left := self._retry_at - time.monotonic()) > 0:
                raise NotLoaded(str(self._error), left)
            self.load_soon()
        assert self._loading is not None
        with self.watched(tell):
            if self.progress is not None:
                tell(self.progress)
            try:
                return await self.loaded()
            except HostClosed:
                raise
            except WgllmError as error:
                raise NotLoaded(str(error), max(self._retry_at - time.monotonic(), 0.0)) from None

    async def loaded(self) -> ModelFacts:
        """The facts of the model, when loading has ended, which begins here unless it has been tried. Raises the
        WgllmError of loading that failed."""
        if self._error is None:
            self.load_soon()
        if self._loading is not None:
            await asyncio.wait({self._loading})  # which goes on when nobody waits any more
        if self._closed:
            raise HostClosed("the server is shutting down")
        if (facts := self.worker.facts) is None:
            raise self._error or WorkerError("the model's process has ended")
        return facts

    @contextlib.contextmanager
    def watched(self, tell: Tell) -> Iterator[None]:
        """Within it ``tell`` hears how far loading is."""
        self._watchers.add(tell)
        try:
            yield
        finally:
            self._watchers.discard(tell)

    async def ask(self, question: Callable[[Worker], Future[Any]]) -> Any:
        """The answer to a call of the worker. If the caller is cancelled, the answer is given up."""
        start, answer = self.starts, asyncio.wrap_future(question(self.worker))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            self.give_up(answer, start)
            raise

    def give_up(self, answer: asyncio.Future[Any], start: int) -> None:
        """Nobody waits any more for ``answer``, which the process of that start was told where it can be. It has to
        come all the same: a process that does nothing for ``unheard_seconds`` without giving it is stuck, and is
        started again."""
        answer.add_done_callback(_take_note)
        pid = self.worker.pid
        if pid is not None:
            self._begin_vigil(is_stuck(answer, lambda: cpu_seconds(pid), self._unheard_seconds), start)

    def watch(self, answer: asyncio.Future[Any], start: int) -> None:
        """``answer`` may take as long as it likes, but the process of that start is stuck when it neither does nor
        tells anything for ``silent_seconds`` before it comes."""
        pid = self.worker.pid
        if pid is None:
            return

        def work() -> float:
            # Whoever waits for another process's download has said so. Of one that has told anything else of the kind
            # nothing is known either until it is loaded.
            waits = self._loading is not None and self.notice is not None
            return math.nan if waits else cpu_seconds(pid) + self._signs * self._silent_seconds

        self._begin_vigil(is_stuck(answer, work, self._silent_seconds, patience=None), start)

    def sign_of_life(self) -> None:
        """The process has told something."""
        self._signs += 1

    def _begin_vigil(self, stuck: Coroutine[Any, Any, bool], start: int) -> None:
        if self._closed or start != self.starts:
            stuck.close()
            return
        vigil = asyncio.ensure_future(self._keep_vigil(stuck, start))
        self._vigils.add(vigil)
        vigil.add_done_callback(self._vigils.discard)

    def broken_by(self, error: WgllmError, start: int) -> bool:
        """Whether ``error``, met in the process of that start, means that it, or its device, is gone: it is then
        counted, and started again, unless that has been done."""
        gone = start != self.starts or not self.worker.alive
        if not isinstance(error, DeviceError) and not (isinstance(error, WorkerError) and gone):
            return False
        if self._closed:
            raise HostClosed("the server is shutting down")
        if start == self.starts:
            self._gone(error)
        return True

    def worked(self) -> None:
        """A request ended well: deaths before it don't count any more."""
        self._deaths = 0
        self._pause = _FIRST_PAUSE
        if self.on_card:
            self._card_pause = _FIRST_CARD_PAUSE

    async def aclose(self) -> None:
        """Ends the process, also in the middle of loading."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
        for vigil in self._vigils:
            vigil.cancel()
        await asyncio.to_thread(self.worker.close, _CLOSE_SECONDS)

    async def _keep_vigil(self, stuck: Coroutine[Any, Any, bool], start: int) -> None:
        if not await stuck or start != self.starts or self._closed:
            return
        if self._loading is None:
            self._gone("the model's process does not answer any more")
        else:  # what loads counts the death
            self.worker.kill()

    def _gone(self, why: object) -> None:
        """Counts the death of the process that was started last, once, and begins to start another."""
        if self._counted == self.starts:
            return
        self._count_death()
        self.worker.kill()  # it may be there still, without a device
        if self._loading is None and not self._closed:
            if self._deaths <= _MOST_DEATHS:
                log.warning("%s; it is started again", why)
                self.load_soon()
            else:
                self._fail(WorkerError("the model's process ended again and again"))

    def _count_death(self) -> None:
        self._counted = self.starts
        self._deaths += 1
        for line in self.worker.stderr:
            log.debug("the model's process: %s", line)

    def _fail(self, error: WgllmError) -> None:
        log.warning("the model can't be loaded: %s; no request tries again for %.0f s", error, self._pause)
        self._error = error
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    async def _load(self) -> None:
        try:
            while not await self._load_once():
                pass
        finally:
            self._loading = self.progress = self.notice = None

    async def _load_once(self) -> bool:
        """Whether that was the last try."""
        changes: dict[str, Any] = {}
        if self.on_card and self._deaths >= _MOST_DEATHS:
            changes["backend"] = "numpy"
            self._give_up_card()
        returning, self._returning = self._returning, False
        if returning:
            changes = {"backend": "auto", **self._options}
        try:
            loading = asyncio.wrap_future(self._start(changes))
            self.watch(loading, self.starts)
            facts = await loading
        except WgllmError as error:
            if self._closed:
                return True
            if isinstance(error, WorkerError) and not self.worker.alive:
                self._count_death()
                # A card gets a second try and NumPy two more; a process that never lives gets no others.
                if self._deaths < _MOST_DEATHS or self.on_card:
                    log.warning("%s; it is started again", error)
                    return False
                self._deaths = 0
            elif returning:
                log.warning("%s", error)
                self._deaths = _MOST_DEATHS
                return False
            self._fail(error)
            return True
        if returning and facts.where.startswith("numpy"):  # the card is not to be seen at the moment
            self._give_up_card()
        self.on_card = not self.gave_up_card and not facts.where.startswith("numpy")
        self._error = None
        return True

    def _give_up_card(self) -> None:
        self.on_card, self.gave_up_card, self._deaths = False, True, 0
        log.warning("%s; a request in %.0f min tries it again", _WITHOUT_CARD, self._card_pause / 60)
        self._card_again_at = time.monotonic() + self._card_pause
        self._card_pause = min(2 * self._card_pause, _LONGEST_CARD_PAUSE)

    def _return_to_card(self) -> None:
        log.warning("the graphics card is tried again")
        # Its next death is enough.
        self.on_card, self.gave_up_card, self._deaths = True, False, _MOST_DEATHS - 1
        self._returning = True
        self._counted = self.starts
        self.worker.kill()
        self.load_soon()

    def _start(self, changes: Mapping[str, Any]) -> Future[ModelFacts]:
        """Starts a process: some milliseconds, in which ``aclose`` can't miss it."""
        self.starts += 1
        if self.starts == 1:
            return self.worker.load(self._model, **self._options)
        self.restarts += 1
        return self.worker.restart(**changes)

    # In the worker's reading thread

    def _listen(self, message: Message) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._heard, message)

    # In the loop again

    def _heard(self, message: Message) -> None:
        self.sign_of_life()
        if isinstance(message, Loading):
            self._tell(Progress(message.stage, message.done, message.total, message.label))
        elif isinstance(message, Notice):
            self.notice = message.text
        elif isinstance(message, Died) and self._loading is None and not self.worker.alive:
            self._gone(message)

    def _tell(self, progress: Progress) -> None:
        self.progress = progress
        for tell in tuple(self._watchers):
            tell(progress)
