"""What a worker's two processes say to each other: JSON behind a length, so that reading it can run nothing.

A message is an object with a ``type``. To the child: ``call`` (method, arguments), ``generate``, ``cancel``, ``stop``.
To the parent: ``loading``, ``notice``, ``prefilling``, ``events``, ``failed`` (a generation), ``reply`` and ``error``
(of a call).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Any

from wgllm import errors
from wgllm.engine import Event, FinishReason, Request, Stats
from wgllm.errors import UsageError, WgllmError
from wgllm.sampling import SamplingParams

Message = dict[str, Any]

GREETING = b"wgllm worker\n"
"""The child's first line, before which Python's start-up may have written anything."""

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class ModelFacts:
    """What a front end shows of a loaded model. Texts come from the file, without control characters."""

    name: str
    path: str | None
    """None for a ``FakeEngine``."""
    architecture: str
    quantization: str
    """The format of most bytes: ``Q4_K``."""
    parameters: int
    nbytes: int
    """Of all tensors as they lie in the file."""
    license: str | None
    ctx_size: int
    n_ctx_train: int
    vocab_size: int
    kv_type: str
    where: str
    """What computes, and why: ``webgpu on Radeon 780M (integrated, Vulkan)``."""
    has_template: bool
    load_seconds: float


def pack(message: Message) -> bytes:
    """The message as it goes through a pipe. Raises UsageError for what is not plain data."""
    try:
        data = json.dumps(message, separators=(",", ":"), default=_plain).encode("ascii")
        return _LENGTH.pack(len(data)) + data
    except (TypeError, ValueError, RecursionError, struct.error) as error:
        raise UsageError(f"a worker takes only plain data: {error}") from None


def read_message(stream: IO[bytes]) -> Message | None:
    """The next message, None at the pipe's end. Raises ValueError for what ``pack`` did not write."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        return None
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("a message must be an object")
    return message


def _plain(value: object) -> Any:
    """NumPy's numbers, paths and other mappings as JSON has them."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is none")


def request_to_wire(request: Request) -> dict[str, Any]:
    wire = {f.name: getattr(request, f.name) for f in fields(request)}
    return wire | {
        "tokens": list(request.tokens),
        "given": list(request.given),
        "stop": list(request.stop),
        "sampling": sampling_to_wire(request.sampling),
    }


def request_from_wire(wire: dict[str, Any]) -> Request:
    return Request(**wire | {"stop": tuple(wire["stop"]), "sampling": sampling_from_wire(wire["sampling"])})


def sampling_to_wire(params: SamplingParams) -> dict[str, Any]:
    wire = {f.name: getattr(params, f.name) for f in fields(params)}
    return wire | {"logit_bias": list(params.logit_bias.items())}  # JSON's keys are texts


def sampling_from_wire(wire: dict[str, Any]) -> SamplingParams:
    return SamplingParams(**wire | {"logit_bias": dict(wire["logit_bias"])})


def event_to_wire(event: Event, request: int) -> list[Any]:
    """Three items for the usual token, a fourth with all else. ``request`` is the parent's number."""
    wire: list[Any] = [request, event.text, event.token_id]
    rest: dict[str, Any] = {}
    if event.finish is not None:
        stats = None if event.stats is None else asdict(event.stats)
        rest = {"finish": event.finish.value, "stats": stats, "stopped_by": event.stopped_by}
    if event.logprob is not None:
        rest |= {"logprob": event.logprob, "top": event.top_logprobs}
        rest |= {"kept": event.kept, "n_kept": event.n_kept}
    return [*wire, rest] if rest else wire


def event_from_wire(wire: list[Any]) -> Event:
    request, text, token_id, *more = wire
    if not more:
        return Event(request, text, token_id)
    (rest,) = more
    finish, stats = rest.get("finish"), rest.get("stats")
    return Event(
        request,
        text,
        token_id,
        finish=None if finish is None else FinishReason(finish),
        stats=None if stats is None else Stats(**stats),
        stopped_by=rest.get("stopped_by"),
        logprob=rest.get("logprob"),
        top_logprobs=tuple((token, logprob) for token, logprob in rest.get("top", ())),
        kept=tuple((token, probability) for token, probability in rest.get("kept", ())),
        n_kept=rest.get("n_kept"),
    )


def error_to_wire(error: BaseException) -> dict[str, Any]:
    """The class, or the one of ``wgllm.errors`` above it, text, and what else it holds (a ModelFileError's path)."""
    if isinstance(error, WgllmError):
        known = next(c for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
        held = {name: str(value) for name, value in vars(error).items() if isinstance(value, str | Path)}
        return {"class": known.__name__, "text": str(error), "held": held}
    if isinstance(error, MemoryError):
        text = "out of memory; a smaller context or a smaller model may fit"
    elif isinstance(error, OSError):
        place = f"{errors.printable(str(error.filename))}: " if error.filename is not None else ""
        text = f"{place}{error.strerror or error}"
    else:
        text = f"internal error: {type(error).__name__}: {error}"
    return {"class": "WorkerError", "text": " ".join(text.split()), "held": {}}


def error_from_wire(wire: dict[str, Any]) -> WgllmError:
    """The error as it was raised in the child, so that its exit code is the same."""
    kind: type[WgllmError] = getattr(errors, wire["class"])
    error = kind.__new__(kind)
    error.args = (wire["text"],)
    for name, value in wire["held"].items():
        setattr(error, name, Path(value) if name == "path" else value)
    return error
