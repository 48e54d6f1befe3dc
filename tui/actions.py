"""What slash commands do; ``commands.TABLE`` says which there are."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from wgllm.errors import UsageError, WgllmError
from wgllm.sessions_export import from_json, read_file, to_json, to_markdown, write_file
from wgllm.tui import clipboard, commands
from wgllm.tui.base import kept_sampling
from wgllm.tui.dialogs import AskLine, AskText, Help
from wgllm.tui.markdown import CodeFence, lines_of
from wgllm.tui.message import MessageView
from wgllm.tui.panels import Panels
from wgllm.tui.text import clean, clean_line, split_reasoning
from wgllm.user_paths import user_path

_CODE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})[^\n]*\n(?P<code>.*?)(?:^ {0,3}(?P=fence)|\Z)", re.DOTALL | re.M
)


class Actions(Panels):
    """One method per command, ``command_<name>``."""

    deleted: int | None = None
    """The conversation that was deleted last."""

    async def run_command(self, line: str) -> bool:
        """Does what a line that begins with / says; False when it says nothing that is known."""
        name, _, argument = line[1:].partition(" ")
        command = commands.find(name.strip())
        if command is None:
            self.tell(
                f"/{clean_line(name, 40)} is no command; /help tells them, //… sends it as text", error=True
            )
            return False
        await self.run_named(command, argument.strip())
        return True

    async def run_named(self, command: commands.Command, argument: str = "") -> None:
        try:
            done = getattr(self, command.method)(argument)
            if inspect.isawaitable(done):
                await done
        except WgllmError as error:
            self.tell(error, error=True)

    def command_help(self, argument: str) -> None:
        self.push_screen(Help())

    async def command_new(self, argument: str) -> None:
        await self.open_session(None)

    # Model and settings

    async def command_model(self, argument: str) -> None:
        if argument:
            await self.begin_loading(argument)
        else:
            await self.choose_model()

    async def command_system(self, argument: str) -> None:
        if not argument:
            self.push_screen(
                AskText("System prompt of this conversation", self.system_prompt), self._take_system
            )
        else:
            self._take_system("" if argument == "-" else argument)

    def _take_system(self, text: str | None) -> None:
        if text is None:
            return
        self.system_prompt = text
        self.keep_settings()
        self.measure()
        self.tell("System prompt kept" if text.strip() else "No system prompt any more")

    async def command_set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if not value.strip():
            await self.show_settings()
            return
        name, made = checked_setting(name, value.strip())
        if name == "ctx_size":
            self.start_loading(ctx_size=made)
            return
        if name == "max_tokens":
            self.settings["max_tokens"] = made
        else:
            self.settings["sampling"] = {**self.settings.get("sampling", {}), **kept_sampling({name: made})}
        self.keep_settings()
        self.tell(f"{name} is {value.strip()} from the next reply on")

    def command_reload(self, argument: str) -> None:
        if argument == "numpy":
            self.action_numpy()
        else:
            self.action_reload()

    # Replies

    async def command_regen(self, argument: str) -> None:
        await self.regenerate()

    def command_edit(self, argument: str) -> None:
        self.edit()

    async def command_context(self, argument: str) -> None:
        await self.choose_context(self.path)

    async def command_copy(self, argument: str) -> None:
        if argument == "code":
            await self.copy_code()
            return
        reply = next((m for m in reversed(self.path) if m.role == "assistant" and m.content), None)
        if reply is None:
            raise UsageError("there is no reply to copy")
        await clipboard.copy(self, split_reasoning(clean(reply.content)).answer, "the last reply")

    async def copy_code(self) -> None:
        """Copies the last block of code of the conversation."""
        for message in reversed(self.path):
            text = self.reply.text if self.reply and message.id == self.streaming else message.content
            if message.role == "assistant" and (blocks := list(_CODE.finditer(clean(text)))):
                code = blocks[-1]["code"].rstrip("\n")
                await clipboard.copy(self, code, lines_of(code))
                return
        raise UsageError("there is no code in this conversation")

    async def on_code_fence_copied(self, event: CodeFence.Copied) -> None:
        await clipboard.copy(self, event.code, lines_of(event.code))

    async def command_inspect(self, argument: str) -> None:
        reply = next((m for m in reversed(self.path) if m.role == "assistant"), None)
        if reply is None:
            raise UsageError("there is no reply yet")
        await self.inspect(reply)

    async def on_message_view_asked(self, event: MessageView.Asked) -> None:
        if event.what == "inspect":
            self.run_worker(self.inspect(event.message))
        if event.what == "copy" and (view := self.conversation.view(event.message.id)) is not None:
            await clipboard.copy(self, view.copied_text(), "the message")

    # Conversations

    def _named_file(self, argument: str, ending: str) -> Path:
        if argument:
            return user_path(argument.strip("\"'"))
        return _free(self.session.title if self.session is not None else "", ending)

    async def command_save(self, argument: str) -> None:
        await self.export_to(self._named_file(argument, ".json"), whole=True)

    async def command_export(self, argument: str) -> None:
        path = self._named_file(argument, ".md")
        await self.export_to(path, whole=path.suffix.lower() == ".json")

    async def export_to(self, path: Path, *, whole: bool, session_id: int | None = None) -> None:
        """Writes a conversation: with all branches as JSON, or the branch that is shown as Markdown."""
        if session_id is None:
            if self.session is None:
                raise UsageError("this conversation is empty")
            session_id = self.session.id
        await asyncio.to_thread(self._export, path, whole, session_id)
        self.tell(f"Written to {path}")

    def _export(self, path: Path, whole: bool, session_id: int) -> None:
        if whole:
            text = to_json(self.store.conversation(session_id))
        else:
            text = to_markdown(self.store.session(session_id), self.store.path(session_id))
        write_file(path, text)

    async def export_session(self, session_id: int) -> None:
        """Writes a conversation of the list as Markdown, into a file by its title."""
        await self.export_to(
            _free(self.store.session(session_id).title, ".md"), whole=False, session_id=session_id
        )

    async def command_load(self, argument: str) -> None:
        if not argument:
            raise UsageError("/load needs the name of a file that /save has written")
        path = user_path(argument.strip("\"'"))

        def load() -> int:
            return self.store.add_conversation(from_json(read_file(path), path)).id

        await self.open_session(await asyncio.to_thread(load))

    def command_rename(self, argument: str) -> None:
        if self.session is None:
            raise UsageError("this conversation has no messages yet")
        if argument:
            self.rename_session(self.session.id, argument)
        else:
            self.ask_title(self.session.id)

    def ask_title(self, session_id: int) -> None:
        def take(title: str | None) -> None:
            if title is not None:
                self.rename_session(session_id, title)

        self.push_screen(AskLine("Title", clean_line(self.store.session(session_id).title, 200)), take)

    def rename_session(self, session_id: int, title: str) -> None:
        renamed = self.store.rename(session_id, title)
        if self.session is not None and self.session.id == session_id:
            self.session = renamed
            self.title = clean_line(renamed.title, 100)
        self.refresh_sidebar()

    async def command_delete(self, argument: str) -> None:
        if self.session is None:
            raise UsageError("this conversation has no messages yet")
        await self.delete_session(self.session.id)

    async def delete_session(self, session_id: int) -> None:
        """Hides a conversation; it can be brought back for some days."""
        title = clean_line(self.store.session(session_id).title, 40)
        if self.reply is not None and self.reply.message.session_id == session_id:
            self.stop()
        self.store.delete(session_id)
        self.deleted = session_id
        if self.session is not None and self.session.id == session_id:
            await self.open_session(None)
        self.refresh_sidebar()
        self.tell(f"Deleted “{title}”; u here or /undo brings it back")

    async def command_undo(self, argument: str) -> None:
        if self.deleted is None:
            gone = self.store.sessions(deleted=True)
            self.deleted = max(gone, key=lambda s: s.deleted_at or 0.0).id if gone else None
        if self.deleted is None:
            raise UsageError("nothing was deleted")
        session_id, self.deleted = self.deleted, None
        self.store.undelete(session_id)
        await self.open_session(session_id)

    def command_search(self, argument: str) -> None:
        self.show_sidebar(argument)

    def show_sidebar(self, words: str = "") -> None:
        """Shows the list of conversations."""

    def command_theme(self, argument: str) -> None:
        if not argument:
            self.search_themes()
        elif argument in self.available_themes:
            self.theme = argument
        else:
            names = ", ".join(sorted(self.available_themes))
            raise UsageError(f"there is no theme {clean_line(argument, 30)!r}; there are {names}")

    def command_quit(self, argument: str) -> None:
        self.exit(0)


def _free(title: str, ending: str) -> Path:
    """A file's name after a title, of which there is none yet."""
    stem = re.sub(r"[^\w-]+", "-", clean_line(title, 60)).strip("-").lower() or "conversation"
    path, number = Path(f"{stem}{ending}"), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}{ending}"), number + 1
    return path


