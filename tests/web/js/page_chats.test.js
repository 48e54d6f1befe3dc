import assert from "node:assert/strict";
import test from "node:test";

import { holds } from "../../../wgllm/web/page/store.js";
import { fromJson, ImportFault, toJson, toMarkdown } from "../../../wgllm/web/page/transfer.js";
import {
    addMessage,
    branch,
    childrenOf,
    markInterrupted,
    merged,
    newChat,
    show,
    turns,
} from "../../../wgllm/web/page/tree.js";

const said = (chat) => branch(chat).map(({ content }) => content);

/** Two questions, the first answered twice, the second edited. */
function example() {
    const chat = newChat({ system: "Be brief.", model: "tiny" });
    const q1 = addMessage(chat, null, { role: "user", content: "one?" });
    const a1 = addMessage(chat, q1.id, { role: "assistant", content: "first", tokenIds: [5, 6] });
    const q2 = addMessage(chat, a1.id, { role: "user", content: "two?" });
    addMessage(chat, q2.id, { role: "assistant", content: "second" });
    addMessage(chat, a1.id, { role: "user", content: "two, edited?" });
    const again = addMessage(chat, q1.id, { role: "assistant", content: "first again" });
    return { chat, q1, a1, q2, again };
}

test("branches are kept, and each is shown as it was left", () => {
    const { chat, q1, a1, q2, again } = example();
    assert.equal(chat.title, "one?");
    assert.deepEqual(said(chat), ["one?", "first again"]);
    assert.deepEqual(
        childrenOf(chat, q1.id).map(({ id }) => id),
        [a1.id, again.id],
    );
    show(chat, a1.id);
    assert.deepEqual(said(chat), ["one?", "first", "two, edited?"]);
    show(chat, q2.id);
    assert.deepEqual(said(chat), ["one?", "first", "two?", "second"]);
    show(chat, again.id);
    show(chat, a1.id);
    assert.deepEqual(said(chat), ["one?", "first", "two?", "second"]);
});

test("the model reads the branch, with the tokens of its own replies", () => {
    const { chat, q2 } = example();
    assert.deepEqual(turns(chat, q2.id), [
        { role: "system", content: "Be brief." },
        { role: "user", content: "one?" },
        { role: "assistant", content: "first", tokenIds: [5, 6] },
        { role: "user", content: "two?" },
    ]);
    chat.system = "  ";
    addMessage(chat, q2.id, { role: "assistant", content: "" });
    assert.equal(turns(chat, chat.leaf).length, 3); // neither an empty prompt nor an empty reply
});

test("questions that got no answer are read with the next one", () => {
    const chat = newChat({ system: "Be brief." });
    const q1 = addMessage(chat, null, { role: "user", content: "one?" });
    const stopped = addMessage(chat, q1.id, { role: "assistant", content: "", state: "stopped" });
    const q2 = addMessage(chat, stopped.id, { role: "user", content: "two?" });
    const failed = addMessage(chat, q2.id, { role: "assistant", content: "", state: "error" });
    const q3 = addMessage(chat, failed.id, { role: "user", content: "three?" });
    assert.deepEqual(turns(chat, q3.id), [
        { role: "system", content: "Be brief." },
        { role: "user", content: "one?\n\ntwo?\n\nthree?" },
    ]);
    assert.deepEqual(said(chat), ["one?", "", "two?", "", "three?"]); // the chat itself keeps them apart
});

test("what two tabs wrote is all there", () => {
    const { chat, again } = example();
    chat.revision = 3;
    const mine = structuredClone(chat);
    const theirs = structuredClone(chat);
    const q = addMessage(mine, again.id, { role: "user", content: "mine" });
    addMessage(theirs, again.id, { role: "user", content: "theirs" });
    Object.assign(theirs, { title: "renamed", named: true, revision: 4 });
    theirs.messages[again.id].content = "first again, longer";
    theirs.messages[again.id].version = 2;
    const both = merged(theirs, mine);
    assert.deepEqual(
        childrenOf(both, again.id)
            .map(({ content }) => content)
            .sort(),
        ["mine", "theirs"],
    );
    assert.equal(both.leaf, q.id);
    assert.equal(both.messages[again.id].content, "first again, longer");
    assert.deepEqual([both.title, both.named, both.revision], ["renamed", true, 4]);
});

