"""Records what long prompts of real models must compute: see README.md beside this file.

    python tests/data/make_long_references.py NAME=FILE.gguf …

In an environment with transformers 5.23, torch 2.13, gguf 0.19 and accelerate, for instance with ``smollm2=…`` and
``gemma3:270m=…`` (``wgllm list`` says where the files lie). Weights are dequantized with the ``gguf`` package, the
rest is float32. The text is the licence's sentences, shuffled again and again: what follows one was seen far back, in
another order. ``real/long.json`` holds its ids.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
OUT = HERE / "real" / "long.json"
TOKENS = {"smollm2": 8000, "gemma3:270m": 4000}
POSITIONS = 8
TOP = 20


def text(seed: int) -> str:
    """Far more than is needed: all sentences of the licence, shuffled again and again."""
    licence = (HERE.parents[1] / "LICENSE").read_text(encoding="utf-8")
    sentences = [s for s in re.split(r"(?<=[.;:])\s+", " ".join(licence.split())) if len(s) > 20]
    chance = random.Random(seed)
    parts = []
    for _ in range(6):
        chance.shuffle(sentences)
        parts += sentences
    return " ".join(parts)


def record(name: str, path: Path) -> dict[str, Any]:
    """The largest logits at positions that lie evenly in the prompt, the last of them at its end."""
    n = TOKENS[name]
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    ids = tokenizer(text(len(name)))["input_ids"][:n]
    if len(ids) < n or n > model.config.max_position_embeddings:
        sys.exit(f"{name}: {len(ids)} tokens, {n} wanted of {model.config.max_position_embeddings}")
    positions = [(i + 1) * n // POSITIONS - 1 for i in range(POSITIONS)]
    with torch.no_grad():
        logits = model(torch.tensor([ids]), logits_to_keep=torch.tensor(positions)).logits[0]
    top = logits.topk(TOP)
    values = [[round(v, 5) for v in row] for row in top.values.tolist()]
    return {"ids": ids, "positions": positions, "top_ids": top.indices.tolist(), "top_logits": values}


def main() -> None:
    torch.set_num_threads(1)
    found = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        found[name] = record(name, Path(path))
        print(name, [row[0] for row in found[name]["top_logits"]])
    lines = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
