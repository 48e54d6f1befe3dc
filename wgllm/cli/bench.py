"""``wgllm bench``: tokens per second, and the share of what the machine could do that this is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wgllm.cli.console import CONTEXT, say, use_utf8
from wgllm.cli.options import load_model, model_options
from wgllm.errors import UsageError

if TYPE_CHECKING:
    from wgllm.cli.bench_runs import Bench


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
    "-d",
    "--depth",
    "depths",
    default="0",
    show_default=True,
    metavar="N,N…",
    help="How many tokens the context holds before each test.",
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
def bench_command(
    prompts: str, generations: str, depths: str, repetitions: int, as_json: bool, **model_args: Any
) -> None:
    """Measure prompt processing (pp) and generation (tg) speed.

    On the CPU, after each run the memory bandwidth of a float32 matrix-vector product and the speed of a matrix
    product are measured too; the shares are of these, in the same run. On a GPU, each test is followed by kernels that
    only read memory, only multiply and add, or only wait for each other: the roofline is the least time that a model
    of this size would take at these speeds, with 5 dispatches for each layer and 4 more. Unless -c is given the
    context is as large as the tests need, at least 512.

    \b
    Examples:
      wgllm bench -m smollm2 -p 128,512 -n 64
      wgllm bench -n 32 -d 0,4096
      wgllm bench --json -r 3

    \b
    See also:
      wgllm perplexity    how good a model is
      wgllm devices       what computes
      wgllm plan          what a GPU does for a token
    """
    use_utf8()
    kinds = [("pp", n) for n in _lengths(prompts)] + [("tg", n) for n in _lengths(generations)]
    tests = [(kind, n, depth) for depth in _numbers(depths) for kind, n in kinds]
    if not tests:
        raise UsageError("there is nothing to measure: give -p or -n, and -d")
    need = max(depth + n + (kind == "tg") for kind, n, depth in tests)
    if model_args["ctx_size"] is None:
        model_args["ctx_size"] = max(512, need)
    elif model_args["ctx_size"]:  # else the model's, which is not known yet
        _check_context(need, model_args["ctx_size"])
    with load_model(**model_args) as llm:
        from wgllm.cli.bench_runs import Bench, Case
        from wgllm.engine import Engine

        assert isinstance(llm.engine, Engine)
        _check_context(need, llm.ctx_size)
        bench = Bench(llm)
        row = _gpu_row if bench.all_on_gpu else _row
        if not as_json:
            say(llm.where)
            click.echo(_GPU_HEAD if bench.all_on_gpu else _HEAD)
        for kind, n, depth in tests:
            case = Case("pp" if kind == "pp" else "tg", n, depth)
            result = {
                "model": Path(model_args["hf_repo"] or model_args["model"]).name,
                "backend": "+".join(dict.fromkeys(p.backend for p in llm.engine.pipeline.programs)),
                "where": llm.where,
                **bench.run(case, repetitions),
            }
            click.echo(json.dumps(result) if as_json else row(result))
        if not as_json:
            say(_machine(bench, result))


def _check_context(need: int, ctx_size: int) -> None:
    if ctx_size < need:
        raise UsageError(
            f"a context of {ctx_size} tokens is too small for these tests; they need {need} (-c)"
        )


_HEAD = f"{'model':24} {'test':14} {'tok/s':>10} {'± %':>6} {'GB/token':>9} {'of gemv':>8} {'of gemm':>8}"
_GPU_HEAD = (
    f"{'model':20} {'test':14} {'tok/s':>10} {'± %':>6} {'GB/token':>9} {'dispatches':>10} "
    f"{'Python ms':>9} {'of roofline':>11}"
)


def _row(r: dict[str, Any]) -> str:
    bandwidth = "" if r["bandwidth_share"] is None else f"{r['bandwidth_share']:8.0%}"
    flops = "" if r["flops_share"] is None else f"{r['flops_share']:8.0%}"
    return (
        f"{r['model'][:24]:24} {r['test']:14} {r['tok_s']:10.2f} {_spread(r):6.1f} "
        f"{r['bytes_per_token'] / 1e9:9.3f} {bandwidth:>8} {flops:>8}"
    )


def _gpu_row(r: dict[str, Any]) -> str:
    """All but the speed are of a token."""
    return (
        f"{r['model'][:20]:20} {r['test']:14} {r['tok_s']:10.2f} {_spread(r):6.1f} "
        f"{r['device_bytes_per_token'] / 1e9:9.4f} {r['dispatches_per_token']:10,.1f} "
        f"{1e3 * r['python_seconds_per_token']:9.3f} {r['roofline_share']:11.1%}"
    )


def _spread(r: dict[str, Any]) -> float:
    """Half of what lies between the slowest and the fastest run, in percent."""
    return float(50 * (r["tok_s_max"] - r["tok_s_min"]) / r["tok_s"])


def _machine(bench: Bench, last: dict[str, Any]) -> str:
    """What the shares are of; of a GPU as measured after the last test."""
    if bench.cpu is not None:
        return f"float32 gemv {bench.cpu.bandwidth / 1e9:.1f} GB/s · gemm {bench.cpu.flops / 1e9:.0f} GFLOP/s"
    return (
        f"reads {last['read_bytes_s'] / 1e9:,.1f} GB/s · copies {last['copy_bytes_s'] / 1e9:,.1f} GB/s · "
        f"{last['fma_flops'] / 1e9:,.0f} GFLOP/s · {1e6 * last['dispatch_gap_seconds']:,.1f} µs a dispatch\n"
        f"memory: {last['device_buffer_bytes'] / 2**20:,.0f} MiB of buffers on the device, "
        f"at most {last['host_peak_bytes'] / 2**20:,.0f} MiB of this machine's"
    )


def _lengths(text: str) -> list[int]:
    return [n for n in _numbers(text) if n]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part]
    except ValueError:
        raise UsageError(f"{text!r} is no list of numbers such as 128,512") from None
    if any(n < 0 for n in numbers):
        raise UsageError("lengths can't be negative")
    return numbers
