"""The compiled shaders of a plan: made on a thread while weights are on their way, else when they are needed."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from wgllm.backends.device import Device
from wgllm.errors import DeviceError
from wgllm.plan import Plan


class Pipelines:
    """By number of the plan's kernels."""

    def __init__(self, device: Device, plan: Plan) -> None:
        self._device = device
        self._plan = plan
        self._made: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._failure: DeviceError | None = None

    def __getitem__(self, kernel: int) -> Any:
        """Raises DeviceError for what the driver's compiler refuses."""
        with self._lock:
            if kernel not in self._made:
                shader = self._plan.kernels[kernel]
                self._made[kernel] = self._device.pipeline(shader.source, shader.entry)
            return self._made[kernel]

    def begin(self, kernels: Iterable[int]) -> None:
        """Compiles on a thread, in this order. ``check`` tells what went wrong."""
        self._thread = threading.Thread(target=self._compile, args=(list(kernels),), name="shaders")
        self._thread.start()

    def check(self) -> None:
        """Raises the DeviceError that has ended what was begun."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Waits for what was begun; raises as ``check``."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        self._stopped = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._made.clear()

    def _compile(self, kernels: list[int]) -> None:
        try:
            for kernel in kernels:
                if self._stopped:
                    return
                self[kernel]
        except DeviceError as error:
            self._failure = error
