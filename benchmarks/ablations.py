"""What each decision is worth on a device: `wgllm bench` with one thing changed, beside all as it is. Rows of a table.

    python benchmarks/ablations.py --model smollm2 --device 0
    python benchmarks/ablations.py --model smollm2 --device 0 --only kv --depths 0,4096

Each run is a process of its own. What is changed and what is not take turns; ratios are medians over the rounds. What
the device can't do is left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

# Name, group, variables of the environment, options.
Change = tuple[str, str, dict[str, str], tuple[str, ...]]
CHANGES: list[Change] = [
    ("nothing is fused", "fusion", {"WGLLM_FUSE": "0"}, ()),
    ("attention in its steps", "fusion", {"WGLLM_FUSE": "-attention"}, ("-fa", "off")),
    ("queries, keys and values apart", "fusion", {"WGLLM_FUSE": "-matmul_concat"}, ()),
    ("gate and up apart", "fusion", {"WGLLM_FUSE": "-gated,-norm_gated"}, ()),
    ("rope and KV writes apart", "fusion", {"WGLLM_FUSE": "-rope_write"}, ()),
    ("residuals apart", "fusion", {"WGLLM_FUSE": "-matmul_add"}, ()),
    ("least limits, no subgroups", "device", {"WGLLM_LIMITS": "least"}, ()),
    ("tokens chosen on the host", "ahead", {"WGLLM_AHEAD": "0"}, ()),
    ("one step in flight", "ahead", {"WGLLM_AHEAD": "1"}, ()),
    ("four steps in flight", "ahead", {"WGLLM_AHEAD": "4"}, ()),
    ("KV in f16", "kv", {}, ("-ctk", "f16", "-ctv", "f16")),
    ("KV in q8_0", "kv", {}, ("-ctk", "q8_0", "-ctv", "q8_0")),
    ("KV in q4_0", "kv", {}, ("-ctk", "q4_0", "-ctv", "q4_0")),
]


def rates(args: argparse.Namespace, env: dict[str, str], options: tuple[str, ...]) -> dict[str, float]:
    """Tokens per second by name of the test. Raises RuntimeError with what the program said."""
    command = [
        sys.executable, "-m", "wgllm", "bench", "--json", "-m", args.model, "--device", args.device,
        "-p", str(args.prompt), "-n", str(args.gen), "-d", args.depths, "-r", "1", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, check=False)
    if done.returncode:
        raise RuntimeError(([*done.stderr.strip().splitlines()] or ["no reason given"])[-1])
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {r["test"]: r["tok_s"] for r in results}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="0")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--gen", type=int, default=32)
    parser.add_argument("--depths", default="0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=sorted({group for _, group, _, _ in CHANGES}))
    args = parser.parse_args()
    header: list[str] = []
    for name, group, env, options in CHANGES:
        if args.only not in (None, group):
            continue
        ratios: dict[str, list[float]] = {}
        try:
            for _ in range(args.rounds):
                usual, changed = rates(args, {}, ()), rates(args, env, options)
                for test, rate in changed.items():
                    ratios.setdefault(test, []).append(rate / usual[test])
        except RuntimeError as error:
            print(f"| {name} | {error} |", flush=True)
            continue
        if not header:
            header = list(ratios)
            print(f"| changed | {' | '.join(header)} |\n|---|{'---|' * len(header)}")
        cells = (
            f"{statistics.median(r):.2f} ({min(r):.2f}–{max(r):.2f})" for r in (ratios[t] for t in header)
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
