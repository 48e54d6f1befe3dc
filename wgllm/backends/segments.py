"""A run is a list of segments, each a subgraph on an executor of its own; boundary tensors pass between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Protocol

import numpy as np

from wgllm.backends.base import Array, Ints, Program, StateArray, Step, StepsAhead, Trace
from wgllm.errors import NumericError
from wgllm.graph import Node


class Checker(Protocol):
    """Looks at what each node of a program makes, and may raise."""

    def begin(self, inputs: Mapping[str, Array | Ints]) -> None:
        """A step is about to run."""

    def __call__(self, node: Node, made: Mapping[str, Array | Ints]) -> None:
        """As ``Trace``."""

    def truncate(self, slot: int, length: int) -> None:
        """The program forgets positions from ``length`` on."""

    def forget(self, slot: int | None = None) -> None:
        """Something else than a step, or only part of one, has changed a slot's state (None: that of all)."""


class Pipeline:
    """Runs steps through programs in order. One program is the usual case."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.programs = list(programs)
        self.checkers: Sequence[Checker] = ()
        """None, or one for each program: it traces all steps that nothing else does."""

    def run(
        self, step: Step, *, interrupt: Callable[[], None] | None = None, trace: Trace | None = None
    ) -> Array:
        """The logits [N, V] of the step's ``out_rows``."""
        values: dict[str, Array | Ints] = step.inputs()
        try:
            for program, checker in zip_longest(self.programs, self.checkers):
                if checker is not None:
                    checker.begin(values)
                values.update(program.run(values, interrupt=interrupt, trace=trace or checker))
        except BaseException:
            for checker in self.checkers:
                checker.forget()
            raise
        logits = values["logits"]
        assert logits.dtype == np.float32
        return logits  # type: ignore[return-value]

    def steps_ahead(self) -> StepsAhead | None:
        """None when a step needs more than one program, or when its nodes are looked at."""
        return self.programs[0].steps_ahead() if len(self.programs) == 1 and not self.checkers else None

    def first_bad_node(self, step: Step) -> Node | None:
        """Runs the step again and returns the first node that makes a NaN or an infinity."""

        class Found(Exception):
            pass

        bad: list[Node] = []

        def look(node: Node, made: Mapping[str, Array | Ints]) -> None:
            # A mask makes -inf on purpose.
            if node.op != "mask" and not all(
                np.isfinite(a).all() for a in made.values() if a.dtype == np.float32
            ):
                bad.append(node)
                raise Found

        try:
            self.run(step, trace=look)
        except Found:
            return bad[0]
        return None

    def truncate(self, slot: int, length: int) -> None:
        for program in self.programs:
            program.truncate(slot, length)
        for checker in self.checkers:
            checker.truncate(slot, length)

    def save_state(self, slot: int) -> list[dict[str, StateArray]]:
        """What each program holds of a slot."""
        return [program.save_state(slot) for program in self.programs]

    def load_state(
        self, slot: int, arrays: Sequence[Mapping[str, StateArray]], length: int, lost: Mapping[str, int]
    ) -> None:
        """Raises ValueError when the arrays are not those of these programs; the slot may then be half loaded."""
        if len(arrays) != len(self.programs):
            raise ValueError("the model is cut into other segments")
        for checker in self.checkers:
            checker.forget(slot)
        for program, own in zip(self.programs, arrays, strict=True):
            program.load_state(slot, own, length, lost)

    def wipe(self, slot: int) -> None:
        for program in self.programs:
            program.wipe(slot)
        for checker in self.checkers:
            checker.forget(slot)

    def close(self) -> None:
        for program in self.programs:
            program.close()
        self.programs.clear()
        self.checkers = ()


def numeric_error(node: Node | None) -> NumericError:
    """The error of a step whose logits hold a NaN or an infinity, first seen in what ``node`` made."""
    if node is None:
        return NumericError(
            "the logits hold a NaN or an infinity, which running the step again does not show"
        )
    place = "outside the layers" if node.layer is None else f"in layer {node.layer}"
    return NumericError(
        f"the model's numbers became NaN or infinite, first {place} ({node.op} {node.outputs[0]}); "
        "the file may be damaged"
    )
