"""Records what llama.cpp's samplers make of fixed logits, in samplers.json beside this file.

    python tests/data/make_sampler_vectors.py      # in an environment with llama-cpp-python 0.3.36

Each case has the sampler, its parameters, and the candidates that stay, as ids and probabilities, best first.
"""

from __future__ import annotations

import ctypes
import json
import math
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np

HERE = Path(__file__).parent
VOCAB = HERE / "tiny" / "llama-tied" / "llama-tied.f32.gguf"
V = 512
Applied = tuple[list[int], list[float], int]


def logits_of(seed: int, scale: float, n: int = V) -> np.ndarray:
    """Normal logits, rounded so that JSON need not hold them: the test makes the same."""
    values = np.random.Generator(np.random.PCG64(seed)).normal(0, scale, n)
    return np.round(values, 3).astype(np.float32)


def apply(sampler: Any, logits: np.ndarray, history: list[int] = []) -> Applied:  # noqa: B006
    """Ids and probabilities of the candidates with a finite logit, by (-probability, id), and the selected id."""
    for token in history:
        lc.llama_sampler_accept(sampler, token)
    data = (lc.llama_token_data * len(logits))()
    for i, value in enumerate(logits.tolist()):
        data[i].id, data[i].logit, data[i].p = i, value, 0.0
    array = lc.llama_token_data_array(data, len(logits), -1, False)
    lc.llama_sampler_apply(sampler, ctypes.byref(array))
    rows = [(array.data[i].id, array.data[i].logit) for i in range(array.size)]
    chosen = array.data[array.selected].id if array.selected >= 0 else -1
    rows = [(i, x) for i, x in rows if x > -math.inf]
    top = max(x for _, x in rows)
    total = sum(math.exp(x - top) for _, x in rows)
    rows.sort(key=lambda r: (-r[1], r[0]))
    return [i for i, _ in rows], [math.exp(x - top) / total for _, x in rows], chosen


def filters() -> list[dict[str, Any]]:
    """Samplers that look at logits alone."""
    init = {
        "top_k": lambda k: lc.llama_sampler_init_top_k(k),
        "top_p": lambda p: lc.llama_sampler_init_top_p(p, 0),
        "min_p": lambda p: lc.llama_sampler_init_min_p(p, 0),
        "typical_p": lambda p: lc.llama_sampler_init_typical(p, 0),
        "top_n_sigma": lambda n: lc.llama_sampler_init_top_n_sigma(n),
        "temperature": lambda t, spread, exponent: lc.llama_sampler_init_temp_ext(t, spread, exponent),
        # A probability of 1 acts always: llama.cpp draws from another generator.
        "xtc": lambda probability, threshold: lc.llama_sampler_init_xtc(probability, threshold, 0, 1),
    }
    asked: list[tuple[str, list[float]]] = [
        *[("top_k", [k]) for k in (0, 1, 5, 40, 600)],
        *[("top_p", [p]) for p in (0.0, 0.1, 0.5, 0.9, 0.95, 1.0)],
        *[("min_p", [p]) for p in (0.0, 0.01, 0.05, 0.3, 1.0)],
        *[("typical_p", [p]) for p in (0.1, 0.5, 0.9, 0.99, 1.0)],
        *[("top_n_sigma", [n]) for n in (-1.0, 0.5, 1.0, 2.5)],
        *[("temperature", [0.8, *dyn]) for dyn in ([0.0, 1.0], [0.5, 1.0], [0.8, 2.5], [1.5, 0.3])],
        *[("temperature", [t, 0.0, 1.0]) for t in (0.0, 0.1, 3.0)],
        *[("xtc", [1.0, t]) for t in (0.0, 0.02, 0.1, 0.3, 0.6)],
        ("xtc", [0.0, 0.1]),
    ]
    cases = []
    for name, args in asked:
        for seed, scale in ((1, 1.0), (2, 3.0), (3, 8.0)):
            ids, shares, _ = apply(init[name](*args), logits_of(seed, scale))
            cases.append({"sampler": name, "args": args, "seed": seed, "scale": scale, **packed(ids, shares)})
    return cases


