"""``wgllm plan``: what a model's graph becomes on a device, in numbers; and as files for the browser."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import click

from wgllm.cli.console import CONTEXT, loading_bar, say, use_utf8
from wgllm.cli.options import (
    kv_type_options,
    model_name,
    override_option,
    parse_overrides,
    quantize_option,
    which_model,
)
from wgllm.errors import DeviceError, UsageError, printable

if TYPE_CHECKING:
    from wgllm.formats.model_file import ModelFile, TensorView
    from wgllm.graph import Graph
    from wgllm.lowering import PlanOptions
    from wgllm.plan import Limits, Plan
    from wgllm.plan_figures import ScheduleFigures, TokenFigures
    from wgllm.wgsl import Host

# As many rows of a prompt as a graphics card usually takes at a time.
_STEP_ROWS = 256
_DEFAULT_LIMITS = "WebGPU's default limits"


@click.command("plan", context_settings=CONTEXT)
@which_model
@click.option(
    "-c",
    "--ctx-size",
    type=click.IntRange(min=0),
    default=None,
    metavar="N",
    help="Context in tokens; 0 takes the model's.  [default: the model's, at most 8192]",
)
@kv_type_options
@override_option
@quantize_option
@click.option(
    "--device",
    default=None,
    metavar="NAME|INDEX",
    help="Plan for this GPU's limits, as `wgllm devices` lists them, instead of WebGPU's default ones.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Tokens of the prompt read in one step.  [default: 256, fewer where they take much memory]",
)
@click.option(
    "--pos",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="How many tokens the context holds when one is made.  [default: all that it can]",
)
@click.option("--json", "as_json", is_flag=True, help="All figures as one JSON object.")
@click.option(
    "--export", default=None, metavar="DIR", help="Write plan.json and weights.bin, for wgllm/web/runtime.js."
)
@click.option(
    "--host",
    type=click.Choice(("tint", "naga")),
    default="tint",
    show_default=True,
    help="Whose WGSL --export writes: Chromium's, or Firefox's and wgpu's.",
)
def plan_command(
    model: str, hf_repo: str | None, offline: bool, ctx_size: int | None, kv_type: str, kv_type_v: str,
    override_kv: tuple[str, ...], quantize: str | None, device: str | None, rows: int | None, pos: int | None,
    as_json: bool, export: str | None, host: Literal["tint", "naga"],
) -> None:  # fmt: skip
    """Show what a model becomes on a GPU: buffers, kernels, dispatches, and bytes per token.

    No GPU is needed and no weights are loaded: the plan is made for the limits that every WebGPU device has, or for
    those of --device. Bytes are counted by what each dispatch touches: of a matrix all of it, of the table of
    embeddings one row, of keys and values the cells that attention goes through, of activations what is written and
    what is read. No token can take fewer than the matrices once, and the keys and values that it sees.

    \b
    Examples:
      wgllm plan -m smollm2 -c 2048
      wgllm plan -m gemma3:270m -ctk f16 -ctv f16 --pos 512
      wgllm plan --json | jq .token.ratio
      wgllm plan -c 1024 --export site/model

    \b
    See also:
      wgllm show       what the file holds
      wgllm bench      how fast it is
      wgllm devices    the GPUs, and their limits
    """
    use_utf8()
    overrides = parse_overrides(override_kv)
    from wgllm.hub import resolve
    from wgllm.models.opening import open_model

    path = resolve(model_name(model, hf_repo), download=not offline)
    limits, where = _limits(device)
    file = open_model(path, overrides, quantize=quantize)
    try:
        request = _request(file, ctx_size, (kv_type, kv_type_v), rows, pos, limits, where, host)
        facts = _facts(request)
        if export is not None:
            _export(request, Path(export))
        if as_json:
            click.echo(json.dumps(facts))
        else:
            _print(facts)
    finally:
        file.close()


@dataclass(frozen=True)
class _Request:
    """A graph, and what to plan it for."""

    name: str
    graph: Graph
    weights: Mapping[str, TensorView]
    options: PlanOptions
    kv_types: tuple[str, str]
    pos: int
    where: str
    """Whose limits these are."""

    def lower(self) -> Plan:
        """A plan that has no schedules yet."""
        from wgllm.lowering import lower

        with self.refused():
            return lower(self.graph, self.options)

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        """A plan that the limits do not allow as an error for the user."""
        from wgllm.plan import PlanError

        try:
            yield
        except PlanError as error:
            raise DeviceError(f"{self.where}: {error}") from error


def _limits(device: str | None) -> tuple[Limits, str]:
    """Of a GPU, which is opened to know what it grants, or the default ones; and their name."""
    from wgllm.plan import Limits

    if device is None:
        return Limits(), _DEFAULT_LIMITS
    from wgllm.placement import Wish, find_device

    found, _ = find_device(Wish(device=device))
    assert found is not None
    return Limits.of(found.limits), str(found.adapter)


def _request(
    file: ModelFile,
    ctx_size: int | None,
    kv_types: tuple[str, str],
    rows: int | None,
    pos: int | None,
    limits: Limits,
    where: str,
    host: Host,
) -> _Request:
    from wgllm import models
    from wgllm.backends.base import LoadOptions
    from wgllm.cache import cell_counts
    from wgllm.context import wanted_ctx_size
    from wgllm.lowering import PlanOptions, prepared, widest_step

    built = models.build(file)
    ctx = wanted_ctx_size(built, ctx_size)
    built = models.for_context(built, file, ctx)
    for flag, n in (("--rows", rows), ("--pos", pos)):
        if n is not None and n > ctx:
            raise UsageError(f"{flag} {n} does not fit a context of {ctx} tokens (-c)")
    graph = prepared(built.graph)
    kv_type_of = LoadOptions({}, kv_types[0], kv_type_v=kv_types[1]).kv_type_of

    def options(step: int) -> PlanOptions:
        sizes = cell_counts(graph.windows, ctx, step, slots=1)
        return PlanOptions(sizes, ctx, step, kv_type_of, limits, host=host)

    step = rows or widest_step(graph, options(min(_STEP_ROWS, ctx)))
    return _Request(file.path.name, graph, built.weights, options(step), kv_types, pos or ctx, where)


# Figures


def _facts(request: _Request) -> dict[str, Any]:
    from wgllm.plan_figures import PlanFigures

    plan = request.lower()
    figures = PlanFigures(plan, request.graph)
    with request.refused():
        decode = figures.decode(request.pos)
        schedules = {
            "decode": figures.schedule(*decode[0]),
            "prefill": figures.schedule(*plan.schedule("body", plan.rows, plan.cells)),
            "tail": figures.schedule(*plan.schedule("tail", 1)),
        }
        token = figures.token(request.pos)
    return {
        "model": request.name,
        "limits_of": request.where,
        "limits": asdict(plan.limits),
        "layers": len({n.layer for n in plan.nodes} - {None}),
        "ctx_size": plan.cells,
        "kv_type": request.kv_types[0],
        "kv_type_v": request.kv_types[1],
        "rows": plan.rows,
        "memory": [asdict(m) for m in figures.memory()],
        "memory_bytes": plan.size,
        "weights": [asdict(w) for w in figures.weights()],
        "schedules": {name: _schedule_facts(s) for name, s in schedules.items()},
        "kernels": [asdict(k) for k in figures.kernels(decode)],
        "token": _token_facts(token),
    }


def _schedule_facts(schedule: ScheduleFigures) -> dict[str, Any]:
    return {
        "rows": schedule.width.rows,
        "cells": schedule.width.cells,
        "dispatches": schedule.dispatches,
        "dispatches_per_layer": list(schedule.per_layer),
        "kernels": schedule.kernels,
        "bytes": schedule.traffic.all,
        "multiplications": schedule.multiplications,
    }


def _token_facts(token: TokenFigures) -> dict[str, Any]:
    return {
        "pos": token.pos,
        "bytes": token.traffic.all,
        "bytes_by_kind": asdict(token.traffic),
        "bytes_read": token.traffic.read,
        "multiplications": token.multiplications,
        "packed_weights": token.packed_weights,
        "kv": token.kv,
        "least_bytes": token.least,
        "read_ratio": round(token.read_ratio, 4),
        "ratio": round(token.ratio, 4),
    }


_KINDS = {
    "products": "matrices",
    "embedding": "embedding, a row",
    "parameters": "norms, biases, rope",
    "kv": "keys and values",
    "positions": "positions of cells",
    "written": "state written",
    "activations": "activations",
}


def _print(facts: Mapping[str, Any]) -> None:
    limits, token = facts["limits"], facts["token"]
    kv = "/".join(dict.fromkeys((facts["kv_type"], facts["kv_type_v"])))
    click.echo(
        f"{printable(facts['model'])}: {facts['layers']} layers, a context of {facts['ctx_size']:,} tokens, KV {kv}"
    )
    click.echo(
        f"{facts['limits_of']}: buffers of {_mib(limits['buffer'], 0)} MiB, bindings of "
        f"{_mib(limits['binding'], 0)} MiB, {limits['bindings']} buffers a shader, workgroups of "
        f"{limits['invocations']:,} with {limits['workgroup_memory'] / 2**10:,.0f} KiB"
    )
    _table(
        ("Memory", "buffers", "MiB"),
        [
            *((m["role"], f"{m['buffers']:,}", _mib(m["bytes"])) for m in facts["memory"]),
            ("total", f"{sum(m['buffers'] for m in facts['memory']):,}", _mib(facts["memory_bytes"])),
        ],
    )
    _table(
        ("Weights", "tensors", "MiB", "in the file", "ratio"),
        [
            (
                w["format"],
                f"{w['tensors']:,}",
                _mib(w["bytes"]),
                _mib(w["file_bytes"]),
                f"{w['bytes'] / w['file_bytes']:.3f}" if w["file_bytes"] else "",
            )
            for w in facts["weights"]
        ],
    )
    _table(
        ("Schedule", "rows", "cells", "dispatches", "a layer", "kernels", "MiB", "M multiplications"),
        [
            (
                name,
                f"{s['rows']:,}",
                f"{s['cells']:,}" if s["cells"] else "",
                f"{s['dispatches']:,}",
                "–".join(map(str, dict.fromkeys(s["dispatches_per_layer"]))) if name != "tail" else "",
                f"{s['kernels']:,}",
                _mib(s["bytes"]),
                _millions(s["multiplications"]),
            )
            for name, s in facts["schedules"].items()
        ],
    )
    _table(
        (
            "Kernels of a token",
            "format",
            "variants",
            "dispatches",
            "workgroups",
            "MiB weights",
            "MiB KV",
            "M multiplications",
        ),
        [
            (
                k["entry"],
                k["format"],
                f"{k['kernels']:,}",
                f"{k['dispatches']:,}",
                f"{k['workgroups']:,}",
                _mib(k["weight_bytes"]) if k["weight_bytes"] else "",
                _mib(k["kv_bytes"]) if k["kv_bytes"] else "",
                _millions(k["multiplications"]),
            )
            for k in facts["kernels"]
        ],
        left=2,
    )
    _table(
        (f"A token at {token['pos']:,}", "MiB"),
        [
            *((text, _mib(token["bytes_by_kind"][kind], 3)) for kind, text in _KINDS.items()),
            ("total", _mib(token["bytes"], 3)),
        ],
    )
    click.echo(f"  {_millions(token['multiplications'])} M multiplications")
    click.echo(
        f"  packed weights + KV: {_mib(token['packed_weights'], 3)} + {_mib(token['kv'], 3)} = "
        f"{_mib(token['least_bytes'], 3)} MiB; read are {token['read_ratio']:.3f} ×, with activations "
        f"{token['ratio']:.3f} ×"
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], left: int = 1) -> None:
    """Columns, the first ``left`` of which hold words, after an empty line."""
    click.echo()
    head, *rows = head, *((f"  {first}", *others) for first, *others in rows)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (
            f"{c:{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())


def _mib(n: int, digits: int = 2) -> str:
    return f"{n / 2**20:,.{digits}f}"


def _millions(n: int) -> str:
    return f"{n / 1e6:,.1f}"


# Files


def _export(request: _Request, folder: Path) -> None:
    """Writes plan.json, with schedules for one row, for all rows and a tail of one row, and weights.bin."""
    plan = request.lower()
    with request.refused():
        plan.schedule("body", 1, plan.cells)
        plan.schedule("body", plan.rows, plan.cells)
        plan.schedule("tail", 1)
    # There is no tail for more rows: whoever wants logits of several gets them one after the other.
    plan = replace(plan, out_rows=1, lower=None)
    text = json.dumps(plan.to_json(), separators=(",", ":"))
    folder.mkdir(parents=True, exist_ok=True)
    plan_file, weights_file = folder / "plan.json", folder / "weights.bin"
    with _replacing(weights_file, plan_file) as (weights_out, plan_out):
        total = _write_weights(plan, request.weights, weights_out, loading_bar(weights_file.name, "writing"))
        plan_out.write(text.encode())
    say(f"{printable(str(plan_file))}: {len(text) / 2**20:,.1f} MiB, {len(plan.kernels)} shaders")
    say(f"{printable(str(weights_file))}: {total / 2**20:,.1f} MiB")


def _write_weights(
    plan: Plan,
    weights: Mapping[str, TensorView],
    file: BinaryIO,
    progress: Callable[[int, int], None] | None,
) -> int:
    """All that fills the plan's weights, in order; returns the bytes."""
    from wgllm.backends.fills import packed_file

    total = sum(f.region.size for f in plan.fills)
    done = 0
    for region in packed_file(plan, weights):
        file.write(region.data)
        done += region.size
        if progress is not None:
            progress(done, total)
    return done


@contextlib.contextmanager
def _replacing(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Files that take the places of ``paths`` when all are complete. Meanwhile there is no last one, so that whoever
    finds it finds the others that belong to it."""
    with contextlib.ExitStack() as stack:
        partials: list[Path] = []
        files: list[BinaryIO] = []
        for path in paths:
            partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            stack.callback(partial.unlink, missing_ok=True)
            partials.append(partial)
            files.append(stack.enter_context(partial.open("xb")))
        yield files
        for file in files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        paths[-1].unlink(missing_ok=True)
        for partial, path in zip(partials, paths, strict=True):
            partial.replace(path)
