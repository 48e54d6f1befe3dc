"""``wgllm check``: a graphics card beside NumPy, kernel by kernel and node by node."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wgllm.cli.console import CONTEXT, say, use_utf8
from wgllm.cli.devices import find_adapters
from wgllm.cli.options import complete_models
from wgllm.errors import DeviceError, MismatchError, UsageError
from wgllm.hub_progress import animates

if TYPE_CHECKING:
    from wgllm.backends.device import Adapter, Device
    from wgllm.backends.webgpu import WebGpuExecutor
    from wgllm.check_report import Report

_CTX = 512


@click.command("check", context_settings=CONTEXT)
@click.option(
    "-m",
    "--model",
    default=None,
    metavar="NAME|PATH",
    shell_complete=complete_models,
    help="Check the nodes of this model too.",
)
@click.option(
    "--report", default=None, metavar="FILE", help="Write everything that was found to FILE, as JSON."
)
@click.option(
    "--device",
    default=None,
    metavar="NAME|INDEX",
    help="The GPU to check, as `wgllm devices` lists them.  [default: the best]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of a table.")
def check_command(model: str | None, report: str | None, device: str | None, as_json: bool) -> None:
    """Compare what a graphics card computes with NumPy.

    Small graphs run every kernel, with every format and with awkward shapes. With -m a model reads a prompt and two
    tokens more, and each of its nodes is compared on the inputs that the card gave it. Results may differ by what
    rounding does; the table tells the worst of each operator, and what is allowed. Exit code 1 when one differs more.

    \b
    Examples:
      wgllm check
      wgllm check -m smollm2 --report report.json
      wgllm check --device 1 --json | jq '.summary[] | select(.failed > 0)'

    \b
    See also:
      wgllm devices     the graphics cards that there are
      wgllm generate    --check compares while text is made
    """
    use_utf8()
    if report is not None:
        folder = Path(report).absolute().parent
        if Path(report).is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UsageError(f"--report {report}: no file can be written there")
    found, problem = find_adapters()
    if not found:
        raise DeviceError(f"no graphics card: {problem}")
    from wgllm.backends.device import adapters, choose
    from wgllm.backends.webgpu import WebGpuExecutor
    from wgllm.check_report import Report
    from wgllm.placement import known_choices, open_device

    adapter = choose(adapters(), device, software=True)
    opened = open_device(adapter)
    say(f"checking {adapter}")
    made = Report(_facts(found, adapter, opened))
    executor = WebGpuExecutor(opened)
    executor.choices = known_choices(executor)  # what models run with
    try:
        _check_kernels(executor, made)
        if model is not None:
            _write(made, report)  # a driver that breaks down would take it along
            _check_model(executor, model, made)
    finally:
        _progress("")
        _write(made, report)
    _tell(made, as_json)


def _facts(found: list[dict[str, Any]], adapter: Adapter, opened: Device) -> dict[str, Any]:
    asked = found[adapter.index] if adapter.index < len(found) else {}
    return {
        **asked,
        "index": adapter.index,
        "opened": {"limits": dict(opened.limits), "features": sorted(opened.features)},
    }


def _check_kernels(executor: WebGpuExecutor, report: Report) -> None:
    from wgllm.check import check_case
    from wgllm.check_cases import kernel_cases

    cases = list(kernel_cases())
    for i, case in enumerate(cases):
        _progress(f"kernels {i + 1} of {len(cases)}: {case.name}")
        try:
            for verdict in check_case(executor, case):
                report.add(case.name, verdict)
        except DeviceError as error:  # what this card can't do is worth a report, too
            report.problems.append((case.name, str(error)))


def _check_model(executor: WebGpuExecutor, name: str, report: Report) -> None:
    from wgllm import models
    from wgllm.backends.base import LoadOptions
    from wgllm.cache import cell_counts
    from wgllm.check import MODEL_STEPS, Verdict, check_model
    from wgllm.check_report import model_facts
    from wgllm.hub import resolve
    from wgllm.models.opening import open_model

    with open_model(resolve(name)) as file:
        built = models.for_context(models.build(file), file, _CTX)
        report.model = model_facts(file)
        rows = max(MODEL_STEPS)
        sizes = cell_counts(built.graph.windows, _CTX, rows, slots=1)
        total = len(built.graph.nodes) * len(MODEL_STEPS)
        done = 0

        def record(verdict: Verdict) -> None:
            nonlocal done
            done += 1
            _progress(f"{name} {min(100, 100 * done // total)}%")
            report.add(name, verdict)

        try:
            _progress(f"loading {name}")
            program = executor.load(
                built.graph, built.weights, LoadOptions(sizes, largest_step=rows, ctx_size=_CTX)
            )
            try:
                check_model(program, built.weights, built.config.vocab_size, record)
            finally:
                program.close()
        except DeviceError as error:
            report.problems.append((name, str(error)))


def _write(report: Report, file: str | None) -> None:
    """What has been checked so far."""
    if file is not None:
        Path(file).write_text(json.dumps(report.to_json()) + "\n", encoding="utf-8")


def _tell(report: Report, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        for line in report.summary.table():
            click.echo(line)
    if report.complaint is not None:
        raise MismatchError(report.complaint)
    if not as_json:
        click.echo(f"\nAll {report.summary.count} checks are as NumPy makes them.")


def _progress(line: str) -> None:
    """One line of a terminal, drawn again and again."""
    if animates(sys.stderr):
        click.echo(f"\r{line}\x1b[K", err=True, nl=False)
