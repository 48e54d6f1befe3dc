"""Choosing how many BLAS threads make a token, on a clock that the test winds."""

from __future__ import annotations

import pytest

from wgllm.backends import blas_threads
from wgllm.backends.blas_threads import BlasThreads


class Library:
    user_api = "blas"
    filepath = "libblas"

    def __init__(self) -> None:
        self.num_threads = 4

    def set_num_threads(self, n: int) -> None:
        self.num_threads = n


class Machine:
    """Work whose time depends on the threads: ``quiet`` or with another program on one of the cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blas = Library()
        self.now = 100.0
        self.busy = False
        controller = type("Controller", (), {"lib_controllers": [self.blas]})
        monkeypatch.setattr(blas_threads, "ThreadpoolController", controller)
        monkeypatch.setattr(blas_threads, "_found", {})
        monkeypatch.setattr(blas_threads.time, "perf_counter", lambda: self.now)
        self.threads = BlasThreads()

    def token(self) -> tuple[float, int]:
        """Seconds that a token of a hundred products took, and the threads of its last product."""
        start = self.now
        with self.threads.token():
            for _ in range(100):
                self.threads.tick()
                used = self.blas.num_threads
                alone, together = 0.0004, 0.004 if self.busy else 0.0002
                self.now += alone if used == 1 else together
        assert self.blas.num_threads == 4  # prompts are read with all
        return self.now - start, used


def test_a_quiet_machine_uses_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    used = [machine.token()[1] for _ in range(200)]
    assert used.count(1) <= 6  # now and then one thread is tried


def test_a_busy_machine_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.busy = True
    times = [machine.token()[0] for _ in range(200)]
    assert sum(times[1:]) < 1.15 * 199 * 0.04


def test_it_follows_when_the_machine_gets_busy_and_quiet_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    for _ in range(50):
        machine.token()
    machine.busy = True
    times = [machine.token()[0] for _ in range(50)]
    assert max(times) < 0.12  # against 0.4 s with all threads
    machine.busy = False
    used = [machine.token()[1] for _ in range(600)]
    assert used[-1] == 4


def test_a_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    bounded = BlasThreads(2)
    assert machine.blas.num_threads == 2
    bounded.restore()
    assert machine.blas.num_threads == 4


def test_an_interrupted_token_leaves_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    for _ in range(blas_threads._FIRST_PROBE + 3):
        with pytest.raises(KeyboardInterrupt), machine.threads.token():
            raise KeyboardInterrupt
        assert machine.blas.num_threads == 4
        machine.token()
