"""Tests in several processes: how many, and what these have to tell each other. pytest-xdist runs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MOST = 4
"""Processes: each may hold a model and a device, and they share one graphics card."""


def wanted(config: pytest.Config) -> int:
    """How many processes pytest should start; 0: none but its own. A few tests are sooner done, and seen, without."""
    if any(config.getoption(name) for name in ("--write-families", "--update-help", "--update-snapshots")):
        return 0
    if not all(Path(argument).is_dir() for argument in config.args):
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, MOST) if processors > 1 else 0


class Peers:
    """The processes of one run, each of which has a folder in a shared one."""

    def __init__(self, config: pytest.Config, shared: Path) -> None:
        own = getattr(config, "workerinput", {"workerid": "only"})
        self._shared = shared
        self.own = shared / own["workerid"]
        self.own.mkdir(parents=True)

    def folders(self) -> list[Path]:
        """Of all processes that have begun, this one's too."""
        return sorted(self._shared.iterdir())
