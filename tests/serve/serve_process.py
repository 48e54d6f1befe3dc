"""``wgllm serve`` and ``wgllm web`` with a model and an engine that compute nothing, as a program of its own.

python -m tests.serve.serve_process COMMAND [ARGS]...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from starlette.routing import BaseRoute

from tests.serve.stand_ins import Seen, StandInHost, StandInModel, routes
from wgllm.errors import DeviceError, ModelNotFoundError


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
    sys.modules.update(stand_ins())
    from wgllm.__main__ import main as run

    sys.argv[0] = "wgllm"
    return run()


if __name__ == "__main__":
    sys.exit(main())
