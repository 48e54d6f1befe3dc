"""The options of ``wgllm generate`` but for those of models and samplers, under llama.cpp's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class GenerateOptions:
    """What ``generate_options`` takes from the command line."""

    prompt: str | None
    files: tuple[str, ...]
    system: str | None
    system_file: str | None
    escape: bool | None
    parse_special: bool
    conversation: bool | None
    interactive: bool
    single_turn: bool
    stop: tuple[str, ...]
    max_tokens: int
    keep: int
    context_shift: bool
    ignore_eos: bool
    prompt_cache: str | None
    prompt_cache_all: bool
    prompt_cache_ro: bool
    prompts: str | None
    out: str | None
    as_json: bool
    display_prompt: bool
    special: bool
    colour: bool | None
    simple_io: bool
    show_timings: bool | None
    quiet: bool
    verbose: bool
    check: bool
    log_file: str | None

    @staticmethod
    def take(arguments: dict[str, Any]) -> GenerateOptions:
        """Removes its own from a command's arguments."""
        return GenerateOptions(**{f.name: arguments.pop(f.name) for f in fields(GenerateOptions)})


_OPTIONS = [
    click.option("-p", "--prompt", default=None, metavar="TEXT", help="The prompt; - reads stdin."),
    click.option("-f", "--file", "files", multiple=True, metavar="FILE", help="A file with a prompt; - reads stdin."),
    click.option("-sys", "--system-prompt", "system", default=None, metavar="TEXT", help="The system prompt."),
    click.option("-sysf", "--system-prompt-file", "system_file", default=None, metavar="FILE",
                 help="A file with the system prompt."),
    click.option("-e/ ", "--escape/--no-escape", "escape", default=None,
                 help=r"Read \n, \t, \\, \xNN … in prompts.  [default: in arguments, not in files and pipes]"),
    click.option("--parse-special", is_flag=True, help="Special tokens in prompts are such, not text."),
    click.option("-cnv/-no-cnv", "--conversation/--no-conversation", "conversation", default=None,
                 help="Use the model's chat template, or continue the prompt as it is.  "
                      "[default: the template, if there is one]"),
    click.option("--raw", "conversation", flag_value=False, type=bool, help="The same as -no-cnv."),
    click.option("-i", "--interactive", is_flag=True,
                 help="Talk line by line: with the terminal, or with lines from a pipe; /help tells the commands."),
    click.option("-st", "--single-turn", is_flag=True, help="Leave after the first reply, as it is without -i."),
    click.option("-r", "--reverse-prompt", "stop", multiple=True, metavar="TEXT",
                 help="Stop before this text; with -i give the turn back."),
    click.option("-n", "--predict", "max_tokens", type=click.IntRange(min=-2), default=-1, show_default=True,
                 metavar="N",
                 help="Tokens to make at most; -1 until the text ends, -2 until then or until the context is full, "
                      "which is never shifted."),
    click.option("--keep", type=click.IntRange(min=-1), default=0, show_default=True, metavar="N",
                 help="Tokens of the prompt that a context shift keeps; -1 all."),
    click.option("--context-shift/--no-context-shift", default=False, show_default=True,
                 help="When the context is full drop its older half and go on, instead of stopping."),
    click.option("--ignore-eos", is_flag=True, help="Go on after the end of the text."),
    click.option("--prompt-cache", default=None, metavar="FILE",
                 help="Keep what the model computed of the prompt in FILE, and start from it the next time."),
    click.option("--prompt-cache-all", is_flag=True, help="Keep the generated text there too."),
    click.option("--prompt-cache-ro", is_flag=True, help="Read the prompt cache but don't write it."),
    click.option("--prompts", default=None, metavar="FILE.jsonl",
                 help='Run many prompts, a line each: {"prompt": …} or {"messages": […]}, perhaps with id, '
                      "max_tokens, temperature, seed, stop ….  With --seed each line has a seed of its own."),
    click.option("-o", "--out", default=None, metavar="FILE.jsonl",
                 help="Where the results of --prompts go, in order; a run that was cut goes on where it stopped."),
    click.option("--json", "as_json", is_flag=True,
                 help="One JSON object a line: each token, then the reason for the end and the statistics."),
    click.option("--display-prompt/--no-display-prompt", default=False,
                 help="Print the prompt before the text.  [default: only the text]"),
    click.option("-sp", "--special", is_flag=True, help="Show special tokens."),
    click.option("-co/ ", "--color/--no-color", "colour", default=None,
                 help="Colour prompts and messages.  [default: on a terminal, unless NO_COLOR]"),
    click.option("--simple-io", is_flag=True, help="No line editing, no history, no colours, no progress."),
    click.option("--show-timings/--no-show-timings", default=None,
                 help="Tell speed and token counts at the end.  [default: unless -q]"),
    click.option("-q", "--quiet", is_flag=True, help="No messages on stderr but warnings and errors."),
    click.option("-v", "--verbose", is_flag=True, help="More messages: the prompt's tokens, settings."),
    click.option("--check", is_flag=True,
                 help="Compare what each node of the model makes with NumPy and stop where it differs; slow."),
    click.option("--log-file", default=None, metavar="FILE", help="Append all messages to FILE."),
]  # fmt: skip


def generate_options(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
