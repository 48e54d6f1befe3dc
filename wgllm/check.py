"""Checks of what a device computes: each node's actual inputs go to its NumPy operator, and the results are compared.

A ``NodeChecker`` traces a program (``Program.run(trace=…)``) and makes a ``Verdict`` of every node. ``check_case`` and
``check_model`` run what it looks at. Nothing here knows which device computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgllm.backends import numpy as kernels
from wgllm.backends.base import Array, Executor, Ints, LoadOptions, Program, Step
from wgllm.backends.segments import Pipeline
from wgllm.check_cases import Case
from wgllm.check_reference import HIDDEN, lacks_cells, make, make_body, written
from wgllm.errors import MismatchError, printable
from wgllm.formats.model_file import TensorView
from wgllm.graph import OUT_ROWS, Graph, Node

REPLAY = "replay"
"""The name, in place of an operator's, of the comparison of a whole step with the same step node by node."""

# By operator, in units of the sizes that check_reference gives. WGSL grants exp, tanh, division and inverse square
# roots a few units in the last place (2^-23) more than NumPy takes, and sums in any order; about ten times of what
# llvmpipe and SwiftShader show is allowed.
TOLERANCES: Mapping[str, float] = {
    # Numbers are copied, moved, or replaced by a constant.
    "select_rows": 0.0,
    "reshape": 0.0,
    "mask": 0.0,
    "cell_write": 0.0,
    # The same shaders with the same inputs: nothing is summed in an order that chance decides.
    REPLAY: 0.0,
    # d q + m may be rounded once instead of twice.
    "embed": 2.0**-22,
    # One operation, rounded either way.
    "add": 2.0**-22,
    "mul": 2.0**-22,
    "scale": 2.0**-22,
    # Long sums, in another order: of Σ |x w|. One number of hundreds that is wrong or left out is far more.
    "matmul": 2e-5,
    "matmul_concat": 2e-5,
    "attn_scores": 4e-6,
    "attn_values": 1e-5,
    # A long sum, a division and a root.
    "rms_norm": 4e-6,
    "layer_norm": 2e-6,
    # Of the head's largest number: two products and a sum, by a table that the host makes.
    "rope": 1.5e-6,
    # exp and a division, or tanh, which may be made of two exps.
    "silu": 2e-6,
    "gelu_tanh": 2e-6,
    "gelu": 2e-6,
    "softcap": 2e-6,
    "softmax": 4e-6,
    # Several of these in a row.
    "gated": 4e-6,
    "attention": 1e-5,
    "norm_matmul": 2e-5,
    "norm_gated": 2e-5,
    "matmul_add": 2e-5,
    "matmul_row": 2e-5,
    "matmul_row_add": 2e-5,
    "matmul_gated": 2e-5,
    "norm_add": 4e-6,
    # Of mixtures of experts: who is chosen must be the same.
    "top_experts": 4e-6,
    "expert_matmul": 2e-5,
    "weighted_sum": 2e-6,
    "gate_rows": 4e-6,
    "expert_gated": 2e-5,
    "expert_add": 2e-5,
    # Of the head's largest number; of what is stored in other types than f32, as kv_write.
    "rope_write": 4e-6,
    "concat": 0.0,
    "columns": 0.0,
    # In steps of the state's type, to whose neighbour a number may be rounded; see _steps_off.
    "kv_write": 1.01,
}
# A step that is off by rounding alone is off by far less than half of one on average.
_MEAN_STEPS = 0.25
# Devices may flush numbers below the smallest normal one to zero.
_FLUSHED = 1e-37


@dataclass(frozen=True)
class Verdict:
    """How one node compares with NumPy."""

    op: str
    format: str | None
    """Of the weight or the KV state that it reads or writes, if any."""
    name: str
    """Of what it makes."""
    layer: int | None
    inputs: tuple[tuple[int, ...], ...]
    """Shapes."""
    output: tuple[int, ...]
    error: float
    """The worst, in the units of ``tolerance``; inf for a NaN or another shape."""
    tolerance: float
    index: tuple[int, ...] | None = None
    """Of the worst element; None when all are equal or the shape is wrong."""
    got: float | None = None
    want: float | None = None

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        place = "" if self.layer is None else f"layer {self.layer}: "
        fmt = "" if self.format is None else f" {self.format}"
        taken = ", ".join(str(list(s)) for s in self.inputs)
        right = "the same step node by node" if self.op == REPLAY else "NumPy"
        text = f"{place}{self.op}{fmt} {printable(self.name)} of {taken} → {list(self.output)} differs from {right}"
        if self.index is None:
            return f"{text}, which makes another shape"
        return (
            f"{text}: error {self.error:.3g} where {self.tolerance:.3g} is allowed, "
            f"at {list(self.index)} {self.got:.9g} instead of {self.want:.9g}"
        )


