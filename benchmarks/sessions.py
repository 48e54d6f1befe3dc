"""How long the store of conversations takes for what a user waits for, with many messages.

    python benchmarks/sessions.py [--messages 10000] [--sessions 100] [--rounds 20]

The messages are spread over the sessions for lists and search; after those, as many again are put into one branch.
Each line is the median and the longest of the rounds, in milliseconds. The aim for lists, search and path is 50 ms.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from wgllm.sessions import SessionStore
from wgllm.sessions_types import Conversation, Message, MessageState, Session


def word(rank: int) -> str:
    """The word that is ``rank``-th in frequency: letters that differ from the first one on."""
    letters = ""
    n = rank * 7919 % 456_976  # 26 ** 4, so that all words are different
    for _ in range(4):
        n, letter = divmod(n, 26)
        letters += chr(ord("a") + letter)
    return letters


def words(rng: random.Random, n: int) -> str:
    """Text whose words are as unevenly frequent as those of a language (a vocabulary of 20,000)."""
    return " ".join(word(int(20_000 ** rng.random())) for _ in range(n))


def chain(rng: random.Random, n: int) -> Conversation:
    """One branch of ``n`` messages of 20 to 300 words."""
    messages = tuple(
        Message(
            i + 1, 0, i or None, ("user", "assistant")[i % 2], words(rng, rng.randint(20, 300)),
            MessageState.COMPLETE, None, "smollm2", float(i), None, None, 1, 1,
        )
        for i in range(n)
    )  # fmt: skip
    session = Session(0, words(rng, 5), True, 0.0, float(n), leaf_id=n)
    return Conversation(session, messages, {i: i + 1 for i in range(1, n)})


def measure(name: str, rounds: int, action: Callable[[], object]) -> None:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    print(f"{name:38} {statistics.median(times):8.1f} {max(times):8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.db"
        with SessionStore.open(path) as store:
            start = time.perf_counter()
            for _ in range(arguments.sessions):
                store.add_conversation(chain(rng, arguments.messages // arguments.sessions))
            print(f"filled in {time.perf_counter() - start:.1f} s")
        print(f"{path.stat().st_size / 1e6:.0f} MB")
        with SessionStore.open(path) as store:
            rounds = arguments.rounds
            print(f"{'':38} {'median':>8} {'longest':>8} ms")
            measure("list of sessions", rounds, store.sessions)
            measure("search: a rare word", rounds, lambda: store.search(word(19_876)))
            measure("search: a word of nearly all messages", rounds, lambda: store.search(word(1)))
            measure("search: its first letter", rounds, lambda: store.search(word(1)[0]))
            measure(
                "search: three words", rounds, lambda: store.search(f"{word(5)} {word(17)} {word(9)[:2]}")
            )
            measure("search without the index", rounds, lambda: store.search(f"{word(19_876)} 東"))
            long = store.add_conversation(chain(rng, arguments.messages))
            leaf = store.path(long.id)[-1].id
            measure("path of a branch with all messages", rounds, lambda: store.path(long.id))
            measure("switch to that branch", rounds, lambda: store.switch(leaf))
            measure("append a message to it", rounds, lambda: store.append(long.id, "user", words(rng, 50)))
            reply = store.begin_reply(long.id)

            def save() -> None:
                store.update_reply(reply.id, words(rng, 1000))
                store.flush()

            measure("save a partial reply", rounds, save)
            store.finish_reply(reply.id)
        measure("open and close", rounds, lambda: SessionStore.open(path).close())


if __name__ == "__main__":
    main()