def packed(ids: list[int], shares: list[float]) -> dict[str, Any]:
    """How many stay, and the best 10 with the worst."""
    shown = [*range(min(10, len(ids))), *([len(ids) - 1] if len(ids) > 10 else [])]
    return {"kept": len(ids), "ids": [ids[i] for i in shown], "p": [float(f"{shares[i]:.7g}") for i in shown]}


def changed(sampler: Any, history: list[int], n: int = V) -> dict[str, float]:
    """Token → by how much its logit changed, of logits that alternate between 4 and -4."""
    logits = np.where(np.arange(n) % 2 == 0, 4.0, -4.0).astype(np.float32)
    for token in history:
        lc.llama_sampler_accept(sampler, token)
    data = (lc.llama_token_data * n)()
    for i, value in enumerate(logits.tolist()):
        data[i].id, data[i].logit, data[i].p = i, value, 0.0
    array = lc.llama_token_data_array(data, n, -1, False)
    lc.llama_sampler_apply(sampler, ctypes.byref(array))
    after = {array.data[i].id: array.data[i].logit for i in range(array.size)}
    differences = {str(i): after[i] - float(logits[i]) for i in sorted(after)}
    return {i: float(f"{d:.7g}") for i, d in differences.items() if d}


def histories() -> list[list[int]]:
    rng = np.random.Generator(np.random.PCG64(11))
    return [
        [5, 6, 7, 8, 5, 6, 7],
        [300, 301, 302, 303] * 6 + [300, 301],
        [9] * 12,
        [2, 3, 2, 4, 2, 3, 2, 5, 2, 3, 2],
        rng.integers(260, 266, 90).tolist(),
        rng.integers(0, 500, 90).tolist(),
    ]


def penalties() -> list[dict[str, Any]]:
    cases = []
    for last_n, repeat, presence, frequency in [
        (64, 1.1, 0.0, 0.0), (64, 1.0, 0.5, 0.0), (64, 1.0, 0.0, 0.25), (8, 1.3, 0.5, 0.25), (0, 1.3, 0.5, 0.25),
        (64, 0.9, -0.5, -0.25),
    ]:  # fmt: skip
        for number, history in enumerate(histories()):
            made = lc.llama_sampler_init_penalties(V, last_n, repeat, frequency, presence)
            cases.append(
                {
                    "repeat_last_n": last_n, "repeat_penalty": repeat, "presence_penalty": presence,
                    "frequency_penalty": frequency, "history": number, "changed": changed(made, history),
                }
            )  # fmt: skip
    return cases


TEXTS = [
    "the cat sat on the mat. the cat sat on the",
    "one: two three four\none: two three four\none: two",
    'say "hello there" and say "hello there" and say "hello',
    "a*b c d e f a*b c d e f a*b c d",
]


def dry(vocab: Any, histories: list[list[int]]) -> list[dict[str, Any]]:
    breakers = [[], ["\n", ":", '"', "*"], ["he"], ["t s"], ["cat sat", "three f"]]
    asked = [
        (0.8, 1.75, 2, 64),
        (1.0, 1.1, 0, 64),
        (2.0, 1.0, 1, 20),
        (0.5, 3.0, 5, 64),
        (0.0, 1.75, 2, 64),
        (1.0, 2.0, 2, 0),
    ]
    cases = []
    for index, history in enumerate(histories):
        for number, (multiplier, base, allowed, last_n) in enumerate(asked):
            for stops in breakers if number == 0 else breakers[:2]:
                texts_c = (ctypes.c_char_p * len(stops))(*[s.encode() for s in stops])
                made = lc.llama_sampler_init_dry(
                    vocab, multiplier, base, allowed, last_n, texts_c, len(stops)
                )
                cases.append(
                    {
                        "dry_multiplier": multiplier, "dry_base": base, "dry_allowed_length": allowed,
                        "dry_penalty_last_n": last_n, "dry_sequence_breakers": stops, "history": index,
                        "changed": changed(made, history),
                    }
                )  # fmt: skip
    return cases


