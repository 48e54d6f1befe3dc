"""The ``wgllm`` command. Each subcommand lies in a module of its own that is imported when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import click

from wgllm import debug
from wgllm.cli.console import CONTEXT
from wgllm.cli.signals import INTERRUPTED, Terminated
from wgllm.errors import WgllmError, printable

# name -> (module, one-line help); the help stands here so that `wgllm --help` imports no command.
COMMANDS = {
    "chat": ("wgllm.cli.chat", "Talk with a model in the terminal."),
    "web": ("wgllm.cli.serve", "Open a page that runs a model on the browser's graphics card."),
    "serve": ("wgllm.cli.serve", "Serve the page and OpenAI's interface to other programs and machines."),
    "generate": ("wgllm.cli.generate", "Generate text from a prompt."),
    "pull": ("wgllm.cli.models", "Download a model."),
    "list": ("wgllm.cli.models", "List the models that are here or can be had."),
    "search": ("wgllm.cli.models", "Find models in the catalogue."),
    "show": ("wgllm.cli.show", "Show a model's metadata, tensors and memory."),
    "rm": ("wgllm.cli.models", "Delete a downloaded model."),
    "tokenize": ("wgllm.cli.tokenize", "Turn text into tokens, or tokens into text."),
    "perplexity": ("wgllm.cli.perplexity", "Measure how well a model foretells a text."),
    "bench": ("wgllm.cli.bench", "Measure prompt and generation speed."),
    "check": ("wgllm.cli.check", "Compare a graphics card with NumPy, kernel by kernel."),
    "plan": ("wgllm.cli.plan", "Show what a model becomes on a GPU."),
    "devices": ("wgllm.cli.devices", "Show what could compute here."),
    "completion": ("wgllm.cli.completion", "Print a completion script for a shell."),
}


class _ReaderGone(Exception):
    """A pipe that was written to is broken, as in `wgllm ... | head`."""


@contextlib.contextmanager
def _own_pipes() -> Iterator[None]:
    """Hides broken pipes from click, which would end the process with 1."""
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderGone from error


class LazyGroup(click.Group):
    """A group whose commands are imported only when they run."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _own_pipes():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _own_pipes():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from wgllm.cli.version import show_version

        show_version(ctx)


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version, and those of what wgllm stands on, and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run large language models from GGUF files.

    Text goes to stdout, everything else to stderr. A model is a name of the catalogue, a path, or a repository on
    Hugging Face; without one, a small one is downloaded.

    \b
    Examples:
      wgllm chat
      wgllm generate -p "The capital of France is"
      wgllm generate -p "Summarise this:" < notes.txt

    \b
    Exit codes:
      0 ok · 1 error · 2 usage · 3 model not found or download failed · 4 bad model file
      5 GPU unavailable · 130 interrupted · 141 the reader of a pipe has left
    """
    if ctx.invoked_subcommand is None:
        # Not on stdout: a script whose command is missing must neither take this for text nor go on.
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code instead of raising."""
    code = _run(args)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _leave_stdout()
    return code


def _run(args: Sequence[str] | None) -> int:
    try:
        code = cli.main(args=args, prog_name="wgllm", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except Terminated as signalled:
        _leave_stdout()
        return signalled.exit_code
    except WgllmError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.Abort as error:
        # Where click caught a Ctrl-C it has ended the line itself.
        return INTERRUPTED if error.__cause__ is not None else _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "wgllm"
        return _fail(f"{error.format_message()} ({command} --help tells more)", error.exit_code)
    except (_ReaderGone, BrokenPipeError):
        _leave_stdout()
        return 128 + getattr(signal, "SIGPIPE", 13)
    except MemoryError:
        return _fail("out of memory; a smaller --ctx-size or a smaller model may fit", 1)
    except OSError as error:  # a disk that is full, a file that may not be read
        place = f"{printable(str(error.filename))}: " if error.filename is not None else ""
        return _fail(f"{place}{error.strerror or error}", 1)
    except Exception as error:
        return _fail(f"internal error: {type(error).__name__}: {error} (WGLLM_DEBUG=1 shows where)", 1)


def _leave_stdout() -> None:
    """Python would complain when it flushes at exit what nobody takes."""
    with contextlib.suppress(OSError, ValueError):  # a stdout without a file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody reads stderr, either
        if debug.level():
            traceback.print_exc()
        click.echo(f"wgllm: {' '.join(message.split())}", err=True)
    return code


def _interrupted() -> int:
    with contextlib.suppress(OSError):
        click.echo(err=True)
    return INTERRUPTED
