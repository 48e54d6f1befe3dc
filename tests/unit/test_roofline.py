"""The least time that a model's tokens take, beside numbers made by hand; and the table of a profile."""

from __future__ import annotations

import math

import pytest

from wgllm.backends.profile import KernelTime, PartTime, table
from wgllm.backends.roofline import Roofline, Work
from wgllm.cli.bench_runs import Case, least_seconds, peak_memory

# 100 GB/s, 1 TFLOP/s, 10 µs.
ROOF = Roofline(100e9, 80e9, 1e12, 1e-5)
# 1 GB of weights in 4 layers of 8 heads, 2 of keys and values in float16, of 64 numbers.
WORK = Work(10**9, 10**9, 10**8, (math.inf,) * 4, 8, 2, 64, 2 + 2)


def test_a_token_reads_weights_and_cells_and_waits_for_dispatches() -> None:
    # 1e9 bytes, 4 layers × 2 heads × 64 numbers × 4 bytes × 1000 positions, and 24 dispatches.
    assert ROOF.decode_seconds(WORK, 1000) == pytest.approx(0.01 + 2_048_000 / 100e9 + 24 * 1e-5)


def test_windows_bound_what_a_token_sees() -> None:
    windows = Work(10**9, 10**9, 10**8, (256, 256, math.inf, 256), 8, 2, 64, 4)
    assert windows.state_bytes(1000) == 2 * 64 * 4 * (3 * 256 + 1000)
    assert windows.state_bytes(100) == WORK.state_bytes(100) == 2 * 64 * 4 * 400


@pytest.mark.parametrize(
    ("tokens", "depth", "window", "seen"),
    [
        (100, 0, math.inf, 5000),  # T²/2
        (100, 50, math.inf, 100 * 50 + 5000),
        (100, 0, 100, 5000),
        (100, 0, 40, 40 * 40 / 2 + 60 * 40),
        (100, 20, 40, 20 * 20 + 20 * 20 / 2 + 80 * 40),
        (100, 70, 40, 100 * 40),
    ],
)
def test_a_prompt_multiplies_and_looks_back(tokens: int, depth: int, window: float, seen: float) -> None:
    work = Work(10**9, 10**9, 10**8, (window,) * 4, 8, 2, 64, 4)
    products = 2 * (10**9 * tokens + 10**8)
    scores = 4 * 4 * 8 * 64 * seen
    assert ROOF.prefill_seconds(work, tokens, depth) == pytest.approx((products + scores) / 1e12)


def test_a_prompt_of_few_tokens_waits_for_the_weights() -> None:
    assert ROOF.prefill_seconds(WORK, 1) == pytest.approx(0.01 + 4 * 4 * 8 * 64 * 0.5 / 1e12)


def test_what_a_kernel_is_bound_by() -> None:
    assert ROOF.share(10**9, 10**9, 0.02) == pytest.approx(0.5)  # its bytes: 10 ms
    assert ROOF.share(10**6, 10**10, 0.02) == pytest.approx(0.5)  # its operations: 10 ms
    assert ROOF.share(10**9, 10**9, 0.0) == 0


def test_cases_of_bench() -> None:
    reads, makes = Case("pp", 512), Case("tg", 3, 100)
    assert (reads.name, reads.cells) == ("pp512", 512)
    assert (makes.name, makes.cells) == ("tg3 @ d100", 104)
    assert least_seconds(ROOF, WORK, reads) == ROOF.prefill_seconds(WORK, 512)
    # 100 tokens and one more are there; each token that is read sees itself too.
    seconds = [ROOF.decode_seconds(WORK, ctx) for ctx in (102, 103, 104)]
    assert least_seconds(ROOF, WORK, makes) == pytest.approx(sum(seconds))


def test_the_peak_of_memory_is_at_least_what_an_array_takes() -> None:
    before = peak_memory()
    kept = bytes(range(256)) * (1 << 18)  # 64 MiB
    assert peak_memory() >= max(before, len(kept))


def test_the_table_of_a_profile() -> None:
    kernels = [
        KernelTime("decode", "matvec", "Q4_1", 1000, 0.15, 12 * 10**9, 10**10),
        KernelTime("prompt", "rms_norm", "", 10, 0.05, 10**6, 2 * 10**6),
    ]
    parts = [PartTime("prompt", 10, 0.05, 0.1), PartTime("decode", 1000, 0.15, 0.3)]
    top, head, *rows, prompt, decode, total, recording = table(kernels, parts, ROOF, 0.0123)
    assert top == (
        "at best it reads 100.0 GB/s, computes 1,000.0 GFLOP/s, and takes 10.0 µs from a dispatch to the next"
    )
    assert head.split() == (
        "part kernel format calls ms of time GB/s GFLOP/s of roof".split()  # noqa: SIM905
    )
    # 12e9 bytes at 100 GB/s are 120 of 150 ms.
    assert rows[0].split() == [
        "decode",
        "matvec",
        "Q4_1",
        "1,000",
        "150.00",
        "75.0%",
        "80.00",
        "66.67",
        "80.0%",
    ]
    assert rows[1].split() == ["prompt", "rms_norm", "10", "50.00", "25.0%", "0.02", "0.04", "0.0%"]
    assert len(rows) == 2 and len({len(line) for line in (head, *rows)}) == 1
    assert prompt == "prompt  10 dispatches, 50.00 ms on the device, busy 50.0% of 0.100 s"
    assert decode == "decode  1,000 dispatches, 150.00 ms on the device, busy 50.0% of 0.300 s"
    assert total == "total   1,010 dispatches, 200.00 ms on the device, busy 50.0% of 0.400 s"
    assert recording == "recording with timestamps took the host 0.012 s"
    assert all(len(line) <= 100 for line in (top, head, *rows))
