"""``wgllm --version``: this program and what it stands on."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from wgllm import __version__

_LIBRARIES = ("wgpu", "tokenizers", "sentencepiece", "jinja2", "huggingface_hub")


def version_text() -> str:
    """The version on the first line, those of Python, the system and libraries on the next."""
    from wgllm.cli.devices import blas_name, numpy_config

    lines = [f"wgllm, version {__version__}"]
    lines.append(
        f"Python {platform.python_version()} ({platform.python_implementation()}) on {platform.platform()}"
    )
    lines.append(f"numpy {_version('numpy')} with BLAS {blas_name(numpy_config())}")
    lines += [f"{name} {_version(name)}" for name in _LIBRARIES]
    return "\n".join(lines)


def show_version(ctx: click.Context) -> None:
    """What ``--version`` does."""
    click.echo(version_text())
    ctx.exit()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