class NodeChecker:
    """A ``Trace`` of one program. ``begin`` before each step; ``record`` gets the verdicts, and may raise.

    Keeps its own copy of the state: what a node does not write must stay as it was.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, TensorView],
        options: LoadOptions,
        record: Callable[[Verdict], None],
    ) -> None:
        """``graph`` is the one that the program runs: textbook, or fused with bodies."""
        self.graph = graph
        self.weights = weights
        self.options = options
        self.record = record
        self._vectors = {
            t.name: weights[t.name].array() for t in graph.of_kind("weight") if len(t.shape) == 1
        }
        self._states: dict[str, Any] = {}
        for t in graph.of_kind("state"):
            shape = tuple(d if isinstance(d, int) else options.sizes[d] for d in t.shape)
            i32 = t.dtype == "i32"
            self._states[t.name] = np.full(shape, -1, np.int32) if i32 else np.zeros(shape, np.float32)
        self._known = {name: np.ones(len(state), bool) for name, state in self._states.items()}
        self._last_reader = {name: n.outputs[0] for n in graph.nodes for name in n.inputs}
        # What the tail reads of the body stays until the next step: the tail may run in parts.
        self._dead: dict[str, list[str]] = {}
        for name, reader in self._last_reader.items():
            tensor = graph.tensors[name]
            if tensor.kind == "temp" and self._in_tail(name) == self._in_tail(reader):
                self._dead.setdefault(reader, []).append(name)
        self._values: dict[str, Array | Ints] = {}
        self._done: dict[str, int] = {}

    def begin(self, inputs: Mapping[str, Array | Ints]) -> None:
        """A step is about to run with these inputs."""
        self._values = dict(inputs)
        self._done = {}

    def truncate(self, slot: int, length: int) -> None:
        """The program was told the same."""
        for state in self._states.values():
            if state.dtype == np.int32:
                row = state[slot]
                row[row >= length] = -1

    def forget(self, slot: int | None = None) -> None:
        """Something else than a step has changed a slot's state (None: that of all).

        The first node that writes to it is believed what it shows of other cells.
        """
        for known in self._known.values():
            known[slice(None) if slot is None else slot] = False

    def __call__(self, node: Node, made: Mapping[str, Array | Ints]) -> None:
        with np.errstate(all="ignore"):
            verdicts = list(self._judge(node, made))
        for name in node.outputs:
            if name in self._last_reader and name not in self._states:
                self._values[name] = made[name]
        for name in self._dead.get(node.outputs[0], ()):
            self._values.pop(name, None)
        if self._in_tail(node.outputs[0]):
            self._done[node.outputs[0]] = self._done.get(node.outputs[0], 0) + len(made[node.outputs[0]])
        for verdict in verdicts:
            self.record(verdict)

    def _in_tail(self, name: str) -> bool:
        return OUT_ROWS in self.graph.tensors[name].shape

    def _judge(self, node: Node, made: Mapping[str, Array | Ints]) -> Iterator[Verdict]:
        if node.op in ("cell_write", "kv_write"):
            yield self._judge_state(node, made[node.outputs[0]])
            return
        args = {name: self._value(name, node, made) for name in node.inputs}
        if node.op == "rope_write":
            yield from self._judge_rope_write(node, args, made)
            return
        outputs: dict[str, Any] = dict(made)
        if node.op == "mask":
            self._show_lacking(node, args, outputs)
        for name, (want, size) in zip(node.outputs, make(node, args), strict=True):
            got = outputs[name]
            if node.op == "mask":
                got = np.where(got <= HIDDEN, np.float32(-np.inf), got)
                want = np.where(want <= HIDDEN, np.float32(-np.inf), want)
            error, index = _worst(got, want, size)
            shapes = [args[n].shape for n in node.inputs]
            yield self._verdict(node, name, shapes, got, want, error, index)

    def _value(self, name: str, node: Node, made: Mapping[str, Array | Ints]) -> Any:
        """An input as the node saw it; of state the cells that it looked at."""
        tensor = self.graph.tensors[name]
        if tensor.kind == "weight":
            return self._vectors[name] if name in self._vectors else self.weights[name]
        if tensor.kind == "state":
            state = self._states[name]
            if node.op == "rope_write":
                return state
            if node.op == "attention":
                # No cell holds a position below its own number: no row sees those beyond the last position.
                used = int(self._values[node.inputs[4]].max()) + 1
                return state[:, :used] if state.ndim == 2 else state[:, :, :used]
            if node.op in ("attn_scores", "attn_values"):
                scores = made[node.outputs[0]] if node.op == "attn_scores" else self._values[node.inputs[0]]
                return state[:, :, : scores.shape[-1]]
            return state
        value = self._values[name]
        if tensor.kind == "input" and OUT_ROWS in tensor.shape:
            first = self._done.get(node.outputs[0], 0)
            value = value[first : first + len(made[node.outputs[0]])]
        return value

    def _show_lacking(self, node: Node, args: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Cells that a mask left out are hidden, and a row that should see one of them shows it."""
        scores, cell_pos, pos, slot = node.inputs
        seen = args[scores].shape[-1]
        if lacks_cells(args[cell_pos], args[pos], args[slot], node.attrs["window"], seen):
            more = ((0, 0), (0, 0), (0, args[cell_pos].shape[1] - seen))
            args[scores] = np.pad(args[scores], more)
            outputs[node.outputs[0]] = np.pad(outputs[node.outputs[0]], more, constant_values=HIDDEN)
        else:
            args[cell_pos] = args[cell_pos][:, :seen]

    def _judge_rope_write(
        self, node: Node, args: Mapping[str, Any], made: Mapping[str, Array | Ints]
    ) -> Iterator[Verdict]:
        values = make_body(node, args)
        shapes = [args[n].shape for n in node.inputs]
        q = node.outputs[0]
        error, index = _worst(made[q], values[q].want, values[q].size)
        yield self._verdict(node, q, shapes, made[q], values[q].want, error, index)
        for inner in node.body:
            if inner.op == "kv_write":
                state, x, pos, slot = inner.inputs
                yield self._judge_cells(
                    inner, node, shapes, values[x].want, args[pos], args[slot], made[state], exact=False
                )

    def _judge_state(self, node: Node, got: Array | Ints) -> Verdict:
        name, state = node.outputs[0], self._states[node.outputs[0]]
        args: list[Any] = [state if n == name else self._values[n] for n in node.inputs]
        shapes = [a.shape for a in args]
        if node.op == "kv_write":
            x, pos, slot = args[1:]
            return self._judge_cells(node, node, shapes, x, pos, slot, got, exact=True)
        error, index, want = float("inf"), None, state
        if got.shape == state.shape:
            want = self._before(name, got)
            kernels.cell_write(want, *args[1:])
            error, index = _worst(got, want, np.ones_like(want))
            state[...] = got
            self._known[name][:] = True
        return self._verdict(node, name, shapes, got, want, error, index)

    def _judge_cells(
        self,
        write: Node,
        node: Node,
        shapes: list[tuple[int, ...]],
        x: Array,
        pos: Ints,
        slot: Ints,
        got: Array | Ints,
        *,
        exact: bool,
    ) -> Verdict:
        """What ``write`` (kv_write) leaves of x, which may be off by rounding unless ``exact``; ``node`` has it in its
        body, or is it."""
        name, state = write.outputs[0], self._states[write.outputs[0]]
        error, index, want = float("inf"), None, state
        if got.shape == state.shape:
            error, index, want = self._written(name, self._before(name, got), x, pos, slot, got, exact)
            state[...] = got
            self._known[name][:] = True
        return self._verdict(node, name, shapes, got, want, error, index, state=name)

    def _before(self, name: str, got: Array | Ints) -> Any:
        """The state as it was; where that is not known, as it is now."""
        state = self._states[name]
        known = self._known[name].reshape(-1, *[1] * (state.ndim - 1))
        return np.where(known, state, got.astype(state.dtype))

    def _written(
        self, name: str, before: Array, x: Array, pos: Ints, slot: Ints, got: Array | Ints, exact: bool
    ) -> tuple[float, tuple[int, ...] | None, Array]:
        """The error of the cells that a step writes, infinite where another cell has changed."""
        cells = pos % before.shape[2]
        kv_type = self.options.kv_type_of(name)
        want, step = written(x, kv_type)
        if kv_type == "f32" and not exact:
            step = np.abs(x).max(axis=-1, keepdims=True)
            error, index = _worst(got[slot, :, cells], want, step)
        else:
            error, index = _steps_off(got[slot, :, cells], want, step, kv_type)
        if index is not None:
            r, *rest = index
            index = (int(slot[r]), rest[0], int(cells[r]), *rest[1:])
        before[slot, :, cells] = want
        changed = (got != before) & ~(np.isnan(got) & np.isnan(before))
        changed[slot, :, cells] = False
        if changed.any():
            error, index = float("inf"), _index(int(changed.argmax()), changed.shape)
        return error, index, before

    def _verdict(
        self,
        node: Node,
        name: str,
        shapes: list[tuple[int, ...]],
        got: Any,
        want: Any,
        error: float,
        index: tuple[int, ...] | None,
        state: str | None = None,
    ) -> Verdict:
        """``state``: the name of a KV state that it is of."""
        fmt = self._format(node)
        tolerance = TOLERANCES[node.op]
        if state is not None:
            fmt = self.options.kv_type_of(state)
            if fmt != "f32":
                tolerance = TOLERANCES["kv_write"]
            elif node.op == "kv_write":
                tolerance = 0.0
        numbers = (None, None) if index is None else (float(got[index]), float(want[index]))
        return Verdict(
            node.op,
            fmt,
            name,
            node.layer,
            tuple(tuple(map(int, s)) for s in shapes),
            got.shape,
            error,
            tolerance,
            index,
            *numbers,
        )

    def _format(self, node: Node) -> str | None:
        for name in node.inputs:
            tensor = self.graph.tensors[name]
            if tensor.kind == "weight" and len(tensor.shape) > 1:
                return tensor.dtype
            if tensor.kind == "state" and tensor.dtype != "i32":
                return self.options.kv_type_of(name)
        return None


