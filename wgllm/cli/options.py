"""Options that several commands share, under llama.cpp's names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wgllm.cli.console import loading_bar

if TYPE_CHECKING:
    from wgllm.llm import Llm

F = TypeVar("F", bound=Callable[..., Any])

KV_TYPES = ("f32", "f16", "q8_0", "q4_0")
DEFAULT_MODEL = "smollm2"


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    return lambda f: functools.reduce(lambda g, option: option(g), reversed(options), f)


model_options = _options(
    click.option(
        "-m", "--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|PATH",
        help="A name of the catalogue, a file, or a Hugging Face name.",
    ),
    click.option(
        "-c", "--ctx-size", type=click.IntRange(min=0), default=None, metavar="N",
        help="Context in tokens; 0 takes the model's.  [default: the model's, at most 8192]",
    ),
    click.option("-ctk", "--cache-type-k", "kv_type", type=click.Choice(KV_TYPES), default="f32",
                 show_default=True, help="How the KV cache rounds."),
    click.option("-t", "--threads", type=click.IntRange(min=1), default=None, metavar="N",
                 help="Threads that read weights.  [default: all cores]"),
    click.option("--backend", type=click.Choice(("auto", "webgpu", "numpy")), default="auto", show_default=True,
                 help="What computes."),
    click.option("--device", default=None, metavar="NAME|INDEX", help="The GPU to use."),
)  # fmt: skip


def load_model(
    model: str,
    ctx_size: int | None,
    kv_type: str,
    threads: int | None,
    backend: str,
    device: str | None,
) -> Llm:
    """The model that the options of ``model_options`` ask for, with a progress line on a terminal."""
    from wgllm.llm import load

    return load(
        model,
        backend=backend,
        device=device,
        ctx_size=ctx_size,
        kv_type=kv_type,
        threads=threads,
        progress=loading_bar(model),
    )
