"""Kills `wgllm chat` at random moments while keys are pressed, and looks at what is left, and at how it starts again.

    python tests/kill_chat.py 200 [--seed 1] [--lanes 4]

The whole command runs in a pseudo terminal (`tests/tui/chat_process.py`), its model is a real child process with
scripted replies. Keys ask, regenerate, edit, stop, change branches and conversations, and the terminal changes its
size. After each SIGKILL: the child ends by itself; SQLite's integrity_check is content; every message that was said to
be saved is there; of a reply at most a second's text is lost; and `wgllm chat -r` shows the same conversation, branch
and draft, and the reply as interrupted. Prints a line, and exits with 1 when one of these fails.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.tui.terminal import Terminal, chat, gone  # noqa: E402
from wgllm.sessions_replies import PARTIAL_SECONDS  # noqa: E402

LONGEST_RUN = 1.6
"""Seconds from the first picture to the kill."""
DRAFT_SECONDS = 1.5
"""What was in the prompt so long ago is saved: it is looked at every second."""

Told = list[list[Any]]


def reply_text(number: int, length: int) -> str:
    """A reply: known from its number, so that a length tells the text. With paragraphs, code and reasoning."""
    parts = [f"<think>\nreasoning {number}\n</think>\n\n" if number % 3 == 0 else f"# Reply {number}\n\n"]
    i = 0
    while sum(map(len, parts)) < length:
        i += 1
        parts.append(
            f"```python\nx = {i}\n```\n\n" if i % 40 == 0 else f"{number}.{i}{' ' if i % 9 else chr(10) * 2}"
        )
    return "".join(parts)[:length]


# The keys

_KEYS = {
    "again": b"\x12",
    "edit": b"\x05",
    "new": b"\x0e",
    "other": b"\x02\x1b[B\x1b[B\r",
    "branch": b"\x1b[1;5A\x1b[D",
    "stop": b"\x1b",
    "end": b"\x1b[1;5F",
}


def press_keys(
    terminal: Terminal, rng: random.Random, until: float, enough: Callable[[], bool] = lambda: True
) -> None:
    """Uses the application until a moment, and on until that is enough, however slow the machine."""

    def going_on() -> bool:
        now = time.monotonic()
        return terminal.process.poll() is None and (now < until or (now < until + 60 and not enough()))

    def rest(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and going_on():
            time.sleep(0.005)

    while going_on():
        what = rng.choice(("ask", "ask", "ask", "draft", "resize", *_KEYS))
        if what in ("ask", "draft"):
            terminal.press(f"{'question' if what == 'ask' else 'draft'} {rng.randrange(10**6)}")
            rest(0.05)
            if what == "ask":
                terminal.press(b"\r")
        elif what == "resize":
            terminal.resize(rng.randrange(60, 160), rng.randrange(16, 50))
        else:
            terminal.press(_KEYS[what])
            rest(0.05)
            if what == "edit":
                terminal.press(f" edited {rng.randrange(10**6)}\r")
        rest(rng.uniform(0, 0.35))


# The one who kills


@dataclass
class Findings:
    kills: int = 0
    in_replies: int = 0
    saved: int = 0
    """Messages that were said to be saved."""
    worst_loss: float = 0.0
    """Seconds of a reply's text."""
    slowest_child: float = 0.0
    """Seconds from the kill until the model's process had ended."""
    faults: list[str] = field(default_factory=list)


