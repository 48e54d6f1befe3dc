"""What an executor is, and the step: the only unit of work there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wgllm.formats.model_file import TensorView
from wgllm.graph import Graph, Node
from wgllm.sampler_words import DeviceSampling

Array = NDArray[np.float32]
Ints = NDArray[np.int32]

StateArray = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.int32]

Trace = Callable[[Node, Mapping[str, Array | Ints]], None]
"""Called after each node with what it made, by name; of state, all of it."""


@dataclass(frozen=True)
class Step:
    """R rows to compute. Prefill, decode, several sequences, a draft to verify: all are steps.

    Rows of one slot have increasing positions, and follow on what the slot holds without a gap.
    """

    token: Ints
    """[R] token ids."""
    pos: Ints
    """[R] positions in their sequences."""
    slot: Ints
    """[R] which sequence each row belongs to."""
    out_rows: Ints
    """[N] the rows that get logits."""

    @staticmethod
    def of(tokens: Sequence[int], start: int, *, slot: int = 0, out_rows: Sequence[int] = ()) -> Step:
        """Consecutive ``tokens`` of one slot from position ``start``."""
        n = len(tokens)
        return Step(
            token=np.asarray(tokens, np.int32),
            pos=np.arange(start, start + n, dtype=np.int32),
            slot=np.full(n, slot, np.int32),
            out_rows=np.asarray(out_rows, np.int32),
        )

    def inputs(self) -> dict[str, Array | Ints]:
        """The step as the graph's input tensors."""
        return {"token": self.token, "pos": self.pos, "slot": self.slot, "out_rows": self.out_rows}


@dataclass(frozen=True)
class LoadOptions:
    """How a graph is loaded, for every executor."""

    sizes: Mapping[str, int]
    """Values of the graph's named sizes: ``slots`` and the cell counts."""
    kv_type: str = "f32"
    """How KV state is stored: f32, f16, q8_0, q4_0. Of keys alone, where ``kv_type_v`` says it of values."""
    memory: int | None = None
    """Bytes that weights may take; None: what the machine has."""
    threads: int | None = None
    progress: Callable[[int, int], None] | None = None
    """Called with the bytes of weights read and their total."""
    kv_type_v: str | None = None
    fused_attention: bool = True
    """Whether attention may run as one node that never makes the whole matrix of scores."""
    largest_step: int = 256
    """The most rows of a step."""
    ctx_size: int | None = None
    """The most positions of a sequence; None: as many as the largest cell count."""

    @property
    def positions(self) -> int:
        return self.ctx_size or max(self.sizes.values())

    def kv_type_of(self, state: str) -> str:
        """The type of a K or V state tensor, by its name."""
        return self.kv_type_v if self.kv_type_v and state.endswith(".v.state") else self.kv_type


class StepsAhead(Protocol):
    """Steps of one row, each of which chooses the token that the next one reads; results come later."""

    most: int
    """How many may be in flight."""

    @property
    def in_flight(self) -> int:
        """Steps that were submitted, and neither taken nor dropped."""

    def begin(self, sampling: DeviceSampling, draws: int, token: int, pos: int) -> None:
        """The next step reads ``token`` at ``pos`` of slot 0, and chooses as a request with ``draws`` tokens drawn."""

    def submit(self) -> None:
        """One more step."""

    def take(self, interrupt: Callable[[], None] | None = None) -> int | None:
        """The token that the oldest step chose, or None if its logits held a NaN or an infinity.

        Raises what ``interrupt`` raises, which is called while this waits, with the step still in flight.
        """

    def drop(self) -> None:
        """Waits for what is in flight and forgets what it chose; what it wrote to the state is still there."""


class Program(Protocol):
    """A graph loaded by an executor, with its weights and its state."""

    backend: str
    """The name of what computes: ``numpy``, ``webgpu``."""
    graph: Graph
    """What it runs: fused nodes have bodies."""
    options: LoadOptions

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step of one row reads."""

    @property
    def head_bytes(self) -> int:
        """How many of ``weight_bytes`` a step without logits leaves unread."""

    @property
    def products(self) -> tuple[int, int]:
        """Weights that each row, and each row with logits, is multiplied with."""

    def run(
        self,
        inputs: Mapping[str, Array | Ints],
        *,
        interrupt: Callable[[], None] | None = None,
        trace: Trace | None = None,
    ) -> dict[str, Array]:
        """Runs all nodes; returns the graph's outputs by name.

        ``interrupt`` is called between nodes and may raise to give the step up; the state then holds part of it.
        """

    def steps_ahead(self) -> StepsAhead | None:
        """None if it can't choose tokens itself."""

    def truncate(self, slot: int, length: int) -> None:
        """Forgets positions from ``length`` on."""

    def wipe(self, slot: int) -> None:
        """Forgets everything, so that not even a NaN in a cell that nothing sees is left."""

    def save_state(self, slot: int) -> dict[str, StateArray]:
        """A copy of what a slot's state holds, by name: as ``i32`` the last n positions that are there, and for
        each K and V the cells of these, [Hkv, n, D]."""

    def load_state(
        self, slot: int, arrays: Mapping[str, StateArray], length: int, lost: Mapping[str, int]
    ) -> None:
        """Makes ``arrays`` the slot's state, of ``length`` positions; per cell count (``lost``) the first are missing.

        Raises ValueError, with the state as it was, when they are not this program's.
        """

    def close(self) -> None:
        """Frees weights and state."""


class Executor(Protocol):
    fused_ops: frozenset[str]
    """The fused operators that it has kernels for; of others it runs the body."""

    def load(self, graph: Graph, weights: Mapping[str, TensorView], options: LoadOptions) -> Program:
        """Makes a graph ready to run."""
