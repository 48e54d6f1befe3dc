"""The dispatches that choose the next token of one row of logits, and hand it to the next step.

Parts ``greedy`` and ``draw`` of a plan. Of many candidates the first dispatches leave what one workgroup can take. For
``draw`` the best of each of KEEP chunks are a sample: KEEP candidates are not worse than the worst of these, so that
nobody has to sort the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wgllm.launches import Launch
from wgllm.plan import Part, Region
from wgllm.sampler_words import MOST_CANDIDATES

# Candidates that one workgroup can take.
_AT_ONCE = 4096
_KEEP = MOST_CANDIDATES
_PAIR_BYTES = 8
# Invocations of a workgroup on software, which pays for each barrier.
_SOFTWARE_WORKGROUP = 8


@dataclass(frozen=True)
class SamplingPlaces:
    """Where a plan has what sampling needs."""

    logits: Region
    vocab_size: int
    token: Region
    pos: Region
    request: Region
    taken: Region
    left: tuple[Region, ...]
    """Scratch: the best of chunks, and what is left of the candidates."""
    software: bool = False
    """Whether the device is software that imitates one."""


def scratch_sizes(vocab_size: int) -> tuple[int, ...]:
    """Bytes of each of ``SamplingPlaces.left``."""
    if vocab_size <= _AT_ONCE:
        return ()
    return (_PAIR_BYTES * -(-vocab_size // _sample_size(vocab_size)), _PAIR_BYTES * _AT_ONCE)


def sampling_launches(part: Part, places: SamplingPlaces) -> Iterator[Launch]:
    """Of ``greedy`` or ``draw``."""
    own = {"WORKGROUP": _SOFTWARE_WORKGROUP} if places.software else {}
    keep = {"KEEP": _KEEP}
    count, candidates, kind = places.vocab_size, places.logits, "logits"

    def launch(kernel: str, constants: dict[str, int], bindings: Sequence[Region], groups: int) -> Launch:
        files = (f"kernels/{kernel}.wgsl", f"candidates/{kind}.wgsl")
        return Launch(files, kernel, {"COUNT": count, **own, **constants}, bindings, groups, count)

    if count > _AT_ONCE:
        samples, left = places.left
        size = _sample_size(count)
        chunks = -(-count // size)
        yield launch("largest_candidate", {"SIZE": size}, [candidates, samples], chunks)
        if part == "greedy":
            count, candidates, kind = chunks, samples, "pairs"
        else:
            size = -(-count // (_AT_ONCE // _KEEP))
            chunks = -(-count // size)
            yield launch("best_candidates", {"SIZE": size, **keep}, [candidates, left, samples], chunks)
            count, candidates, kind = chunks * _KEEP, left, "pairs"
    bindings = [candidates, places.token, places.pos, places.taken]
    if part == "greedy":
        yield launch("greedy_token", {}, bindings, 1)
    else:
        yield launch("draw_token", keep, [*bindings, places.request], 1)


def _sample_size(vocab_size: int) -> int:
    """Of how many candidates the best is a sample. There are KEEP samples at least."""
    return vocab_size // _KEEP
