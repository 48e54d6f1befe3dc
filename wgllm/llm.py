"""The Python interface: ``wgllm.load(model)`` gives an ``Llm``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wgllm import debug, models
from wgllm.backends.base import LoadOptions
from wgllm.backends.numpy_weights import available_memory, total_memory
from wgllm.cache import KVCache, cell_counts, state_bytes
from wgllm.context import LEAST_CTX, wanted_ctx_size
from wgllm.engine import Engine, EngineLike, Event, Request, run_request
from wgllm.errors import PromptCacheError, UsageError
from wgllm.formats.model_file import ModelFile
from wgllm.graph import Graph
from wgllm.model_text import ModelText
from wgllm.opened import open_with_options
from wgllm.placement import Wish, look_for_device, place
from wgllm.sampling import SamplingOptions, SamplingParams
from wgllm.tokenizer import Tokenizer, tokenizer_from_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from wgllm.hub_progress import Progress

BACKENDS = ("auto", "webgpu", "numpy")

# The share of free memory that the KV state may take by default.
_KV_SHARE = 0.25
# One node of a step should end well within 200 ms, since a cancel is seen between nodes: about this many
# floating-point operations, on a slow CPU.
_NODE_FLOPS = 10e9


def load(
    model: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: str | int | None = None,
    gpu_layers: int | None = None,
    device_memory: int | None = None,
    ctx_size: int | None = None,
    kv_type: str | None = None,
    kv_type_v: str | None = None,
    memory: int | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    flash_attention: bool = True,
    tune: bool = True,
    rope_scaling: str | None = None,
    rope_scale: float | None = None,
    rope_freq_base: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    quantize: str | None = None,
    chat_template: str | None = None,
    chat_template_name: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    offline: bool = False,
    progress: Callable[[int, int], None] | None = None,
    download_progress: Progress | None = None,
) -> Llm:
    """Opens a model and makes it ready to run, downloading it first when it is not here.

    ``model`` is a name of the catalogue, a path, or a Hugging Face name. ``backend`` is webgpu, numpy or auto: a
    graphics card where there is one (``device`` takes one by index or name), else NumPy. ``gpu_layers`` is how many of
    the last layers the card computes, None as many as fit into it; ``device_memory`` bounds the bytes of it that are
    used. ``Llm.where`` says what was chosen, and why. ``ctx_size`` None takes the smallest of the
    model's own, 8192 and what fits memory; 0 takes the model's own. ``kv_type`` (f32, f16, q8_0, q4_0) is how the KV
    cache rounds; None is f32, and ``kv_type_v`` says it for the values alone. ``memory`` bounds the bytes of float32
    weights; what does not fit is dequantized as it is used. ``threads`` bounds those that read weights and compute.
    ``batch_size`` is the most tokens of a prompt that are read in one step; None takes what keeps a step short. Without
    ``flash_attention`` all scores of attention are made at once. With ``tune`` it is measured once, in about 2 s, which
    shaders are fastest on a graphics card, and kept in the cache directory; without, what was measured is not used.

    ``rope_scaling`` (none, linear, yarn), ``rope_scale`` (by which the context grows) and ``rope_freq_base`` change how
    positions are encoded; ``overrides`` replace any of the file's metadata. ``quantize`` (q8_0, q4_0 …) rounds the
    matrices of a model of float weights as they are read. ``chat_template`` is the name of a built-in
    template or the text of one (``chat_template_name`` is what errors call it), and each rendering gets
    ``chat_template_kwargs``. With ``offline`` nothing is downloaded. ``progress`` is called with the bytes of weights
    read and their total; ``download_progress`` is told of a download, and of tuning, in place of standard error.

    Raises a ``WgllmError`` whose text is one line: model not found, bad file, unknown backend …
    """
    if backend == "auto" and device is None:
        backend = debug.backend()
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "numpy" and (device is not None or gpu_layers or device_memory is not None):
        raise UsageError("the numpy backend uses no graphics card: leave out what is asked of one")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"steps of {batch_size} tokens make no sense")
    wish = Wish(
        backend,
        None if device is None else str(device),
        gpu_layers,
        device_memory,
        ctx_size,
        batch_size,
        tune,
    )
    from wgllm.hub_progress import stderr_progress

    options = LoadOptions({}, kv_type or "f32", memory, threads, progress, kv_type_v, flash_attention)
    opened = open_with_options(
        model,
        rope_scaling=rope_scaling,
        rope_scale=rope_scale,
        rope_freq_base=rope_freq_base,
        overrides=overrides,
        quantize=quantize,
        chat_template=chat_template,
        chat_template_name=chat_template_name,
        chat_template_kwargs=chat_template_kwargs,
        offline=offline,
        download_progress=download_progress,
    )
    try:
        told = download_progress or stderr_progress()
        llm = _load(opened.file, options, wish, told.message)
        opened.give_template(llm)
        return llm
    except BaseException:
        opened.file.close()
        raise


def _load(
    file: ModelFile, options: LoadOptions, wish: Wish, tell: Callable[[str], None] = lambda message: None
) -> Llm:
    device = look_for_device(wish)
    built = models.build(file)
    tokenizer = tokenizer_from_model(file)
    if tokenizer.vocab_size > built.config.vocab_size:
        raise UsageError("the tokenizer knows more tokens than the model")
    found = device()

    def numpy_size() -> tuple[int, int]:
        rows = wish.step_rows or largest_step(built.graph)
        return choose_ctx_size(built, wish.ctx_size, rows), rows

    ctx = wanted_ctx_size(built, wish.ctx_size)
    built = models.for_context(built, file, ctx)
    placed = place(built.graph, built.weights, options, wish, found, ctx, numpy_size, tell)
    if (fitting := models.for_context(built, file, placed.ctx_size)) is not built:
        # Memory allowed less than what the graph was made for.
        placed.pipeline.close()
        built, wish = fitting, replace(wish, ctx_size=placed.ctx_size)
        placed = place(built.graph, built.weights, options, wish, found, placed.ctx_size, numpy_size, tell)
    engine = Engine(
        placed.pipeline,
        KVCache(built.graph.windows, placed.sizes, placed.ctx_size),
        tokenizer,
        largest_step=placed.step_rows,
        vocab_size=built.config.vocab_size,
    )
    types = dict.fromkeys((options.kv_type, options.kv_type_v or options.kv_type))
    return Llm(engine, model=built, file=file, kv_type="/".join(types), where=placed.where)


def largest_step(graph: Graph) -> int:
    """Rows per prefill step: as many as keep the largest product of a layer short, from 16 to 256."""
    sizes = [
        t.shape[0] * t.shape[1]
        for t in graph.of_kind("weight")
        if t.name.startswith("blk.")
        and len(t.shape) == 2
        and isinstance(t.shape[0], int)
        and isinstance(t.shape[1], int)
    ]
    rows = int(_NODE_FLOPS / (2 * 2 * max(sizes, default=1)))  # gate and up run as one
    return max(16, min(256, rows))


def choose_ctx_size(model: models.ModelGraph, asked: int | None, step_rows: int) -> int:
    """For NumPy: the wanted context, or less where none was asked for and memory is short."""
    ctx = wanted_ctx_size(model, asked)
    if asked is not None:
        # Cells are taken when they are first written, so that only what can never be there is refused.
        if (need := _state_bytes(model, ctx, step_rows)) > (has := total_memory()):
            raise UsageError(
                f"a context of {ctx} tokens takes {need / 2**30:,.1f} GiB, more than the {has / 2**30:,.1f} GiB of "
                "this machine; a smaller one (-c) is needed"
            )
        return ctx
    room = available_memory() * _KV_SHARE
    while ctx > LEAST_CTX and _state_bytes(model, ctx, step_rows) > room:
        ctx //= 2
    return ctx


def _state_bytes(model: models.ModelGraph, ctx: int, step_rows: int) -> int:
    return state_bytes(model.graph, cell_counts(model.graph.windows, ctx, step_rows, 1), 4)


class Llm(ModelText):
    """A loaded model. Use it as a context manager, or ``close()`` it."""

    def __init__(
        self,
        engine: EngineLike,
        *,
        model: models.ModelGraph | None = None,
        file: ModelFile | None = None,
        kv_type: str = "f32",
        where: str = "",
    ) -> None:
        """``engine`` may be a ``FakeEngine``; it then has no ``model`` or ``file``."""
        super().__init__(file)
        self.engine = engine
        self.model = model
        self.kv_type = kv_type
        self.where = where
        """What computes, and why: ``webgpu on Radeon 780M (integrated, Vulkan)``."""

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    @property
    def ctx_size(self) -> int:
        return self.engine.ctx_size

    def logits(self, ids: Sequence[int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Logits float32 [len(rows), vocab] after the tokens at ``rows`` (positions; None: all), run as one sequence.

        The logits of position p are those of the token that follows ids[p].
        """
        engine = self._real_engine()
        n = len(ids)
        if n == 0:
            raise UsageError("there are no tokens to run")
        wanted = range(n) if rows is None else [r + n if r < 0 else r for r in rows]
        if any(not 0 <= r < n for r in wanted):
            raise UsageError(f"rows must lie between 0 and {n - 1}")
        ascending = sorted(set(wanted))
        made = engine.logits(list(ids), ascending)
        if list(wanted) == ascending:
            return made
        return made[np.searchsorted(ascending, list(wanted))]

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        parse_special: bool = False,
        special: bool | None = None,
        continuation: bool = True,
        logprobs: int = 0,
        sampling: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Event]:
        """Events as tokens are made, then one with ``finish`` and ``stats``.

        ``options`` are ``SamplingParams``' fields (temperature, top_k, seed, repeat_penalty …); those not given are
        what the model file says, else llama.cpp's defaults. ``sampling`` stands for all of them at once, whatever the
        file says. With ``logprobs`` n each token's event has its log probability and the n most probable tokens.
        A string prompt is tokenized with the special tokens that the file asks for. Text that begins a stop string is
        held back until it is clear whether it does. Leaving the loop early cancels the rest.

        ``special`` shows control tokens in the text; None shows them with ``ignore_eos``, where they tell that the
        text has ended. ``continuation`` False is for a prompt after which a new text begins, such as a chat's.
        """
        if isinstance(prompt, str):
            tokens = self.tokenize(prompt, parse_special=parse_special)
            if self.tokenizer.add_eos and len(tokens) > 1:
                tokens.pop()  # a text that has ended is nothing to go on from
        else:
            tokens = list(prompt)
        if sampling is None:
            sampling = self.sampling_params(**options)
        elif options:
            raise UsageError(f"give either sampling or {', '.join(options)}")
        request = Request(
            tokens=tokens,
            max_tokens=None if max_tokens is None or max_tokens < 0 else max_tokens,
            sampling=sampling,
            logprobs=logprobs,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            ignore_eos=ignore_eos,
            special=ignore_eos if special is None else special,
            continuation=continuation,
        )
        return run_request(self.engine, request)

    def sampling_params(self, **options: Unpack[SamplingOptions]) -> SamplingParams:
        """What ``generate`` samples with: ``options``, else the file's ``general.sampling.*``, else the defaults."""
        if self.file is None:
            return SamplingParams.from_metadata({}, **options)
        return SamplingParams.from_metadata(self.file.metadata, path=self.file.path, **options)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """The reply to ``messages`` (dicts with ``role`` and ``content``) by the model's chat template.

        ``tools`` (functions by JSON schema) go to the template, which may ignore them; ``options`` are those of
        ``generate``. Special tokens in a message's text stay text.
        """
        return self.generate(self.chat_tokens(messages, tools=tools), continuation=False, **options)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Keeps what the cache holds in a file, for ``load_state`` of the same model. Raises PromptCacheError."""
        from wgllm import prompt_cache

        state, arrays = self._real_engine().save_state()
        prompt_cache.write(Path(path), self.fingerprint(), self.kv_type, state, arrays)

    def load_state(self, path: str | os.PathLike[str]) -> list[int]:
        """Fills the cache from a file; returns the tokens that it then holds, none when there is no such file.

        Raises PromptCacheError when the file is damaged, or not of this model and KV type.
        """
        from wgllm import prompt_cache

        engine, path = self._real_engine(), Path(path)
        saved = prompt_cache.read(path, self.fingerprint(), self.kv_type)
        if saved is None:
            return []
        try:
            engine.load_state(*saved)
        except UsageError as error:
            raise PromptCacheError(path, str(error)) from None
        return saved[0].tokens

    def fingerprint(self) -> str:
        """What tells this model and its settings from any other: a hash of metadata, tensors and configuration."""
        from wgllm.prompt_cache import fingerprint

        assert self.file is not None and self.model is not None
        return fingerprint(self.file, self.model.identity)

    def _real_engine(self) -> Engine:
        if not isinstance(self.engine, Engine):
            raise UsageError("only a loaded model has logits and a state")
        return self.engine

    def close(self) -> None:
        """Frees the model's memory and lets its file go."""
        self.engine.close()
        if self.file is not None:
            self.file.close()

    def __enter__(self) -> Llm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
