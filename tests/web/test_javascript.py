"""The page's modules that need no browser, in node's own test runner: tests/web/js/*.test.js."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "js"
OLDEST = 20


def candidates() -> Iterator[Path]:
    """The system's node, and the one that Playwright brings along."""
    if found := shutil.which("node"):
        yield Path(found)
    try:
        import playwright
    except ImportError:
        return
    yield from (Path(playwright.__file__).parent / "driver").glob("node*")


def major(node: Path) -> int:
    """0 for what is no node that runs here."""
    try:
        said = subprocess.run(
            [node, "--version"], capture_output=True, text=True, timeout=300, check=False
        ).stdout
    except OSError:
        return 0
    version = re.match(r"v(\d+)\.", said)
    return int(version[1]) if version else 0


def test_in_node() -> None:
    node = next((each for each in candidates() if major(each) >= OLDEST), None)
    if node is None:
        missing = f"no node of version {OLDEST} or newer"
        if os.environ.get("WGLLM_REQUIRE_BROWSER"):  # CI, where Playwright is
            pytest.fail(missing)
        pytest.skip(missing)
    files = sorted(HERE.glob("*.test.js"))
    command = [node, "--test", "--test-reporter=tap", *files]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert passed, done.stdout
    assert int(passed[1]) > len(files)
