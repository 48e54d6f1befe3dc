"""wgllm beside llama-cpp-python on the same cores or the same graphics card, in the same run.

Needs ``pip install llama-cpp-python``: for NumPy built natively, so that it uses what the CPU has; for a graphics card
with ``CMAKE_ARGS=-DGGML_VULKAN=ON`` (it takes a software adapter only with ``GGML_VK_VISIBLE_DEVICES=0``).
usage: python benchmarks/beside_llama_cpp.py [--model NAME|PATH] [--backend numpy|webgpu] [--prompt 128,512] …

The two take turns, so that a machine whose speed drifts is the same for both; the median of the ratios is told.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from typing import Any

import llama_cpp  # type: ignore[import-not-found,unused-ignore]

from wgllm.backends.numpy_weights import cpu_count
from wgllm.engine import Engine, Request, run_request
from wgllm.hub import resolve
from wgllm.llm import load
from wgllm.sampling import SamplingParams

Rates = tuple[float, float]


def wgllm_rates(engine: Engine, n_prompt: int, n_gen: int, salt: int) -> Rates:
    """Tokens per second of reading n_prompt tokens from empty, and of making n_gen more."""
    tokens = [(salt * 7919 + i * 31) % engine.vocab_size for i in range(n_prompt)]
    *_, last = run_request(engine, Request(tokens, n_gen + 1, SamplingParams(temperature=0), ignore_eos=True))
    assert last.stats is not None
    return last.stats.prefill_rate, last.stats.decode_rate


def llama_rates(llama: Any, n_prompt: int, n_gen: int, salt: int) -> Rates:
    vocab = llama.n_vocab()
    tokens = [(salt * 7919 + i * 31) % vocab for i in range(n_prompt)]
    llama.reset()
    start = time.perf_counter()
    llama.eval(tokens)
    llama_cpp.llama_synchronize(llama.ctx)  # a graphics card is done later
    read = time.perf_counter()
    for i in range(n_gen):
        llama.eval([(tokens[-1] + i) % vocab])
        llama_cpp.llama_synchronize(llama.ctx)
    return n_prompt / (read - start), n_gen / (time.perf_counter() - read)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--backend", default="numpy", choices=("numpy", "webgpu"))
    parser.add_argument("--prompt", default="128,512")
    parser.add_argument("--gen", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--pause", type=float, default=0.5, help="seconds between turns, for idle threads to sleep"
    )
    args = parser.parse_args()

    path = resolve(args.model)
    lengths = [int(n) for n in args.prompt.split(",")]
    ctx = max(lengths) + args.gen + 8
    cores = cpu_count()
    llama = llama_cpp.Llama(
        str(path),
        n_ctx=ctx,
        n_batch=512,
        n_threads=cores,
        n_threads_batch=cores,
        n_gpu_layers=-1 if args.backend == "webgpu" else 0,
        verbose=False,
    )
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores, llama-cpp-python {llama_cpp.__version__}"
    )
    print(f"{path.name}: median of {args.rounds} rounds, wgllm / llama.cpp")
    with load(path, ctx_size=ctx, backend=args.backend) as llm:
        print(llm.where)
        engine = llm.engine
        assert isinstance(engine, Engine)
        for n in lengths:
            rounds: list[tuple[Rates, Rates]] = []
            for salt in range(args.rounds + 1):
                ours = wgllm_rates(engine, n, args.gen, salt)
                time.sleep(args.pause)
                theirs = llama_rates(llama, n, args.gen, salt)
                time.sleep(args.pause)
                if salt:  # the first round warms up
                    rounds.append((ours, theirs))
            for i, name in enumerate((f"pp{n}", f"tg{args.gen} after {n}")):
                a = statistics.median(ours[i] for ours, _ in rounds)
                b = statistics.median(theirs[i] for _, theirs in rounds)
                ratio = statistics.median(ours[i] / theirs[i] for ours, theirs in rounds)
                print(f"{name:16} {a:8.1f} / {b:8.1f} tok/s = {ratio:.2f}")


if __name__ == "__main__":
    main()
