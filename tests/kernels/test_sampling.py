"""The choice of the next token on a device, beside the samplers on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wgllm.backends.device import Call, Copy, Device
from wgllm.plan import Part, Region
from wgllm.sampler_words import MOST_CANDIDATES, DeviceSampling
from wgllm.sampling import Sampler, SamplingParams, uniform
from wgllm.sampling.samplers import draw
from wgllm.sampling_launches import SamplingPlaces, sampling_launches, scratch_sizes
from wgllm.wgsl import compose

F32 = NDArray[np.float32]
# As a share of all probability: float32 sums of up to 128 numbers.
MARGIN = 1e-5
BOTH = pytest.mark.parametrize("software", [False, True], ids=["cards", "software"])


class Chooser:
    """The dispatches of a part for one size of vocabulary."""

    def __init__(self, device: Device, part: Part, vocab_size: int, *, software: bool) -> None:
        self.device = device
        sizes = [4 * vocab_size, 16, 16, 64, 16, *scratch_sizes(vocab_size)]
        sizes = [-(-size // 16) * 16 for size in sizes]
        logits, token, pos, request, taken, *left = (Region(i, 0, size) for i, size in enumerate(sizes))
        self.buffers = [device.buffer(size, "sampling") for size in sizes]
        self.results = device.readback(16, "results")
        places = SamplingPlaces(
            logits, vocab_size, token, pos, request, taken, tuple(left), software=software
        )
        self.calls = [self._call(launch) for launch in sampling_launches(part, places)]

    def _call(self, launch: Any) -> Call:
        pipeline = self.device.pipeline(compose(*launch.files, constants=launch.constants), launch.entry)
        bindings = [(self.buffers[b], offset, size) for b, offset, size in launch.bindings]
        return Call(pipeline, self.device.bind_group(pipeline, bindings, launch.entry), launch.groups)

    def __call__(self, logits: F32, sampling: DeviceSampling, steps: Sequence[int]) -> list[tuple[int, bool]]:
        """For each of ``steps`` the token, and whether some logit was no number."""
        write = self.device.write
        write(self.buffers[0], 0, logits)
        made = []
        for step in steps:
            write(self.buffers[2], 0, np.array([step], np.int32))
            write(self.buffers[3], 0, sampling.words(step))
            copies = [
                Copy(self.buffers[buffer], 0, size, self.results.buffer, at)
                for buffer, size, at in ((1, 4, 0), (2, 4, 4), (4, 8, 8))
            ]
            self.device.submit(self.calls, copies)
            self.results.request()
            self.results.wait()
            token, pos, taken, bad = np.frombuffer(self.results.read(), np.int32).tolist()
            assert (token, pos) == (taken, step + 1)
            made.append((token, bool(bad)))
        return made


def allowed(logits: F32, params: SamplingParams, step: int) -> set[int]:
    """What the host draws, and what it would a hair beside."""
    found = set()
    for to_p, to_u in product((0.0, MARGIN, -MARGIN), repeat=2):
        near = replace(params, top_p=params.top_p + to_p if params.top_p < 1 else params.top_p)
        sampler = Sampler(near, params.seed or 0)
        u = min(max(uniform(params.seed or 0, step) + to_u, 0.0), 1 - 1e-7)
        found.add(draw(sampler.candidates(logits), u)[0])
    return found


def check_draws(device: Device, logits: F32, params: SamplingParams, steps: int, *, software: bool) -> None:
    sampler = Sampler(params, params.seed or 0)
    sampling = sampler.on_device()
    assert sampling is not None and not sampling.greedy
    choose = Chooser(device, "draw", len(logits), software=software)
    for step, (token, bad) in enumerate(choose(logits, sampling, range(steps))):
        sampler.step = step
        assert not bad
        if token != sampler.sample(logits):
            assert token in allowed(logits, params, step)


@BOTH
@pytest.mark.parametrize("vocab_size", [1, 3, 128, 1000, 4096, 4097, 49152, 262144])
def test_the_default_chain(default_device: Device, vocab_size: int, software: bool) -> None:
    logits = np.random.default_rng(vocab_size).normal(0, 3, vocab_size).astype(np.float32)
    check_draws(default_device, logits, SamplingParams(seed=2**40 + 7), 40, software=software)


CHAINS = {
    "all that a shader keeps": SamplingParams(top_k=MOST_CANDIDATES, top_p=1, min_p=0, temperature=1.7),
    "one candidate": SamplingParams(top_k=1),
    "a small nucleus": SamplingParams(top_p=0.1, min_p=0),
    "no nucleus at all": SamplingParams(top_p=0.0),
    "a high least probability": SamplingParams(min_p=0.9, temperature=1.5),
    "only the most probable": SamplingParams(min_p=1.0),
    "temperature first": SamplingParams(temperature=2.0, samplers=("top_k", "temperature", "min_p", "top_p")),
    "nearly frozen": SamplingParams(temperature=1e-7),
    "without a temperature": SamplingParams(samplers=("top_k", "top_p")),
}


@BOTH
@pytest.mark.parametrize("name", CHAINS)
def test_other_chains(default_device: Device, name: str, software: bool) -> None:
    logits = np.random.default_rng(5).normal(0, 1.5, 6000).astype(np.float32)
    check_draws(default_device, logits, replace(CHAINS[name], seed=11), 60, software=software)


@BOTH
def test_lower_ids_win_ties(default_device: Device, software: bool) -> None:
    rng = np.random.default_rng(1)
    for logits in (
        np.zeros(5000, np.float32),
        np.where(rng.random(9000) < 0.5, -0.0, 0.0).astype(np.float32),
        rng.integers(0, 3, 20000).astype(np.float32),
        -np.arange(30000, dtype=np.float32) // 7,
        np.arange(30000, dtype=np.float32) // 700,
        np.full(4500, -3.0e38, np.float32),
    ):
        check_draws(default_device, logits, SamplingParams(seed=3, temperature=2.0), 10, software=software)
        greedy = Chooser(default_device, "greedy", len(logits), software=software)
        assert greedy(logits, DeviceSampling(), [0]) == [(int(logits.argmax()), False)]


@BOTH
@pytest.mark.parametrize("vocab_size", [1, 65, 1024, 1025, 5000, 151936])
def test_greedy_takes_the_largest(default_device: Device, vocab_size: int, software: bool) -> None:
    rng = np.random.default_rng(vocab_size)
    choose = Chooser(default_device, "greedy", vocab_size, software=software)
    for _ in range(5):
        logits = rng.normal(-40, 30, vocab_size).astype(np.float32)
        assert choose(logits, DeviceSampling(), [0]) == [(int(logits.argmax()), False)]


@BOTH
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_told(default_device: Device, bad: float, software: bool) -> None:
    sampling = Sampler(SamplingParams(), 0).on_device()
    assert sampling is not None
    for vocab_size in (300, 9000):
        logits = np.zeros(vocab_size, np.float32)
        logits[vocab_size // 3] = bad
        for part, how in (("greedy", DeviceSampling()), ("draw", sampling)):
            choose = Chooser(default_device, part, vocab_size, software=software)  # type: ignore[arg-type]
            assert choose(logits, how, [0]) == [(0, True)]


def test_draws_go_on_by_themselves(default_device: Device) -> None:
    """Without the host between them: the device counts draws and positions."""
    logits = np.random.default_rng(9).normal(0, 1, 700).astype(np.float32)
    sampler = Sampler(SamplingParams(seed=4), 4)
    sampling = sampler.on_device()
    assert sampling is not None
    choose = Chooser(default_device, "draw", len(logits), software=True)
    choose(logits, sampling, [10])
    sampler.step = 11
    for step in range(11, 16):
        default_device.submit(
            choose.calls, [Copy(choose.buffers[i], 0, 4, choose.results.buffer, 4 * i) for i in (1, 2)]
        )
        choose.results.request()
        choose.results.wait()
        _, token, pos, _ = np.frombuffer(choose.results.read(), np.int32).tolist()
        assert (token, pos) == (sampler.sample(logits), step + 1)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=0),
        SamplingParams(top_k=MOST_CANDIDATES + 1),
        SamplingParams(repeat_penalty=1.1),
        SamplingParams(presence_penalty=0.1),
        SamplingParams(dynatemp_range=0.5),
        SamplingParams(mirostat=2),
        SamplingParams(logit_bias={3: 1.0}),
        SamplingParams(typical_p=0.9),
        SamplingParams(xtc_probability=0.5),
        SamplingParams(top_n_sigma=1.0),
        SamplingParams(samplers=("top_p", "top_k")),
        SamplingParams(temperature=0, logit_bias={3: 1.0}),
        SamplingParams(temperature=0, repeat_penalty=1.1),
    ],
)
def test_what_only_the_host_does(params: SamplingParams) -> None:
    assert Sampler(params, 1, vocab_size=100).on_device() is None


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(temperature=-1, top_k=0)])
def test_greedy_requests_are_the_device_s(params: SamplingParams) -> None:
    sampling = Sampler(params, 1).on_device()
    assert sampling is not None and sampling.greedy
