"""What computes: which adapter, how many layers of the model, with how large a context; and why.

WebGPU does not say how much memory a device has. So a budget is either given, or learnt by trying: what does not fit
is tried again with a smaller context, if none was asked for, then with fewer layers, the first of which NumPy takes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wgllm import debug
from wgllm.backends.base import LoadOptions, Program
from wgllm.backends.device import (
    SUBGROUPS,
    TIMESTAMPS,
    Adapter,
    Device,
    NoGraphicsCard,
    OutOfDeviceMemory,
    adapters,
    choose,
)
from wgllm.backends.numpy_program import NumpyExecutor
from wgllm.backends.segments import Pipeline
from wgllm.backends.tuner import SECONDS, device_facts, tune
from wgllm.backends.webgpu import WebGpuExecutor
from wgllm.cache import cell_counts
from wgllm.errors import DeviceError
from wgllm.formats.model_file import TensorView
from wgllm.graph import Graph
from wgllm.hub_cache import cache_folder
from wgllm.lowering import has_shader
from wgllm.plan import Limits, in_bytes
from wgllm.product_shape import Choice, Product
from wgllm.step_rows import step_rows
from wgllm.tuning import Verdict, by_benefit, choices, read_table, write_table

# Rows of a prefill step: a graphics card wants many, software that imitates one answers sooner with few.
_STEP_ROWS = 256
_STEP_ROWS_SOFTWARE = 32
# Seconds; opening a device takes some drivers one or two.
_PATIENCE = 30.0
# A context is not made smaller than this to keep layers on the card.
_LEAST_CTX = 2048
# After memory ran out, this share of what was too much is tried.
_NEXT_TRY = 0.8


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    backend: str = "auto"
    device: str | None = None
    """A name or an index; implies WebGPU."""
    layers: int | None = None
    """How many of the last layers WebGPU takes; None: as many as fit."""
    memory: int | None = None
    """Bytes of the device that may be used; None: what it gives."""
    ctx_size: int | None = None
    """None: at most ``ctx`` positions, fewer where memory is short."""
    step_rows: int | None = None
    tune: bool = True
    """Whether what is fastest on the device is measured once, and used."""

    @property
    def forced(self) -> bool:
        """Whether nothing but WebGPU will do."""
        return self.backend == "webgpu" or self.device is not None


@dataclass(frozen=True)
class Placement:
    """What runs, ready to run."""

    pipeline: Pipeline
    sizes: Mapping[str, int]
    ctx_size: int
    step_rows: int
    where: str
    """For a message: ``webgpu on NVIDIA H100 (discrete, Vulkan)``, with what is unusual and why."""


@dataclass(frozen=True)
class _Share:
    """A context, and how many layers of the model a device takes."""

    ctx: int
    layers: int


def look_for_device(wish: Wish) -> Callable[[], tuple[Device | None, str]]:
    """Begins to look; what is returned waits for what ``find_device`` finds, and raises what it raises.

    Drivers take their time, and a broken one may never answer: nobody waits for it longer than a while.
    """
    results: queue.Queue[tuple[Device | None, str] | BaseException] = queue.Queue(1)

    def look() -> None:
        try:
            results.put(find_device(wish))
        except BaseException as error:
            results.put(error)

    threading.Thread(target=look, name="graphics drivers", daemon=True).start()

    def wait() -> tuple[Device | None, str]:
        try:
            found = results.get(timeout=_PATIENCE)
        except queue.Empty:
            reason = f"the graphics drivers did not answer within {_PATIENCE:.0f} s"
            if wish.forced:
                raise DeviceError(reason) from None
            return None, reason
        if isinstance(found, BaseException):
            raise found
        return found

    return wait


def find_device(wish: Wish) -> tuple[Device | None, str]:
    """The device to use, or None for NumPy; and why. Raises DeviceError when one that was asked for can't be used."""
    if wish.backend == "numpy" or wish.layers == 0:
        return None, "as asked"
    try:
        adapter = choose(adapters(), wish.device, software=wish.forced)
        return open_device(adapter), ""
    except DeviceError as error:
        if wish.forced:
            raise
        return None, error.reason if isinstance(error, NoGraphicsCard) else str(error)


def open_device(adapter: Adapter) -> Device:
    """With all that its limits and its features allow, unless ``WGLLM_LIMITS`` says otherwise."""
    if debug.least_limits():
        return Device.open(adapter, default_limits=True)
    return Device.open(adapter, [SUBGROUPS, *([TIMESTAMPS] if debug.level() >= 2 else [])])


def known_choices(executor: WebGpuExecutor) -> Mapping[Product, Choice]:
    """What has been measured of a device so far."""
    if not debug.tunes():
        return {}
    return choices(read_table(_tables(), device_facts(executor.device)), executor.target)


