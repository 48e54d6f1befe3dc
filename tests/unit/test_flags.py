"""llama.cpp's flags: each is an option of `wgllm generate` with its default, or refused by name with a reason."""

from __future__ import annotations

from dataclasses import dataclass

import click
import pytest

from wgllm.cli import main
from wgllm.cli.generate import generate_command
from wgllm.sampling import DEFAULT_SAMPLERS, SAMPLER_LETTERS, SamplingParams

NONE = object()
"""The table gives no default."""


@dataclass(frozen=True)
class Flag:
    names: str
    value: str | None = None
    """A value that it takes; None: it takes none."""
    default: object = NONE


# The table of flags that people know, group by group, with llama.cpp's defaults.
FLAGS = [
    # model
    Flag("-m --model", "x.gguf"),
    Flag("-hf --hf-repo", "org/repo:Q8_0"),
    Flag("--lora", "a.gguf"),
    Flag("--lora-scaled", "a.gguf:0.5"),
    Flag("--override-kv", "general.name=str:x"),
    Flag("--offline"),
    # prompt
    Flag("-p --prompt", "hi"),
    Flag("-f --file", "x.txt"),
    Flag("-sys --system-prompt", "be kind"),
    Flag("-sysf", "x.txt"),
    Flag("-e --escape --no-escape"),
    Flag("-r --reverse-prompt", "User:"),
    Flag("-sp --special"),
    Flag("--no-display-prompt"),
    # length
    Flag("-n --predict", "-2", -1),
    Flag("-c --ctx-size", "0", 0),
    Flag("-b --batch-size", "64", 2048),
    Flag("-ub --ubatch-size", "64", 512),
    Flag("--keep", "-1", 0),
    Flag("--context-shift --no-context-shift", None, False),
    Flag("--ignore-eos", None, False),
    # device
    Flag("--device", "0"),
    Flag("--list-devices"),
    Flag("-t --threads", "2"),
    Flag("-fa --flash-attn", "off", "auto"),
    Flag("-ctk --cache-type-k", "q8_0", "f16"),
    Flag("-ctv --cache-type-v", "q4_0", "f16"),
    # rope
    Flag("--rope-scaling", "linear"),
    Flag("--rope-scale", "2"),
    Flag("--rope-freq-base", "1e6"),
    Flag("--rope-freq-scale", "0.5"),
    Flag("--yarn-orig-ctx", "4096"),
    Flag("--yarn-ext-factor", "1"),
    Flag("--yarn-attn-factor", "1"),
    Flag("--yarn-beta-slow", "1"),
    Flag("--yarn-beta-fast", "32"),
    # chat
    Flag("-i --interactive"),
    Flag("-cnv --conversation -no-cnv --no-conversation"),
    Flag("-st --single-turn"),
    Flag("--chat-template", "chatml"),
    Flag("--chat-template-file", "x.jinja"),
    Flag("--chat-template-kwargs", "{}"),
    # cache
    Flag("--prompt-cache", "x.cache"),
    Flag("--prompt-cache-all"),
    Flag("--prompt-cache-ro"),
    # constrain
    Flag("--grammar", "root ::= x"),
    Flag("--grammar-file", "x.gbnf"),
    Flag("-j --json-schema", "{}"),
    Flag("-l --logit-bias", "5-1"),
    # output
    Flag("-co --color"),
    Flag("--simple-io"),
    Flag("-v --verbose"),
    Flag("--log-file", "x.log"),
    Flag("--show-timings"),
    # samplers
    Flag("-s --seed", "1", -1),
    Flag("--temp", "1", 0.8),
    Flag("--top-k", "1", 40),
    Flag("--top-p", "1", 0.95),
    Flag("--min-p", "1", 0.05),
    Flag("--typical", "1", 1.0),
    Flag("--top-nsigma", "1", -1.0),
    Flag("--xtc-probability", "1", 0.0),
    Flag("--xtc-threshold", "1", 0.1),
    Flag("--repeat-last-n", "1", 64),
    Flag("--repeat-penalty", "1", 1.0),
    Flag("--presence-penalty", "1", 0.0),
    Flag("--frequency-penalty", "1", 0.0),
    Flag("--dry-multiplier", "1", 0.0),
    Flag("--dry-base", "1", 1.75),
    Flag("--dry-allowed-length", "1", 2),
    Flag("--dry-penalty-last-n", "1", 64),
    Flag("--dry-sequence-breaker", "x", ("\n", ":", '"', "*")),
    Flag("--dynatemp-range", "1", 0.0),
    Flag("--dynatemp-exp", "1", 1.0),
    Flag("--mirostat", "1", 0),
    Flag("--mirostat-lr", "1", 0.1),
    Flag("--mirostat-ent", "1", 5.0),
    Flag("--samplers", "top_k;temperature", DEFAULT_SAMPLERS),
    Flag("--sampler-seq", "kt", "edskypmxt"),
]

