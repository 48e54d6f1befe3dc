"""Options of the samplers, under llama.cpp's names. What is not given is left to the model file and the defaults."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from wgllm.sampling import SamplingOptions

F = TypeVar("F", bound=Callable[..., Any])


class _Number(NamedTuple):
    """An option that is one number: its names, the field of SamplingParams, what help says is the default."""

    names: tuple[str, ...]
    field: str
    type: type[int] | type[float]
    metavar: str
    default: str
    help: str


# The defaults stand here as text, since help must come without loading the samplers; a test compares them.
NUMBERS = [
    _Number(("-s", "--seed"), "seed", int, "N", "-1", "Same seed, same text; -1 draws one."),
    _Number(("--temp", "--temperature"), "temperature", float, "T", "0.8", "Temperature; 0 is greedy."),
    _Number(("--top-k",), "top_k", int, "K", "40", "Keep the K best tokens; 0: all."),
    _Number(("--top-p",), "top_p", float, "P", "0.95", "Keep the best tokens that reach P; 1: all."),
    _Number(("--min-p",), "min_p", float, "P", "0.05",
            "Drop tokens less than P times as probable as the best; 0: none."),
    _Number(("--typical", "--typical-p"), "typical_p", float, "P", "1.0",
            "Keep the most typical tokens that exceed P; 1: all."),
    _Number(("--top-nsigma", "--top-n-sigma"), "top_n_sigma", float, "N", "-1.0",
            "Keep logits within N standard deviations of the best; 0 or less: all."),
    _Number(("--xtc-probability",), "xtc_probability", float, "P", "0.0",
            "How often xtc takes the most probable tokens away."),
    _Number(("--xtc-threshold",), "xtc_threshold", float, "P", "0.1",
            "From which probability on xtc takes tokens; above 0.5: never."),
    _Number(("--repeat-last-n",), "repeat_last_n", int, "N", "64",
            "Tokens that penalties look back; 0: none, -1: all."),
    _Number(("--repeat-penalty",), "repeat_penalty", float, "X", "1.0",
            "Divides the logits of tokens that were there; 1: off."),
    _Number(("--presence-penalty",), "presence_penalty", float, "X", "0.0",
            "Taken from the logit of a token that was there."),
    _Number(("--frequency-penalty",), "frequency_penalty", float, "X", "0.0",
            "Taken from it for each time that it was there."),
    _Number(("--dry-multiplier",), "dry_multiplier", float, "X", "0.0",
            "How strongly dry keeps repetitions from going on; 0: off."),
    _Number(("--dry-base",), "dry_base", float, "X", "1.75", "How fast that grows with the repetition's length."),
    _Number(("--dry-allowed-length",), "dry_allowed_length", int, "N", "2", "Length up to which dry lets it be."),
    _Number(("--dry-penalty-last-n",), "dry_penalty_last_n", int, "N", "64",
            "Tokens that dry looks back; 0: none, -1: all."),
    _Number(("--dynatemp-range",), "dynatemp_range", float, "T", "0.0",
            "Let the temperature move up and down by T; 0: off."),
    _Number(("--dynatemp-exp",), "dynatemp_exponent", float, "X", "1.0", "How it follows the entropy."),
    _Number(("--mirostat",), "mirostat", int, "0|1|2", "0", "Mirostat in place of the other samplers; 0: off."),
    _Number(("--mirostat-lr",), "mirostat_lr", float, "X", "0.1", "Mirostat's learning rate, eta."),
    _Number(("--mirostat-ent",), "mirostat_ent", float, "X", "5.0", "The surprise that it aims at, tau, in bits."),
]  # fmt: skip

_OTHERS = (
    click.option(
        "--dry-sequence-breaker", "dry_sequence_breakers", multiple=True, metavar="TEXT",
        help="A text across which dry sees no repetition; may be repeated; none: no text.  "
        "[default: \\n : \" *]",
    ),
    click.option(
        "-l", "--logit-bias", "logit_bias", multiple=True, metavar="ID±B",
        help="Add B to the logit of token ID; ID-inf forbids it. May be repeated.",
    ),
    click.option(
        "--samplers", default=None, metavar="NAMES",
        help="The samplers in order, with ; between.  [default: "
        "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature]",
    ),
    click.option(
        "--sampler-seq", "--sampling-seq", "letters", default=None, metavar="LETTERS",
        help="The same as letters.  [default: edskypmxt]",
    ),
)  # fmt: skip


def sampling_options(command: F) -> F:
    """Adds all options of sampling to a command, which gets what was given as ``sampling: SamplingOptions``.

    Values that make no sense are refused before the command runs; ``Llm.sampling_params(**sampling)`` joins them
    with what the model file says.
    """

    @functools.wraps(command)
    def run(**arguments: Any) -> Any:
        arguments["sampling"] = _given(arguments)
        return command(**arguments)

    decorated: Any = run
    for option in reversed(_OTHERS):
        decorated = option(decorated)
    for number in reversed(NUMBERS):
        decorated = click.option(
            *number.names, number.field, type=number.type, default=None, metavar=number.metavar,
            help=f"{number.help}  [default: {number.default}]",
        )(decorated)  # fmt: skip
    return decorated  # type: ignore[no-any-return]


def _given(arguments: dict[str, Any]) -> SamplingOptions:
    """Takes the options out of a command's arguments: those that were given, checked; escapes stay as they are."""
    from wgllm.errors import UsageError
    from wgllm.sampling import SamplingParams, samplers_from_letters

    given: dict[str, Any] = {number.field: arguments.pop(number.field) for number in NUMBERS}
    given["samplers"] = arguments.pop("samplers")
    if (letters := arguments.pop("letters")) is not None:
        if given["samplers"] is not None:
            raise UsageError("give either --samplers or --sampler-seq")
        given["samplers"] = samplers_from_letters(letters)
    if breakers := arguments.pop("dry_sequence_breakers"):
        given["dry_sequence_breakers"] = [text for text in breakers if text != "none"]
    if biases := arguments.pop("logit_bias"):
        given["logit_bias"] = dict(map(_bias, biases))
    options: SamplingOptions = {k: v for k, v in given.items() if v is not None}  # type: ignore[assignment]
    SamplingParams.from_metadata({}, **options)
    return options


def _bias(text: str) -> tuple[int, float]:
    from wgllm.errors import UsageError, printable

    match = re.fullmatch(r"(\d{1,10})([+-].+)", text, re.ASCII)
    try:
        if match is not None:
            return int(match[1]), float(match[2])
    except ValueError:
        pass
    raise UsageError(f"--logit-bias {printable(text, 40)} is not of the form ID+BIAS or ID-BIAS")