def _tables() -> Path:
    return cache_folder() / "tuning"


def place(
    graph: Graph,
    weights: Mapping[str, TensorView],
    options: LoadOptions,
    wish: Wish,
    device: tuple[Device | None, str],
    ctx: int,
    numpy_size: Callable[[], tuple[int, int]],
    tell: Callable[[str], None] = lambda message: None,
) -> Placement:
    """Loads the graph where it shall run. ``device`` is what ``find_device`` found, ``ctx`` the context to aim at;
    ``tell`` gets a line for the user when something takes its time.

    ``numpy_size`` gives context and rows per step for NumPy alone; it may raise UsageError. Raises DeviceError when
    a card is there, and not to be had with what was asked of it. Where there is none, layers that were asked for are
    no reason to fail.
    """
    found, reason = device
    if found is not None:
        try:
            return _Placing(graph, weights, options, wish, found, tell).run(ctx)
        except DeviceError as error:
            if wish.forced or wish.layers is not None:
                raise
            reason = str(error)
    ctx, rows = numpy_size()
    options = _sized(graph, options, ctx, rows)
    pipeline = Pipeline([NumpyExecutor().load(graph, weights, options)])
    return Placement(pipeline, options.sizes, ctx, rows, f"numpy on the CPU ({reason})")


def _sized(graph: Graph, options: LoadOptions, ctx: int, rows: int) -> LoadOptions:
    sizes = cell_counts(graph.windows, ctx, rows, slots=1)
    return replace(options, sizes=sizes, ctx_size=ctx, largest_step=rows)