def checked_setting(name: str, value: str) -> tuple[str, Any]:
    """A setting of ``/set`` as it is kept. Raises UsageError."""
    from wgllm.sampling import SamplingParams

    name = name.lower().replace("-", "_")
    name = {"temp": "temperature", "n": "max_tokens", "predict": "max_tokens", "c": "ctx_size"}.get(
        name, name
    )
    if name not in ("max_tokens", "ctx_size", *(f.name for f in fields(SamplingParams))):
        raise UsageError(f"there is no sampling option {clean_line(name, 40)!r}; /set shows them")
    if name == "logit_bias":
        made: Any = dict(map(_bias, value.replace(",", " ").split()))
    elif name == "samplers":
        made = value
    elif name == "dry_sequence_breakers":
        made = value.split()
    else:
        try:
            made = float(value) if any(c in value.lower() for c in ".en") else int(value)
        except ValueError:
            raise UsageError(f"{clean_line(value, 40)} is no number") from None
    if name in ("max_tokens", "ctx_size"):
        if not isinstance(made, int) or made < 1:
            raise UsageError(f"{name} must be a number of tokens")
    else:
        SamplingParams.from_metadata({}, **{name: made})
    return name, made


def _bias(text: str) -> tuple[int, float]:
    """``TOKEN+BIAS`` or ``TOKEN-BIAS``, as llama.cpp writes it."""
    match = re.fullmatch(r"(\d{1,10})([+-][^\s+-].*)", text, re.ASCII)
    try:
        bias = math.nan if match is None else float(match[2])
    except ValueError:
        bias = math.nan
    if match is None or math.isnan(bias):
        raise UsageError(f"logit_bias: {clean_line(text, 40)} is not of the form TOKEN+BIAS or TOKEN-BIAS")
    return int(match[1]), bias
