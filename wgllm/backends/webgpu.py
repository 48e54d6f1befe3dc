"""The WebGPU executor: lowers a graph to a plan for a device, fills its buffers, and replays the plan step by step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from wgllm.backends.ahead import GpuSteps, Prepared
from wgllm.backends.base import Array, Ints, LoadOptions, Trace
from wgllm.backends.device import Copy, Device
from wgllm.backends.fills import Bytes
from wgllm.backends.gpu_memory import GpuMemory
from wgllm.backends.gpu_state import GpuState
from wgllm.backends.kv_state import KeepsState, check_kv_types
from wgllm.backends.native import Call
from wgllm.backends.pipelines import Pipelines
from wgllm.backends.profile import Profile, profile_if_wanted
from wgllm.errors import DeviceError
from wgllm.formats.model_file import TensorView
from wgllm.fuse import PASSES
from wgllm.graph import OUT_ROWS, ROWS, SLOTS, Graph
from wgllm.lowering import PlanOptions, lower, prepared, products
from wgllm.ops import Dim
from wgllm.plan import Dispatch, Limits, Part, Plan, PlanError, Region, Width
from wgllm.product_shape import Choice, Product, Target

# A submission should take about this long: a cancel is seen between two, and systems reset a card that is busy for
# seconds.
_SUBMISSION_SECONDS = 0.05
# Multiplications per second until they have been measured.
_FIRST_PACE = 2e9
# Shorter submissions spend their time elsewhere than in shaders.
_TELLING_SECONDS = 0.005
_DTYPES: Mapping[str, Any] = {"f32": np.float32, "i32": np.int32}


class WebGpuExecutor:
    """Runs graphs on a graphics card, or on software that imitates one."""

    fused_ops = frozenset(PASSES)

    def __init__(self, device: Device) -> None:
        self.device = device
        self.choices: Mapping[Product, Choice] = {}
        """What this device is known to do best; see ``wgllm.tuning``."""

    def prepared(self, graph: Graph, options: LoadOptions) -> Graph:
        """As it is planned and run."""
        return prepared(graph, attention=options.fused_attention)

    def plan(self, graph: Graph, options: LoadOptions) -> Plan:
        """Of a prepared graph. Raises DeviceError for one that this device can't take, UsageError for a KV type that
        does not fit it."""
        check_kv_types(graph, options)
        with self._refusing():
            return lower(graph, self._plan_options(options))

    def products(self, graph: Graph, options: LoadOptions) -> list[list[Product]]:
        """What a prepared graph multiplies to make a token, and in its widest step. Raises DeviceError."""
        with self._refusing():
            return list(products(graph, self._plan_options(options)))

    @property
    def target(self) -> Target:
        """What products are shaped for."""
        software = self.device.adapter.kind == "software"
        return Target(Limits.of(self.device.limits), software, self.device.subgroup, self.choices)

    def _plan_options(self, options: LoadOptions) -> PlanOptions:
        return PlanOptions(
            options.sizes,
            options.positions,
            options.largest_step,
            options.kv_type_of,
            Limits.of(self.device.limits),
            self.device.adapter.kind == "software",
            self.device.subgroup,
            self.choices,
        )

    def load(self, graph: Graph, weights: Mapping[str, TensorView], options: LoadOptions) -> WebGpuProgram:
        """Raises DeviceError for what the device can't take, OutOfDeviceMemory when it has no room."""
        graph = self.prepared(graph, options)
        plan = self.plan(graph, options)
        with self._refusing():  # what a schedule can't be is said before the weights are read
            for rows in (1, plan.rows):
                plan.schedule("body", rows, plan.cells)
            for rows in {1, plan.out_rows} if any(n.part == "tail" for n in plan.nodes) else ():
                plan.schedule("tail", rows)
        return WebGpuProgram(self.device, graph, plan, weights, options)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except PlanError as error:
            raise DeviceError(f"{self.device.adapter.name}: {error}") from error


@dataclass(frozen=True)
class _Stage:
    """A body or a tail that is ready to run."""

    rows: int
    """That count; the others are padding."""
    work: Prepared


