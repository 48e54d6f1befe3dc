"""What wgllm can run: one thin file per family, made of the blocks in ``blocks.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from wgllm.errors import ModelFileError, printable
from wgllm.formats.model_file import ModelFile, TensorView
from wgllm.graph import Graph
from wgllm.models import (
    command_r,
    falcon,
    gemma,
    gemma3,
    glm4,
    gpt2,
    gptneox,
    granite,
    llama,
    moe,
    olmo2,
    phi3,
    qwen,
    smollm3,
    stablelm,
    starcoder2,
)
from wgllm.models.blocks import Blocks
from wgllm.models.config import Config, read_config
from wgllm.models.hf_family import HfFamily
from wgllm.ops import ShapeError

_MODULES = (
    command_r, falcon, gemma, gemma3, glm4, gpt2, gptneox, granite, llama, moe, olmo2, phi3, qwen, smollm3,
    stablelm, starcoder2,
)  # fmt: skip
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
_UNUSED = ("attn_rot_embd.weight", "rotary_emb.inv_freq")


@dataclass(frozen=True)
class ModelGraph:
    """A model's configuration, its textbook graph, and what the graph's weights are."""

    config: Config
    graph: Graph
    weights: Mapping[str, TensorView]
    """Tensors of the file, rows of them, and vectors that are computed of its metadata."""
    ctx: int
    """The context that it was made for."""
    ctx_limit: int | None = None
    """For contexts beyond this, or up to it, the graph is another."""
    most_positions: int | None = None
    """The largest context that the model can have at all, if there is one."""

    @property
    def identity(self) -> object:
        """What must be the same, beside the file, for keys and values that were computed to be the right ones."""
        return self.config if self.ctx_limit is None else (self.config, self.ctx > self.ctx_limit)


def build(file: ModelFile, ctx: int | None = None) -> ModelGraph:
    """The graph of an opened model, for a context of ``ctx`` tokens, else that of its training. Raises
    ModelFileError for what is missing, wrong or not supported."""
    name = file.architecture
    family = FAMILIES.get(name)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        problem = f"{printable(name)!r} is not supported (these are: {known})" if name else "missing"
        raise ModelFileError(file.path, "general.architecture", problem)
    config = read_config(file, getattr(family, "NORM", "rms_norm"))
    blocks = Blocks(file, config, ctx or config.n_ctx_train)
    try:
        family.build(blocks)
        graph = blocks.graph.build()
    except ShapeError as error:
        raise ModelFileError(file.path, "metadata", str(error)) from error
    # A tensor that the graph does not use would make the numbers wrong without a word.
    for name in file.tensors:
        if name not in blocks.used and not name.endswith(_UNUSED):
            problem = f"wgllm does not know what {config.architecture} does with it"
            raise ModelFileError(file.path, f"tensor {name}", problem)
    most = config.n_ctx_train if config.rope.limited else blocks.most_positions
    return ModelGraph(config, graph, blocks.weights, blocks.ctx, blocks.ctx_limit, most)


def for_context(model: ModelGraph, file: ModelFile, ctx: int) -> ModelGraph:
    """The graph for a context of ``ctx`` tokens, which is the same where the context does not matter."""
    limit = model.ctx_limit
    return model if limit is None or (model.ctx > limit) == (ctx > limit) else build(file, ctx)
