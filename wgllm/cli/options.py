"""Options that several commands share, under llama.cpp's names."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wgllm.cli.console import loading_bar, read_text
from wgllm.errors import UsageError, printable
from wgllm.hub_progress import SilentProgress
from wgllm.kv_types import KV_TYPES

if TYPE_CHECKING:
    from wgllm.llm import Llm

F = TypeVar("F", bound=Callable[..., Any])

# The catalogue's default, which takes a while to read; a test holds them equal.
DEFAULT_MODEL = "smollm2"
# Prefill steps are never longer than this by themselves; see wgllm.llm.largest_step.
_AUTO_STEP = 256


def combined(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator; the help has them in this order."""
    return lambda f: functools.reduce(lambda g, option: option(g), reversed(options), f)


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Names of the catalogue, and paths, for the shell's completion."""
    from click.shell_completion import CompletionItem

    from wgllm.catalog import load_catalog

    found = [CompletionItem(e.name) for e in load_catalog() if e.runs and e.name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def refused(*names: str, because: str, flag: bool = False) -> Callable[[F], F]:
    """An option of llama.cpp that this version doesn't have: it is known, and refused with the reason."""

    def refuse(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value not in (None, False, ()):
            raise UsageError(f"{names[-1]}: {because}")

    kind: dict[str, Any] = {"is_flag": True} if flag else {"metavar": "VALUE", "default": None}
    return click.option(*names, **kind, hidden=True, expose_value=False, callback=refuse)


def _list_devices(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from wgllm.cli.devices import print_devices

        print_devices(as_json=False)
        ctx.exit()


_positive = click.FloatRange(min=0, min_open=True)


class _Layers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of layers, ``all``, or ``auto``, which is None."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if isinstance(value, int):
            return value
        if value in ("all", "auto"):
            return sys.maxsize if value == "all" else None
        if not value.isdecimal():
            self.fail(f"{printable(value)!r} is not a number of layers, all or auto", param, ctx)
        return int(value)


class _Bytes(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A size such as 500M or 1.5G, in powers of 1024; a number alone counts bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", value, re.IGNORECASE)
        size = 0 if match is None else int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
        if size == 0:
            self.fail(f"{printable(value)!r} is no size such as 500M or 1.5G", param, ctx)
        return size


def _by_key(key: str) -> str:
    return f"not part of this version; --override-kv ARCHITECTURE.rope.scaling.{key}:N does the same"


_NO_LORA = "LoRA adapters are not part of this version"
_NO_GRAMMAR = "constrained output is not part of this version"

which_model = combined(
    click.option(
        "-m", "--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|PATH", shell_complete=complete_models,
        help="A name of the catalogue, a file or directory, or a Hugging Face name.",
    ),
    click.option("-hf", "--hf-repo", default=None, metavar="USER/MODEL[:QUANT]",
                 help="A repository on Hugging Face instead; QUANT is Q4_K_M unless given."),
    click.option("--offline", is_flag=True, help="Download nothing: the model must be here."),
)  # fmt: skip

kv_type_options = combined(
    click.option("-ctk", "--cache-type-k", "kv_type", type=click.Choice(KV_TYPES), default="f32",
                 show_default=True, help="How the KV cache rounds keys."),
    click.option("-ctv", "--cache-type-v", "kv_type_v", type=click.Choice(KV_TYPES), default="f32",
                 show_default=True, help="How the KV cache rounds values."),
)  # fmt: skip

override_option = click.option(
    "--override-kv", multiple=True, metavar="KEY=TYPE:VALUE",
    help="Replace metadata of the file; TYPE is int, float, bool or str. May be repeated.",
)  # fmt: skip

quantize_option = click.option(
    "--quantize", default=None, metavar="FORMAT",
    help="Round a model of float weights to q8_0, q5_1, q5_0, q4_1, q4_0 … as it is read.",
)  # fmt: skip

model_options = combined(
    which_model,
    click.option(
        "-c", "--ctx-size", type=click.IntRange(min=0), default=None, metavar="N",
        help="Context in tokens; 0 takes the model's.  [default: the model's, at most 8192 and what fits memory]",
    ),
    kv_type_options,
    click.option("-fa", "--flash-attn", type=click.Choice(("on", "off", "auto")), default="auto", show_default=True,
                 help="Attention block by block (auto: on), or with all of its scores at once."),
    click.option("-t", "--threads", type=click.IntRange(min=1), default=None, metavar="N",
                 help="Threads that read weights and compute.  [default: all cores]"),
    click.option("-b", "--batch-size", type=click.IntRange(min=1), default=2048, show_default=True, metavar="N",
                 help="Bounds --ubatch-size."),
    click.option("-ub", "--ubatch-size", type=click.IntRange(min=1), default=None, metavar="N",
                 help="Tokens of the prompt read in one step.  [default: what keeps a step short]"),
    click.option("--rope-scaling", type=click.Choice(("none", "linear", "yarn")), default=None,
                 help="How rope is scaled.  [default: the model's]"),
    click.option("--rope-scale", type=_positive, default=None, metavar="N", help="Expand the context by this factor."),
    click.option("--rope-freq-base", type=_positive, default=None, metavar="N",
                 help="Base of rope's frequencies.  [default: the model's]"),
    click.option("--rope-freq-scale", type=_positive, default=None, metavar="N",
                 help="Expand the context by a factor of 1/N."),
    override_option,
    quantize_option,
    click.option("--backend", type=click.Choice(("auto", "webgpu", "numpy")), default="auto", show_default=True,
                 help="What computes; auto: a GPU, or NumPy where there is none."),
    click.option("--device", default=None, metavar="NAME|INDEX", help="The GPU to use, as `wgllm devices` lists them."),
    click.option("-ngl", "--gpu-layers", "--n-gpu-layers", "gpu_layers", type=_Layers(), default="auto",
                 show_default=True, metavar="N|all|auto",
                 help="How many of the last layers the GPU computes, if there is one; auto: as many as fit."),
    click.option("--device-memory", type=_Bytes(), default=None, metavar="SIZE",
                 help="Use no more of the GPU's memory than this, as 500M or 6G."),
    click.option("--no-tune", is_flag=True,
                 help="Do not measure which shaders are fastest on the GPU, nor use what was measured."),
    click.option("--list-devices", is_flag=True, is_eager=True, expose_value=False, callback=_list_devices,
                 help="Show what could compute and exit, as `wgllm devices` does."),
    refused("--yarn-orig-ctx", because=_by_key("original_context_length=int")),
    refused("--yarn-ext-factor", because="not part of this version; it is 1 with yarn, else 0"),
    refused("--yarn-attn-factor", because=_by_key("attn_factor=float")),
    refused("--yarn-beta-slow", because=_by_key("yarn_beta_slow=float")),
    refused("--yarn-beta-fast", because=_by_key("yarn_beta_fast=float")),
    refused("--lora", because=_NO_LORA),
    refused("--lora-scaled", because=_NO_LORA),
)  # fmt: skip

chat_options = combined(
    click.option("--chat-template", default=None, metavar="NAME|FILE",
                 help="chatml, gemma, llama2, llama3, mistral, phi3, or a Jinja file, instead of the model's."),
    click.option("--chat-template-file", default=None, metavar="FILE", help="A Jinja file, by that name only."),
    click.option("--chat-template-kwargs", default=None, metavar="JSON",
                 help='Variables for the template, as {"enable_thinking": false}.'),
    refused("--grammar", because=_NO_GRAMMAR),
    refused("--grammar-file", because=_NO_GRAMMAR),
    refused("-j", "--json-schema", because=_NO_GRAMMAR),
)  # fmt: skip


def model_name(model: str, hf_repo: str | None) -> str:
    """What -m and -hf together name. Raises UsageError when both are given."""
    if hf_repo is None:
        return model
    context = click.get_current_context(silent=True)
    source = context.get_parameter_source("model") if context is not None else None
    if source is not None and source.name == "COMMANDLINE":
        raise UsageError("-m and -hf both name a model; give one of them")
    return hf_repo if hf_repo.startswith("hf:") else f"hf:{hf_repo}"


def load_model(*, bar: bool = True, **arguments: Any) -> Llm:
    """The model that ``model_options`` (and ``chat_options``) ask for, telling its progress with ``bar``."""
    name, options = load_arguments(**arguments)
    from wgllm.llm import load

    return load(
        name,
        **options,
        progress=loading_bar(name) if bar else None,
        download_progress=None if bar else SilentProgress(),
    )


def load_arguments(
    model: str,
    hf_repo: str | None,
    offline: bool,
    ctx_size: int | None,
    kv_type: str,
    kv_type_v: str,
    flash_attn: str,
    threads: int | None,
    batch_size: int,
    ubatch_size: int | None,
    rope_scaling: str | None,
    rope_scale: float | None,
    rope_freq_base: float | None,
    rope_freq_scale: float | None,
    override_kv: tuple[str, ...],
    quantize: str | None,
    backend: str,
    device: str | None,
    gpu_layers: int | None,
    device_memory: int | None,
    no_tune: bool,
    chat_template: str | None = None,
    chat_template_file: str | None = None,
    chat_template_kwargs: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """The model's name, and the options of ``wgllm.load`` as plain data, that a command's options ask for."""
    name = model_name(model, hf_repo)
    overrides = parse_overrides(override_kv)
    template = _template(chat_template, chat_template_file)
    template_kwargs = _json_object("--chat-template-kwargs", chat_template_kwargs)
    if rope_freq_scale is not None:
        if rope_scale is not None:
            raise UsageError("--rope-scale N and --rope-freq-scale 1/N say the same; give one of them")
        rope_scale = 1 / rope_freq_scale
    step = min(batch_size, ubatch_size or _AUTO_STEP)
    return name, {
        "backend": backend,
        "device": device,
        "gpu_layers": gpu_layers,
        "device_memory": device_memory,
        "tune": not no_tune,
        "ctx_size": ctx_size,
        "kv_type": kv_type,
        "kv_type_v": kv_type_v,
        "flash_attention": flash_attn != "off",
        "threads": threads,
        "batch_size": None if ubatch_size is None and step == _AUTO_STEP else step,
        "rope_scaling": rope_scaling,
        "rope_scale": rope_scale,
        "rope_freq_base": rope_freq_base,
        "overrides": overrides,
        "quantize": quantize,
        "chat_template": template,
        "chat_template_name": None if template == chat_template else chat_template_file or chat_template,
        "chat_template_kwargs": template_kwargs,
        "offline": offline,
    }


# Values


_NEXT_OVERRIDE = re.compile(r",(?=[^,=]+=(?:int|float|bool|str):)")
_OVERRIDE = re.compile(r"(?P<key>[^=]+)=(?P<kind>int|float|bool|str):(?P<value>.*)", re.DOTALL)


def parse_overrides(texts: tuple[str, ...]) -> dict[str, Any]:
    """``KEY=TYPE:VALUE`` (also several, with commas) as metadata. Raises UsageError."""
    values: dict[str, Any] = {}
    for text in (piece for joined in texts for piece in _NEXT_OVERRIDE.split(joined)):
        match = _OVERRIDE.fullmatch(text)
        if match is None:
            raise UsageError(
                f"--override-kv {printable(text)}: it must be KEY=TYPE:VALUE, where TYPE is int, float, bool or str"
            )
        try:
            values[match["key"]] = _CONVERT[match["kind"]](match["value"])
        except (KeyError, ValueError):
            problem = f"{printable(match['value'])!r} is no {match['kind']}"
            raise UsageError(f"--override-kv {printable(match['key'])}: {problem}") from None
    return values


_CONVERT: Mapping[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 0),
    "float": float,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "str": str,
}


def _template(name_or_file: str | None, file: str | None) -> str | None:
    if name_or_file is not None and file is not None:
        raise UsageError("--chat-template and --chat-template-file both name a template; give one of them")
    if file is not None:
        return read_text(file)
    if name_or_file is None:
        return None
    from wgllm.builtin_templates import TEMPLATES

    if name_or_file not in TEMPLATES and "{" not in name_or_file and Path(name_or_file).is_file():
        return read_text(name_or_file)
    return name_or_file


def _json_object(flag: str, text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{flag}: this is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{flag}: this is no JSON object")
    return value
