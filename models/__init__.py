"""What wgllm can run: one thin file per family, made of the blocks in ``blocks.py``."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from wgllm.errors import ModelFileError, printable
from wgllm.formats.model_file import ModelFile
from wgllm.graph import Graph
from wgllm.models import gemma3, llama, qwen2
from wgllm.models.blocks import Blocks
from wgllm.models.config import Config, read_config
from wgllm.models.hf_family import HfFamily
from wgllm.ops import ShapeError

_MODULES = (llama, qwen2, gemma3)

FAMILIES: dict[str, ModuleType] = {
    architecture: family for family in _MODULES for architecture in family.ARCHITECTURES
}

HF_FAMILIES: dict[str, HfFamily] = {
    model_type: declared
    for family in _MODULES
    for declared in getattr(family, "HF", ())
    for model_type in declared.model_types
}
"""By the ``model_type`` of config.json."""


# What old converters wrote beside the frequencies that everybody computes.
_UNUSED = ("attn_rot_embd.weight", "rotary_emb.inv_freq", "rope_freqs.weight")


@dataclass(frozen=True)
class ModelGraph:
    """A model's configuration and its textbook graph."""

    config: Config
    graph: Graph


def build(file: ModelFile) -> ModelGraph:
    """The graph of an opened model. Raises ModelFileError for what is missing, wrong or not supported."""
    name = file.architecture
    family = FAMILIES.get(name)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        problem = f"{printable(name)!r} is not supported (these are: {known})" if name else "missing"
        raise ModelFileError(file.path, "general.architecture", problem)
    config = read_config(file)
    blocks = Blocks(file, config)
    try:
        family.build(blocks)
        graph = blocks.graph.build()
    except ShapeError as error:
        raise ModelFileError(file.path, "metadata", str(error)) from error
    # A tensor that the graph does not use would make the numbers wrong without a word.
    for name in file.tensors:
        if name not in graph.tensors and not name.endswith(_UNUSED):
            problem = f"wgllm does not know what {config.architecture} does with it"
            raise ModelFileError(file.path, f"tensor {name}", problem)
    return ModelGraph(config, graph)
