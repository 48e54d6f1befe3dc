"""Whether a device and the host draw the same tokens, and fused and unfused shaders make the same: a table.

    python benchmarks/same_tokens.py smollm2 --device 0 --tokens 64 --seeds 4

Each prompt of the reference (tests/data/real) is continued with the default samplers and several seeds, and greedily.
Runs are compared token by token with those of which the host chooses every token; after the first difference a text is
another one, so that the rest of it does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import wgllm  # noqa: E402
from tests.conftest import REFERENCE_FILES  # noqa: E402


@contextmanager
def switched(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def texts(llm: wgllm.Llm, prompts: list[list[int]], count: int, seeds: int) -> list[list[int]]:
    """Of each prompt, the tokens of every seed, then the greedy ones."""
    made = []
    for ids in prompts:
        for seed in range(seeds):
            made.append(llm.generate(ids, max_tokens=count, seed=seed, ignore_eos=True))
        made.append(llm.generate(ids, max_tokens=count, temperature=0, ignore_eos=True))
    return [[e.token_id for e in events if e.token_id is not None] for events in made]


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> tuple[int, int]:
    """Tokens that are the same, and tokens up to the first difference, that one included."""
    same = compared = 0
    for a, b in zip(ours, theirs, strict=True):
        first = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
        same += len(a) if first is None else first
        compared += len(a) if first is None else first + 1
    return same, compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", choices=[*REFERENCE_FILES], metavar="MODEL")
    parser.add_argument("--device", default=None)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt, at most")
    args = parser.parse_args()
    print("| model | compared with tokens chosen on the host | the same |\n|---|---|---|")
    for name in args.models:
        cases = json.loads((ROOT / "tests" / "data" / "real" / f"{REFERENCE_FILES[name]}.json").read_text())
        prompts = [case["ids"][: args.prompt] for case in cases.values()]
        shared = (prompts, args.tokens, args.seeds)
        with wgllm.load(name, backend="webgpu", device=args.device) as llm:
            with switched(WGLLM_AHEAD="0"):
                usual = texts(llm, *shared)
            same, compared = agreement(texts(llm, *shared), usual)
            print(f"| {name} | chosen on the device | {same} of {compared} |", flush=True)
        with (
            switched(WGLLM_AHEAD="0", WGLLM_FUSE="0"),
            wgllm.load(name, backend="webgpu", device=args.device) as llm,
        ):
            same, compared = agreement(texts(llm, *shared), usual)
            print(f"| {name} | unfused shaders | {same} of {compared} |", flush=True)


if __name__ == "__main__":
    main()
