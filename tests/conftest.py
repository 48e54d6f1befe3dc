"""Options and fixtures: where reference data lies, and which real models may be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"
DEFAULT_MODELS = ("smollm2",)
REFERENCE_FILES = {"smollm2": "smollm2", "gemma3:270m": "gemma3", "qwen2.5-coder:1.5b": "qwen2"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--models",
        default=",".join(DEFAULT_MODELS),
        help="models of the catalogue that tests may fetch: names with commas, 'all' or 'none' (default: smollm2)",
    )
    parser.addoption(
        "--update-help",
        action="store_true",
        help="write the help texts to tests/data/help instead of comparing",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips tests of models that were not asked for. Tests with models run last."""
    asked = config.getoption("--models")
    allowed = set(REFERENCE_FILES) if asked == "all" else set() if asked == "none" else set(asked.split(","))
    for item in items:
        marker = item.get_closest_marker("model")
        if marker is not None and marker.args[0] not in allowed:
            item.add_marker(pytest.mark.skip(reason=f"needs --models {marker.args[0]} (or all)"))
    items.sort(key=lambda item: item.get_closest_marker("model") is not None)


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    """Catalogue name -> the file, fetched at first use."""
    from wgllm.hub import resolve

    return resolve


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Any]:
    """Catalogue name -> expected ids, logits and tokens of the real model (tests/data/README.md)."""
    return lambda name: json.loads(
        (DATA / "real" / f"{REFERENCE_FILES[name]}.json").read_text(encoding="utf-8")
    )


@pytest.fixture(autouse=True)
def _no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see wgllm as a user does who has set nothing and has no graphics card, unless they ask for one."""
    for name in ("WGLLM_DEBUG", "WGLLM_FUSE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WGLLM_BACKEND", "numpy")
