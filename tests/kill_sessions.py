"""Kills processes that write conversations, at random moments, and looks at what is left of them.

    python tests/kill_sessions.py 200 [--seed 1] [--lanes 4]

Two lanes share a database: while one's writer is killed the other's goes on. A writer sends what it is about to do and
what is done through a pipe, with the time. After each kill, SQLite's integrity_check must be content, every message
that was said to be saved must be there unchanged, the reply that was being generated must be marked as interrupted,
and hold all text that was there before the last ten ticks of the timer, which take a second where the machine has
time. Prints a line, and exits with 1 when one of these fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from wgllm.errors import SessionStoreError  # noqa: E402
from wgllm.sessions import SessionStore  # noqa: E402
from wgllm.sessions_types import MessageState  # noqa: E402

LONGEST_START = 0.5
LONGEST_RUN = 2.0
"""Seconds that a writer may live, from its start or from its first reply: opening, some replies, and some that are
longer than the interval of saving."""
PATIENCE = 120.0
"""Seconds for the first reply on a machine that does other things too."""
TICKS = 10
"""Of the timer, after which a text is saved: each comes 0.1 s after the one before, or later."""


def reply_text(message_id: int, n: int) -> str:
    """The first ``n`` tokens of a reply: known from its number, so that a length tells the text."""
    return "".join(f"{message_id}.{i} " for i in range(n))


# The process that is killed


def write_forever(path: Path, seed: int) -> None:
    rng = random.Random(seed)

    def tell(*what: Any) -> None:
        os.write(1, (json.dumps([time.monotonic(), *what]) + "\n").encode())

    with SessionStore.open(path) as store:

        def tick() -> None:
            while True:
                time.sleep(0.1)
                begun = time.monotonic()
                try:
                    store.flush_due()
                except SessionStoreError:  # the other writer holds the file, and may be stopped meanwhile
                    tell("untimely", begun)
                else:
                    tell("tick", begun)

        threading.Thread(target=tick, daemon=True).start()
        session = store.new_session()
        while True:
            if rng.random() < 0.2:
                session = store.new_session()
            user = store.append(session.id, "user", f"question {rng.random()} " * rng.choice((1, 1, 2000)))
            tell("saved", user.id, len(user.content))
            if rng.random() < 0.3:
                user = store.edit(user.id, f"edited {rng.random()}")
                tell("saved", user.id, len(user.content))
            reply = store.begin_reply(session.id, after=user.id)
            tell("begun", reply.id)
            n = rng.choice((20, 200, 2000))
            for i in range(1, n + 1):
                text = reply_text(reply.id, i)
                store.update_reply(reply.id, text)
                tell("token", reply.id, i)
                time.sleep(0.4 if rng.random() < 0.004 else 0.002)  # at times the model is slow
            store.finish_reply(reply.id, finish_reason="stop")
            tell("saved", reply.id, len(text))


# The one who kills


@dataclass
class Findings:
    kills: int = 0
    in_replies: int = 0
    worst_loss: float = 0.0
    """Seconds of a reply's text."""
    faults: list[str] = field(default_factory=list)


def kill_once(path: Path, rng: random.Random, findings: Findings) -> None:
    child = subprocess.Popen(
        [sys.executable, __file__, "--write", str(path), str(rng.getrandbits(32))],
        stdout=subprocess.PIPE,
    )
    said, replies = bytearray(), threading.Event()
    assert child.stdout is not None
    out = child.stdout

    def listen() -> None:
        while chunk := out.read1(1 << 16):
            said.extend(chunk)
            if b'"token"' in chunk:
                replies.set()

    listener = threading.Thread(target=listen)
    listener.start()
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, LONGEST_START))
    else:
        if not replies.wait(PATIENCE):
            findings.faults.append(f"no reply within {PATIENCE:.0f} s")
        time.sleep(rng.uniform(0, LONGEST_RUN))
    alive = child.poll() is None
    killed = time.monotonic()
    child.kill()
    child.wait()
    listener.join()
    out.close()
    findings.kills += 1
    if not alive:
        findings.faults.append(f"the writer ended by itself with {child.returncode}")
    look(path, [json.loads(line) for line in said.split(b"\n")[:-1]], killed, findings)


def look(path: Path, said: list[list[Any]], killed: float, findings: Findings) -> None:
    fault = findings.faults.append
    with SessionStore.open(path) as store:
        for notice in store.notices:
            fault(notice)
        with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE)) as connection:
            if (found := connection.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                fault(f"integrity_check: {found}")
            if found := connection.execute("PRAGMA foreign_key_check").fetchall():
                fault(f"foreign_key_check: {found}")
        for _, what, message_id, *rest in said:
            if what == "saved":
                message = store.message(message_id)
                if len(message.content) != rest[0] or message.state is not MessageState.COMPLETE:
                    fault(
                        f"message {message_id} was saved and is {message.state.value} with {message.content[:50]!r}"
                    )
        begun = [message_id for _, what, message_id, *_ in said if what == "begun"]
        ended = {message_id for _, what, message_id, *_ in said if what == "saved"}
        if begun and begun[-1] not in ended:
            look_at_reply(store, begun[-1], said, killed, findings)


def look_at_reply(
    store: SessionStore, message_id: int, said: list[list[Any]], killed: float, findings: Findings
) -> None:
    fault = findings.faults.append
    message = store.message(message_id)
    times = [t for t, what, of, *_ in said if what == "token" and of == message_id]
    kept = message.content.count(" ")
    if message.content != reply_text(message_id, kept):
        fault(f"reply {message_id} has a text that was never written: {message.content[-50:]!r}")
    if message.state is MessageState.COMPLETE and kept == len(times):
        return  # killed between finishing and saying so
    if message.state is not MessageState.INTERRUPTED:
        fault(f"reply {message_id} is {message.state.value}")
    findings.in_replies += 1
    lost = times[kept:]
    loss = killed - lost[0] if lost else 0.0
    findings.worst_loss = max(findings.worst_loss, loss)
    ticks = [(what, at) for _, what, at, *_ in said if what in ("tick", "untimely")][-TICKS:]
    due = len(ticks) == TICKS and all(what == "tick" for what, _ in ticks)
    if lost and due and lost[0] < ticks[0][1]:
        fault(
            f"{loss:.2f} s of reply {message_id} were lost, {killed - ticks[0][1]:.2f} s after they were due"
        )


def run(n: int, folder: Path, *, seed: int = 0, lanes: int = 4) -> Findings:
    """Kills ``n`` writers in all, ``lanes`` side by side."""
    findings = Findings()
    each = [n // lanes + (lane < n % lanes) for lane in range(lanes)]

    def lane(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        for _ in range(each[number]):
            kill_once(folder / f"chats-{number // 2}.db", rng, findings)

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lane, range(lanes)))
    return findings


def main() -> int:
    if sys.argv[1:2] == ["--write"]:
        write_forever(Path(sys.argv[2]), int(sys.argv[3]))
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
        f"{found.kills} killed, {found.in_replies} of them in a reply; at most {found.worst_loss:.2f} s were lost; "
        f"{len(found.faults)} faults"
    )
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
