"""Conversations as files: Markdown that no message breaks, JSON that comes back as it was, and writing them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgllm.errors import SessionFileError
from wgllm.sessions import SessionStore
from wgllm.sessions_export import closed, from_json, read_file, to_json, to_markdown, write_file
from wgllm.sessions_text import plain
from wgllm.sessions_types import MessageState


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "data" / "chats.db", wall=lambda: 1_700_000_000.25) as opened:
        yield opened


@pytest.fixture
def session(store: SessionStore) -> int:
    """With branches, settings, states and statistics."""
    made = store.new_session(
        model="smollm2", system_prompt="Be *brief*.", settings={"temperature": 0.5, "x": [None]}
    )
    question = store.append(made.id, "user", "Why <b>?\n\x1b]52;c;aGk=\x07\x1b[31mred")
    first = store.begin_reply(made.id, model="smollm2")
    store.finish_reply(
        first.id,
        "<think>\nlet me see\n```\n</think>\n\nBecause:\n```py\nx = 1",
        stats={"n": 1.5},
        token_count=9,
    )
    second = store.regenerate(first.id, model="qwen")
    store.finish_reply(second.id, "Stopp", state=MessageState.STOPPED, finish_reason="cancelled")
    store.edit(question.id, "other 😀 \u2028")
    store.switch(first.id)
    store.append(made.id, "user", "end")
    store.update_session(made.id, draft="and \x00")
    return made.id


# Markdown


def test_markdown(store: SessionStore, session: int) -> None:
    text = to_markdown(store.session(session), store.path(session))
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(1_700_000_000))
    assert text == (
        f"# Why \\<b\\>?\n\n*smollm2 · {moment}*\n\n## System prompt\n\nBe *brief*.\n\n"
        f"## User\n\n*{moment}*\n\nWhy <b>?\nred\n\n"
        f"## Assistant\n\n*{moment}*\n\n> *Reasoning*\n>\n> let me see\n> ```\n> ```\n\nBecause:\n```py\nx = 1\n```\n\n"
        f"## User\n\n*{moment}*\n\nend\n"
    )
    store.switch(store.siblings(store.path(session)[1].id)[1])
    text = to_markdown(store.session(session), store.path(session))
    assert f"*qwen · {moment} · stopped*\n\nStopp\n" in text


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("plain", "plain"),
        ("```\ncode", "```\ncode\n```"),
        ("~~~~ py\n```\n~~~\ncode", "~~~~ py\n```\n~~~\ncode\n~~~~"),
        ("```\ncode\n````\n# after", "```\ncode\n````\n# after"),
        ("```\n``` x\n", "```\n``` x\n```"),
        ("``` in `line` ```\ntext", "``` in `line` ```\ntext"),
        ("    ```\ntext", "    ```\ntext"),
        ("<!-- all\n\nthat follows", "\\<!-- all\n\nthat follows"),
        ("<!-- a\n\n--> b", "<!-- a\n\n--> b"),
        ("<!-- a -->\n<!-- b", "<!-- a -->\n\\<!-- b"),
        ("  <SCRIPT>\nx", "  \\<SCRIPT>\nx"),
        ("<pre>\n```\n</pre>\n```\nx", "<pre>\n```\n</pre>\n```\nx\n```"),
        ("<?php\n\nx", "\\<?php\n\nx"),
        ("<![CDATA[\n\nx", "\\<![CDATA[\n\nx"),
        ("<!DOCTYPE\n\nx", "\\<!DOCTYPE\n\nx"),
        ("<prelude>\n\nx", "<prelude>\n\nx"),
        ("\n\n  a\r\nb\rc\n\n", "  a\nb\nc"),
    ],
)
def test_nothing_is_left_open(text: str, made: str) -> None:
    assert closed(text) == made
    assert closed(made) == made


def test_many_open_comments() -> None:
    """Each would be looked for to the end of the text, for hours."""
    assert closed("<!-- x\n" * 300_000).count("\\<!-- x") == 300_000


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred\x1b(B", "red"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x9d52;c;x\x9cc", "abc"),
        ("\x1bPdcs\x1b\\x\x90dcs\x9cy\x1b_apc\x1b\\", "xy"),
        ("a\x1b]0;never closed\nmuch text", "a]0;never closed\nmuch text"),
        ("\x1b", ""),
        ("\x1b[", "["),
        ("\x1bc\x1b7reset", "reset"),
        ("\x00\x08\x0b\x7f\x85tab\t", "\n\ntab\t"),
        ("é 東 😀 \u202e", "é 東 😀 \u202e"),
    ],
)
def test_plain(text: str, made: str) -> None:
    assert plain(text) == made


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("\x1b\x9b\x9d\x9c\x07[]P\\m0;ab\n\r\x00\x85")))
def test_plain_leaves_no_control_characters(text: str) -> None:
    made = plain(text)
    assert not [c for c in made if c != "\n" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0)]
    assert plain(made) == made


@pytest.mark.parametrize(
    ("text", "made"),
    [("\x1b]", "]"), ("\x9d", ""), ("\x1b[;", "[;"), ("\x9d0\x1b", "0"), ("\x1b", ""), ("\x9b0", "0")],
)
def test_many_sequences_that_do_not_end(text: str, made: str) -> None:
    """Each would be followed to the end of the text, for hours."""
    assert plain(text * 500_000 + "\n") == made * 500_000 + "\n"


# JSON


def test_json_comes_back_as_it_was(store: SessionStore, session: int, tmp_path: Path) -> None:
    text = to_json(store.conversation(session))
    with SessionStore.open(tmp_path / "other.db") as other:
        copy = other.add_conversation(from_json(text))
        assert to_json(other.conversation(copy.id)) == text
        assert [m.content for m in other.path(copy.id)] == [m.content for m in store.path(session)]
        assert other.search("because")
    again = store.add_conversation(from_json(text))
    assert to_json(store.conversation(again.id)) == text
    assert to_json(store.conversation(session)) == text
    data = json.loads(text)
    assert (data["format"], data["version"], len(data["messages"])) == ("wgllm-conversation", 1, 5)


def test_json_of_a_session_without_messages(store: SessionStore) -> None:
    text = to_json(store.conversation(store.new_session().id))
    assert to_json(store.conversation(store.add_conversation(from_json(text)).id)) == text


def test_the_copy_of_a_reply_that_is_generated_is_interrupted(store: SessionStore) -> None:
    reply = store.begin_reply(store.new_session().id)
    store.update_reply(reply.id, "so far")
    copy = store.add_conversation(store.conversation(reply.session_id))
    (message,) = store.path(copy.id)
    assert (message.content, message.state) == ("so far", MessageState.INTERRUPTED)


def test_of_a_branch_that_was_never_shown_the_newest_is(store: SessionStore, session: int) -> None:
    data = json.loads(to_json(store.conversation(session)))
    for message in data["messages"]:
        message["last_shown"] = None
    copy = store.add_conversation(from_json(json.dumps(data)))
    first = store.path(copy.id)[0]
    assert [m.content for m in store.switch(first.id)] == [first.content, "Stopp"]


def at(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (at("format", to="other"), "no conversation"),
        (at("version", to=2), "version 2; this wgllm reads version 1"),
        (at("version", to="1"), "version must be a whole number"),
        (at("version", to=True), "version must be"),
        (at("title", to=None), "title must be a text"),
        (at("named", to=1), "named must be true or false"),
        (at("settings", to=[]), "settings must be an object"),
        (at("created", to="now"), "created must be seconds"),
        (at("created", to=-1), "created must be seconds"),
        (at("updated", to=10**400), "updated must be seconds"),
        (at("updated", to=True), "updated must be seconds"),
        (at("leaf", to=None), "leaf must name a message"),
        (at("leaf", to=5), "leaf must be the place"),
        (at("leaf", to=-1), "leaf must be the place"),
        (at("messages", to={}), "messages must be a list"),
        (at("messages", to=[]), "leaf must be"),
        (at("messages", 1, to=7), r"messages\[1\] is not an object"),
        (at("messages", 1, "parent", to=1), r"messages\[1\]: parent must be the place"),
        (at("messages", 1, "parent", to=4), r"messages\[1\]: parent"),
        (at("messages", 1, "parent", to=0.0), r"messages\[1\]: parent"),
        (at("messages", 1, "role", to="robot\x1b"), r"messages\[1\]: role"),
        (at("messages", 1, "content", to=None), r"messages\[1\]: content must be a text"),
        (at("messages", 1, "state", to="done"), r"messages\[1\]: state"),
        (at("messages", 1, "created", to=[]), r"messages\[1\]: created"),
        (at("messages", 1, "token_count", to=2**70), r"messages\[1\]: token_count"),
        (at("messages", 1, "token_count", to=-1), r"messages\[1\]: token_count"),
        (at("messages", 1, "stats", to=[]), r"messages\[1\]: stats"),
        (at("messages", 1, "finish_reason", to=3), r"messages\[1\]: finish_reason"),
        (at("messages", 1, "model", to=3), r"messages\[1\]: model"),
        (at("messages", 0, "last_shown", to=4), r"messages\[0\]: last_shown"),
        (at("messages", 0, "last_shown", to=99), r"messages\[0\]: last_shown"),
    ],
)
def test_forged_json_is_refused(store: SessionStore, session: int, change: Any, says: str) -> None:
    data = json.loads(to_json(store.conversation(session)))
    change(data)
    with pytest.raises(SessionFileError, match=says) as caught:
        from_json(json.dumps(data), "chat\x1b.json")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "\ud800", '{"a": NaN}', "[" * 100_000, "1" * 5000, '{"format": 1}']
)
def test_what_is_no_json_of_ours_is_refused(text: str) -> None:
    with pytest.raises(SessionFileError) as caught:
        from_json(text)
    assert str(caught.value).isprintable()


def test_hostile_texts_in_json(store: SessionStore, session: int) -> None:
    data = json.loads(to_json(store.conversation(session)))
    data["title"] = "two\nlines\x1b[2J \ud800"
    data["messages"][0]["content"] = "\ud83d\x00"
    data["settings"] = {"\udc00": "\ud800"}
    copy = store.add_conversation(from_json(json.dumps(data)))
    assert copy.title == "two lines �"
    assert store.conversation(copy.id).messages[0].content == "\ufffd\ufffd"
    text = to_json(store.conversation(copy.id))
    text.encode()
    assert to_json(store.conversation(store.add_conversation(from_json(text)).id)) == text


# Files


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "chat.md"
    write_file(path, "one 😀\n")
    assert read_file(path) == "one 😀\n"
    assert path.read_bytes().endswith(b"\n") and b"\r" not in path.read_bytes()
    if os.name != "nt":
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SessionFileError, match="exists already"):
        write_file(path, "two")
    assert read_file(path) == "one 😀\n"
    write_file(path, "two", overwrite=True)
    assert read_file(path) == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["chat.md"]


def test_files_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.md"
    write_file(path, "one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SessionFileError, match="cannot be written: No space left"):
            write_file(path, "two", overwrite=True)
    assert read_file(path) == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["chat.md"]
    with pytest.raises(SessionFileError, match="cannot be written"):
        write_file(tmp_path / "none" / "chat.md", "x")
    with pytest.raises(SessionFileError, match="cannot be written"):
        write_file(tmp_path, "x", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["chat.md"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SessionFileError, match="cannot be read"):
        read_file(tmp_path / "none")
    with pytest.raises(SessionFileError, match="not a regular file"):
        read_file(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(SessionFileError, match="not UTF-8"):
        read_file(tmp_path / "latin")
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf{}")
    assert read_file(tmp_path / "bom") == "{}"