test("a reply whose tab is gone is interrupted, its text kept", () => {
    const chat = newChat();
    const q = addMessage(chat, null, { role: "user", content: "?" });
    const dead = addMessage(chat, q.id, {
        role: "assistant",
        content: "half a",
        state: "partial",
        owner: "dead",
    });
    const alive = addMessage(chat, q.id, {
        role: "assistant",
        content: "half",
        state: "partial",
        owner: "alive",
    });
    const isGone = (message) => message.owner === "dead";
    assert.equal(markInterrupted(chat, isGone), true);
    assert.deepEqual([dead.state, dead.content, alive.state], ["interrupted", "half a", "partial"]);
    assert.equal(markInterrupted(chat, isGone), false);
});

test("words are found in titles and in all branches", () => {
    const { chat } = example();
    assert.ok(holds(chat, "SECOND two"));
    assert.ok(!holds(chat, "second three"));
});

test("JSON holds all branches, and is read back", () => {
    const { chat, a1 } = example();
    show(chat, a1.id);
    const read = fromJson(toJson(chat));
    assert.deepEqual(said(read), said(chat));
    assert.equal(
        toJson(read).replace(/"(created|updated)": [\d.]+/g, ""),
        toJson(chat).replace(/"(created|updated)": [\d.]+/g, ""),
    );
    assert.notEqual(read.id, chat.id);
    const texts = (one) =>
        Object.values(one.messages)
            .map(({ content, tokenIds }) => [content, tokenIds ?? null])
            .sort();
    assert.deepEqual(texts(read), texts(chat));
});

test("a file that is none is refused by its fault", () => {
    const good = JSON.parse(toJson(example().chat));
    /** @type {[RegExp, (data: any) => void][]} */
    const faults = [
        [/no conversation/, (data) => delete data.format],
        [/another version/, (data) => (data.version = 2)],
        [/title must be a text/, (data) => (data.title = 7)],
        [/named must be true or false/, (data) => (data.named = "yes")],
        [/created must be seconds/, (data) => (data.created = -1)],
        [/created must be seconds/, (data) => (data.created = 1e300)],
        [/messages must be a list/, (data) => (data.messages = {})],
        [/messages\[0\]: must be an object/, (data) => (data.messages[0] = null)],
        [/messages\[1\]: parent must be the place/, (data) => (data.messages[1].parent = 1)],
        [/messages\[1\]: parent must be the place/, (data) => (data.messages[1].parent = 4)],
        [/messages\[2\]: role or state/, (data) => (data.messages[2].role = "root")],
        [/messages\[2\]: role or state/, (data) => (data.messages[2].state = "__proto__")],
        [/messages\[1\]: content must be a text/, (data) => (data.messages[1].content = ["x"])],
        [/token_ids/, (data) => (data.messages[1].token_ids = [1.5])],
        [/token_ids/, (data) => (data.messages[1].token_ids = "12")],
        [/last_shown must be the place/, (data) => (data.messages[0].last_shown = 99)],
        [/leaf must be the place/, (data) => (data.leaf = -1)],
    ];
    for (const [said, spoil] of faults) {
        const data = structuredClone(good);
        spoil(data);
        assert.throws(
            () => fromJson(JSON.stringify(data)),
            (error) => error instanceof ImportFault && said.test(error.message),
            String(said),
        );
    }
    for (const text of ["", "null", "[]", "7", "{", "[".repeat(100_000)]) {
        assert.throws(() => fromJson(text), ImportFault);
    }
});

test("no message reaches into the next one of a Markdown file", () => {
    const chat = newChat();
    chat.title = "# a *title*";
    chat.named = true;
    const q = addMessage(chat, null, { role: "user", content: "```js\nopen" });
    addMessage(chat, q.id, {
        role: "assistant",
        content: "<think>why\n\nnot</think>because",
        state: "stopped",
    });
    const lines = toMarkdown(chat).split("\n");
    assert.equal(lines[0], "# \\# a \\*title\\*");
    assert.equal(lines.filter((line) => line === "```").length, 1);
    assert.ok(
        lines.includes("> why") &&
            lines.includes("because") &&
            lines.some((line) => line.endsWith("· stopped*")),
    );
});
