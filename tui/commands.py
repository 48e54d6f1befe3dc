"""Slash commands: one table that completion, /help, the palette and dispatch read."""

from __future__ import annotations

from typing import NamedTuple

from wgllm.tui.attachments import Completion


class Command(NamedTuple):
    """``action`` is the application's method ``command_<action>``, which gets what stands after the name."""

    name: str
    argument: str
    """How help calls what may follow; empty: nothing does."""
    help: str
    key: str = ""
    action: str = ""

    @property
    def method(self) -> str:
        return f"command_{self.action or self.name}"


TABLE = (
    Command("help", "", "what can be typed and pressed", "F1"),
    Command("model", "[NAME]", "choose another model, or load the one that is named"),
    Command("system", "[TEXT]", "set the system prompt; - clears it, nothing shows it"),
    Command("set", "[NAME VALUE]", "how tokens are chosen: /set temperature 0.7; nothing opens the panel"),
    Command("new", "", "begin a new conversation; this one stays in the list", "Ctrl+N"),
    Command("clear", "", "another name for /new", action="new"),
    Command("regen", "", "make the last reply anew, beside the old one", "Ctrl+R"),
    Command("edit", "", "change your last message and ask again", "Ctrl+E"),
    Command("copy", "[code]", "copy the last reply, or its last block of code", "Ctrl+O"),
    Command(
        "inspect", "", "how probable each token of the last reply was, and what else was", "i on a reply"
    ),
    Command("context", "", "what the model sees, and what to leave out"),
    Command("save", "[FILE]", "write the conversation with all branches to a file, for /load"),
    Command("load", "FILE", "read a conversation that was saved"),
    Command("export", "[FILE]", "write what is shown as Markdown, or all as JSON, by the file's ending"),
    Command("rename", "[TITLE]", "name this conversation"),
    Command("delete", "", "delete this conversation; /undo brings it back"),
    Command("undo", "", "bring back the conversation that was deleted last"),
    Command("search", "[WORDS]", "search all conversations", "Ctrl+B"),
    Command("theme", "[NAME]", "colours: light and dark ones"),
    Command("reload", "[numpy]", "start the model's process again, perhaps without the graphics card"),
    Command("quit", "", "leave; everything is kept", "Ctrl+Q"),
)
_BY_NAME = {command.name: command for command in TABLE}


def find(name: str) -> Command | None:
    """The command of that name, or the only one that begins so."""
    name = name.lower()
    if name in _BY_NAME:
        return _BY_NAME[name]
    begun = [command for command in TABLE if command.name.startswith(name)]
    return begun[0] if name and len(begun) == 1 else None


def complete(line: str) -> list[Completion]:
    """The commands that ``/na`` may become."""
    typed = line[1:].lower()
    if not line.startswith("/") or " " in typed or line.startswith("//"):
        return []
    return [
        Completion(f"/{c.name}{' ' if c.argument else ''}", f"{c.argument} {c.help}".strip(), 0)
        for c in TABLE
        if c.name.startswith(typed)
    ]
