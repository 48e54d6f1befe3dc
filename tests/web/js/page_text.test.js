import assert from "node:assert/strict";
import test from "node:test";

import { decoded } from "../../../wgllm/web/page/entities.js";
import * as format from "../../../wgllm/web/page/format.js";
import { fileName, oneLine, splitThought, titleOf, visible } from "../../../wgllm/web/page/text.js";

test("sizes, times and speeds have three digits and a unit", () => {
    assert.deepEqual([0, 1, 999, 1000, 96.7e6, 999.96e6, 1.25e9, 123.4e9].map(format.bytes), [
        "0 bytes",
        "1 bytes",
        "999 bytes",
        "1.00 kB",
        "96.7 MB",
        "1.00 GB",
        "1.25 GB",
        "123 GB",
    ]);
    assert.deepEqual([134_515_008, 1.5e9, 999.9e6, 8.03e9, 70.6e9].map(format.parameters), [
        "135M",
        "1.5B",
        "1B",
        "8B",
        "71B",
    ]);
    assert.deepEqual([0.2, 59.4, 59.6, 61, 3599, 4000].map(format.timeLeft), [
        "1 s",
        "59 s",
        "1 min",
        "1 min",
        "1 h 0 min",
        "1 h 7 min",
    ]);
    assert.deepEqual([0.012, 0.9999, 1.519, 12.34].map(format.duration), [
        "12 ms",
        "1.00 s",
        "1.52 s",
        "12.3 s",
    ]);
    assert.deepEqual([0.5, 42.06, 1234].map(format.rate), ["0.50 tok/s", "42.1 tok/s", "1,234 tok/s"]);
});

test("a hundred percent are only those of the whole", () => {
    assert.deepEqual(
        [
            [0, 0],
            [999, 1000],
            [1000, 1000],
            [5, 4],
        ].map(([part, whole]) => format.percent(part, whole)),
        ["0 %", "99 %", "100 %", "100 %"],
    );
});

test("chats stand under the day of the reader", () => {
    const now = new Date(2026, 2, 10, 0, 30).getTime();
    const hours = (n) => format.day(now - n * 3_600_000, now);
    assert.deepEqual([0, 0.4, 0.6, 24.4, 25, 24 * 8, 24 * 40].map(hours), [
        "Today",
        "Today",
        "Yesterday",
        "Yesterday",
        "Last 7 days",
        "Last 30 days",
        "Older",
    ]);
});

test("a speed is that of the last seconds", () => {
    const speed = new format.Speed(2);
    assert.equal(speed.value, null);
    for (let second = 0; second <= 10; second++) {
        speed.add(second, second < 5 ? 0 : (second - 5) * 100);
    }
    assert.equal(speed.value, 100);
});

test("no control character and none that turns text is left", () => {
    for (let code = 0; code < 0x3000; code++) {
        const seen = visible(`a${String.fromCharCode(code)}b`);
        // eslint-disable-next-line no-control-regex
        assert.doesNotMatch(seen, /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/);
        assert.ok(seen.length >= 3);
    }
    assert.equal(visible("\u001b[2J"), "␛[2J");
    assert.equal(visible("a\r\nb\rc\td"), "a\nb\nc\td");
    assert.equal(visible("x\u202eexe"), "x‹U+202E›exe");
    assert.equal(visible("👩‍👩‍👧 שלום"), "👩‍👩‍👧 שלום");
});

test("what is named by a reference is no way around that", () => {
    assert.equal(decoded("&lt;b&gt; &amp;amp; &copy; &nosuch; &#65;&#x1F600;"), "<b> &amp; © &nosuch; A😀");
    assert.equal(decoded("&constructor; &__proto__; &toString;"), "&constructor; &__proto__; &toString;");
    for (const code of [0, 7, 0x1b, 0x7f, 0x9b, 0xd800, 0x202e, 0x2069, 0x110000]) {
        assert.equal(decoded(`&#${code};`), "\ufffd", String(code));
    }
});

test("titles are a line, and files' names have nothing of a path", () => {
    assert.equal(titleOf("## Why\n  is the\tsky blue?"), "Why is the sky blue?");
    assert.equal(Array.from(titleOf("😀".repeat(99))).length, 60);
    assert.equal(oneLine("  ", 5), "");
    assert.equal(fileName("../../etc/passwd: a <b>?", "md"), "etcpasswd-a-b.md");
    assert.equal(fileName("...", "json"), "chat.json");
});

test("reasoning is what stands before the reply", () => {
    assert.deepEqual(splitThought("<think>a</think>\n\nb"), { thought: "a", thinking: false, said: "b" });
    assert.deepEqual(splitThought("<think>a"), { thought: "a", thinking: true, said: "" });
    assert.deepEqual(splitThought("b <think>a"), { thought: null, thinking: false, said: "b <think>a" });
});