class Lane:
    """One database, and its application that is started and killed again and again."""

    def __init__(
        self, folder: Path, rng: random.Random, findings: Findings, longest: float, *, patient: bool = False
    ) -> None:
        folder.mkdir()
        self.patient = patient
        self.database, self.model = folder / "chats.db", folder / "fake.gguf"
        self.model.touch()
        self.rng, self.findings, self.longest = rng, findings, longest
        self.expected: dict[str, Any] | None = None
        """What the next start must show."""
        self.number = 0

    def fault(self, text: str) -> None:
        self.findings.faults.append(f"{self.database.parent.name}, start {self.number}: {text}")

    def start(self) -> tuple[Terminal, list[str]]:
        self.number += 1
        texts = [reply_text(self.number * 10 + i, self.rng.choice((30, 400, 4000, 4000))) for i in range(6)]
        plan = {"replies": texts, "delay": self.rng.choice((0.0005, 0.002))}
        return chat(plan, "-r", "--db", str(self.database), "-m", str(self.model), size=(120, 40)), texts

    def kill_once(self) -> None:
        terminal, texts = self.start()
        with terminal:
            early = self.rng.random() < 0.1
            if early:
                time.sleep(self.rng.uniform(0, 1.2))
            else:
                terminal.until_told("shown")
                self._look_at_screen(terminal)
                texts_wanted = self.rng.randrange(4)

                def enough() -> bool:
                    kinds = [line[1] for line in terminal.told]
                    return not texts_wanted or (kinds.count("text") >= texts_wanted and kinds[-1] == "text")

                end = time.monotonic() + self.rng.uniform(0.05, self.longest)
                press_keys(terminal, self.rng, end, enough)
            alive = terminal.process.poll()
            killed = time.monotonic()
            terminal.kill()
            code = terminal.wait()
            if alive is not None:
                self.fault(f"it ended by itself with {code}: {bytes(terminal.written[-1500:])!r}")
            self.findings.kills += 1
            self._look_at_child(terminal.told, killed)
            if early:
                self._look_at_screen(terminal, painted=False)
            self._look_at_file(terminal.told, killed, texts)

    def last_look(self) -> None:
        """One more start, for what the last kill left."""
        with self.start()[0] as terminal:
            terminal.until_told("shown")
            self._look_at_screen(terminal)

    def _look_at_child(self, told: Told, killed: float) -> None:
        for child in [line[2] for line in told if line[1] == "worker"]:
            if not gone(child):
                self.fault("the model's process did not end")
            self.findings.slowest_child = max(self.findings.slowest_child, time.monotonic() - killed)

    def _look_at_screen(self, terminal: Terminal, *, painted: bool = True) -> None:
        """What this start showed first, against what the kill before it left. Not ``painted``: it is dead already."""
        shown = next((line[2:] for line in terminal.told if line[1] == "shown"), None)
        expected = self.expected
        if shown is None or expected is None:
            return
        self.expected = None
        session, draft, path, notes = shown
        if (session, path) != (expected["session"], expected["path"]):
            self.fault(f"shows {session} {path} instead of {expected['session']} {expected['path']}")
        if expected["drafts"] and draft not in expected["drafts"]:  # none: killed before it was said
            self.fault(f"the draft is {draft!r}, of {expected['drafts']}")
        if expected["interrupted"]:
            if not notes or "interrupted: the program ended" not in notes[-1]:
                self.fault(f"the reply is not shown as interrupted but with {notes[-1:]}")
            if painted:
                terminal.until(
                    lambda: b"interrupted: the program ended" in terminal.written, "the interrupted reply"
                )

    def _look_at_file(self, told: Told, killed: float, texts: list[str]) -> None:
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            for check in ("integrity_check", "foreign_key_check"):
                if (found := connection.execute(f"PRAGMA {check}").fetchall()) not in ([("ok",)], []):
                    self.fault(f"{check}: {found}")
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'messages'").fetchall():
                if any(line[1] == "done" for line in told):
                    self.fault("nothing is there")
                return
            kept = {
                row[0]: row[1:]
                for row in connection.execute("SELECT id, content, state, session, parent FROM messages")
            }
            leaves = dict(connection.execute("SELECT id, leaf FROM sessions"))
        ended = {line[2] for line in told if line[1] == "saved"}
        for _, what, *rest in told:
            if what == "saved":
                self.findings.saved += 1
                number, content, state = rest
                if number not in kept or kept[number][:2] != (content, state):
                    self.fault(f"message {number} was saved as {state} and is {kept.get(number)}")
        begun = [line[2] for line in told if line[1] == "begun" and line[2] not in ended]
        for number in begun:
            self._look_at_reply(number, kept, told, killed, texts)
        self._expect(told, killed, kept, leaves)

    def _look_at_reply(
        self, number: int, kept: dict[int, Any], told: Told, killed: float, texts: list[str]
    ) -> None:
        if number not in kept:
            self.fault(f"reply {number} is not there")
            return
        content, state = kept[number][:2]
        if state == "complete":
            return  # killed between finishing and saying so
        if not any(text.startswith(content) for text in texts):
            self.fault(f"reply {number} has a text that was never written: {content[-50:]!r}")
        lost = [
            line[0] for line in told if line[1] == "text" and line[2] == number and line[3] > len(content)
        ]
        loss = killed - lost[0] if lost else 0.0
        self.findings.in_replies += 1
        self.findings.worst_loss = max(self.findings.worst_loss, loss)
        if loss > 1 and not self.patient:
            self.fault(f"{loss:.2f} s of reply {number} were lost")
        flushed = max((line[2] for line in told if line[1] == "flushed"), default=0.0)
        if lost and flushed > lost[0] + PARTIAL_SECONDS:
            self.fault(f"text of reply {number} was not written when it was due")

    def _expect(self, told: Told, killed: float, kept: dict[int, Any], leaves: dict[int, int | None]) -> None:
        """What the next start must show: what was said to be on the disk, unless something was on its way there."""
        if not any(line[1] == "shown" for line in told):
            return  # nothing was done: what was expected of this start is expected of the next
        # ``-r`` without a conversation that was open last opens the one that was used last, if there is any.
        session = next((line[2] for line in reversed(told) if line[1] in ("opened", "shown")), None)
        if session is None or told[-1][1] in ("opening", "doing"):
            return  # killed in the middle: before and after are both right
        path: list[int] = []
        at = leaves.get(session)
        while at is not None:
            path.insert(0, at)
            at = kept[at][3]
        done = next((line[4] for line in reversed(told) if line[1] == "done" and line[3] == session), None)
        if done is not None and done != path:
            self.fault(f"the branch of {session} is {path}, and was {done}")
        own = [line for line in told if line[1] in ("typed", "shown", "kept") and line[2] == session]
        saved = max((i for i, line in enumerate(own) if line[1] == "kept"), default=0)
        since = 0.0 if self.patient else killed - DRAFT_SECONDS
        recent = [line[3] for line in own[saved:] if line[0] > since]
        before = [line[3] for line in own[saved:] if line[0] <= since][-1:]
        interrupted = bool(path) and kept[path[-1]][1] == "partial"
        self.expected = {
            "session": session,
            "path": path,
            "drafts": [*before, *recent],
            "interrupted": interrupted,
        }


def run(
    n: int,
    folder: Path,
    *,
    seed: int = 0,
    lanes: int = 4,
    longest: float = LONGEST_RUN,
    patient: bool = False,
) -> Findings:
    """Kills ``n`` times in all, in ``lanes`` side by side.

    ``patient``: what must have been saved is judged by the order of what the application did, not by seconds as well.
    """
    findings = Findings()
    each = [n // lanes + (lane < n % lanes) for lane in range(lanes)]

    def play(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        lane = Lane(folder / f"lane {number}", rng, findings, longest, patient=patient)
        for _ in range(each[number]):
            lane.kill_once()
        lane.last_look()

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(play, range(lanes)))
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("n", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(arguments.n, Path(folder), seed=arguments.seed, lanes=arguments.lanes)
    for line in found.faults:
        print(line)
    print(
        f"{found.kills} killed, {found.in_replies} replies among them; {found.saved} messages were saved, at most "
        f"{found.worst_loss:.2f} s of a reply lost; the model's process had ended after {found.slowest_child:.2f} s; "
        f"{len(found.faults)} faults"
    )
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
