"""``wgllm chat``: the terminal application, or with --plain the conversation line by line."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from wgllm import debug
from wgllm.cli.console import CONTEXT, use_utf8
from wgllm.cli.options import DEFAULT_MODEL, chat_options, load_arguments, model_options
from wgllm.cli.prompts import Escapes, system_prompt
from wgllm.cli.sampling_options import sampling_options
from wgllm.errors import UsageError, printable
from wgllm.user_paths import user_path

if TYPE_CHECKING:
    from wgllm.sampling import SamplingOptions
    from wgllm.sessions import SessionStore

_LAST = "last"


class _Remembering(click.Command):
    """Keeps what stood on the command line, for --plain to hand on."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = list(args)
        return super().parse_args(ctx, args)


@click.command("chat", cls=_Remembering, context_settings=CONTEXT)
@click.option(
    "-r",
    "--resume",
    is_flag=False,
    flag_value=_LAST,
    default=None,
    metavar="[SESSION]",
    help="Go on with the last conversation, or the one of that number or title.",
)
@click.option("--new", is_flag=True, help="Begin a new conversation, instead of going on where it was left.")
@click.option("--plain", is_flag=True, help="Line by line, as `wgllm generate -i`: nothing is kept.")
@click.option(
    "--db",
    default=None,
    metavar="FILE",
    help="Where conversations are kept.  [default: chats.db in the user's data folder]",
)
@click.option("-sys", "--system-prompt", "system", default=None, metavar="TEXT", help="The system prompt.")
@click.option(
    "-sysf",
    "--system-prompt-file",
    "system_file",
    default=None,
    metavar="FILE",
    help="A file with the system prompt.",
)
@click.option(
    "-n",
    "--predict",
    "max_tokens",
    type=click.IntRange(min=-1),
    default=-1,
    show_default=True,
    metavar="N",
    help="Tokens of a reply at most; -1 until it ends.",
)
@chat_options
@sampling_options
@model_options
def chat_command(
    resume: str | None,
    new: bool,
    plain: bool,
    db: str | None,
    system: str | None,
    system_file: str | None,
    max_tokens: int,
    sampling: SamplingOptions,
    **arguments: Any,
) -> int:
    """Talk with a model in the terminal. Conversations are kept, can be searched, and go on where they stopped.

    It comes back as it was left, also to the conversation that was open; with --new, or where a model, a system prompt
    or sampling options are named, a new one begins.

    Without -m a small model is taken, which is offered for download when it is not here. F1 tells the keys.

    \b
    Examples:
      wgllm chat
      wgllm chat -m gemma3:270m -sys "You are terse."
      wgllm chat -r

    \b
    See also:
      wgllm generate    one reply, for scripts
      wgllm list        the names of models
    """  # fmt: skip
    use_utf8()
    if plain:
        if resume is not None or new or db is not None:
            raise UsageError("--plain keeps no conversations: leave --resume, --new and --db out")
        return _plain(click.get_current_context().obj)
    if new and resume is not None:
        raise UsageError("give either --resume or --new")
    terminal = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    if not terminal or os.environ.get("TERM") in ("dumb", "unknown"):
        raise UsageError("chat needs a terminal; --plain talks line by line, `wgllm generate` takes a pipe")
    return _application(resume, new, db, system, system_file, max_tokens, sampling, arguments)


def _plain(typed: list[str]) -> int:
    from wgllm.cli.generate import generate_command

    arguments = ["-i", *(argument for argument in typed if argument != "--plain")]
    return int(generate_command.main(arguments, "wgllm chat --plain", standalone_mode=False) or 0)


def _application(
    resume: str | None,
    new: bool,
    db: str | None,
    system: str | None,
    system_file: str | None,
    max_tokens: int,
    sampling: SamplingOptions,
    arguments: dict[str, Any],
) -> int:
    from wgllm.sessions import SessionStore

    name, options = load_arguments(**arguments)
    source = click.get_current_context().get_parameter_source("model")
    named = arguments["hf_repo"] is not None or (source is not None and source.name != "DEFAULT")
    if named:
        from wgllm.hub import identify

        identify(name)  # a typo is told before the screen changes
    # Who names a model, a system prompt or how tokens are drawn asks for something else than what was left.
    asks = named or system is not None or system_file is not None or sampling or max_tokens >= 0
    goes_on = resume is None and not new and not asks
    prompt = system_prompt(system, system_file, Escapes(None))
    from wgllm.tui.app import ChatApp
    from wgllm.tui.base import Start
    from wgllm.tui.leaving import Leaving

    with SessionStore.open(None if db is None else user_path(db)) as store:
        start = Start(
            model=name if named else None,
            default_model=DEFAULT_MODEL,
            options=options,
            system_prompt=prompt,
            sampling=dict(sampling),
            max_tokens=None if max_tokens < 0 else max_tokens,
            resume=_left(store) if goes_on else None if resume is None else _session(store, resume),
            offline=arguments["offline"],
        )
        app = ChatApp(store, start)
        with Leaving(app, store.close):
            code = app.run()
    if debug.level():
        for failure in app.failures:
            traceback.print_exception(failure)
    return app.return_code or code or 0


def _left(store: SessionStore) -> int | None:
    """The conversation that was open at the end; None when that was a new one, or it was deleted."""
    last = store.kept.get("session")
    return last if any(s.id == last for s in store.sessions()) else None


def _session(store: SessionStore, which: str) -> int | None:
    """The conversation that -r names. Raises UsageError when there is none, or several."""
    sessions = store.sessions()
    ids = {s.id for s in sessions}
    if which == _LAST:
        last = store.kept.get("session")
        return last if last in ids else sessions[0].id if sessions else None
    if which.isdecimal() and int(which) in ids:
        return int(which)
    found = [s for s in sessions if which.casefold() in s.title.casefold()]
    if len(found) == 1:
        return found[0].id
    if not found:
        raise UsageError(
            f"no conversation is called {printable(which, 60)!r}; `wgllm chat` lists them (Ctrl+B)"
        )
    names = ", ".join(f"{s.id} ({printable(s.title, 40)})" for s in found[:5])
    raise UsageError(f"{printable(which, 60)!r} may be any of {names}; give its number")
