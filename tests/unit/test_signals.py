"""Putting signals off for the length of a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from wgllm.backends.signals import SignalsHeld


@pytest.fixture(autouse=True)
def _usual_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def send(times: int) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_comes_through_at_the_end() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), SignalsHeld() as signals:
        send(1)
        steps.append(signals.pending)
        with SignalsHeld() as inner:
            steps.append(inner.pending)  # the block around it could not end yet
        steps.append(signals.pending)
    assert steps == [True, False, True]
    with SignalsHeld() as signals:
        assert not signals.pending


def test_many_come_through_where_a_wait_may_never_end() -> None:
    steps = []
    with SignalsHeld():
        with SignalsHeld() as signals:
            send(4)
            signals.heed_impatience()
            steps.append("four")
            with pytest.raises(KeyboardInterrupt):
                for _ in range(3):
                    send(1)
                    steps.append("more")  # not in the midst of other things
                    signals.heed_impatience()
        assert not signals.pending
    # What was heeded does not come a second time.
    assert steps == ["four", "more"]


def test_another_thread_heeds_none() -> None:
    found: list[bool] = []

    def look() -> None:
        with SignalsHeld() as signals:
            signals.heed_impatience()
            found.append(signals.pending)

    with pytest.raises(KeyboardInterrupt), SignalsHeld():
        send(9)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert found == [False]
