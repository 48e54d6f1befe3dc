"""``wgllm show``: what is in a model file, and how much memory it will take."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from wgllm.cli.console import CONTEXT, use_utf8, write_text
from wgllm.cli.options import DEFAULT_MODEL, complete_models, model_name, parse_overrides, quantize_option
from wgllm.errors import ModelFileError, UsageError, printable
from wgllm.kv_types import KV_BITS, KV_TYPES

if TYPE_CHECKING:
    from wgllm.formats.model_file import ModelFile


@click.command("show", context_settings=CONTEXT)
@click.argument("name", metavar="[NAME|PATH]", required=False, shell_complete=complete_models)
@click.option(
    "-m",
    "--model",
    default=None,
    metavar="NAME|PATH",
    shell_complete=complete_models,
    help=f"The same as an option.  [default: {DEFAULT_MODEL}]",
)
@click.option(
    "-hf", "--hf-repo", default=None, metavar="USER/MODEL[:QUANT]", help="A repository on Hugging Face."
)
@click.option(
    "-c",
    "--ctx-size",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Context to foretell memory for; 0 takes the model's.",
)
@click.option(
    "-ctk",
    "--cache-type-k",
    "kv_type",
    type=click.Choice(KV_TYPES),
    default="f16",
    show_default=True,
    help="Type of the KV cache to foretell memory for.",
)
@click.option(
    "--override-kv", multiple=True, metavar="KEY=TYPE:VALUE", help="Replace metadata; may be repeated."
)
@quantize_option
@click.option("--tensors", "list_tensors", is_flag=True, help="List every tensor.")
@click.option("--template", "only_template", is_flag=True, help="Only the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
def show_command(
    name: str | None, model: str | None, hf_repo: str | None, ctx_size: int, kv_type: str,
    override_kv: tuple[str, ...], quantize: str | None, list_tensors: bool, only_template: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show a model's metadata, tensors and the memory that it will take. Nothing is downloaded.

    \b
    Examples:
      wgllm show smollm2
      wgllm show model.gguf -c 4096 -ctk f16 --tensors
      wgllm show qwen2.5-coder --template > template.jinja

    \b
    See also:
      wgllm list        the models that are here
      wgllm tokenize    what its tokenizer does
    """
    use_utf8()
    from wgllm.hub import resolve
    from wgllm.models.opening import open_model

    given = [n for n in (name, model, hf_repo) if n is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(map(printable, given))}: show one model at a time")
    path = resolve(model_name(model or name or DEFAULT_MODEL, hf_repo), download=False)
    file = open_model(path, parse_overrides(override_kv), quantize=quantize)
    try:
        if only_template:
            if file.chat_template is None:
                raise UsageError(f"{printable(file.path.name)} has no chat template")
            write_text(file.chat_template)
            return
        facts = _facts(file, ctx_size, kv_type)
        if as_json:
            click.echo(json.dumps(facts, ensure_ascii=False))
        else:
            _print(facts, list_tensors)
    finally:
        file.close()


def _facts(file: ModelFile, ctx_size: int, kv_type: str) -> dict[str, Any]:
    tensors = [
        {"name": t.name, "shape": list(t.shape), "type": t.format.name, "bytes": t.nbytes}
        for t in file.tensors.values()
    ]
    return {
        "path": str(file.path),
        "metadata": {key: _value(file, key) for key in file.metadata},
        "tensors": tensors,
        "parameters": sum(t.size for t in file.tensors.values()),
        "tensor_bytes": sum(t.nbytes for t in file.tensors.values()),
        "memory": _memory(file, ctx_size, kv_type),
    }


