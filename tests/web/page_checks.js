/** What tests look for in the page; each is a function of `window.checks`. */
window.checks = {};

/** Texts whose contrast is below 4.5, and how many texts there are. */
checks.contrast = () => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
    const luminance = (color) => {
        const [r, g, b] = color.map((c) =>
            c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4,
        );
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const backOf = (element) => {
        const layers = [];
        for (let at = element; at; at = at.parentElement)
            layers.push(rgba(getComputedStyle(at).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const poor = [];
    let seen = 0;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (
            !walker.currentNode.data.trim() ||
            !element.checkVisibility({ visibilityProperty: true }) ||
            element.closest("svg, .unseen, .skip")
        )
            continue;
        seen++;
        const back = backOf(element);
        const [light, dark] = [
            luminance(over(rgba(getComputedStyle(element).color), back)),
            luminance(back),
        ].sort((a, b) => b - a);
        const ratio = (light + 0.05) / (dark + 0.05);
        if (ratio < 4.5)
            poor.push(
                `${ratio.toFixed(2)} ${element.className || element.tagName}: ${walker.currentNode.data.trim().slice(0, 30)}`,
            );
    }
    return [seen, poor];
};

/** What a screen reader would have no name for, or no place. */
checks.names = () => {
    const nameOf = (e) =>
        e.getAttribute("aria-label") ||
        (e.getAttribute("aria-labelledby") &&
            document.getElementById(e.getAttribute("aria-labelledby"))?.textContent) ||
        e.labels?.[0]?.textContent ||
        e.textContent.trim() ||
        e.title;
    const faults = [];
    for (const e of document.querySelectorAll(
        "button, a, input:not([hidden]), textarea, dialog, nav, [role=log], [role=region], [role=group], [role=menu], [role=meter]",
    )) {
        if (!nameOf(e)) faults.push("no name: " + e.outerHTML.slice(0, 80));
    }
    const ids = Array.from(document.querySelectorAll("[id]"), (e) => e.id);
    if (new Set(ids).size !== ids.length) faults.push("an id twice");
    for (const [selector, count] of [
        ["main", 1],
        ["nav", 1],
        ["h1", 1],
        ["html[lang]", 1],
        ["title", 1],
    ]) {
        if (document.querySelectorAll(selector).length !== count) faults.push(selector);
    }
    return faults;
};

/** By how much the page, the conversation or a dialog is wider than the screen. */
checks.wide = () =>
    [
        document.documentElement,
        document.querySelector("#scroller"),
        document.querySelector("dialog[open] .dialog-body"),
    ].map((element) => (element?.scrollWidth ?? 0) - innerWidth);

/** Buttons that a finger can't hit. */
checks.small = () =>
    Array.from(document.querySelectorAll("button, .search input"))
        .filter(
            (e) =>
                e.checkVisibility({ visibilityProperty: true }) &&
                !e.closest(".code-bar, .branches, .toasts"),
        )
        .filter((e) => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height) < 44)
        .map((e) => e.outerHTML.slice(0, 90));

/** Elements and attributes below `root` that a message never has. */
checks.strange = (root) => {
    const common = {
        class: /^[a-z0-9 -]*$/,
        dir: /^(auto|ltr)$/,
        tabindex: /^0$/,
        role: /^(region|text|group)$/,
        "aria-label": /^[^<>]*$/,
    };
    const allowed = {
        P: {},
        BLOCKQUOTE: {},
        STRONG: {},
        EM: {},
        S: {},
        H2: {},
        H3: {},
        H4: {},
        H5: {},
        H6: {},
        HR: {},
        BR: {},
        CODE: {},
        PRE: {},
        DIV: {},
        SPAN: {},
        UL: {},
        OL: { start: /^\d+$/ },
        LI: {},
        TABLE: {},
        THEAD: {},
        TBODY: {},
        TR: {},
        TH: {},
        TD: {},
        SUMMARY: {},
        DETAILS: { open: /^$/ },
        INPUT: { type: /^checkbox$/, disabled: /^$/, checked: /^$/ },
        BUTTON: { type: /^button$/ },
        A: {
            href: /^(https?:\/\/|mailto:)/,
            title: /^(https?:\/\/|mailto:)/,
            target: /^_blank$/,
            rel: /^noopener noreferrer$/,
        },
    };
    const strange = [];
    for (const element of root.querySelectorAll("*")) {
        const known = Object.hasOwn(allowed, element.nodeName)
            ? { ...common, ...allowed[element.nodeName] }
            : null;
        if (known === null) strange.push(element.nodeName);
        for (const { name, value } of known ? element.attributes : []) {
            if (!Object.hasOwn(known, name) || !known[name].test(value))
                strange.push(`${element.nodeName} ${name}=${value}`);
        }
    }
    return strange;
};

/** The texts that look otherwise when they have grown than when they came at once; those given, and some of parts. */
checks.growing = async (texts) => {
    const { GrowingMarkdown } = await import("/static/page/growing.js");
    let seed = 1;
    const random = (below) => Math.floor(((seed = (seed * 48271) % 2147483647) / 2147483647) * below);
    const parts = [
        "para",
        "- item",
        "  - inner",
        "1. one",
        "# head",
        "#",
        "---",
        "===",
        "```",
        "```js",
        "> quote",
        "| a | b |",
        "|---|--:|",
        "| 1 | 2 |",
        "[x]: https://e.x",
        "see [x]",
        "<div>",
        "</div>",
        "<!--",
        "-->",
        "**b",
        "c**",
        "    code",
        "",
        "",
        "",
        "  ",
        "\t- t",
        "\\",
    ];
    const made = Array.from({ length: 150 }, () =>
        Array.from({ length: 12 }, () => parts[random(parts.length)]).join("\n"),
    );
    const grown = (text, most) => {
        const box = document.createElement("div");
        const growing = new GrowingMarkdown(box);
        for (let at = 0; at < text.length;) {
            at += most === Infinity ? text.length : 1 + random(most);
            growing.update(text.slice(0, at));
        }
        growing.finish();
        return box;
    };
    const whole = [...texts, ...made].map((text) => ({ text, box: grown(text, Infinity) }));
    return whole
        .filter(({ text, box }) => [1, 7].some((most) => !grown(text, most).isEqualNode(box)))
        .map(({ text }) => text);
};

/** Whether blocks stay the same elements while others come after them, and code while it grows. */
checks.kept = async () => {
    const { GrowingMarkdown } = await import("/static/page/growing.js");
    const box = document.createElement("div");
    const growing = new GrowingMarkdown(box);
    growing.update("one\n\n```js\na");
    const [first, code] = box.children;
    growing.update("one\n\n```js\nabc\n```\n\nthe end\n\nof it");
    return [box.children[0] === first, box.children[1] === code, box.textContent];
};

/** Of lists and tables that grow: whether the block and its first part stay the same elements, and how many parts there are. */
checks.grownInPlace = async () => {
    const { GrowingMarkdown } = await import("/static/page/growing.js");
    const grown = (text, more, part) => {
        const box = document.createElement("div");
        const growing = new GrowingMarkdown(box);
        growing.update(text);
        const [block, first] = [box.firstElementChild, box.querySelector(part)];
        for (let at = 1; at <= more.length; at++) growing.update(text + more.slice(0, at));
        growing.finish();
        const { children } = box.querySelector(part).parentElement;
        return [box.firstElementChild === block, children[0] === first, children.length];
    };
    return {
        list: grown("- **one**\n- tw", "o\n- three\n- four\n  - inner\n- five", "li"),
        ordered: grown("3. one\n4. two", " and more\n5. three", "li"),
        table: grown("| a | b |\n|---|---|\n| 1 | 2 |\n", "| 3 | 4 |\n| 5 |", "tbody tr"),
    };
};

/** Makes a chat whose messages of both sides are these texts, and opens it. */
checks.fillChat = async (texts) => {
    const { chats } = window.wgllmPage.app;
    const { addMessage } = await import("/static/page/tree.js");
    for (const content of texts) {
        const { id } = addMessage(chats.chat, chats.chat.leaf, { role: "user", content });
        addMessage(chats.chat, id, { role: "assistant", content });
    }
    await window.wgllmPage.store.save(chats.chat);
    await chats.open(chats.chat.id);
};

/** What is strange in texts as they come, character by character, in the page. */
checks.growingStrangely = async (texts) => {
    const { GrowingMarkdown } = await import("/static/page/growing.js");
    return texts.flatMap((text) => {
        const box = document.createElement("div");
        document.querySelector("#main").append(box);
        const growing = new GrowingMarkdown(box);
        const found = Array.from(text, (_, at) => {
            growing.update(text.slice(0, at + 1));
            return checks.strange(box);
        }).flat();
        growing.finish();
        found.push(...checks.strange(box));
        box.remove();
        return found;
    });
};

/** Until all that has been changed so far is drawn. */
checks.drawn = async () => {
    for (let frame = 0; frame < 2; frame++) {
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    }
};

/** What moves by itself from now on. Gives a function that tells it, and then begins anew. */
checks.watchShifts = () => {
    const observer = new PerformanceObserver((list) => seen.push(...list.getEntries()));
    let seen = [];
    observer.observe({ type: "layout-shift" });
    return async () => {
        await checks.drawn();
        const all = [...seen, ...observer.takeRecords()].filter(({ value }) => value > 0.001);
        seen = [];
        return all.map(({ value, sources }) => [
            value,
            ...sources.map(({ node }) => node?.className ?? node?.nodeName),
        ]);
    };
};

/** Collects in `window.heard` what a screen reader is told. */
checks.listen = () => {
    window.heard = [];
    const announcer = document.querySelector("#announcer");
    new MutationObserver(() => window.heard.push(announcer.textContent)).observe(announcer, {
        childList: true,
    });
};

/** Whether the conversation is scrolled to its end. */
checks.atEnd = () => {
    const { scrollHeight, scrollTop, clientHeight } = document.querySelector("#scroller");
    return scrollHeight - scrollTop - clientHeight < 40;
};

/** The card is lost while nothing runs. */
checks.lose = async (message) => {
    const { ModelError } = await import("/static/errors.js");
    window.fakeModel.onLost(new ModelError("lost", message));
};

/** Shows a notice and a short message. */
checks.tell = async (text) => {
    const { notice, toast } = await import("/static/page/notices.js");
    notice("test", text, { label: "Act", act() {} });
    toast(text, { label: "Undo", act() {} });
};
