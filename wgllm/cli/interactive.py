"""``wgllm generate -i``: a conversation line by line, at a terminal or through a pipe."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wgllm.cli.conversation import TextConversation, start_conversation
from wgllm.cli.lines import Lines
from wgllm.cli.render import Output, wants_colour
from wgllm.cli.session import Session
from wgllm.cli.signals import INTERRUPTED
from wgllm.errors import WgllmError

if TYPE_CHECKING:
    from wgllm.engine import Event
    from wgllm.sampling import SamplingParams

_HELP = """\
/regen       make the last reply anew
/undo        forget the last turn
/save FILE   write the conversation to a file
/clear       forget everything but the system prompt
/exit        leave, as Ctrl-D and Ctrl-C twice do
A line that ends in \\ goes on in the next one; \"\"\" begins and ends several lines.
A line that begins with // is sent with one /.
Ctrl-C stops a reply and keeps what is there."""


class Interactive:
    """The loop of a conversation."""

    def __init__(self, session: Session, output: Output, system: str | None) -> None:
        self._session = session
        self._output = output
        self._messages = session.messages
        self._conversation = start_conversation(session, system)
        simple = session.options.simple_io
        colour = not simple and wants_colour(session.options.colour, sys.stdout)
        self._lines = Lines(simple=simple, colour=colour)
        self._replies = 0
        self._failed = False
        self._saved: set[Path] = set()

    def run(self, first: str) -> int:
        """Talks until the end; returns the exit code. ``first`` is said before anything is read."""
        if self._lines.typed:
            self._messages.info("/help tells the commands; Ctrl-D leaves")
        if first:
            self._turn(first)
            if self._session.options.single_turn:
                return self._code()
        stopped_before = False
        while True:
            try:
                entry = self._lines.read()
            except KeyboardInterrupt:
                self._session.interrupts.reset()
                sys.stderr.write("\n")
                if stopped_before or not self._lines.typed:
                    return INTERRUPTED
                self._messages.info("Ctrl-C again or Ctrl-D leaves")
                stopped_before = True
                continue
            stopped_before = False
            if entry is None or entry.strip() in ("/exit", "/quit", "/bye"):
                return self._code()
            if not entry.strip():
                continue
            if entry.startswith("/") and not entry.startswith("//"):
                self._command(entry.strip())
                continue
            self._turn(entry[1:] if entry.startswith("//") else entry)
            if self._session.options.single_turn:
                return self._code()

    def _code(self) -> int:
        return 1 if self._failed and not self._lines.typed else 0

    def _turn(self, text: str) -> None:
        self._conversation.ask(text)
        if not self._reply():
            self._conversation.turns.pop()

    def _reply(self) -> bool:
        """Makes the reply to the last turn; False after an error, which is told."""
        session, output = self._session, self._output
        ids: list[int] = []
        try:
            tokens = self._conversation.tokens()
            session.show_prompt(tokens, output)
            request = session.request(tokens, self._sampling())
            last = session.run(request, _Recorder(output, ids))
        except WgllmError as error:
            self._failed = True
            self._messages.warn(f"wgllm: {' '.join(str(error).split())}")
            if len(self._conversation.turns) > 1:
                self._messages.info("/undo and /clear make room")
            return False
        stopped = session.interrupts.seen
        session.interrupts.reset()
        if stopped and not self._lines.typed:
            raise KeyboardInterrupt
        if stopped and not ids:
            self._messages.info("stopped before the reply; the turn is forgotten")
            return False
        reply = session.reply_text(request, ids, last)
        if isinstance(self._conversation, TextConversation) and last.stopped_by:
            output.text(last.stopped_by)  # what the other side says stays in the text
            reply += last.stopped_by
        output.end()
        self._conversation.answer(reply, ids)
        session.tell(last)
        if stopped:
            self._messages.info("stopped; the text is kept")
        return True

    def _sampling(self) -> SamplingParams:
        """A seed of its own for each reply, so that /regen makes another one and the whole can be repeated."""
        sampling = self._session.sampling
        if sampling.seed is not None and sampling.seed >= 0:
            sampling = replace(sampling, seed=(sampling.seed + self._replies) % (1 << 64))
        self._replies += 1
        return sampling

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        turns = self._conversation.turns
        if name == "/help":
            self._messages.warn(_HELP)
        elif name == "/clear":
            turns.clear()
            self._messages.info("forgotten")
        elif name in ("/undo", "/regen") and not turns:
            self._messages.warn("there is no turn yet")
        elif name == "/undo":
            turns.pop()
            self._messages.info(f"the last turn is forgotten; {len(turns)} are left")
        elif name == "/regen":
            before = turns[-1].replied, turns[-1].ids
            turns[-1].replied, turns[-1].ids = None, []
            if not self._reply():
                turns[-1].replied, turns[-1].ids = before
        elif name == "/save":
            self._save(argument.strip())
        else:
            self._messages.warn(f"{name} is no command; /help tells them, //… sends it as text")

    def _save(self, argument: str) -> None:
        try:
            (name,) = shlex.split(argument) if "'" in argument or '"' in argument else [argument]
        except ValueError:
            name = ""
        if not name:
            self._messages.warn("/save needs the name of a file")
            return
        path = Path(name).expanduser()
        try:
            with path.open("w" if path.absolute() in self._saved else "x", encoding="utf-8") as file:
                file.write(self._conversation.text())
        except FileExistsError:
            self._messages.warn(f"{path} is there already; name another file")
        except OSError as error:
            self._messages.warn(f"{path}: {error.strerror}")
        else:
            self._saved.add(path.absolute())
            self._messages.info(f"saved in {path}")


class _Recorder:
    """An output that also keeps the tokens."""

    def __init__(self, output: Output, ids: list[int]) -> None:
        self._output, self._ids = output, ids
        self.prompt, self.text, self.end = output.prompt, output.text, output.end

    def event(self, event: Event) -> None:
        if event.token_id is not None:
            self._ids.append(event.token_id)
        self._output.event(event)
