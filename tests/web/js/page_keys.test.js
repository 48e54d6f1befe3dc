import assert from "node:assert/strict";
import test from "node:test";

import { commandOf } from "../../../wgllm/web/page/shortcuts.js";

const PC = { mac: false, writes: false, open: false };
const MAC = { ...PC, mac: true };

/** A key, as "Alt+Control ç KeyC": what is held, what it writes, where it is. */
function press(keys, state) {
    const [held, key, code = ""] = keys.split(" ");
    return commandOf(
        {
            key,
            code,
            altKey: held.includes("Alt"),
            ctrlKey: held.includes("Control"),
            metaKey: held.includes("Meta"),
            shiftKey: held.includes("Shift"),
        },
        state,
    );
}

test("a command has the same keys on every keyboard", () => {
    for (const keys of [
        "Control k KeyK",
        "Control K KeyK",
        "Control л KeyK",
        "Control k KeyV",
        "Meta k KeyK",
    ]) {
        assert.equal(press(keys, PC), "search", keys);
    }
    for (const keys of ["Alt n KeyN", "Alt N KeyN", "Alt т KeyN", "Alt n KeyL"]) {
        assert.equal(press(keys, PC), "create", keys);
    }
    assert.equal(press("Alt , Comma", PC), "settings");
    assert.equal(press("Control / Slash", PC), "help");
    assert.equal(press("Control+Shift / Digit7", PC), "help");
    assert.equal(press("Control r KeyR", PC), null);
    assert.equal(press("Control+Alt e KeyE", PC), null); // as AltGr is told on some machines
    assert.equal(press("Control x KeyK", PC), null); // the key is labelled with another Latin letter
});

test("where Option writes letters, it is left to them", () => {
    for (const keys of ["Alt ç KeyC", "Alt Dead KeyE", "Alt ˜ KeyN", "Alt ≤ Comma"]) {
        assert.equal(press(keys, { ...MAC, writes: true }), null, keys);
        assert.equal(press(keys, MAC), null, keys);
    }
    assert.equal(press("Control+Shift C KeyC", MAC), "copyLast");
    assert.equal(press("Control+Shift < Comma", { ...MAC, writes: true }), "settings");
    assert.equal(press("Control+Shift C KeyC", PC), null);
    assert.equal(press("Meta k KeyK", MAC), "search");
});

test("single keys are text where one writes, and Escape closes what is open", () => {
    assert.deepEqual([press("- / Slash", PC), press("Shift ? Slash", PC)], ["write", "help"]);
    assert.deepEqual(
        [press("- / Slash", { ...PC, writes: true }), press("Shift ? Slash", { ...PC, writes: true })],
        [null, null],
    );
    assert.deepEqual([press("- Escape", PC), press("- Escape", { ...PC, writes: true })], ["stop", "stop"]);
    assert.equal(press("- Escape", { ...PC, open: true }), null);
});
