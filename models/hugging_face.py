"""Model directories of Hugging Face (config.json and safetensors) as ModelFiles, under GGUF's keys and names.

What a family's names mean is declared in its own file (``wgllm.models.hf_family``). Nothing is rewritten: the file's
conventions are stated, and tensors that GGUF has in another shape are views (``wgllm.formats.views``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from wgllm.errors import ModelFileError, ModelNotFoundError, printable
from wgllm.formats.model_file import Conventions, ModelFile, Overlay, TensorView
from wgllm.formats.safetensors import (
    INDEX_NAME,
    SINGLE_NAME,
    StoredTensor,
    Weights,
    find_weights,
    open_weights,
    shards_of,
)
from wgllm.formats.strict_json import read_json
from wgllm.formats.views import RowsView, ShareView, StackedView, TransposedView
from wgllm.models.hf_family import KEYS, HfConfig, HfFamily, Rows, Rule, Share, Source, Transposed
from wgllm.models.hf_rope import rope_settings
from wgllm.quant import format_by_name
from wgllm.tokenizer.hf_files import chat_template

_MAX_CONFIG_BYTES = 1 << 24

# What old checkpoints hold beside weights, and everybody computes.
_SKIP = ("*.rotary_emb.inv_freq", "*.rope.freqs")
_NUMBER = re.compile(r"\.(0|[1-9][0-9]{0,5})(?=\.)")

# generation_config.json → general.sampling.*
_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def is_hugging_face(path: Path) -> bool:
    """Whether a path names such a model: a directory with a config.json, an index, or a file of weights."""
    if path.is_dir():
        return (path / "config.json").is_file()
    return path.name.endswith((".safetensors", ".safetensors.index.json"))


def open_hugging_face(
    path: str | os.PathLike[str],
    families: Mapping[str, HfFamily],
    overrides: Mapping[str, Any] | None = None,
    *,
    mapped: bool = True,
) -> ModelFile:
    """Opens a directory, or the one that the index or file of weights at ``path`` lies in. Reads headers only.

    ``families`` by model_type; ``overrides`` stand in place of what the metadata would be; ``mapped`` as in
    ``open_weights``. Raises ModelNotFoundError, and ModelFileError for anything malformed or not supported.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 (links stay links, and "." gets a name)
    directory = path if path.is_dir() else path.parent
    config_path = directory / "config.json"
    if not path.exists():
        raise ModelNotFoundError(f"no model at {str(path)!r}")
    if not config_path.is_file():
        raise ModelFileError(directory, "config.json", "is missing, without which weights mean nothing")
    weights_path = _weights_file(path)
    values = read_json(config_path, _MAX_CONFIG_BYTES)
    family = _family(config_path, values, families)
    config = HfConfig(config_path, values, family.defaults)
    metadata = _metadata(family, config, directory)
    rope, factors = rope_settings(family, config)
    metadata |= {f"{family.architecture}.{key}": value for key, value in rope.items()}
    weights = open_weights(weights_path, mapped=mapped)
    try:
        tensors = _Translation(family, config, weights).tensors()
        for name, numbers in factors.items():
            tensors[name] = TensorView(name, numbers.shape, format_by_name("F32"), numbers.view(np.uint8))
    except BaseException:
        weights.close()
        raise
    conventions = Conventions(family.rope_interleaved, family.norm_offset)
    shown = Overlay(metadata, overrides) if overrides else metadata
    return ModelFile(directory, shown, tensors, conventions, weights.close, weights.files)


def _weights_file(path: Path) -> Path:
    """The file or index that was meant: a shard stands for all of them."""
    if path.is_dir():
        return find_weights(path)
    index = path.with_name(INDEX_NAME)
    if path.name.endswith(".safetensors") and path.name != SINGLE_NAME and index.is_file():
        return index if path.name in shards_of(index).values() else path
    return path


def _family(path: Path, values: Mapping[str, Any], families: Mapping[str, HfFamily]) -> HfFamily:
    inner = values.get("text_config")
    kinds = [v.get("model_type") for v in (values, inner) if isinstance(v, dict)]
    found = next((families[kind] for kind in kinds if isinstance(kind, str) and kind in families), None)
    if found is None:
        known = ", ".join(sorted(families))
        kind = next((kind for kind in kinds if isinstance(kind, str)), "")
        problem = f"{printable(kind)!r} is not supported (these are: {known})" if kind else "missing"
        raise ModelFileError(path, "model_type", problem)
    method = values.get("quantization_config")
    if method is not None:
        name = method.get("quant_method") if isinstance(method, dict) else None
        problem = (
            f"{name or 'this kind'!s} is not supported; take the model's GGUF file, or its weights in bf16"
        )
        raise ModelFileError(path, "quantization_config", problem)
    return found


# Metadata


def _metadata(family: HfFamily, config: HfConfig, directory: Path) -> dict[str, Any]:
    for key, allowed in family.expects.items():
        value = config.get(key)
        if value is not None and value not in allowed:
            known = ", ".join(map(str, allowed))
            raise config.fail(key, f"{value!r} is not supported for {family.architecture} ({known})")
    metadata: dict[str, Any] = {
        "general.architecture": family.architecture,
        "general.name": _model_name(directory),
    }
    for key, source in (KEYS | dict(family.keys)).items():
        if (value := _value(config, source)) is not None:
            metadata[f"{family.architecture}.{key}"] = value
    template = chat_template(directory)
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    return metadata | _sampling(directory / "generation_config.json")


def _model_name(directory: Path) -> str:
    """The directory's name; in a Hugging Face cache, whose directories are named after commits, the repository's."""
    repo = directory.parent.parent.name
    if directory.parent.name == "snapshots" and repo.startswith("models--"):
        return repo.split("--")[-1]
    return directory.name


