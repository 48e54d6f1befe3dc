"""A child process as its parent holds it: pipes, the threads that serve them, its end."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from wgllm.errors import WgllmError, WorkerError, printable
from wgllm.worker_protocol import GREETING, Message, pack, read_message

_STDERR_LINES = 200
_LINE_BYTES = 1000
# How long a process may take from the end of its pipe to its own.
_EXIT_SECONDS = 1.0
# From asking by SIGTERM to SIGKILL, and from there until nobody waits any more.
_TERMINATE_SECONDS = 0.5
_KILL_SECONDS = 1.5

# Nothing of the path's first entry, which for a text is the folder the user happens to be in, is imported.
_START = "import sys; sys.path[:] = sys.argv[1:]; from wgllm.worker_process import main; main()"


def python_command() -> list[str]:
    """What starts a child that finds what this process finds. Raises WorkerError where there is no Python to start."""
    if not sys.executable:
        raise WorkerError("there is no Python interpreter to start the model's process with")
    return [sys.executable, "-c", _START, *(p for p in sys.path if p)]


@dataclass(frozen=True)
class Died:
    """The process ended by itself. All requests and calls have failed before; ``Worker.restart`` starts anew."""

    exit_code: int | None
    signal: str | None
    """``SIGKILL``, where a signal ended it; there is no exit code then."""
    stderr: tuple[str, ...]
    """The last lines that it wrote, for a report; without control characters."""

    def __str__(self) -> str:
        how = f"exit code {self.exit_code}" if self.signal is None else self.signal
        return f"the model's process ended by itself ({how})"


class Waiter(Protocol):
    """Who waits for what a message asked for."""

    def fail(self, error: WgllmError) -> None: ...


W = TypeVar("W", bound=Waiter)


class Child(Generic[W]):
    """A running ``worker_process`` and those who wait for its answers. No method waits but ``stop``."""

    def __init__(
        self,
        command: Sequence[str],
        take: Callable[[Child[W], Message], None],
        died: Callable[[Died], None],
    ) -> None:
        """``take`` gets each message, ``died`` the end unless it was asked for; both in the reading thread."""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **_away_from_terminal(),
            )
        except OSError as error:
            raise WorkerError(f"could not start the model's process: {error.strerror or error}") from None
        self._take, self._died = take, died
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._lock = threading.Lock()
        self._waiting: dict[int, W] = {}
        self._leaving = False
        """It has been asked or made to end."""
        self._pipe_ended = False
        self._ended = threading.Event()
        self._stderr_reader = self._thread(self._read_stderr)
        self._reader = self._thread(self._read)
        for thread in (self._stderr_reader, self._thread(self._write), self._reader):
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return not (self._leaving or self._pipe_ended)

    @property
    def stderr(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._stderr)

    def send(self, message: Message, number: int | None = None, waiter: W | None = None) -> None:
        """Queues a message; ``waiter`` will be answered as ``number``. Raises WorkerError after the end."""
        data = pack(message)
        with self._lock:
            if not self.running:
                raise WorkerError("the model's process has ended")
            if number is not None and waiter is not None:
                self._waiting[number] = waiter
            self._outgoing.put(data)

    def waiter(self, number: int) -> W | None:
        return self._waiting.get(number)

    def answered(self, number: int) -> W | None:
        """Takes the one who waited for the answer."""
        return self._waiting.pop(number, None)

    def kill(self) -> None:
        self._leaving = True
        self._signal(kill=True)

    def stop(self, message: Message, timeout: float) -> None:
        """Asks by ``message``, after ``timeout`` seconds terminates, 0.5 s later kills; returns 1.5 s later at most."""
        with contextlib.suppress(WorkerError):
            self.send(message)
        self._leaving = True
        if threading.current_thread() is self._reader:  # which would wait for itself
            self._signal(kill=True)
            return
        if self._ended.wait(timeout):
            return
        self._signal(kill=False)
        if not self._ended.wait(_TERMINATE_SECONDS):
            self._signal(kill=True)
            self._ended.wait(_KILL_SECONDS)

    def _thread(self, run: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=run, name=f"worker {self.pid}", daemon=True)

    def _signal(self, *, kill: bool) -> None:
        with self._lock:
            if self._pipe_ended:  # perhaps reaped, and its number another process's
                return
            with contextlib.suppress(OSError):
                _signal_group(self._process, kill=kill)

    def _write(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError):
            while (data := self._outgoing.get()) is not None:
                stdin.write(data)
                stdin.flush()
        with contextlib.suppress(OSError):
            stdin.close()

    def _read_stderr(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        with stderr:
            while line := stderr.readline(_LINE_BYTES):
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                with self._lock:
                    self._stderr.append(printable(text, _LINE_BYTES))

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            with stdout, contextlib.suppress(OSError, ValueError):  # what is no message ends the process, too
                while line := stdout.readline(_LINE_BYTES):
                    if line.endswith(GREETING):
                        break
                while (message := read_message(stdout)) is not None:
                    self._take(self, message)
        finally:
            self._finish()

    def _finish(self) -> None:
        with self._lock:
            self._pipe_ended = True
            asked, waiting = self._leaving, list(self._waiting.values())
            self._waiting.clear()
        self._outgoing.put(None)
        died = self._reap()
        error = WorkerError("the model's process was ended" if asked else str(died))
        for waiter in waiting:
            waiter.fail(error)
        if not asked:
            self._died(died)
        self._ended.set()

    def _reap(self) -> Died:
        process = self._process
        try:
            code = process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                _signal_group(process, kill=True)
            code = process.wait()
        self._stderr_reader.join(_EXIT_SECONDS)
        return Died(code, None, self.stderr) if code >= 0 else Died(None, _signal_name(-code), self.stderr)


def _away_from_terminal() -> dict[str, Any]:
    """A Ctrl-C there, or a driver that opens the terminal itself, does not get through."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _signal_group(process: subprocess.Popen[bytes], *, kill: bool) -> None:
    """Also what the process has started itself, where there are groups."""
    if sys.platform == "win32":
        process.kill()  # terminating is the same there
    else:
        os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
