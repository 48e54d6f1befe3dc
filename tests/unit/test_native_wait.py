"""How often a device is asked whether it is ready, by a clock that only pauses move."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wgllm.backends import native
from wgllm.backends.signals import SignalsHeld


@pytest.mark.parametrize("pauses", [True, False])
def test_a_long_wait_asks_seldom(monkeypatch: pytest.MonkeyPatch, pauses: bool) -> None:
    now, asked = 0.0, [0, 0]

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    readback: Any = native.Readback.__new__(native.Readback)

    def poll(*arguments: object) -> None:
        nonlocal now
        asked[now > native._LONG_WAIT] += 1
        now += 1e-6
        if now > native._LONG_WAIT + 10:
            readback._status = 1

    monkeypatch.setattr(native, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    readback._status = None
    readback._device = SimpleNamespace(_internal=None)
    readback._native = SimpleNamespace(_poll=poll, _null=None)
    with SignalsHeld() as signals:
        readback._poll(None, signals, pauses=pauses)
    short, long = asked
    assert 10 / native._PAUSE_OF_LONG_WAIT * 0.9 < long <= 10 / native._PAUSE_OF_LONG_WAIT + 2
    # Before, what may come at any moment is looked for often.
    assert short > 0.9 * native._LONG_WAIT / (native._LONGEST_PAUSE if pauses else 1e-6)
