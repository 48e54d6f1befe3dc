import assert from "node:assert/strict";
import { test } from "node:test";

import { ModelError } from "../../../wgllm/web/errors.js";

test("a message is one line, however it was written", () => {
    const error = new ModelError("shader", "  line 3:\n\tno such\r\n   name ");
    assert.equal(error.message, "line 3: no such name");
});

test("an error says its kind, and when to try again if that is known", () => {
    const busy = new ModelError("busy", "queue full", { retryAfter: 2 });
    assert.equal(String(busy), "ModelError: queue full");
    assert.deepEqual([busy.kind, busy.retryAfter], ["busy", 2]);
    assert.equal(new ModelError("lost", "gone").retryAfter, null);
});
