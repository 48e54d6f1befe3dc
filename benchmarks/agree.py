"""How far a backend's logits are from the reference's, and whether its greedy tokens are the same: rows of a table.

    python benchmarks/agree.py smollm2 --device 0 --kv f32,f16
    WGLLM_LIMITS=least python benchmarks/agree.py qwen2.5-coder:1.5b --positions 64

The reference (tests/data/real) was made with float32 transformers on the same, dequantized weights. Logits are
compared at the listed tokens of every position, greedy tokens up to the first whose margin is below twice the
tolerance. Exits with 1 when a tolerance is passed. Run it in a clone: it reads the tests' data.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import wgllm  # noqa: E402
from tests.conftest import REFERENCE_FILES  # noqa: E402
from tests.tolerances import NUMPY_REAL, WEBGPU_F16_KV, WEBGPU_F32_KV  # noqa: E402

TOLERANCES = {
    ("numpy", "f32"): NUMPY_REAL,
    ("numpy", "f16"): WEBGPU_F16_KV,
    ("webgpu", "f32"): WEBGPU_F32_KV,
    ("webgpu", "f16"): WEBGPU_F16_KV,
}


def worst_logit(llm: wgllm.Llm, cases: dict[str, Any], positions: int) -> tuple[float, int]:
    """The largest difference of a listed logit, and how many positions were compared."""
    worst, count = 0.0, 0
    for case in cases.values():
        ids = case["ids"][:positions]
        listed = np.take_along_axis(llm.logits(ids), np.array(case["top_ids"][: len(ids)]), axis=1)
        expected = np.array(case["top_logits"][: len(ids)], np.float32)
        worst = max(worst, float(np.abs(listed - expected).max()))
        count += len(ids)
    return worst, count


def greedy_agreement(
    llm: wgllm.Llm, cases: dict[str, Any], positions: int, tolerance: float
) -> tuple[int, int]:
    """Of the tokens that are sure, how many are the same; and how many are sure."""
    same = sure = 0
    for case in cases.values():
        if len(case["ids"]) > positions:
            continue
        margins = case["greedy_margins"]
        n = next((i for i, m in enumerate(margins) if m < 2 * tolerance), len(margins))
        events = llm.generate(case["ids"], max_tokens=n, temperature=0, ignore_eos=True)
        made = [e.token_id for e in events if e.token_id is not None]
        same += sum(a == b for a, b in zip(made, case["greedy"], strict=False))
        sure += n
    return same, sure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", choices=[*REFERENCE_FILES], metavar="MODEL")
    parser.add_argument("--backend", default="webgpu", choices=("webgpu", "numpy"))
    parser.add_argument("--device", default=None)
    parser.add_argument("--kv", default="f32,f16", help="KV types, with commas")
    parser.add_argument("--positions", type=int, default=10**6, help="of each prompt, at most")
    args = parser.parse_args()
    limits = os.environ.get("WGLLM_LIMITS", "the adapter's")
    print(
        "| model | what computes | limits | KV | positions | worst logit off | tolerance | greedy tokens | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    failed = False
    for name in args.models:
        cases = json.loads((ROOT / "tests/data/real" / f"{REFERENCE_FILES[name]}.json").read_text("utf-8"))
        for kv in args.kv.split(","):
            started = time.perf_counter()
            tolerance = TOLERANCES[args.backend, kv]
            with wgllm.load(name, backend=args.backend, device=args.device, kv_type=kv, ctx_size=1024) as llm:
                worst, count = worst_logit(llm, cases, args.positions)
                same, sure = greedy_agreement(llm, cases, args.positions, tolerance)
            seconds = time.perf_counter() - started
            failed |= worst > tolerance or same != sure
            print(
                f"| {name} | {llm.where} | {limits} | {kv} | {count} | {worst:.1e} | {tolerance:.0e} "
                f"| {same} of {sure} | {seconds:.0f} |",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