def mirostat() -> list[dict[str, Any]]:
    """Runs of 12 steps. llama.cpp's generator is another: the case has the ids that it chose, and what stayed."""
    cases = []
    for version in (1, 2):
        for tau, eta in ((5.0, 0.1), (3.0, 0.5), (1.0, 1.0)):
            made = (
                lc.llama_sampler_init_mirostat(V, 7, tau, eta, 100)
                if version == 1
                else lc.llama_sampler_init_mirostat_v2(7, tau, eta)
            )
            steps = []
            for step in range(12):
                ids, _, chosen = apply(made, logits_of(100 + step, 2.0))
                steps.append([len(ids), chosen])
            cases.append({"version": version, "tau": tau, "eta": eta, "steps": steps})
    return cases


def chains() -> list[dict[str, Any]]:
    """Whole default chains without the draw."""
    cases = []
    for number, params in enumerate(
        [
            {},
            {"repeat_penalty": 1.3, "frequency_penalty": 0.2},
            {"top_n_sigma": 1.5, "typical_p": 0.9},
            {
                "top_k": 100,
                "top_p": 0.8,
                "dynatemp_range": 0.5,
                "xtc_probability": 1.0,
                "xtc_threshold": 0.05,
            },
        ]
    ):
        p = {
            "repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "top_n_sigma": -1.0,
            "top_k": 40, "typical_p": 1.0, "top_p": 0.95, "min_p": 0.05, "xtc_probability": 0.0,
            "xtc_threshold": 0.1, "temperature": 0.8, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0, **params,
        }  # fmt: skip
        chain = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
        for sampler in [
            lc.llama_sampler_init_penalties(
                V, 64, p["repeat_penalty"], p["frequency_penalty"], p["presence_penalty"]
            ),
            lc.llama_sampler_init_top_n_sigma(p["top_n_sigma"]),
            lc.llama_sampler_init_top_k(int(p["top_k"])),
            lc.llama_sampler_init_typical(p["typical_p"], 0),
            lc.llama_sampler_init_top_p(p["top_p"], 0),
            lc.llama_sampler_init_min_p(p["min_p"], 0),
            lc.llama_sampler_init_xtc(p["xtc_probability"], p["xtc_threshold"], 0, 1),
            lc.llama_sampler_init_temp_ext(p["temperature"], p["dynatemp_range"], p["dynatemp_exponent"]),
        ]:
            lc.llama_sampler_chain_add(chain, sampler)
        history = histories()[5]
        for scale in (1.0, 3.0):
            lc.llama_sampler_reset(chain)
            ids, shares, _ = apply(chain, logits_of(20 + number, scale), history)
            cases.append(
                {"params": params, "seed": 20 + number, "scale": scale, "history": 5, **packed(ids, shares)}
            )
    return cases


def main() -> None:
    lc.llama_backend_init()
    params = lc.llama_model_default_params()
    params.vocab_only = True
    model = lc.llama_model_load_from_file(str(VOCAB).encode(), params)
    vocab = lc.llama_model_get_vocab(model)

    def tokenize(text: str) -> list[int]:
        room = (lc.llama_token * 512)()
        data = text.encode()
        n = lc.llama_tokenize(vocab, data, len(data), room, 512, False, False)
        return list(room[:n])

    everything = [*histories(), *map(tokenize, TEXTS)]
    made = {
        "version": lc.__version__,
        "histories": everything,
        "filters": filters(),
        "penalties": penalties(),
        "dry": dry(vocab, everything),
        "mirostat": mirostat(),
        "chains": chains(),
    }
    lines = [
        json.dumps(k)
        + ": "
        + (json.dumps(v) if isinstance(v, str) else "[\n" + ",\n".join(map(json.dumps, v)) + "\n]")
        for k, v in made.items()
    ]
    (HERE / "samplers.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