def _value(config: HfConfig, source: Source) -> Any:
    if callable(source):
        return source(config)
    names = (source,) if isinstance(source, str) else source
    value = config.first(*names)
    if isinstance(value, dict):
        raise config.fail(names[0], "should be a number or a text")
    return value


def _sampling(path: Path) -> dict[str, Any]:
    """What generation_config.json says of sampling; transformers takes it only with ``do_sample``."""
    if not path.is_file():
        return {}
    values = read_json(path, _MAX_CONFIG_BYTES)
    if values.get("do_sample") is not True:
        return {}
    return {
        f"general.sampling.{key}": values[name]
        for name, key in _SAMPLING.items()
        if values.get(name) is not None
    }


# Tensors


class _Translation:
    """The tensors of a file under GGUF's names."""

    def __init__(self, family: HfFamily, config: HfConfig, weights: Weights) -> None:
        self.family = family
        self.config = config
        self.weights = weights
        self._found: dict[str, TensorView] = {}
        self._stacks: dict[str, dict[int, TensorView]] = {}

    def tensors(self) -> dict[str, TensorView]:
        for stored in self.weights.tensors.values():
            self._add(stored)
        for name, parts in self._stacks.items():
            self._stack(name, parts)
        self._check_presence()
        if self.config.flag("tie_word_embeddings"):
            self._found.pop("output.weight", None)
        elif "output.weight" not in self._found:
            problem = "missing, and tie_word_embeddings does not say that the embedding stands for it"
            raise ModelFileError(self.weights.path, "tensor lm_head.weight", problem)
        return self._found

    def _check_presence(self) -> None:
        """What the configuration says of tensors is so, in every layer."""
        layers = {name.split(".")[1] for name in self._found if name.startswith("blk.")}
        for pattern, says in self.family.present.items():
            wanted = says(self.config)
            for name in sorted({pattern.replace("{i}", layer) for layer in layers}):
                if (name in self._found) != wanted:
                    problem = "missing, which config.json asks for" if wanted else "unknown to config.json"
                    raise ModelFileError(self.weights.path, f"tensor {name}", problem)

    def _add(self, stored: StoredTensor) -> None:
        name = stored.name
        if any(fnmatchcase(name, pattern) for pattern in (*_SKIP, *self.family.skip)):
            return
        for begin, meant in self.family.renames:
            if name.startswith(begin):
                name = meant + name[len(begin) :]
                break
        numbers: list[int] = []

        def place(match: re.Match[str]) -> str:
            numbers.append(int(match[1]))
            return f".{{{'ie'[len(numbers) - 1]}}}" if len(numbers) <= 2 else match[0]

        pattern = _NUMBER.sub(place, name)
        stem, dot, kind = pattern.rpartition(".")
        rules = self.family.tensors.get(pattern)
        ending = ""
        if rules is None and kind in ("weight", "bias"):
            rules, ending = self.family.tensors.get(stem), dot + kind
        if rules is None:
            problem = f"wgllm does not know what {self.family.architecture} does with it"
            raise ModelFileError(stored.path, f"tensor {stored.name}", problem)
        if len(numbers) >= 1 and numbers[0] >= self.config.n_layers:
            problem = f"there are {self.config.n_layers} layers by config.json"
            raise ModelFileError(stored.path, f"tensor {stored.name}", problem)
        rules = rules if isinstance(rules, tuple) else (rules,)
        for rule in rules:
            self._apply(rule, stored, numbers, ending, stacked="{e}" in pattern)
        self._check_rows(rules, stored)

    def _check_rows(self, rules: tuple[Rule, ...], stored: StoredTensor) -> None:
        """Rows left over mean that config.json tells of other heads than the file has."""
        runs = [run for rule in rules if isinstance(rule, Rows) for run in rule.runs(self.config)]
        used = sum(last - first for first, last in runs)
        if runs and used != stored.shape[0]:
            problem = f"it has {stored.shape[0]} rows, but {used} by config.json"
            raise ModelFileError(stored.path, f"tensor {stored.name}", problem)

    def _apply(
        self, rule: Rule, stored: StoredTensor, numbers: list[int], ending: str, *, stacked: bool
    ) -> None:
        target = rule if isinstance(rule, str) else rule.target
        name = target.replace("{i}", str(numbers[0]) if numbers else "{i}") + ending
        view = stored.view(name)
        try:
            if isinstance(rule, Rows):
                view = RowsView(name, view, rule.runs(self.config))
            elif isinstance(rule, Share):
                view = ShareView(name, view, rule.number, rule.of)
            elif isinstance(rule, Transposed) and len(view.shape) > 1:
                view = TransposedView(name, view)
        except ValueError as error:
            raise ModelFileError(stored.path, f"tensor {stored.name}", str(error)) from None
        known: Mapping[Any, TensorView] = self._stacks.setdefault(name, {}) if stacked else self._found
        key: Any = numbers[1] if stacked else name
        if key in known:
            raise ModelFileError(stored.path, f"tensor {stored.name}", f"another tensor is {name} as well")
        known[key] = view  # type: ignore[index]

    def _stack(self, name: str, parts: dict[int, TensorView]) -> None:
        path = self.weights.path
        if sorted(parts) != list(range(len(parts))):
            missing = next(i for i in range(len(parts)) if i not in parts)
            raise ModelFileError(path, f"tensor {name}", f"number {missing} of its parts is missing")
        if name in self._found:
            raise ModelFileError(path, f"tensor {name}", "is there whole and in parts")
        try:
            self._found[name] = StackedView(name, [parts[i] for i in range(len(parts))])
        except ValueError as error:
            raise ModelFileError(path, f"tensor {name}", str(error)) from None
