"""What products in half precision, or with activations of 8 bits, would cost in logits: rows of a table.

    python benchmarks/rounding.py smollm2 gemma3:270m

NumPy with float32 everywhere, but for what a row names: what a shader would round to multiply faster. The errors are
those of the listed logits of the reference (tests/data/real), whose tolerance on WebGPU is 5e-3. Run it in a clone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import wgllm  # noqa: E402
from benchmarks.agree import worst_logit  # noqa: E402
from tests.conftest import REFERENCE_FILES  # noqa: E402
from wgllm.backends.numpy_weights import Matrix  # noqa: E402
from wgllm.quant import format_by_name  # noqa: E402

F32 = NDArray[np.float32]
Round = Callable[[F32], F32]
POSITIONS = 64


def same(x: F32) -> F32:
    return x


def half(x: F32) -> F32:
    return x.astype(np.float16).astype(np.float32)


def eight_bits(x: F32) -> F32:
    """[R, K] in blocks of 32 with one scale each, as integer dot products take them."""
    fmt = format_by_name("Q8_0")
    if x.shape[-1] % fmt.block_size:
        return x
    blocks = fmt.quantize_blocks(np.ascontiguousarray(x).reshape(-1, fmt.block_size))
    out = np.empty((len(blocks), fmt.block_size), np.float32)
    fmt.dequantize_blocks(blocks, out)
    return out.reshape(x.shape)


ROUNDED: list[tuple[str, Round, Round]] = [
    ("nothing", same, same),
    ("activations to f16", half, same),
    ("weights to f16", same, half),
    ("both to f16, sums in f32", half, half),
    ("activations to 8 bits (integer dot products)", eight_bits, same),
]


def rounding(of_x: Round, of_w: Round) -> Callable[[Matrix, F32], F32]:
    """``Matrix.product`` with inputs and weights rounded."""
    product = Matrix.product
    done: set[int] = set()

    def rounded(matrix: Matrix, x: F32) -> F32:
        if matrix.dense is not None and id(matrix) not in done:
            done.add(id(matrix))
            matrix.dense[...] = of_w(matrix.dense)
        return product(matrix, of_x(x))

    return rounded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", choices=[*REFERENCE_FILES], metavar="MODEL")
    args = parser.parse_args()
    print("| model | rounded | positions | worst logit off |\n|---|---|---|---|")
    product: Any = Matrix.product
    for name in args.models:
        cases = json.loads((ROOT / "tests" / "data" / "real" / f"{REFERENCE_FILES[name]}.json").read_text())
        for what, of_x, of_w in ROUNDED:
            Matrix.product = rounding(of_x, of_w)  # type: ignore[method-assign]
            try:
                with wgllm.load(name, backend="numpy") as llm:
                    worst, count = worst_logit(llm, cases, POSITIONS)
            finally:
                Matrix.product = product  # type: ignore[method-assign]
            print(f"| {name} | {what} | {count} | {worst:.1e} |", flush=True)


if __name__ == "__main__":
    main()
