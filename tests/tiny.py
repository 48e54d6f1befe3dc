"""The tiny models of tests/data with what they must compute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests import tolerances
from wgllm import models
from wgllm.backends.base import Array, Executor, LoadOptions, Program, Step
from wgllm.backends.numpy_program import NumpyExecutor, NumpyProgram
from wgllm.backends.segments import Pipeline
from wgllm.cache import KVCache, cell_counts
from wgllm.engine import Engine
from wgllm.formats.model_file import TensorView
from wgllm.models.opening import open_model
from wgllm.tokenizer import tokenizer_from_model

DATA = Path(__file__).parent / "data" / "tiny"
CTX = 512  # what the tiny models were trained for


@dataclass(frozen=True)
class Tiny:
    path: Path
    expected: Path

    @property
    def id(self) -> str:
        if self.path.name.startswith("hf"):
            return f"{self.path.parent.name}.{self.path.name}"
        return self.path.name.removesuffix(".gguf")

    @property
    def tolerance(self) -> float:
        return tolerances.NUMPY_TINY_GELU if "gemma" in self.id else tolerances.NUMPY_TINY

    def cases(self) -> list[dict[str, Any]]:
        cases = json.loads(self.expected.read_text(encoding="utf-8"))["cases"]
        assert cases
        return cases


def _find() -> list[Tiny]:
    found = []
    for path in sorted(DATA.glob("*/*.gguf")):
        own = path.with_name(path.name.removesuffix(".gguf") + ".expected.json")
        # The converter drops Mistral's window: the file means the model without one.
        shared = path.with_name("expected.noswa.json" if path.parent.name == "mistral" else "expected.json")
        found.append(Tiny(path, own if own.exists() else shared))
    return found


def _find_directories() -> list[Tiny]:
    """Of Hugging Face: <model>/hf, and <model>/hf-<type> whose weights are of that type."""
    found = []
    for path in sorted(DATA.glob("*/hf*")):
        if (
            json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
            not in models.HF_FAMILIES
        ):
            continue
        kind = path.name.removeprefix("hf").replace("-", ".")
        found.append(Tiny(path, path.with_name(f"expected{kind}.json")))
    return found


ALL = _find()
DIRECTORIES = _find_directories()


def tiny(name: str) -> Tiny:
    return next(t for t in ALL if t.id == name)


def load_on(
    executor: Executor, path: Path, *, largest_step: int = 64, ctx: int = CTX, slots: int = 1, **options: Any
) -> Program:
    """The model at ``path`` on an executor."""
    file = open_model(path, quantize=options.pop("quantize", None))
    built = models.build(file, ctx)
    sizes = cell_counts(built.graph.windows, ctx, largest_step, slots)
    wanted = LoadOptions(sizes, largest_step=largest_step, ctx_size=ctx, **options)
    return executor.load(built.graph, built.weights, wanted)


def engine_on(
    executor: Executor,
    name: str,
    *,
    ctx: int = CTX,
    largest_step: int = 64,
    changed: Mapping[str, TensorView] | None = None,
) -> Engine:
    """An engine for the model ``name``, some of its tensors ``changed``. With small steps rings are small too."""
    file = open_model(tiny(name).path)
    built = models.build(file, ctx)
    sizes = cell_counts(built.graph.windows, ctx, largest_step, slots=1)
    options = LoadOptions(sizes, largest_step=largest_step, ctx_size=ctx)
    program = executor.load(built.graph, {**built.weights, **(changed or {})}, options)
    return Engine(
        Pipeline([program]),
        KVCache(built.graph.windows, sizes, ctx),
        tokenizer_from_model(file),
        largest_step=largest_step,
        vocab_size=built.config.vocab_size,
    )


def load_program(path: Path, *, largest_step: int = 256, **options: Any) -> NumpyProgram:
    """The model at ``path`` on NumPy, with room for the whole context."""
    file = open_model(path, quantize=options.pop("quantize", None))
    built = models.build(file, CTX)
    sizes = cell_counts(built.graph.windows, CTX, largest_step, slots=options.pop("slots", 1))
    return NumpyExecutor().load(built.graph, built.weights, LoadOptions(sizes, **options))


def run_chunks(program: Program, ids: list[int], chunk: int, *, slot: int = 0, start: int = 0) -> Array:
    """Logits of all positions, ``chunk`` rows a step: [len(ids), V]."""
    made = []
    for at in range(0, len(ids), chunk):
        part = ids[at : at + chunk]
        step = Step.of(part, start + at, slot=slot, out_rows=range(len(part)))
        made.append(program.run(step.inputs())["logits"])
    return np.concatenate(made)
