"""The ``wgllm`` command. Each subcommand lies in a module of its own that is imported when it is asked for."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from wgllm import __version__
from wgllm.errors import WgllmError

# name -> (module, one-line help); the help stands here so that `wgllm --help` imports no command.
COMMANDS = {
    "generate": ("wgllm.cli.generate", "Generate text from a prompt."),
    "bench": ("wgllm.cli.bench", "Measure prompt and generation speed."),
    "pull": ("wgllm.cli.models", "Download a model."),
    "list": ("wgllm.cli.models", "List the models that are here or can be had."),
    "show": ("wgllm.cli.show", "Show a model's metadata, tensors and memory."),
}

EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose commands are imported only when they run."""

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


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wgllm")
def cli() -> None:
    """Run large language models from GGUF files.

    wgllm generate -p "The capital of France is"
    """


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code instead of raising."""
    try:
        code = cli.main(args=args, prog_name="wgllm", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except WgllmError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.Abort:
        return _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "wgllm"
        return _fail(f"{error.format_message()} ({command} --help tells more)", error.exit_code)
    except BrokenPipeError:
        # `wgllm ... | head`: the reader has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)
    except MemoryError:
        return _fail("out of memory; a smaller --ctx-size or a smaller model may fit", 1)
    except Exception as error:
        return _fail(f"internal error: {type(error).__name__}: {error} (WGLLM_DEBUG=1 shows where)", 1)


def _fail(message: str, code: int) -> int:
    if os.environ.get("WGLLM_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    click.echo(f"wgllm: {' '.join(message.split())}", err=True)
    return code


def _interrupted() -> int:
    click.echo(err=True)
    return EXIT_INTERRUPTED
