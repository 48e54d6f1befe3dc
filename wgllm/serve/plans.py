"""Plans for browsers: what a model's graph becomes for the limits that one of them reports."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from wgllm import models
from wgllm.backends.base import LoadOptions
from wgllm.cache import cell_counts
from wgllm.context import LEAST_CTX
from wgllm.graph import Graph
from wgllm.lowering import PlanOptions, has_shader, lower, prepared
from wgllm.plan import Limits, Part, Plan, PlanError, Width
from wgllm.serve.weights import PackedFile, PieceStore
from wgllm.step_rows import step_rows
from wgllm.tuning import shader_version

# Rows of a prefill step. Fewer than on this machine: systems reset a card, and browsers their whole GPU process, when a
# dispatch takes seconds, and nothing is known of a visitor's card.
STEP_ROWS = 64
STEP_ROWS_SOFTWARE = 16
# Plans that are kept: each is some hundred kilobytes, and lowers schedules for who asks.
_KEPT_PLANS = 8

LIMITS = {
    "maxBufferSize": "buffer",
    "maxStorageBufferBindingSize": "binding",
    "maxStorageBuffersPerShaderStage": "bindings",
    "maxComputeWorkgroupStorageSize": "workgroup_memory",
    "maxComputeInvocationsPerWorkgroup": "invocations",
    "maxComputeWorkgroupSizeX": "invocations",
    "maxComputeWorkgroupsPerDimension": "workgroups",
}
"""WebGPU's names, and ours."""
# More makes no plan better, or no shader can count it.
_MOST = Limits(
    buffer=4 << 30, binding=1 << 30, bindings=8, workgroup_memory=32768, invocations=1024, workgroups=65535
)

Code = Literal["too_large", "no_shader"]