def _worst(got: Any, want: Any, size: Any) -> tuple[float, tuple[int, ...] | None]:
    """The largest error in units of ``size``, and where it is; None where all is equal, or the shape is another."""
    if got.shape != want.shape:
        return float("inf"), None
    if not got.size:
        return 0.0, None
    got, want = got.astype(np.float64), want.astype(np.float64)
    off = np.abs(got - want)
    # WGSL promises nothing of NaNs, nor of what is beyond float32; who made the first is another verdict's.
    same = (got == want) | (off < _FLUSHED) | np.isnan(want) | (np.isinf(want) & np.isnan(got))
    # A size that is no number allows nothing.
    errors = np.where(same, 0, off / np.where(np.isfinite(size) & (size > _FLUSHED), size, _FLUSHED))
    errors[np.isnan(errors)] = np.inf
    index = _index(int(errors.argmax()), errors.shape)
    error = float(errors[index])
    return error, index if error else None


def _steps_off(got: Any, want: Array, step: Array, kv_type: str) -> tuple[float, tuple[int, ...] | None]:
    """How many steps of a KV type the worst number is off; more where many are, as wrong rounding makes them."""
    error, index = _worst(got, want, step)
    if kv_type != "f32" and np.isfinite(error):
        finite = np.isfinite(want)
        total = float((np.abs(got - want)[finite] / step[finite]).sum())
        error = max(error, total / max(1, finite.sum()) / _MEAN_STEPS)
    return error, index


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, np.unravel_index(flat, shape)))


