/** Numbers as people read them: sizes, times, speeds. */

const UNITS = ["bytes", "kB", "MB", "GB", "TB"];
const numbers = new Intl.NumberFormat("en");

/** @param {number} n As 12,345. */
export function count(n) {
    return numbers.format(Math.round(n));
}

/** Three digits of a number, at most. @param {number} n */
function digits(n) {
    return n >= 99.95 ? numbers.format(Math.round(n)) : n >= 9.995 ? n.toFixed(1) : n.toFixed(2);
}

/** @param {number} n As "1.25 GB", in powers of 1000. */
export function bytes(n) {
    let unit = 0;
    while (unit < UNITS.length - 1 && n >= 999.5) {
        n /= 1000;
        unit++;
    }
    return `${unit === 0 ? count(n) : digits(n)} ${UNITS[unit]}`;
}

/** @param {number} n Parameters of a model: "135M", "1.5B". */
export function parameters(n) {
    const [scaled, unit] = n >= 999.5e6 ? [n / 1e9, "B"] : [n / 1e6, "M"];
    return `${scaled >= 9.95 ? count(scaled) : scaled.toFixed(1).replace(/\.0$/, "")}${unit}`;
}

/** @param {number} seconds A time that is left: "8 s", "2 min", "1 h 5 min". */
export function timeLeft(seconds) {
    if (seconds < 59.5) {
        return `${Math.max(1, Math.round(seconds))} s`;
    }
    const minutes = Math.round(seconds / 60);
    return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** @param {number} seconds A time that was measured: "240 ms", "1.52 s". */
export function duration(seconds) {
    return seconds < 0.9995 ? `${Math.round(seconds * 1000)} ms` : `${digits(seconds)} s`;
}

/** @param {number} perSecond As "42.1 tok/s". */
export function rate(perSecond) {
    return `${digits(perSecond)} tok/s`;
}

/** @param {number} part @param {number} whole As "42 %"; 100 only where nothing is missing. */
export function percent(part, whole) {
    const share = whole > 0 ? part / whole : 0;
    return `${part >= whole && whole > 0 ? 100 : Math.min(99, Math.floor(share * 100))} %`;
}

/**
 * Under which heading a chat stands in the list.
 * @param {number} when Milliseconds since 1970.
 * @param {number} now
 */
export function day(when, now) {
    const midnight = new Date(now).setHours(0, 0, 0, 0);
    const days = Math.ceil((midnight - when) / 86_400_000);
    return days <= 0
        ? "Today"
        : days === 1
          ? "Yesterday"
          : days <= 7
            ? "Last 7 days"
            : days <= 30
              ? "Last 30 days"
              : "Older";
}

/** The speed of something that grows, over the last seconds. */
export class Speed {
    /** @type {[seconds: number, amount: number][]} */ #samples = [];
    #window;

    /** @param {number} seconds How far back it looks. */
    constructor(seconds = 3) {
        this.#window = seconds;
    }

    /** @param {number} seconds A clock. @param {number} amount What there is by now. */
    add(seconds, amount) {
        this.#samples.push([seconds, amount]);
        while (this.#samples.length > 2 && seconds - this.#samples[1][0] > this.#window) {
            this.#samples.shift();
        }
    }

    /** Per second; null while nothing can be said. */
    get value() {
        const first = this.#samples[0];
        const last = this.#samples[this.#samples.length - 1];
        return first && last[0] - first[0] > 0.05 ? (last[1] - first[1]) / (last[0] - first[0]) : null;
    }
}