OTHER_DEFAULTS: dict[str, tuple[object, str]] = {
    "--cache-type-k": ("f32", "NumPy's cells are float32, so that rounding them saves nothing"),
    "--cache-type-v": ("f32", "NumPy's cells are float32, so that rounding them saves nothing"),
    "--ubatch-size": (None, "as many as keep a step short enough for a quick Ctrl-C"),
    "--ctx-size": (
        None,
        "the model's, but at most 8192 and what fits memory; 0 takes the model's as llama.cpp's does",
    ),
}

OPTIONS = {
    name: param
    for param in generate_command.params
    if isinstance(param, click.Option)
    for name in (*param.opts, *param.secondary_opts)
}
REFUSED = {name for name, param in OPTIONS.items() if param.hidden}


def test_the_table_names_no_flag_twice() -> None:
    names = [name for flag in FLAGS for name in flag.names.split()]
    assert len(set(names)) == len(names) > 100


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.names.split()[-1])
def test_every_flag_is_known(flag: Flag, capsys: pytest.CaptureFixture[str]) -> None:
    for name in flag.names.split():
        assert name in OPTIONS, f"{name} is neither an option nor refused by name"
        arguments = [name] if flag.value is None else [name, flag.value]
        if name in REFUSED:
            assert main(["generate", *arguments, "hi"]) == 2
            message = capsys.readouterr().err
            assert flag.names.split()[-1] in message and "not part of this version" in message
        elif not OPTIONS[name].is_eager:
            assert generate_command.make_context("generate", [*arguments, "--", "hi"])


def default_of(param: click.Option) -> object:
    """What counts when nothing is given; the samplers' lies in SamplingParams, since a file may change it."""
    assert param.name is not None
    if param.name == "seed":
        return -1 if SamplingParams().seed is None else SamplingParams().seed
    if param.name == "letters" and param.default is None:
        letters = {name: letter for letter, name in SAMPLER_LETTERS.items()}
        return "".join(letters[name] for name in SamplingParams().samplers)
    if param.is_flag:
        return param.default is True
    if param.default in (None, ()) or not isinstance(param.default, (str, int, float, bool)):
        return getattr(SamplingParams(), param.name, None)
    return param.default


@pytest.mark.parametrize(
    "flag", [f for f in FLAGS if f.default is not NONE], ids=lambda flag: flag.names.split()[-1]
)
def test_defaults_are_llama_cpps(flag: Flag) -> None:
    name = flag.names.split()[-1]
    ours = default_of(OPTIONS[flag.names.split()[0]])
    expected = OTHER_DEFAULTS[name][0] if name in OTHER_DEFAULTS else flag.default
    assert (tuple(ours) if isinstance(expected, tuple) else ours) == expected  # type: ignore[arg-type]


def test_a_default_of_an_options_own_counts() -> None:
    assert default_of(click.Option(["--sampler-seq", "letters"], default="kt")) == "kt"
    assert "[default: edskypmxt]" in (OPTIONS["--sampler-seq"].help or "")


def test_yarns_flags_name_the_key_that_does_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--yarn-orig-ctx", "4096", "hi"]) == 2
    assert "--override-kv ARCHITECTURE.rope.scaling.original_context_length=int:N" in capsys.readouterr().err


def test_no_option_has_a_name_of_another() -> None:
    names = [n for p in generate_command.params for n in (*p.opts, *p.secondary_opts) if n.strip("- ")]
    assert len(set(names)) == len(names)
