"""Text that gives a terminal orders: of a model, a file, a title, an error, a name. None of it reaches the terminal."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tui.terminal import Terminal, chat
from wgllm.sessions import SessionStore
from wgllm.sessions_text import one_line
from wgllm.sessions_types import MessageState
from wgllm.tui.text import clean, clean_line

pytest.importorskip("pty", reason="Windows has no pseudo terminals")

ESC, BEL, ST = "\x1b", "\x07", "\x1b\\"
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
STRINGS = (
    "0;evil",  # the title
    "1;evil",
    "2;evil",
    "4;1;red",  # colours
    "7;file://h/",
    "8;;http://e.vil",  # a link
    "9;evil",  # a notification
    "10;red",
    "11;?",  # a question, whose answer would be typed
    "12;red",
    "52;c;ZXZpbA==",  # the clipboard
    "52;c;?",
    "104",
    "133;A",
    "777;notify;a;b",
    "1337;File=:AAAA",
    "P1;q#0!9~",  # Sixel
)
CSI = (
    *(
        "2J",
        "3J",
        "J",
        "K",
        "2K",
        "H",
        "9;9H",
        "99A",
        "99B",
        "99C",
        "99D",
        "9E",
        "9F",
        "9G",
        "9d",
        "9L",
        "9M",
    ),
    *(
        "9P",
        "9X",
        "9@",
        "9S",
        "9T",
        "2;5r",
        "s",
        "u",
        "6n",
        "5n",
        "c",
        ">c",
        "0c",
        "=c",
        "x",
        "1;5;8m",
        "8m",
        "5m",
    ),
    *(
        "?25h",
        "?1049l",
        "?1049h",
        "?1000l",
        "?1003h",
        "?2004l",
        "?7h",
        "?5h",
        "?6h",
        "?47h",
        "?69h",
        "20h",
        "4h",
    ),
    *(
        "!p",
        "2 q",
        '1"q',
        "?1$p",
        ">1u",
        "<u",
        "?u",
        "=1;1u",
        "14t",
        "18t",
        "21t",
        "8;1;1t",
        "22;0t",
        "3g",
        "1i",
    ),
)
ESCAPES = (
    "c",
    "7",
    "8",
    "=",
    ">",
    "D",
    "E",
    "H",
    "M",
    "N",
    "O",
    "Z",
    "#8",
    "#3",
    "(0",
    ")0",
    "%G",
    "n",
    "o",
    "|~",
    "6",
)
MARKUP = (
    "[red]r",
    "[/]",
    "[@click=app.quit]q",
    "[link=http://e.vil]l",
    "[bold red on blue]",
    "$primary",
    "[/red]",
)


def sequences() -> list[str]:
    """Two hundred of them and more, each another."""
    made = [f"{ESC}]{text}{BEL}" for text in STRINGS] + [f"{ESC}]{text}{ST}" for text in STRINGS]
    made += [f"\x9d{text}\x9c" for text in STRINGS] + [f"{ESC}]{text}" for text in STRINGS[:4]]
    for opening in ("P", "_", "^", "X", "k"):  # DCS, APC, PM, SOS, a title of screen's
        made += [f"{ESC}{opening}a=T,f=1;QQ=={ST}", f"{ESC}{opening}tmux;{ESC}{ESC}[2J{ST}"]
    made += ["\x90q#1~\x9c", "\x9fGa=d\x9c", "\x98s\x9c", "\x9ep\x9c"]
    made += [f"{ESC}[{text}" for text in CSI] + [f"\x9b{text}" for text in CSI[:20]]
    made += [f"{ESC}{text}" for text in ESCAPES]
    made += [chr(c) for c in (*range(0x01, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)) if c not in (0x0D,)]
    made += ["good\rbad", "\r\r", f"{ESC}", f"{ESC}{ESC}", f"{ESC}[", f"{ESC}[1;2", f"{ESC}]", "\x08\x08\x08"]
    made += [*BIDI, "a\u202eb\u202cc", "\u2066x\u2069", *MARKUP]
    return list(dict.fromkeys(made))


SEQUENCES = sequences()
PER_LINE = 10
SIZE = (230, 300)


def lines(mark: str, *, line: str = "{}", one: str = "{}", part: int | None = None) -> list[str]:
    """Sequences in lines, all or a third, each with a mark before it that must be seen."""
    chosen = slice(0, None) if part is None else slice(part, None, 3)
    marked = [one.format(f"{mark}{i:03}{SEQUENCES[i]}") for i in range(len(SEQUENCES))[chosen]]
    return [line.format(" ".join(marked[i : i + PER_LINE])) for i in range(0, len(marked), PER_LINE)]


CONTEXTS = {
    "prose": "\n".join(lines("p")),
    "code": "```python\n" + "\n".join(lines("c")) + "\n```",
    "info": "\n\n".join(f"```{sequence}\ncode{i}\n```" for i, sequence in enumerate(SEQUENCES[::40])),
    "links": "\n".join(lines("l", part=0, one="[{0}](http://e.vil/{0})")),
    "tables": "|a|\n|-|\n" + "\n".join(lines("t", part=1, line="|{}|")),
    "headings": "\n\n".join(lines("h", part=2, line="## {}")),
    "quotes": "\n".join(lines("q", part=0, line="> *{}*")),
}
REASONING = "<think>\n" + "\n".join(lines("r", part=1)) + "\n</think>\n\nSo."
STREAMED = "\n\n".join(lines("s"))[:4000]
EVIL = f"{ESC}]52;c;ZXZpbA=={BEL}{ESC}[2J\x9b5m\x00\u202e[@click=app.quit]"


def make(folder: Path, tame: bool) -> None:
    """A database with hostile text wherever one can put it, or with what is left of it when it is cleaned."""

    def text(evil: str) -> str:
        return clean(evil) if tame else evil

    with SessionStore.open(folder / "chats.db") as store:
        for i in range(0, len(SEQUENCES), PER_LINE):
            other = store.new_session(title="x")
            store.append(other.id, "user", text(f"found{i} " + " ".join(SEQUENCES[i : i + PER_LINE])))
        session = store.new_session(title="y")
        store.append(session.id, "user", text("\n".join(lines("u")[:15])))
        for content in CONTEXTS.values():
            reply = store.begin_reply(session.id, content=text(content))
            store.finish_reply(reply.id, finish_reason="stop")
        store.append(session.id, "tool", text("<tool_call>" + "\n".join(lines("o")[:15])))
        failed = store.begin_reply(session.id)
        store.finish_reply(
            failed.id, text(EVIL), state=MessageState.ERROR, stats={"error": text(" ".join(lines("e")[:2]))}
        )
        file = f"File: file{EVIL}.txt\n```\n" + "\n".join(lines("f", part=2)) + "\n```\n\n"
        store.append(session.id, "user", text(file))
        reply = store.begin_reply(session.id, content=text(REASONING))
        store.finish_reply(reply.id, finish_reason="stop")
        store.kept.put("session", session.id)
        store.kept.put("sidebar", True)
        store.update_session(session.id, draft=text("\n".join(lines("d")[:4])))
    with contextlib.closing(sqlite3.connect(folder / "chats.db")) as raw, raw:
        for row, i in enumerate(range(0, len(SEQUENCES), PER_LINE)):
            raw.execute(
                "UPDATE sessions SET title = ? WHERE id = ?", (text(" ".join(SEQUENCES[i : i + 4])), row + 1)
            )
        raw.execute("UPDATE sessions SET title = ? WHERE id = ?", (text(f"title{EVIL}"), session.id))
        raw.execute("UPDATE messages SET model = ? WHERE role = 'assistant'", (text(f"name{EVIL}"),))


def play(folder: Path, tame: bool) -> Terminal:
    """Opens it all, unfolds, searches, asks, and looks at an error; returns what the terminal was sent."""
    folder.mkdir()
    make(folder, tame)

    def text(evil: str) -> str:
        return clean(evil) if tame else evil

    model = folder / text("fake\x1b[2J\x9b31m\u202e.gguf")
    model.touch()
    plan = {
        "replies": [text(STREAMED)],
        "where": text(f"where{EVIL}"),
        "notices": [text(f"notice{EVIL}")],
        "tour": ["Go", "found"],
    }
    with chat(plan, "-r", "--db", str(folder / "chats.db"), "-m", str(model), size=SIZE) as terminal:
        terminal.until_told("toured")
        terminal.until(lambda: b"found10" in terminal.written, "what was found")
        terminal.press("\x11")
        assert terminal.wait() == 0
        return terminal


_ORDER = re.compile(
    r"\x1b\[(?P<parameters>[0-?]*)(?P<between>[ -/]*)(?P<final>[@-~])"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\r\n|[\x00-\x1f\x7f-\x9f]"
)


def orders(written: str) -> set[str]:
    """The kinds of all orders in it: those that paint without their colours and places."""
    found = set()
    for match in _ORDER.finditer(written):
        kind = match.group()
        if match["final"] == "m":
            kind = re.sub(r"[34]8;(2;\d+;\d+;\d+|5;\d+)", "colour", match["parameters"])
            found.update(f"SGR {one}" for one in kind.split(";"))
            continue
        if match["final"] == "H":
            row, column = map(int, match["parameters"].split(";"))
            kind = "place" if row <= SIZE[1] and column <= SIZE[0] and (row, column) != (9, 9) else kind
        found.add(kind)
    return found


def test_none_reaches_the_terminal(tmp_path: Path) -> None:
    assert len(SEQUENCES) >= 200
    with ThreadPoolExecutor(2) as pool:
        evil, tame = pool.map(play, (tmp_path / "evil", tmp_path / "tame"), (False, True))
    written = evil.written.decode("utf-8")
    assert not set(written) & set(BIDI)
    more = orders(written) - orders(tame.written.decode("utf-8"))
    assert not more, f"orders that are not the application's: {sorted(more)}"
    plain = _ORDER.sub("", written)
    for mark in "pclthqrfuo":
        for i in range(0, 150, 15):
            assert any(f"{mark}{i + third:03}" in plain for third in range(3)), "it was on the screen"
    for mark in ("s000", "d000", "e000", "where", "notice", "name", "title", "found10", "code0"):
        assert mark in plain, mark
    assert len(evil.told) and json.dumps(evil.told[-1])


def test_errors_and_deaths(tmp_path: Path) -> None:
    """What is told instead of a model."""

    def play_error(name: str, plan: dict[str, object]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "fake.gguf").touch()
        with chat(
            plan, "--db", str(folder / "c.db"), "-m", str(folder / "fake.gguf"), size=(230, 60)
        ) as terminal:
            terminal.until(
                lambda: b"last words" in terminal.written or b"could not be" in terminal.written, "it"
            )
            # Each death has a banner of its own.
            terminal.until_told("banner", len(plan.get("deaths", "x")))  # type: ignore[arg-type]
            terminal.press("\x11")
            assert terminal.wait() == 0
            return terminal.written.decode("utf-8")

    plans: dict[str, dict[str, object]] = {}
    for name, made in (("evil", "".join(SEQUENCES)), ("tame", clean("".join(SEQUENCES)))):
        plans[f"{name} error"] = {"load_error": made[:300] + EVIL}
        plans[f"{name} death"] = {"deaths": [EVIL, made[300:700]]}
    plans["tame error"] = {"load_error": clean(str(plans["evil error"]["load_error"]))}
    plans["tame death"] = {"deaths": [clean(text) for text in plans["evil death"]["deaths"]]}  # type: ignore[attr-defined]
    with ThreadPoolExecutor(2) as pool:
        shown = dict(zip(plans, pool.map(play_error, plans, plans.values()), strict=True))
    for what in ("error", "death"):
        assert not set(shown[f"evil {what}"]) & set(BIDI)
        assert not orders(shown[f"evil {what}"]) - orders(shown[f"tame {what}"])


def test_in_pieces() -> None:
    """Where a text is cut makes no difference: what was shown stays, and nothing harmful comes with what follows."""
    for sequence in SEQUENCES:
        text = f"a {sequence}b"
        whole = clean(text)
        for cut in range(len(text) + 1):
            assert whole.startswith(clean(text[:cut]))
            assert clean(clean(text[:cut]) + text[cut:]) == whole or "\r\n" in text
        for made in (whole, clean_line(text), one_line(text, 100)):
            assert not re.search(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{BIDI}]", made), repr(text)