class WebGpuProgram(KeepsState[GpuState]):
    backend = "webgpu"

    def __init__(
        self,
        device: Device,
        graph: Graph,
        plan: Plan,
        weights: Mapping[str, TensorView],
        options: LoadOptions,
    ) -> None:
        self.device = device
        self.graph = graph
        self.plan = plan
        self.options = options
        self._pipelines = Pipelines(device, plan)
        self._bind_groups: dict[tuple[int, tuple[Region, ...]], object] = {}
        self._prepared: dict[Width, Prepared] = {}
        self._pace = _FIRST_PACE
        self._weight_bytes = {t.name: weights[t.name].nbytes for t in graph.of_kind("weight")}
        self._steps: GpuSteps | None = None
        self._profile = profile_if_wanted(device, plan, graph)
        # A shader that a driver's compiler refuses is a reason to take another backend: it is known when all is loaded.
        self._pipelines.begin(self._needed_first())
        try:
            self._memory = GpuMemory(device, plan)
            try:
                self._state = GpuState(graph, options, plan, self._memory)
                self._memory.fill(plan, weights, self._loaded)
                self._pipelines.finish()
            except BaseException:
                self._memory.close()
                raise
        except BaseException:
            self._pipelines.close()
            raise

    def _needed_first(self) -> Iterator[int]:
        """The kernels of a long prompt, then of a token."""
        plan = self.plan
        widths = [Width("body", plan.rows, 1), Width("tail", 1), Width("body", 1, 1)]
        if plan.sampling is not None:
            widths += [Width("greedy", 1), Width("draw", 1)]
        parts = {n.part for n in plan.nodes} | {"greedy", "draw"}
        for width in widths:
            if width.part in parts:
                for dispatch in plan.schedule(*width)[1]:
                    yield dispatch.kernel

    def _loaded(self, done: int, total: int) -> None:
        self._pipelines.check()
        if self.options.progress is not None:
            self.options.progress(done, total)

    def run(
        self,
        inputs: Mapping[str, Array | Ints],
        *,
        interrupt: Callable[[], None] | None = None,
        trace: Trace | None = None,
    ) -> dict[str, Array]:
        self._memory.check()
        rows = len(inputs["pos"])
        self._state.step(np.asarray(inputs["pos"], np.int32), np.asarray(inputs["slot"], np.int32))
        waiting = [self._stage("body", inputs, slice(0, rows), cells=int(inputs["pos"].max()) + 1)]
        made: dict[str, list[Array]] = {name: [] for name in self.plan.outputs}
        wanted = len(inputs["out_rows"]) if "out_rows" in self.plan.inputs else 0
        for first in range(0, wanted, self.plan.out_rows):
            mine = slice(first, min(first + self.plan.out_rows, wanted))
            waiting.append(self._stage("tail", inputs, mine))
            self._replay(waiting, made, interrupt, trace)
            waiting = []
        if waiting:
            self._replay(waiting, made, interrupt, trace)
        return {name: self._joined(name, arrays) for name, arrays in made.items()}

    def steps_ahead(self) -> GpuSteps | None:
        # Without wgpu-native's own functions a wait can't be interrupted.
        if self.plan.sampling is None or not self.device.asks_itself:
            return None
        if self._steps is None:
            self._steps = GpuSteps(self, self.device, self.plan, self._memory, self._state)
        return self._steps

    def _joined(self, name: str, arrays: list[Array]) -> Array:
        if len(arrays) == 1:
            return arrays[0]
        return np.concatenate([np.empty((0, *self._row_shape(name)), np.float32), *arrays])

    def _row_shape(self, name: str) -> list[int]:
        return [
            d if isinstance(d, int) else self.options.sizes[d] for d in self.graph.tensors[name].shape[1:]
        ]

    def _stage(self, part: Part, inputs: Mapping[str, Array | Ints], mine: slice, cells: int = 0) -> _Stage:
        """A body or a tail for the rows ``mine``, with its inputs written. Those of what runs first go first."""
        rows = mine.stop - mine.start
        work = self.prepare(part, rows, cells)
        for name, value in self.plan.inputs.items():
            if value.part == part:
                padded = np.full((work.width.rows, value.row // 4), value.pad, _DTYPES[value.dtype])
                padded[:rows] = np.asarray(inputs[name][mine]).reshape(rows, -1)
                self._memory.write(value.region, padded)
        return _Stage(rows, work)

    def prepare(self, part: Part, rows: int, cells: int = 0) -> Prepared:
        """A schedule, ready to run."""
        width, dispatches = self.plan.schedule(part, rows, cells)
        if width not in self._prepared:
            work = Prepared(
                width, dispatches, [self._call(d) for d in dispatches], [d.cost for d in dispatches]
            )
            self._prepared[width] = work
            if self._profile is not None:
                self._profile.know(width, dispatches, work.calls)
        return self._prepared[width]

    def _call(self, dispatch: Dispatch) -> Call:
        pipeline = self._pipelines[dispatch.kernel]
        key = (dispatch.kernel, dispatch.bindings)
        if key not in self._bind_groups:
            entry = self.plan.kernels[dispatch.kernel].entry
            bindings = [(self._memory.buffers[b], offset, size) for b, offset, size in dispatch.bindings]
            self._bind_groups[key] = self.device.bind_group(pipeline, bindings, entry)
        return Call(pipeline, self._bind_groups[key], dispatch.groups)

    def _replay(
        self,
        stages: Sequence[_Stage],
        made: dict[str, list[Array]],
        interrupt: Callable[[], None] | None,
        trace: Trace | None,
    ) -> None:
        """Runs stages and adds the rows of their outputs to ``made``."""
        wanted = [
            (name, value, stage.rows)
            for stage in stages
            for name, value in self.plan.outputs.items()
            if value.part == stage.work.width.part
        ]
        parts = [(value.region, rows * value.row) for _, value, rows in wanted]
        if trace is None:
            copies = self._memory.copies(parts)
            data = self._submit(stages, copies, interrupt)
        else:
            for stage in stages:
                self._run_traced(stage, trace, interrupt)
            copies = self._memory.copies(parts)
            self.device.submit([], copies)
            data = self._memory.collect(copies) if copies else np.empty(0, np.uint8)
        for (name, value, rows), copy in zip(wanted, copies, strict=True):
            numbers = data[copy.target_offset : copy.target_offset + copy.size].view(_DTYPES[value.dtype])
            made[name].append(numbers.reshape(rows, *self._row_shape(name)))

    def _submit(
        self, stages: Sequence[_Stage], copies: Sequence[Copy], interrupt: Callable[[], None] | None
    ) -> Bytes:
        """In submissions that are short at the pace of late; returns what ``copies`` copied in the end."""
        data = np.empty(0, np.uint8)
        work = [stage.work for stage in stages]
        calls, costs = [c for w in work for c in w.calls], [c for w in work for c in w.costs]
        for part, cost, ends in self._short(calls, costs, sum(costs)):
            self._memory.check()
            started = time.perf_counter()
            self._queue.submit(part, copies if ends else ())
            if ends and copies:
                data = self._memory.collect(copies)
            else:
                self.device.wait()
            self._learn_pace(cost, time.perf_counter() - started)
            if interrupt is not None and not ends:
                interrupt()
        return data

    def submit_all(
        self, calls: Sequence[Call], costs: Sequence[int], cost: int, copies: Sequence[Copy]
    ) -> None:
        """In submissions that are short at the pace of late; waits for none of them."""
        self._memory.check()
        for part, _, ends in self._short(calls, costs, cost):
            self._queue.submit(part, copies if ends else ())

    @property
    def _queue(self) -> Device | Profile:
        """Where all dispatches go but those that are traced."""
        return self._profile or self.device

    def _short(
        self, calls: Sequence[Call], costs: Sequence[int], whole: int
    ) -> Iterator[tuple[Sequence[Call], int, bool]]:
        """``calls``, which cost ``whole``, in parts that are short at the pace of late, each with its cost and whether
        it is the last."""
        most = self._pace * _SUBMISSION_SECONDS
        if whole <= most:
            yield calls, whole, True
            return
        first = 0
        while first < len(calls):
            last, cost = first, 0
            while last < len(calls) and (cost == 0 or cost + costs[last] <= most):
                cost += costs[last]
                last += 1
            yield calls[first:last], cost, last == len(calls)
            first = last

    def _learn_pace(self, cost: int, seconds: float) -> None:
        """By and by: a submission that had to wait for others tells little."""
        pace = max(cost, 1) / max(seconds, 1e-6)
        if seconds > _TELLING_SECONDS or pace > self._pace:
            self._pace = min(max(pace, self._pace / 2), 2 * self._pace)

    def _run_traced(self, stage: _Stage, trace: Trace, interrupt: Callable[[], None] | None) -> None:
        """One node at a time, each followed by its result."""
        nodes = iter(zip(stage.work.dispatches, stage.work.calls, strict=True))
        waiting = next(nodes, None)
        for i, (node, planned) in enumerate(zip(self.graph.nodes, self.plan.nodes, strict=True)):
            if planned.part != stage.work.width.part:
                continue
            calls = []
            while waiting is not None and waiting[0].node == i:
                calls.append(waiting[1])
                waiting = next(nodes, None)
            self._memory.check()
            self.device.submit(calls)
            self.device.wait()
            if interrupt is not None:
                interrupt()
            trace(
                node, {n: self._read(n, r, stage) for n, r in zip(node.outputs, planned.regions, strict=True)}
            )

    def _read(self, name: str, region: Region, stage: _Stage) -> Array | Ints:
        """What a node made; of KV state all slots [S, Hkv, C, D], of scores only the cells that it looked at."""
        tensor = self.graph.tensors[name]
        if tensor.kind == "state":
            if tensor.dtype == "i32":
                positions = self._state.positions[name]
                return self._memory.read(region, positions.nbytes).view(np.int32).reshape(positions.shape)
            return np.stack([self._state.read_cells(tensor, s) for s in range(self.options.sizes[SLOTS])])
        sizes = {
            **{n: min(size, stage.work.width.cells) for n, size in self.options.sizes.items()},
            ROWS: stage.rows,
            OUT_ROWS: stage.rows,
        }
        shape = tuple(d if isinstance(d, int) else sizes[d] for d in tensor.shape)
        numbers = self._memory.read(region, 4 * math.prod(shape))
        if tensor.dtype == "i32":
            return numbers.view(np.int32).reshape(shape)
        return numbers.view(np.float32).reshape(shape)

    # What others ask of a program

    @property
    def weight_bytes(self) -> int:
        return sum(int(self._weight_bytes[w] * share) for w, _, share in self._products())

    @property
    def head_bytes(self) -> int:
        return sum(self._weight_bytes[w] for w, rows, _ in self._products() if rows == OUT_ROWS)

    @property
    def products(self) -> tuple[int, int]:
        sizes = {ROWS: 0, OUT_ROWS: 0}
        for weight, rows, share in self._products():
            numbers = math.prod(d for d in self.graph.tensors[weight].shape if isinstance(d, int))
            sizes[str(rows)] += int(numbers * share)
        return sizes[ROWS], sizes[OUT_ROWS]

    def _products(self) -> Iterator[tuple[str, Dim, Fraction]]:
        """The weights of all products, the name of the row count of their input, and the share that a row reads."""
        for node in self.graph.nodes:
            for name in node.inputs:
                tensor = self.graph.tensors[name]
                if node.op != "embed" and tensor.kind == "weight" and len(tensor.shape) > 1:
                    rows = self.graph.tensors[node.inputs[0]].shape[0]
                    yield name, rows, self.graph.share_read(node)

    def close(self) -> None:
        with contextlib.ExitStack() as closing:  # all of it, whatever a lost device has against one
            if self._profile is not None:
                closing.callback(self._profile.close)
            closing.callback(self._memory.close)
            closing.callback(self._pipelines.close)
            if self._steps is not None:
                closing.callback(self._steps.close)
            self._steps = self._profile = None
            self._prepared.clear()
            self._bind_groups.clear()