class _Placing:
    """The search for what fits a device."""

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, TensorView],
        options: LoadOptions,
        wish: Wish,
        device: Device,
        tell: Callable[[str], None],
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.options = options
        self.wish = wish
        self.tell = tell
        self.executor = WebGpuExecutor(device)
        self.adapter: Adapter = device.adapter
        self.choices: Mapping[Product, Choice] = {}
        self._sizes: dict[_Share, int] = {}
        self.n_layers = 1 + max((n.layer for n in graph.nodes if n.layer is not None), default=-1)

    def run(self, ctx: int) -> Placement:
        layers = self.n_layers if self.wish.layers is None else min(self.wish.layers, self.n_layers)
        wanted = _Share(ctx, layers)
        too_much: int | None = None
        tuned = not (self.wish.tune and debug.tunes())
        while True:
            share, size = self._fitting(wanted, too_much)
            if not tuned:
                self._tune(share)
                tuned = True
            try:
                return self._load(share, wanted)
            except OutOfDeviceMemory:
                too_much = size  # in the end not a single layer is left to try
                self._reopen()

    def _reopen(self) -> None:
        """A device that failed, or ran out of memory, may be lost."""
        self.executor = WebGpuExecutor(open_device(self.adapter))
        self.executor.choices = self.choices

    def _tune(self, share: _Share) -> None:
        """Makes the executor use what is fastest for the products of a share, which is measured unless it is known."""
        # For software a candidate takes 50 to 150 ms to compile, so that few would be tried; and of ten products on
        # lavapipe, all candidates of which were measured in a minute, one gained more than a tenth.
        if self.adapter.kind == "software":
            return
        device, executor = self.executor.device, self.executor
        schedules = [
            schedule
            for on_gpu, part, options in self._segments(share)
            if on_gpu
            for schedule in executor.products(executor.prepared(part, options), options)
        ]
        facts = device_facts(device)
        table = read_table(_tables(), facts)
        missing = [product for product in by_benefit(schedules) if product not in table]
        if missing:
            self.tell(f"tuning shaders for {self.adapter.name}, about {SECONDS:.0f} s, once per model")
            try:
                found = tune(device, executor.target, missing, memory=self.wish.memory)
                write_table(_tables(), facts, found)
                table |= found
            except OutOfDeviceMemory:  # perhaps only today
                self._reopen()
            except DeviceError:  # not again: this device fails at it
                self._reopen()
                write_table(_tables(), facts, dict.fromkeys(missing, Verdict()))
        self.choices = self.executor.choices = choices(table, self.executor.target)

    def _fitting(self, wanted: _Share, too_much: int | None) -> tuple[_Share, int]:
        """The largest share that is worth a try, and the bytes that it takes. Raises DeviceError if none is.

        ``too_much``: what did not fit. Not the next smaller share is tried then, which would not fit either, but one
        that takes clearly less; the smallest at last.
        """
        budget = self.wish.memory
        last = DeviceError("")
        smaller: tuple[_Share, int] | None = None
        for share in self._shares(wanted):
            try:
                size = self._size(share)
            except DeviceError as error:  # a context that the device's limits do not allow
                last = error
                continue
            if (budget is None or size <= budget) and (too_much is None or size < too_much):
                smaller = share, size
                if too_much is None or size <= _NEXT_TRY * too_much:
                    return smaller
            too_large = budget is not None and size > budget
            why = (
                f"more than the {in_bytes(budget or 0)} of --device-memory"
                if too_large
                else "which did not fit"
            )
            last = DeviceError(
                f"{share.layers} layers with a context of {share.ctx} tokens take {in_bytes(size)} of "
                f"{self.adapter.name}, {why}; a smaller -c or --gpu-layers is needed"
            )
        if smaller is not None:
            return smaller
        raise last

    def _shares(self, wanted: _Share) -> Iterator[_Share]:
        """What to try, best first."""
        ctx = wanted.ctx
        yield wanted
        while self.wish.ctx_size is None and ctx // 2 >= _LEAST_CTX:
            ctx //= 2
            yield _Share(ctx, wanted.layers)
        if self.wish.layers is None:
            for layers in range(wanted.layers - 1, 0, -1):
                yield _Share(ctx, layers)

    def _segments(self, share: _Share) -> list[tuple[bool, Graph, LoadOptions]]:
        """Parts of the graph, each with its options, and whether the device takes it."""
        first = self.n_layers - share.layers
        on_gpu = [
            has_shader(node) and layer >= first
            for node, layer in zip(
                self.graph.nodes, _effective_layers(self.graph, self.n_layers), strict=True
            )
        ]
        _keep_state_together(self.graph, on_gpu)
        rows = self._step_rows(share.ctx)
        return [
            (gpu, part, _sized(part, self.options, share.ctx, rows)) for gpu, part in self.graph.split(on_gpu)
        ]

    def _size(self, share: _Share) -> int:
        """Bytes of the device."""
        if share not in self._sizes:
            plans = (
                self.executor.plan(self.executor.prepared(part, options), options)
                for on_gpu, part, options in self._segments(share)
                if on_gpu
            )
            self._sizes[share] = sum(plan.size for plan in plans)
        return self._sizes[share]

    def _step_rows(self, ctx: int) -> int:
        usual = _STEP_ROWS_SOFTWARE if self.adapter.kind == "software" else _STEP_ROWS
        return step_rows(
            self.graph,
            self.executor.prepared(self.graph, self.options),
            self.wish.step_rows or usual,
            ctx,
            Limits.of(self.executor.device.limits),
            self.options.kv_type_of,
        )

    def _load(self, share: _Share, wanted: _Share) -> Placement:
        segments = self._segments(share)
        programs: list[Program] = []
        try:
            for on_gpu, part, options in segments:
                executor = self.executor if on_gpu else NumpyExecutor()
                programs.append(executor.load(part, self.weights, options))
        except BaseException:
            for program in programs:
                program.close()
            raise
        rows = self._step_rows(share.ctx)
        sizes = cell_counts(self.graph.windows, share.ctx, rows, slots=1)
        return Placement(Pipeline(programs), sizes, share.ctx, rows, self._where(share, wanted))

    def _where(self, share: _Share, wanted: _Share) -> str:
        notes = []
        if share.layers < self.n_layers:
            why = "" if share.layers == wanted.layers and self.wish.layers is not None else ", no more fit"
            notes.append(f"{share.layers} of {self.n_layers} layers{why}; the others on the CPU")
        if share.ctx < wanted.ctx:
            notes.append(f"a context of {wanted.ctx} does not fit")
        lacking = sorted({n.op for n in self.graph.nodes if not has_shader(n)})
        if lacking:
            notes.append(f"{', '.join(lacking)} on the CPU: no shader computes it")
        return "; ".join([f"webgpu on {self.adapter}", *notes])


def _effective_layers(graph: Graph, n_layers: int) -> list[int]:
    """Of each node: nodes outside the layers go with the layer that follows, the head with none that could be cut."""
    layers: list[int] = []
    following = n_layers
    for node in reversed(graph.nodes):
        following = following if node.layer is None else node.layer
        layers.append(following)
    return layers[::-1]


def _keep_state_together(graph: Graph, on_gpu: list[bool]) -> None:
    """Takes from the device what lies between uses of a KV state where one node there is on the CPU: a state has one
    place, and what runs elsewhere in between would cut its place in two."""
    spans: dict[str, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for name in node.inputs:
            if graph.tensors[name].kind == "state" and graph.tensors[name].dtype != "i32":
                spans.setdefault(name, []).append(i)
    changed = True
    while changed:
        changed = False
        for used in spans.values():
            span = slice(used[0], used[-1] + 1)
            if any(on_gpu[span]) and not all(on_gpu[span]):
                on_gpu[span] = [False] * len(on_gpu[span])
                changed = True
