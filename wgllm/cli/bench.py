"""``wgllm bench``: tokens per second, and the share of what the machine could do that this is."""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wgllm.cli.console import CONTEXT, say, use_utf8
from wgllm.cli.options import load_model, model_options
from wgllm.errors import UsageError

if TYPE_CHECKING:
    from wgllm.engine import Engine


@click.command("bench", context_settings=CONTEXT)
@model_options
@click.option(
    "-p",
    "--n-prompt",
    "prompts",
    default="512",
    show_default=True,
    metavar="N,N…",
    help="Prompt lengths to measure; 0: none.",
)
@click.option(
    "-n",
    "--n-gen",
    "generations",
    default="128",
    show_default=True,
    metavar="N,N…",
    help="Generation lengths to measure; 0: none.",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Runs of each test; the median is told.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def bench_command(prompts: str, generations: str, repetitions: int, as_json: bool, **model_args: Any) -> None:
    """Measure prompt processing (pp) and generation (tg) speed.

    After each run the memory bandwidth of a float32 matrix-vector product and the speed of a matrix product are
    measured on the CPU too; the shares are of these, in the same run. Unless -c is given the context is as large as
    the tests need, at least 512.

    \b
    Examples:
      wgllm bench -m smollm2 -p 128,512 -n 64
      wgllm bench --json -r 3

    \b
    See also:
      wgllm perplexity    how good a model is
      wgllm devices       what computes
    """
    use_utf8()
    tests = [("pp", n) for n in _lengths(prompts)] + [("tg", n) for n in _lengths(generations)]
    if not tests:
        raise UsageError("there is nothing to measure: give -p or -n")
    need = max(_context_of(*test) for test in tests)
    if model_args["ctx_size"] is None:
        model_args["ctx_size"] = max(512, need)
    elif model_args["ctx_size"]:  # else the model's, which is not known yet
        _check_context(need, model_args["ctx_size"])
    with load_model(**model_args) as llm:
        from wgllm.engine import Engine

        assert isinstance(llm.engine, Engine) and llm.model is not None
        _check_context(need, llm.ctx_size)
        machine = _Machine()
        if not as_json:
            say(llm.where)
            click.echo(
                f"{'model':24} {'test':8} {'tok/s':>10} {'± %':>6} {'GB/token':>9} {'of gemv':>8} {'of gemm':>8}"
            )
        for kind, n in tests:
            result = _measure(llm.engine, kind, n, repetitions, machine)
            result = {
                "model": Path(model_args["hf_repo"] or model_args["model"]).name,
                "backend": "+".join(dict.fromkeys(p.backend for p in llm.engine.pipeline.programs)),
                "where": llm.where,
                **result,
            }
            if as_json:
                click.echo(json.dumps(result))
            else:
                click.echo(_row(result))
        if not as_json:
            say(f"float32 gemv {machine.bandwidth / 1e9:.1f} GB/s · gemm {machine.flops / 1e9:.0f} GFLOP/s")


class _Machine:
    """What the CPU reaches in float32 on matrices that no cache holds; measured beside the tests."""

    def __init__(self) -> None:
        import numpy as np

        self._w = np.ones((8192, 8192), np.float32)  # 256 MiB
        self._x = np.ones(8192, np.float32)
        self._a = np.ones((256, 2048), np.float32)
        self._bandwidths: list[float] = []
        self._flops: list[float] = []
        self.measure()  # first touch is no measurement
        self._bandwidths.clear()
        self._flops.clear()

    def measure(self) -> None:
        start = time.perf_counter()
        self._w @ self._x
        self._bandwidths.append(self._w.nbytes / (time.perf_counter() - start))
        b = self._w[:2048, :2048]
        start = time.perf_counter()
        self._a @ b.T
        self._flops.append(2 * 256 * 2048 * 2048 / (time.perf_counter() - start))

    @property
    def bandwidth(self) -> float:
        """Bytes per second of a matrix-vector product, the median."""
        return statistics.median(self._bandwidths)

    @property
    def flops(self) -> float:
        """Floating-point operations per second of a matrix product, the median."""
        return statistics.median(self._flops)


def _context_of(kind: str, n: int) -> int:
    """Cells that a test fills."""
    return n if kind == "pp" else n + 1


def _check_context(need: int, ctx_size: int) -> None:
    if ctx_size < need:
        raise UsageError(
            f"a context of {ctx_size} tokens is too small for these tests; they need {need} (-c)"
        )


def _measure(engine: Engine, kind: str, n: int, repetitions: int, machine: _Machine) -> dict[str, Any]:
    """Median speed of a test: ``pp`` reads n tokens from empty, ``tg`` makes n after one."""
    from wgllm.engine import Request, run_request
    from wgllm.sampling import SamplingParams

    vocab = engine.vocab_size
    greedy = SamplingParams(temperature=0)
    rates: list[float] = []
    for repetition in range(repetitions + 1):
        # A first token that differs each time leaves the cache nothing to re-use.
        tokens = [(repetition * 7919 + i * 31) % vocab for i in range(n if kind == "pp" else 1)]
        count = 1 if kind == "pp" else n + 1
        *_, last = run_request(engine, Request(tokens, count, greedy, ignore_eos=True))
        assert last.stats is not None
        if repetition:  # the first run warms up
            rates.append(last.stats.prefill_rate if kind == "pp" else last.stats.decode_rate)
        machine.measure()
    rate = statistics.median(rates)
    on_cpu = all(p.backend == "numpy" for p in engine.pipeline.programs)
    weight_bytes = sum(p.weight_bytes for p in engine.pipeline.programs)
    per_row, per_out_row = (
        sum(sizes) for sizes in zip(*(p.products for p in engine.pipeline.programs), strict=True)
    )
    flops_per_token = 2 * (per_row + per_out_row / n)
    # A prompt is read in steps, of which the last alone has logits.
    head_bytes = sum(p.head_bytes for p in engine.pipeline.programs)
    steps = math.ceil(n / engine.largest_step)
    prompt_bytes = steps * (weight_bytes - head_bytes) + head_bytes
    return {
        "test": f"{kind}{n}",
        "tok_s": round(rate, 2),
        "tok_s_min": round(min(rates), 2),
        "tok_s_max": round(max(rates), 2),
        "repetitions": repetitions,
        "bytes_per_token": weight_bytes if kind == "tg" else prompt_bytes / n,
        # Of the CPU's, which tell nothing of a graphics card.
        "bandwidth_share": round(weight_bytes * rate / machine.bandwidth, 4)
        if kind == "tg" and on_cpu
        else None,
        "flops_share": round(flops_per_token * rate / machine.flops, 4) if kind == "pp" and on_cpu else None,
        "gemv_bytes_s": round(machine.bandwidth),
        "gemm_flops": round(machine.flops),
    }


def _row(r: dict[str, Any]) -> str:
    spread = 50 * (r["tok_s_max"] - r["tok_s_min"]) / r["tok_s"]
    bandwidth = "" if r["bandwidth_share"] is None else f"{r['bandwidth_share']:8.0%}"
    flops = "" if r["flops_share"] is None else f"{r['flops_share']:8.0%}"
    return (
        f"{r['model'][:24]:24} {r['test']:8} {r['tok_s']:10.2f} {spread:6.1f} "
        f"{r['bytes_per_token'] / 1e9:9.3f} {bandwidth:>8} {flops:>8}"
    )


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",") if part]
    except ValueError:
        raise UsageError(f"{text!r} is no list of numbers such as 128,512") from None
    if any(n < 0 for n in lengths):
        raise UsageError("lengths can't be negative")
    return [n for n in lengths if n]
