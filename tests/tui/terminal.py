"""A program in a pseudo terminal: its keys, what it writes there, its size, its end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Terminal:
    """Runs ``command`` as the leader of a session whose terminal this is.

    ``written`` is all that came; a second pipe, whose number ``{tell}`` in the command stands for, brings JSON lines.
    The program must take the terminal as its controlling one itself (``take_terminal``), as a shell's job has it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        size: tuple[int, int] = (80, 24),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.master, self._slave = os.openpty()
        self.resize(*size)
        self.modes_before = termios.tcgetattr(self._slave)
        self._told_fd, tell = os.pipe()
        self.written = bytearray()
        self._said = bytearray()
        self._closing = False
        self._closed = threading.Event()
        self.process = subprocess.Popen(
            [part.replace("{tell}", str(tell)) for part in command],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            pass_fds=(tell,),
            start_new_session=True,
            cwd=ROOT,
            env={**_environment(), "TERM": "xterm-256color", "COLORTERM": "truecolor", **(env or {})},
        )
        os.close(tell)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Until the program has ended, and so nobody holds the other end of the second pipe."""
        open_fds = {self.master, self._told_fd}
        while self._told_fd in open_fds and not self._closing:
            ready, _, _ = select.select(list(open_fds), [], [], 0.05)
            for fd in ready:
                try:
                    data = os.read(fd, 1 << 16)
                except OSError:
                    data = b""
                if not data:
                    open_fds.discard(fd)
                (self.written if fd == self.master else self._said).extend(data)
        while not self._closing and select.select([self.master], [], [], 0)[0]:
            self.written += os.read(self.master, 1 << 16)
        self._closed.set()

    # What the test does

    def press(self, keys: str | bytes) -> None:
        """Sends bytes as the terminal does for keys."""
        data = keys.encode() if isinstance(keys, str) else keys
        while data:
            data = data[os.write(self.master, data[:1024]) :]

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def modes(self) -> list[Any]:
        """The terminal's modes: echo, line by line …"""
        return termios.tcgetattr(self._slave)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        """Waits for the end, and for all that was written; returns the exit code."""
        code = self.process.wait(seconds)
        self._closed.wait(seconds)
        return code

    def stop_reading(self) -> None:
        """Takes nothing more of what the program writes."""
        self._closing = True
        self._closed.wait(5)

    def stalled(self) -> bool:
        """Whether a program that writes would have to wait."""
        return not select.select([], [self._slave], [], 0)[1]

    def hang_up(self) -> None:
        """The terminal goes away, as when its window is closed."""
        self.stop_reading()
        os.close(self._slave)
        os.close(self.master)
        self._slave = self.master = -1

    def close(self) -> None:
        """Ends what still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._closing = True
        self._closed.wait(5)
        for fd in (self.master, self._slave, self._told_fd):
            with contextlib.suppress(OSError):
                os.close(fd)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it sees

    @property
    def told(self) -> list[list[Any]]:
        """The whole lines of the second pipe."""
        return [json.loads(line) for line in bytes(self._said).split(b"\n")[:-1]]

    def until(self, true: Callable[[], object], what: str = "", seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end or self.process.poll() is not None:
                if true():
                    return
                raise AssertionError(
                    f"never came: {what}; exit code {self.process.poll()}; at last {bytes(self.written[-2000:])!r}"
                )
            time.sleep(0.01)

    def until_told(self, what: str, n: int = 1, seconds: float = 60.0) -> list[Any]:
        """Waits for the n-th line of that kind."""

        def found() -> list[list[Any]]:
            return [line for line in self.told if line[1] == what]

        self.until(lambda: len(found()) >= n, what, seconds)
        return found()[n - 1]


def _environment() -> dict[str, str]:
    """Without the size of another terminal, which a program would take for this one's."""
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}


def take_terminal() -> None:
    """In the program: makes what is its stdin its controlling terminal, whose end is a SIGHUP then."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def runs(pid: int) -> bool:
    """Whether a process is there that has not ended; one whose parent does not look at it counts as ended."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pid: int, seconds: float = 60.0) -> bool:
    """Whether the process ends in that time."""
    end = time.monotonic() + seconds
    while runs(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def chat(
    plan: Mapping[str, Any],
    *arguments: str,
    size: tuple[int, int] = (80, 24),
    env: Mapping[str, str] | None = None,
) -> Terminal:
    """``wgllm chat`` with these arguments, with a scripted engine (``tests.tui.chat_process``)."""
    command = [sys.executable, "-m", "tests.tui.chat_process", "{tell}", json.dumps(plan), *arguments]
    return Terminal(command, size=size, env=env)
