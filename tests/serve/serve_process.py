"""``wgllm serve`` and ``wgllm web`` with a model and an engine that compute nothing, as a program of its own.

python -m tests.serve.serve_process COMMAND [ARGS]...
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from starlette.routing import BaseRoute

from tests.serve.in_thread import FOR_EVER
from tests.serve.stand_ins import Seen, StandInHost, StandInModel, routes
from wgllm.errors import DeviceError, ModelNotFoundError

PORT = "WGLLM_TEST_PORT"
"""In the environment: the port that ``wgllm web`` has by default."""


class _Model(StandInModel):
    @classmethod
    def open(cls, model: str, **options: Any) -> _Model:
        if model == "missing":
            raise ModelNotFoundError("there is no model called 'missing'")
        return cls()


class _Host(StandInHost):
    def __init__(self, model: str, options: dict[str, Any], *, queue_size: int) -> None:
        super().__init__(DeviceError("there is no graphics card") if model == "broken" else None)

    async def aclose(self) -> None:
        await super().aclose()
        print(f"engine closed in {self.state}", file=sys.stderr)


class _Seen(Seen):
    """Says when a request is being answered."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting.set = lambda: print("answering", file=sys.stderr)  # type: ignore[method-assign]


def chat_routes(host: Any, model: Any) -> Sequence[BaseRoute]:
    return routes(_Seen())


def page_routes(model: Any) -> Sequence[BaseRoute]:
    return []


def stand_ins() -> dict[str, ModuleType]:
    """Modules that stand for those that the command imports."""
    contents = {
        "engine_host": {"EngineHost": _Host},
        "model": {"ServedModel": _Model},
        "openai_routes": {"chat_routes": chat_routes},
        "page_routes": {"page_routes": page_routes},
    }
    modules = {}
    for name, content in contents.items():
        module = modules[f"wgllm.serve.{name}"] = ModuleType(f"wgllm.serve.{name}")
        vars(module).update(content)
    return modules


def main() -> int:
    # As from a terminal, whatever the tests' own parent ignores: nohup, or a shell that has put them in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.modules.update(stand_ins())
    from wgllm.__main__ import main as run
    from wgllm.cli.serve import web_command
    from wgllm.serve import server

    # Whoever waits for one of these limits does not end.
    server.Connection.head_seconds = server.Connection.stalled_seconds = FOR_EVER
    server._KEEP_ALIVE_SECONDS = int(FOR_EVER)
    if PORT in os.environ:
        (port,) = (option for option in web_command.params if option.name == "port")
        port.default = int(os.environ[PORT])
    sys.argv[0] = "wgllm"
    return run()


if __name__ == "__main__":
    sys.exit(main())
