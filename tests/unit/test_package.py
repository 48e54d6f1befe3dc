"""The package as it is installed: nothing forgotten, everything exported is documented."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import wgllm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_of_the_source_is_in_the_wheel() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {f"wgllm.{p.name}" for p in (ROOT / "wgllm").iterdir() if (p / "__init__.py").is_file()}
    assert set(setuptools["packages"]) == folders | set(setuptools["package-dir"])


@pytest.mark.parametrize("name", wgllm.__all__)
def test_every_export_exists_and_is_documented(name: str) -> None:
    assert getattr(wgllm, name).__doc__
    assert name in dir(wgllm)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = wgllm.nonsense


def test_the_version_is_the_projects() -> None:
    assert wgllm.__version__ == PROJECT["project"]["version"]
