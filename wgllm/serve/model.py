"""The model as the server's own process has it: its file, its words and its plans. Nothing here computes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import wgllm
from wgllm import models
from wgllm.backends.base import LoadOptions
from wgllm.backends.kv_state import check_kv_types
from wgllm.context import wanted_ctx_size
from wgllm.errors import ModelFileError, UsageError, WgllmError, printable
from wgllm.file_facts import file_facts, file_stem
from wgllm.formats.views import DerivedView
from wgllm.model_text import ModelText
from wgllm.opened import OpenedModel, open_with_options
from wgllm.sampling import SamplingParams
from wgllm.serve.plans import BrowserPlan, Plans, Request, limits_of
from wgllm.serve.vocabulary import VocabularyTable, vocabulary_table
from wgllm.tokenizer import Tokenizer, tokenizer_from_model

# Options of ``wgllm.load`` that say what this machine computes with.
_OF_DEVICES = frozenset(
    (
        "backend", "device", "gpu_layers", "device_memory", "memory", "threads", "batch_size", "tune", "progress",
    )
)  # fmt: skip
_PROBE = "wgllm-system-probe"


class ServedModel(ModelText):
    """An opened model. All of it may be used by several threads at once; weights are read when a browser asks."""

    def __init__(
        self,
        name: str,
        opened: OpenedModel,
        options: LoadOptions,
        ctx_size: int | None = None,
    ) -> None:
        """Takes the opened file over. Use ``open``."""
        file = opened.file
        super().__init__(file)
        self._opened_file = file
        self._lock = threading.RLock()
        self._path = file.path
        self._model = models.build(file)
        self._graphs = {self._kind(self._model.ctx): self._model}
        self.default_ctx = wanted_ctx_size(self._model, ctx_size)
        check_kv_types(self._model.graph, options)
        self._tokenizer = tokenizer_from_model(file)
        if self._tokenizer.vocab_size > self._model.config.vocab_size:
            raise UsageError("the tokenizer knows more tokens than the model")
        opened.give_template(self)
        self.id = file_stem(file) if Path(name).exists() else printable(name)
        """What OpenAI's interface calls it."""
        self.facts = self._facts()
        """What ``GET /api/model`` answers."""
        self._identity = self._file_identity()
        self.plans = Plans(self._graph_for, options, self._weights_identity)

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        *,
        ctx_size: int | None = None,
        kv_type: str | None = None,
        kv_type_v: str | None = None,
        flash_attention: bool = True,
        **options: Any,
    ) -> ServedModel:
        """Opens a model, downloading it first when it is not here; options are those of ``wgllm.load``, of which those
        for devices do nothing. The files may change from then on: what is read of them later is refused then. Raises a
        ``WgllmError`` whose text is one line."""
        loading = LoadOptions({}, kv_type or "f32", kv_type_v=kv_type_v, fused_attention=flash_attention)
        of_file = {name: value for name, value in options.items() if name not in _OF_DEVICES}
        opened = open_with_options(model, mapped=False, **of_file)
        try:
            return cls(os.fspath(model), opened, loading, ctx_size)
        except BaseException:
            opened.file.close()
            raise

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """How many logits there are; the tokenizer may know fewer tokens."""
        return self._model.config.vocab_size

    def _facts(self) -> dict[str, Any]:
        of_file = file_facts(self._opened_file)
        sampling = self._sampling()
        return {
            "id": self.id,
            "name": of_file.name,
            "architecture": of_file.architecture,
            "quantization": of_file.quantization,
            "parameters": of_file.parameters,
            "nbytes": of_file.nbytes,
            "license": of_file.license,
            "n_ctx_train": self._model.config.n_ctx_train,
            "vocab_size": self.vocab_size,
            "end_ids": sorted(self._tokenizer.eog_ids),
            "has_template": self.has_template,
            "has_system": self.has_template and self._takes_system(),
            "sampling": {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
            },
            "ctx_size": self.default_ctx,
            "version": wgllm.__version__,
        }

    def _sampling(self) -> SamplingParams:
        try:
            return SamplingParams.from_metadata(self._opened_file.metadata, path=self._path)
        except ModelFileError:  # as where the file says nothing
            return SamplingParams()

    def _takes_system(self) -> bool:
        """Whether the template writes what a system message says."""
        messages = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}]
        try:
            return _PROBE in self.template.render(messages, variables=self.template_kwargs)
        except WgllmError:
            return False

    def vocabulary(self) -> VocabularyTable:
        """The bytes of all tokens; made once, which takes a large vocabulary some tenths of a second."""
        with self._lock:
            return self._vocabulary

    @cached_property
    def _vocabulary(self) -> VocabularyTable:
        return vocabulary_table(self.tokenizer, self.vocab_size)

    def plan(self, limits: Mapping[str, int], *, software: bool, ctx_size: int | None) -> BrowserPlan:
        """The plan for a browser with these limits, under WebGPU's names. ``ctx_size`` None takes what fits of what
        is usual. Raises PlanRefused, UsageError for a context that the model can't have, or as ``check`` does."""
        self.check()
        found = limits_of(limits)
        ctx = self.default_ctx if ctx_size is None else wanted_ctx_size(self._model, ctx_size)
        return self.plans.make(Request(found, software, ctx, exact=ctx_size is not None))

    def check(self) -> None:
        """Raises ModelFileChanged unless the files with the weights are what they were."""
        for file in self._opened_file.files:
            file.check()

    def _kind(self, ctx: int) -> bool:
        """Contexts of one kind have one graph."""
        limit = self._model.ctx_limit
        return limit is not None and ctx > limit

    def _graph_for(self, ctx: int) -> models.ModelGraph:
        with self._lock:
            kind = self._kind(ctx)
            if kind not in self._graphs:
                self._graphs[kind] = models.for_context(self._model, self._opened_file, ctx)
            return self._graphs[kind]

    def _weights_identity(self, built: models.ModelGraph) -> str:
        return f"{self._identity} {built.ctx > (built.ctx_limit or 0)}"

    def _file_identity(self) -> str:
        """What packed weights depend on beside the graph: the files, as they were opened, what was changed in them, and
        who packs. Weights are not looked at, which would read from all places of a file."""
        file = self._opened_file
        stated: list[object] = [wgllm.__version__, metadata.version("numpy"), self._model.identity]
        for tensor in file.tensors.values():
            stated.append((tensor.name, tensor.shape, tensor.format.name))
            if not isinstance(tensor, DerivedView):  # it was made of a configuration's numbers
                stated.append(hashlib.sha256(tensor.data.tobytes()).hexdigest())
        stated += [(each.path.name, *each.stamp) for each in file.files]
        return hashlib.sha256(repr(stated).encode()).hexdigest()

    def close(self) -> None:
        """Lets the file go."""
        self._opened_file.close()