def run_checked(program: Program, checker: NodeChecker, inputs: Mapping[str, Array | Ints]) -> None:
    """Runs a step node by node with ``checker``, and again in one go as users run it, which must make the same.

    To write the same rows a second time leaves the state as it is.
    """
    checker.begin(inputs)
    traced = program.run(inputs, trace=checker)
    for name, got in program.run(inputs).items():
        error, index = _worst(got, traced[name], np.ones((), np.float32))
        numbers = (None, None) if index is None else (float(got[index]), float(traced[name][index]))
        shapes = tuple(np.shape(a) for a in inputs.values())
        checker.record(
            Verdict(REPLAY, None, name, None, shapes, got.shape, error, TOLERANCES[REPLAY], index, *numbers)
        )


def check_case(executor: Executor, case: Case) -> list[Verdict]:
    """Runs a case's steps; the verdicts of all nodes. Raises DeviceError for what the device refuses."""
    verdicts: list[Verdict] = []
    program = executor.load(case.graph, case.weights, case.options)
    try:
        checker = NodeChecker(program.graph, case.weights, program.options, verdicts.append)
        for inputs in case.steps:
            run_checked(program, checker, inputs)
    finally:
        program.close()
    return verdicts


MODEL_STEPS = (33, 7, 1, 1)
"""Rows of the steps of ``check_model``."""


def check_model(
    program: Program, weights: Mapping[str, TensorView], vocab_size: int, record: Callable[[Verdict], None]
) -> None:
    """Runs some tokens through a model on slot 0, which is empty: a prompt in two steps, then single tokens."""
    checker = NodeChecker(program.graph, weights, program.options, record)
    start = 0
    for rows in MODEL_STEPS:
        tokens = [(1 + 7919 * p) % vocab_size for p in range(start, start + rows)]
        run_checked(program, checker, Step.of(tokens, start, out_rows=sorted({0, rows - 1})).inputs())
        start += rows


def watch(pipeline: Pipeline, weights: Mapping[str, TensorView], record: Callable[[Verdict], None]) -> None:
    """Checks every step that a pipeline runs from now on. The first node that differs raises MismatchError."""

    def strictly(verdict: Verdict) -> None:
        record(verdict)
        if not verdict.ok:
            raise MismatchError(str(verdict))

    pipeline.checkers = [NodeChecker(p.graph, weights, p.options, strictly) for p in pipeline.programs]
    for checker in pipeline.checkers:
        checker.forget()
