"""A headless Firefox with WebGPU, driven by WebDriver BiDi, which it speaks itself; Playwright drives only builds of
its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

PREFERENCES = {
    "dom.webgpu.enabled": True,
    "dom.webgpu.workers.enabled": True,
    "gfx.webgpu.ignore-blocklist": True,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
}
ENTER = "\ue007"
# Seconds that anything may take: shaders are compiled on a machine that may be busy.
PATIENCE = 600.0
# One that can't use its profile, as in some packages, may neither start nor end.
_START = 60.0


class NoFirefox(Exception):
    """Why there is none to test in."""


class Firefox:
    """Its only tab. Scripts are expressions that may be promises, and give JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._commands = 0
        self._do("session.new", capabilities={})
        self._tab = self._do("browsingContext.getTree")["contexts"][0]["context"]

    def go(self, url: str) -> None:
        self._do("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    def reload(self) -> None:
        self._do("browsingContext.reload", context=self._tab, wait="complete")

    def evaluate(self, script: str) -> Any:
        made = self._do(
            "script.evaluate",
            expression=f"(async () => JSON.stringify([await ({script})]))()",
            target={"context": self._tab},
            awaitPromise=True,
        )
        if made["type"] == "exception":
            raise AssertionError(made["exceptionDetails"]["text"])
        return json.loads(made["result"]["value"])[0]

    def wait_for(self, script: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.evaluate(script):
            assert time.monotonic() < end, f"never came: {script}"
            time.sleep(0.1)

    def type(self, text: str) -> None:
        keys = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": keys}]
        self._do("input.performActions", context=self._tab, actions=actions)

    def _do(self, method: str, **params: Any) -> dict[str, Any]:
        self._commands += 1
        self._socket.send(json.dumps({"id": self._commands, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(PATIENCE))
            if answer.get("id") == self._commands:
                assert answer["type"] == "success", answer
                result: dict[str, Any] = answer["result"]
                return result


@contextlib.contextmanager
def firefox(folder: Path) -> Iterator[Firefox]:
    """One with an empty profile in ``folder``. Raises NoFirefox where none is installed or it does not start."""
    from websockets.sync.client import connect

    names = [os.environ.get("WGLLM_FIREFOX"), "firefox", "firefox-esr"]
    binary = next((found for name in names if name and (found := shutil.which(name))), None)
    if binary is None or os.name != "posix":
        raise NoFirefox("no Firefox")
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items()]
    (folder / "user.js").write_text("".join(lines), encoding="utf-8")
    command = [binary, "--headless", "--no-remote", "--profile", str(folder), "--remote-debugging-port", "0"]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "HOME": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = _address(folder / "WebDriverBiDiServer.json", process)
        with connect(f"{address}/session", max_size=None, open_timeout=PATIENCE) as socket:
            yield Firefox(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(told: Path, process: subprocess.Popen[bytes]) -> str:
    """Of the WebDriver server, once Firefox has written where it is."""
    end = time.monotonic() + _START
    while True:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            found = json.loads(told.read_text(encoding="utf-8"))
            return f"ws://{found['ws_host']}:{found['ws_port']}"
        if process.poll() is not None or time.monotonic() > end:
            raise NoFirefox((told.parent / "output.txt").read_text(errors="replace")[-500:])
        time.sleep(0.1)
