"""What the application starts and closes, and what it tells of the engine."""

from __future__ import annotations

import asyncio

from tests.serve.in_thread import PATIENCE
from tests.serve.stand_ins import StandInHost, StandInModel
from wgllm.errors import DeviceError, WgllmError
from wgllm.serve.app import create_app
from wgllm.serve.settings import Settings


class SlowHost(StandInHost):
    """Never has loaded."""

    async def loaded(self) -> None:
        await asyncio.Event().wait()


Told = list[tuple[str, WgllmError | None]]


def lived(host: StandInHost, seconds: float, *, load: bool = True) -> Told:
    """What an application told in its short life."""
    told: Told = []
    model = StandInModel()

    async def live() -> None:
        app = create_app(
            model,
            host,
            Settings(load_at_start=load),
            [],
            on_engine=lambda status, error: told.append((status["state"], error)),
        )
        async with app.router.lifespan_context(app):
            end = asyncio.get_running_loop().time() + seconds
            while not told and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.01)

    asyncio.run(live())
    assert (host.closed, model.closed) == (1, 1)
    return told


def test_the_engine_is_told_when_it_is_ready() -> None:
    assert lived(StandInHost(), PATIENCE) == [("ready", None)]


def test_what_went_wrong_is_told() -> None:
    error = DeviceError("there is no graphics card")
    assert lived(StandInHost(error), PATIENCE) == [
        ("failed", error)
    ]  # itself: its exit code is the command's
    ((_, unexpected),) = lived(StandInHost(ZeroDivisionError("x")), PATIENCE)
    assert isinstance(unexpected, WgllmError)


def test_the_end_does_not_wait_for_an_engine_that_loads() -> None:
    assert lived(SlowHost(), 0.1) == []


def test_an_engine_that_nobody_needs_is_not_started() -> None:
    host = StandInHost()
    assert lived(host, 0.05, load=False) == [] and host.state == "idle"
