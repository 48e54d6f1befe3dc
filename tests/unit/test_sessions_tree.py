"""Branches: what editing, regenerating and switching do to the tree, beside a model of it that has no database."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wgllm.sessions import SessionStore
from wgllm.sessions_export import from_json, to_json
from wgllm.sessions_types import MessageState


def test_regenerate_edit_and_switch(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "chats.db") as store:
        made = store.new_session()

        def shown() -> list[tuple[str, int, int]]:
            return [(m.content, m.position, m.n_siblings) for m in store.path(made.id)]

        def reply(text: str) -> int:
            return store.finish_reply(store.begin_reply(made.id).id, text).id

        question = store.append(made.id, "user", "q1")
        first = reply("a1")
        store.append(made.id, "user", "q2")
        reply("a2")
        second = store.regenerate(first, model="other")
        assert shown() == [("q1", 1, 1), ("", 2, 2)]
        store.finish_reply(second.id, "b1")
        assert store.siblings(first) == store.siblings(second.id) == [first, second.id]
        # ‹ 1/2 ›: the old branch with all that stood below it.
        store.switch(first)
        assert shown() == [("q1", 1, 1), ("a1", 1, 2), ("q2", 1, 1), ("a2", 1, 1)]
        edited = store.edit(question.id, "q1, better")
        assert shown() == [("q1, better", 2, 2)]
        reply("c1")
        store.switch(question.id)
        assert shown() == [("q1", 1, 2), ("a1", 1, 2), ("q2", 1, 1), ("a2", 1, 1)]
        store.switch(second.id)
        store.switch(edited.id)
        store.switch(question.id)
        assert shown() == [("q1", 1, 2), ("b1", 2, 2)]
    with SessionStore.open(tmp_path / "chats.db") as store:
        assert [m.content for m in store.path(made.id)] == ["q1", "b1"]
        assert [m.content for m in store.switch(edited.id)] == ["q1, better", "c1"]


@pytest.mark.parametrize("after_root", [True, False])
def test_what_another_window_answers_stays_in_its_branch(tmp_path: Path, after_root: bool) -> None:
    with SessionStore.open(tmp_path / "chats.db") as store:
        made = store.new_session()
        root = store.append(made.id, "user", "root")
        last = store.append(made.id, "assistant", "last")
        store.append(made.id, "user", "more", after=root.id if after_root else last.id)
        assert (
            [m.content for m in store.path(made.id)] == ["root", "more"]
            if after_root
            else ["root", "last", "more"]
        )
        assert [m.content for m in store.switch(last.id)] == ["root", "last"] + (
            [] if after_root else ["more"]
        )


@dataclass
class Node:
    """A message of the model."""

    id: int
    parent: Node | None
    role: str
    content: str
    state: MessageState
    children: list[Node] = field(default_factory=list)
    shown: Node | None = None


class Chat:
    """A session of the model: its first messages are the children of a node that is no message."""

    def __init__(self) -> None:
        self.top = Node(0, None, "", "", MessageState.COMPLETE)
        self.nodes: dict[int, Node] = {}

    def add(self, parent: Node, message_id: int, role: str, content: str, state: MessageState) -> None:
        node = Node(message_id, parent, role, content, state)
        parent.children.append(node)
        self.nodes[message_id] = node
        self.show(node)

    def show(self, node: Node) -> None:
        while node.parent is not None:
            node.parent.shown = node
            node = node.parent

    def path(self) -> list[Node]:
        node, found = self.top, []
        while node.shown is not None:
            node = node.shown
            found.append(node)
        return found


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PICK = st.integers(0, 10**6)


class Tree(RuleBasedStateMachine):
    """The store and the model do the same, and must show the same, also after a restart."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = SessionStore.open(Path(self.folder.name) / "chats.db")
        self.chats: dict[int, Chat] = {}
        self.open_replies: dict[int, Node] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def chat(self, pick: int) -> tuple[int, Chat]:
        session_id = sorted(self.chats)[pick % len(self.chats)]
        return session_id, self.chats[session_id]

    def node(self, pick: int, role: str | None = None) -> tuple[Chat, Node] | None:
        found = [
            (chat, n) for chat in self.chats.values() for n in chat.nodes.values() if role in (None, n.role)
        ]
        return found[pick % len(found)] if found else None

    @rule()
    def new_session(self) -> None:
        if len(self.chats) < 3:
            self.chats[self.store.new_session().id] = Chat()

    @precondition(lambda self: self.chats)
    @rule(pick=PICK, role=st.sampled_from(["user", "assistant"]), text=TEXT, leaf=st.booleans())
    def append(self, pick: int, role: str, text: str, leaf: bool) -> None:
        session_id, chat = self.chat(pick)
        nodes = sorted(chat.nodes)
        if leaf or not nodes:
            parent = (chat.path() or [chat.top])[-1]
            message = self.store.append(session_id, role, text)
        else:
            parent = chat.nodes[nodes[pick % len(nodes)]]
            message = self.store.append(session_id, role, text, after=parent.id)
        chat.add(parent, message.id, role, text, MessageState.COMPLETE)

    @rule(pick=PICK, text=TEXT)
    def edit(self, pick: int, text: str) -> None:
        if found := self.node(pick):
            chat, node = found
            message = self.store.edit(node.id, text)
            assert node.parent is not None
            chat.add(node.parent, message.id, node.role, text, MessageState.COMPLETE)

    @precondition(lambda self: self.chats)
    @rule(pick=PICK)
    def begin_reply(self, pick: int) -> None:
        session_id, chat = self.chat(pick)
        parent = (chat.path() or [chat.top])[-1]
        message = self.store.begin_reply(session_id)
        chat.add(parent, message.id, "assistant", "", MessageState.PARTIAL)
        self.open_replies[message.id] = chat.nodes[message.id]

    @rule(pick=PICK)
    def regenerate(self, pick: int) -> None:
        if found := self.node(pick, "assistant"):
            chat, node = found
            message = self.store.regenerate(node.id)
            assert node.parent is not None
            chat.add(node.parent, message.id, "assistant", "", MessageState.PARTIAL)
            self.open_replies[message.id] = chat.nodes[message.id]

    @precondition(lambda self: self.open_replies)
    @rule(pick=PICK, text=TEXT, state=st.sampled_from(MessageState))
    def go_on(self, pick: int, text: str, state: MessageState) -> None:
        node = self.open_replies[sorted(self.open_replies)[pick % len(self.open_replies)]]
        self.store.update_reply(node.id, node.content + text)
        node.content += text
        if state is not MessageState.PARTIAL:
            self.store.finish_reply(node.id, state=state)
            node.state = state
            del self.open_replies[node.id]

    @rule(pick=PICK)
    def switch(self, pick: int) -> None:
        if found := self.node(pick):
            chat, node = found
            self.store.switch(node.id)
            chat.show(node)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = SessionStore.open(self.store.file)
        for node in self.open_replies.values():
            node.state = MessageState.INTERRUPTED
        self.open_replies.clear()

    @precondition(lambda self: self.chats and not self.open_replies)
    @rule(pick=PICK)
    def through_json(self, pick: int) -> None:
        session_id, _ = self.chat(pick)
        text = to_json(self.store.conversation(session_id))
        copy = self.store.add_conversation(from_json(text))
        assert to_json(self.store.conversation(copy.id)) == text
        self.store.delete(copy.id)
        self.store.purge()

    @invariant()
    def same_paths(self) -> None:
        for session_id, chat in self.chats.items():
            path = chat.path()
            assert [
                (m.id, m.role, m.content, m.state, m.position, m.n_siblings)
                for m in self.store.path(session_id)
            ] == [
                (n.id, n.role, n.content, n.state, n.parent.children.index(n) + 1, len(n.parent.children))
                for n in path
                if n.parent is not None
            ]
            assert self.store.session(session_id).leaf_id == (path[-1].id if path else None)
            for node in path:
                assert node.parent is not None
                assert self.store.siblings(node.id) == [n.id for n in node.parent.children]
            assert len(self.store.conversation(session_id).messages) == len(chat.nodes)


Tree.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestTree = Tree.TestCase
