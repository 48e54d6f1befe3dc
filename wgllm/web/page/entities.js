/** Characters that Markdown may name, as `&amp;` or `&#38;`. */

/** Those that models write; others stay as they are. @type {Record<string, string>} */
const NAMED = {
    amp: "&",
    lt: "<",
    gt: ">",
    quot: '"',
    apos: "'",
    nbsp: "\u00a0",
    ensp: "\u2002",
    emsp: "\u2003",
    thinsp: "\u2009",
    copy: "©",
    reg: "®",
    trade: "™",
    deg: "°",
    plusmn: "±",
    times: "×",
    divide: "÷",
    minus: "−",
    middot: "·",
    bull: "•",
    hellip: "…",
    ndash: "–",
    mdash: "—",
    lsquo: "‘",
    rsquo: "’",
    ldquo: "“",
    rdquo: "”",
    laquo: "«",
    raquo: "»",
    larr: "←",
    uarr: "↑",
    rarr: "→",
    darr: "↓",
    harr: "↔",
    rArr: "⇒",
    hArr: "⇔",
    le: "≤",
    ge: "≥",
    ne: "≠",
    asymp: "≈",
    infin: "∞",
    sum: "∑",
    prod: "∏",
    radic: "√",
    int: "∫",
    part: "∂",
    nabla: "∇",
    isin: "∈",
    notin: "∉",
    cap: "∩",
    cup: "∪",
    sub: "⊂",
    sup: "⊃",
    forall: "∀",
    exist: "∃",
    empty: "∅",
    and: "∧",
    or: "∨",
    not: "¬",
    frac12: "½",
    frac14: "¼",
    frac34: "¾",
    sup1: "¹",
    sup2: "²",
    sup3: "³",
    micro: "µ",
    para: "¶",
    sect: "§",
    euro: "€",
    pound: "£",
    yen: "¥",
    cent: "¢",
    alpha: "α",
    beta: "β",
    gamma: "γ",
    delta: "δ",
    epsilon: "ε",
    theta: "θ",
    lambda: "λ",
    mu: "μ",
    pi: "π",
    rho: "ρ",
    sigma: "σ",
    tau: "τ",
    phi: "φ",
    chi: "χ",
    psi: "ψ",
    omega: "ω",
    Gamma: "Γ",
    Delta: "Δ",
    Theta: "Θ",
    Lambda: "Λ",
    Pi: "Π",
    Sigma: "Σ",
    Phi: "Φ",
    Psi: "Ψ",
    Omega: "Ω",
    colon: ":",
    newline: "\n",
    tab: "\t",
};

const REFERENCE = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([A-Za-z][A-Za-z0-9]{1,31}));/g;

/** @param {string} text */
export function decoded(text) {
    return text.replace(REFERENCE, (whole, decimal, hex, name) => {
        if (name !== undefined) {
            return Object.hasOwn(NAMED, name) ? NAMED[name] : whole;
        }
        const code = decimal === undefined ? parseInt(hex, 16) : Number(decimal);
        const unfit =
            code > 0x10ffff ||
            (code >= 0xd800 && code < 0xe000) ||
            (code < 0xa0 && (code < 0x20 || code > 0x7e));
        return unfit || isTurning(code) ? "\ufffd" : String.fromCodePoint(code);
    });
}

/** Whether a character turns the direction of text. @param {number} code */
function isTurning(code) {
    return (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}
