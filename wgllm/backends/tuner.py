"""Measures which kernel computes a product fastest on a device, within a budget of time.

Candidates are taken one after the other, first those that are most like the best so far. Each must make what NumPy
makes of the same numbers. Dispatches are timed in submissions of some milliseconds, in which copies of the weights
take turns that no cache holds together; in the end the best and the default once more, in turns.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from wgllm.backends.device import Device, OutOfDeviceMemory
from wgllm.backends.product_trial import Arena, Kernel, Trial, weight_layout
from wgllm.product_shape import Choice, Product, Target, candidates
from wgllm.tuning import DeviceFacts, Verdict

SECONDS = 2.0
"""For all products together, with the compiling."""
_RUNS = 5
# The default stays unless another takes this share of its time at most.
_CLEARLY = 0.95
# What takes so many times as long as the best is not timed again.
_HOPELESS = 1.3
# A dispatch of a slow card may take a tenth of a second: of a product that takes longer than this only a part is
# measured. The pace is known after one of so many multiplications. Parts keep so many outputs that all cores are busy.
_LONG, _FEW, _LEAST_OUTPUTS = 0.005, 1 << 27, 256
# Larger than the caches of graphics cards. A processor's are smaller, and its memory is filled slowly.
_ARENA, _ARENA_SOFTWARE, _LEAST_ARENA = 256 << 20, 16 << 20, 4 << 20


def device_facts(device: Device) -> DeviceFacts:
    """By which a device's table is kept."""
    info = device.adapter.handle.info
    return DeviceFacts(
        device.adapter.name,
        int(info.get("vendor_id") or 0),
        int(info.get("device_id") or 0),
        device.adapter.interface,
        str(info.get("description") or ""),
        device.subgroup,
        device.limits["max-compute-invocations-per-workgroup"],
        device.limits["max-compute-workgroup-storage-size"],
    )


def tune(
    device: Device,
    target: Target,
    products: Sequence[Product],
    *,
    seconds: float = SECONDS,
    memory: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Product, Verdict]:
    """What is best for each of ``products``: buckets, the most important first.

    All of them get a verdict, the default where time ran out, so that none is ever measured again. ``memory`` bounds
    the bytes of the device that weights take meanwhile. Raises DeviceError when the device fails.
    """
    deadline = clock() + seconds
    verdicts = {product: Verdict() for product in products}
    choices = {product: list(candidates(product, target)) for product in products}
    waiting = [product for product in products if len(choices[product]) > 1]
    if not waiting:
        return verdicts
    pace = 0.0
    with _arena(device, target, waiting, memory) as arena:
        for i, product in enumerate(waiting):
            if (now := clock()) >= deadline:
                break
            share = (deadline - now) / (len(waiting) - i)
            # Without room for its weights, or for its rows, the default stays.
            if 4 * weight_layout(product).size > arena.size:
                continue
            with contextlib.suppress(OutOfDeviceMemory):
                if not pace and product.multiplications > _FEW:
                    with Trial(device, target, _part(product, _FEW), arena) as trial:
                        pace = _pace(trial, choices[product])
                part = _part(product, max(_FEW, pace * _LONG))
                with Trial(device, target, part, arena) as trial:
                    found = _in_part(part, product, choices[product])
                    verdicts[product] = _verdict(trial, found, now + share, clock)
    device.wait()  # a device that was lost says so here
    return verdicts


def _part(product: Product, most: float) -> Product:
    """The first outputs of a product, so many that it has about as many multiplications as ``most``, or all."""
    outputs = product.outputs
    while replace(product, outputs=outputs).multiplications > most and outputs >= 2 * _LEAST_OUTPUTS:
        outputs //= 2
    return replace(product, outputs=outputs)


def _in_part(part: Product, product: Product, choices: list[Choice]) -> list[Choice]:
    """What can be told from the part: it has fewer tiles than the product, for which more splits are no gain."""
    return choices if part == product else [c for c in choices if c.splits <= choices[0].splits]


def _pace(trial: Trial, choices: Sequence[Choice]) -> float:
    """Multiplications per second, by the first kernel that is right."""
    for choice in choices:
        if kernel := trial.kernel(choice):
            return trial.product.multiplications / trial.seconds(kernel)
    return 0.0


@contextlib.contextmanager
def _arena(
    device: Device, target: Target, products: Sequence[Product], memory: int | None
) -> Iterator[Arena]:
    """Weights for all products, as large as is useful and possible. Raises OutOfDeviceMemory."""
    largest = max(4 * weight_layout(product).size for product in products)
    size = max(largest, _ARENA_SOFTWARE if target.software else _ARENA)
    size = min(size, target.limits.buffer, size if memory is None else memory)
    while True:
        size = max(size // 256 * 256, _LEAST_ARENA)
        try:
            arena = Arena(device, size)
            break
        except OutOfDeviceMemory:
            if size == _LEAST_ARENA:
                raise
            size //= 2
    try:
        yield arena
    finally:
        arena.close()


class _Timed(NamedTuple):
    choice: Choice
    kernel: Kernel
    seconds: float


def _verdict(trial: Trial, choices: Sequence[Choice], until: float, clock: Callable[[], float]) -> Verdict:
    """``choices``: the default first, which is measured in any case."""
    usual: _Timed | None = None
    best: _Timed | None = None
    left = list(choices)
    while left and (len(left) == len(choices) or clock() < until):
        choice = min(left, key=lambda c: _distance(c, best.choice if best else choices[0]))
        left.remove(choice)
        kernel = trial.kernel(choice)
        if kernel is None:
            continue
        timed = _Timed(choice, kernel, _seconds(trial, kernel, best.seconds if best else math.inf))
        if choice == choices[0]:
            usual = timed
        if best is None or timed.seconds < best.seconds:
            best = timed
    if best is None:
        return Verdict()
    if usual is None:  # it is wrong here
        return Verdict(best.choice, 0.0, 1e6 * best.seconds)
    if best is usual:
        return Verdict(None, 1e6 * usual.seconds, 1e6 * usual.seconds)
    # Devices get faster and slower: now both under the same circumstances.
    runs = [(trial.seconds(usual.kernel), trial.seconds(best.kernel)) for _ in range(_RUNS)]
    before, after = (statistics.median(times) for times in zip(*runs, strict=True))
    return Verdict(best.choice if after <= _CLEARLY * before else None, 1e6 * before, 1e6 * after)


def _seconds(trial: Trial, kernel: Kernel, best: float) -> float:
    """Of a dispatch: the median of several runs, or of a single one where that is far from the best."""
    first = trial.seconds(kernel)
    if first > _HOPELESS * best:
        return first
    return statistics.median(trial.seconds(kernel) for _ in range(_RUNS))


def _distance(a: Choice, b: Choice) -> float:
    """How much two choices differ: in doublings of their sizes."""
    doublings = sum(
        abs(math.log2(x / y))
        for x, y in (
            (a.workgroup, b.workgroup),
            (a.rows, b.rows),
            (a.outputs, b.outputs),
            (a.splits, b.splits),
        )
    )
    return doublings + (a.subgroups != b.subgroups) + 10 * (a.kernel != b.kernel)