def _memory(file: ModelFile, ctx_size: int, kv_type: str) -> dict[str, Any]:
    """Bytes that running the model takes; ``problem`` says why it can't run, when it can't."""
    from wgllm import models
    from wgllm.cache import cell_counts, state_bytes
    from wgllm.llm import largest_step
    from wgllm.models.config import Keys

    bytes_per_number = KV_BITS[kv_type] / 8
    try:
        built = models.build(file)
    except ModelFileError as error:
        # A file without (all) its weights still tells what its cache would take, if no layer has a window.
        memory: dict[str, Any] = {"problem": str(error)}
        keys = Keys(file)
        try:
            heads = keys.uniform("attention.head_count")
            head_dim = keys.integer("attention.key_length", keys.integer("embedding_length") // heads)
            per_token = (
                2 * keys.integer("block_count") * keys.uniform("attention.head_count_kv", heads) * head_dim
            )
            ctx = ctx_size or keys.integer("context_length")
        except ModelFileError:
            return memory
        return memory | {
            "ctx_size": ctx,
            "kv_type": kv_type,
            "kv_bytes": int(per_token * ctx * bytes_per_number),
            "cpu_kv_bytes": per_token * ctx * 4,
        }
    ctx = ctx_size or built.config.n_ctx_train
    sizes = cell_counts(built.graph.windows, ctx, largest_step(built.graph), slots=1)
    used = {node.inputs[1] for node in built.graph.nodes if node.op == "matmul"}
    return {
        "ctx_size": ctx,
        "kv_type": kv_type,
        "kv_bytes": state_bytes(built.graph, sizes, bytes_per_number),
        "cpu_kv_bytes": state_bytes(built.graph, sizes, 4),
        "float32_bytes": sum(4 * built.weights[name].size for name in used),
    }


def _value(file: ModelFile, key: str) -> Any:
    try:
        return _plain(file.metadata[key])
    except ModelFileError as error:  # text that is not UTF-8 harms nothing unless it is used
        return f"({error.problem})"


def _plain(value: Any) -> Any:
    """A metadata value as JSON; long arrays as their length and first items."""
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "__len__"):
        some = [_plain(v.item() if hasattr(v, "item") else v) for v in value[:8]]
        return some if len(value) <= 8 else {"length": len(value), "first": some}
    return str(value)


def _print(facts: dict[str, Any], list_tensors: bool) -> None:
    click.echo(
        f"{facts['path']}: {facts['parameters'] / 1e6:,.1f} M parameters, {_size(facts['tensor_bytes'])}"
    )
    click.echo("\nMetadata")
    width = max((len(k) for k in facts["metadata"]), default=0)
    for key, value in facts["metadata"].items():
        click.echo(f"  {printable(key):{width}}  {_short(value)}")
    types = Counter(t["type"] for t in facts["tensors"])
    sizes: Counter[str] = Counter()
    for t in facts["tensors"]:
        sizes[t["type"]] += t["bytes"]
    click.echo("\nTensors")
    for kind, count in types.most_common():
        click.echo(f"  {count:5} {kind:8} {_size(sizes[kind]):>12}")
    if list_tensors:
        width = max(len(t["name"]) for t in facts["tensors"]) if facts["tensors"] else 0
        for t in facts["tensors"]:
            shape = " × ".join(map(str, t["shape"]))
            click.echo(f"  {printable(t['name']):{width}}  {t['type']:8} {shape}")
    click.echo("\nMemory")
    memory = facts["memory"]
    if "kv_bytes" in memory:
        click.echo(
            f"  KV cache, {memory['kv_type']}, {memory['ctx_size']:,} tokens: {_size(memory['kv_bytes'])}"
        )
        click.echo(f"  KV cache on the CPU, float32 whatever -ctk says: {_size(memory['cpu_kv_bytes'])}")
    if "float32_bytes" in memory:
        click.echo(
            f"  weights on the CPU, float32: {_size(memory['float32_bytes'])} (dequantized as used if that is too much)"
        )
    if "problem" in memory:
        click.echo(f"  can't be run: {memory['problem']}")


def _size(n: int) -> str:
    return (
        f"{n / 2**30:,.2f} GiB"
        if n >= 2**30
        else f"{n / 2**20:,.0f} MiB"
        if n >= 2**20
        else f"{n / 2**10:,.0f} KiB"
    )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"[{value['length']:,} items] {_short(value['first'])}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(printable(str(v), 24) for v in value)
    return printable(str(value).replace("\n", "\\n"), 100)