class PlanRefused(Exception):
    """There is no plan of this model for this browser: one line says why."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def limits_of(reported: Mapping[str, int]) -> Limits:
    """From WebGPU's names, of which those that are missing are what every device has. Raises PlanRefused for less.

    They are rounded down to powers of two, so that similar cards share plans, weights and their hashes.
    """
    least = Limits()
    found: dict[str, int] = {}
    for name, ours in LIMITS.items():
        value, needed = reported.get(name, getattr(least, ours)), getattr(least, ours)
        if value < needed:
            raise PlanRefused(
                "too_large", f"{name} is {value} in this browser, and at least {needed} is needed"
            )
        found[ours] = min(found.get(ours, value), value)
    clamped = {ours: min(value, getattr(_MOST, ours)) for ours, value in found.items()}
    rounded = {
        ours: value if ours == "workgroups" else 1 << (value.bit_length() - 1)
        for ours, value in clamped.items()
    }
    return Limits(**rounded)


@dataclass(frozen=True)
class Request:
    """What a plan is made for."""

    limits: Limits
    software: bool
    ctx: int
    """Tokens of context."""
    exact: bool
    """Whether a smaller one will not do."""


class BrowserPlan:
    """A plan, its packed weights, and its schedules, which are lowered when they are asked for. For any number of
    threads."""

    def __init__(
        self, plan: Plan, file: PackedFile, windows: Mapping[str, int | None], software: bool
    ) -> None:
        self.plan = plan
        self.file = file
        self._windows = dict(windows)
        self._lock = threading.Lock()
        self.facts: dict[str, Any] = {**plan.to_json(), "kernels": [], "schedules": []}
        stated = [self.facts, file.etag, software, shader_version()]
        self.id = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:32]
        """Names all that it was made of."""

    def to_json(self) -> dict[str, Any]:
        """What a browser is told of it."""
        return {
            "id": self.id,
            "plan": self.facts,
            "ctx_size": self.plan.cells,
            "rows": self.plan.rows,
            "windows": self._windows,
            "weights_bytes": self.file.size,
            "gpu_bytes": self.plan.size,
            "file_etag": self.file.etag,
        }

    def check(self) -> None:
        """Lowers what a token and the widest steps need. Raises PlanError for what the limits do not allow."""
        plan = self.plan
        widths = [Width("body", rows, plan.cells) for rows in (1, plan.rows)]
        widths += [Width("tail", rows) for rows in (1, plan.out_rows)]
        if plan.sampling is not None:
            widths += [Width("greedy", 1), Width("draw", 1)]
        self.schedules(widths)

    def schedules(self, widths: Sequence[Width]) -> dict[str, Any]:
        """The schedules of the narrowest widths that hold these, and their kernels. Raises PlanError."""
        found = {}
        with self._lock:
            for part, rows, cells in widths:
                self._check_width(part, rows, cells)
                width, schedule = self.plan.schedule(part, rows, cells if part == "body" else 0)
                found[width] = schedule
            kernels = self.plan.kernels[:]
        numbers: dict[tuple[str, str], int] = {}
        used: dict[int, int] = {}
        for schedule in found.values():
            for dispatch in schedule:
                kernel = kernels[dispatch.kernel]
                used[dispatch.kernel] = numbers.setdefault((kernel.source.text, kernel.entry), len(numbers))
        mine = {number: kernels[kernel] for kernel, number in used.items()}
        part_of_plan = replace(
            self.plan,
            fills=[],
            nodes=[],
            kernels=[mine[number] for number in sorted(mine)],
            schedules={
                width: tuple(replace(d, kernel=used[d.kernel]) for d in schedule)
                for width, schedule in found.items()
            },
        )
        data = part_of_plan.to_json()
        return {"schedules": data["schedules"], "kernels": data["kernels"]}

    def _check_width(self, part: Part, rows: int, cells: int) -> None:
        most = self.plan.rows if part == "body" else self.plan.out_rows if part == "tail" else 1
        if rows > most or (part == "body" and not 0 < cells <= self.plan.cells):
            raise PlanError(f"the plan has no {part} of {rows} rows and {cells} cells")
        if part in ("greedy", "draw") and self.plan.sampling is None:
            raise PlanError("the plan chooses no tokens")


class Plans:
    """Makes plans of a model, and keeps the last few. For any number of threads."""

    def __init__(
        self,
        built: Callable[[int], models.ModelGraph],
        options: LoadOptions,
        identity: Callable[[models.ModelGraph], str],
        store: PieceStore | None = None,
    ) -> None:
        """``built`` gives the graph for a context, ``identity`` a name that no other weights have; ``options`` say
        the KV types and whether attention may be fused."""
        self._built = built
        self._options = options
        self._identity = identity
        self.store = store or PieceStore()
        self._kept: OrderedDict[str, BrowserPlan] = OrderedDict()
        self._made: dict[Request, str] = {}
        self._lock = threading.Lock()

    def find(self, plan_id: str) -> BrowserPlan | None:
        """The plan of that id, if it is still kept."""
        with self._lock:
            plan = self._kept.get(plan_id)
            if plan is not None:
                self._kept.move_to_end(plan_id)
            return plan

    def make(self, request: Request) -> BrowserPlan:
        """Raises PlanRefused when there is none for these limits, UsageError for a context that can't be."""
        with self._lock:
            known = self._made.get(request)
        plan = None if known is None else self.find(known)
        if plan is None:
            plan = self._plan(request)
            with self._lock:
                plan = self._kept.setdefault(plan.id, plan)
                self._kept.move_to_end(plan.id)
                self._made[request] = plan.id
                if len(self._kept) > _KEPT_PLANS:
                    self._kept.popitem(last=False)
                self._made = {asked: i for asked, i in self._made.items() if i in self._kept}
        return plan

    def _plan(self, request: Request) -> BrowserPlan:
        problem = PlanRefused("too_large", "")
        for ctx in _contexts(request):
            try:
                return self._plan_for(request, ctx)
            except PlanError as error:
                problem = PlanRefused("too_large", f"{error} (for a context of {ctx} tokens)")
        raise problem

    def _plan_for(self, request: Request, ctx: int) -> BrowserPlan:
        built = self._built(ctx)
        graph = prepared(built.graph, attention=self._options.fused_attention)
        if lacking := sorted({node.op for node in graph.nodes if not has_shader(node)}):
            raise PlanRefused("no_shader", f"no shader computes {', '.join(lacking)}, which this model needs")
        most = STEP_ROWS_SOFTWARE if request.software else STEP_ROWS
        kv_type_of = self._options.kv_type_of
        rows = step_rows(built.graph, graph, most, ctx, request.limits, kv_type_of)
        sizes = cell_counts(graph.windows, ctx, rows, slots=1)
        # No subgroups: cards use them only where tuning has chosen them, and nothing was tuned in a browser.
        options = PlanOptions(
            sizes, ctx, rows, kv_type_of, request.limits, software=request.software, host="tint"
        )
        plan = lower(graph, options)
        file = PackedFile(plan.fills, built.weights, self._identity(built), self.store)
        made = BrowserPlan(plan, file, dict(_windows(graph)), request.software)
        made.check()
        return made


def _contexts(request: Request) -> Iterator[int]:
    """What to try, best first."""
    yield request.ctx
    ctx = request.ctx // 2
    while not request.exact and ctx >= LEAST_CTX:
        yield ctx
        ctx //= 2


def _windows(graph: Graph) -> Iterator[tuple[str, int | None]]:
    """Of each state the window of its layer, by which the cells of its ring are used again."""
    for tensor in graph.of_kind("state"):
        dim = next(d for d in tensor.shape if d in graph.windows)
        yield tensor.name, graph.windows[str(dim)]


assert {*LIMITS.values()} == {f.name for f in fields(Limits)}
