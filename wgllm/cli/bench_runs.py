"""The measurements of ``wgllm bench``: what each test took, and what the machine could do at best."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wgllm import debug
from wgllm.backends.roofline import Roofline, Work, measure
from wgllm.backends.webgpu import WebGpuProgram
from wgllm.engine import Engine, Request, run_request
from wgllm.kv_types import KV_BITS
from wgllm.plan import Width
from wgllm.plan_figures import PlanFigures
from wgllm.sampling import SamplingParams

if TYPE_CHECKING:
    from wgllm.llm import Llm

_GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True)
class Case:
    """``pp`` reads n tokens, ``tg`` makes n after one more, with ``depth`` others before them."""

    kind: Literal["pp", "tg"]
    n: int
    depth: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}{self.n}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def cells(self) -> int:
        """Positions that it fills."""
        return self.depth + self.n + (self.kind == "tg")


@dataclass(frozen=True)
class Speed:
    """What the runs of a test came to."""

    rates: list[float]
    """Tokens per second."""
    host_seconds: list[float]
    """Of each token those that were not spent waiting for a device."""


class Cpu:
    """What the CPU reaches in float32 on matrices that no cache holds; measured beside the tests."""

    def __init__(self) -> None:
        import numpy as np

        self._w = np.ones((8192, 8192), np.float32)  # 256 MiB
        self._x = np.ones(8192, np.float32)
        self._a = np.ones((256, 2048), np.float32)
        self._bandwidths: list[float] = []
        self._flops: list[float] = []
        self.measure()  # first touch is no measurement
        self._bandwidths.clear()
        self._flops.clear()

    def measure(self) -> None:
        start = time.perf_counter()
        self._w @ self._x
        self._bandwidths.append(self._w.nbytes / (time.perf_counter() - start))
        b = self._w[:2048, :2048]
        start = time.perf_counter()
        self._a @ b.T
        self._flops.append(2 * 256 * 2048 * 2048 / (time.perf_counter() - start))

    @property
    def bandwidth(self) -> float:
        """Bytes per second of a matrix-vector product, the median."""
        return statistics.median(self._bandwidths)

    @property
    def flops(self) -> float:
        """Floating-point operations per second of a matrix product, the median."""
        return statistics.median(self._flops)


class Bench:
    """Measures a loaded model: beside the CPU, or where a device computes all of it beside the device's roofline."""

    def __init__(self, llm: Llm) -> None:
        assert isinstance(llm.engine, Engine) and llm.model is not None
        self.engine = llm.engine
        self.config = llm.model.config
        programs = self.engine.pipeline.programs
        self._on_gpu = [p for p in programs if isinstance(p, WebGpuProgram)]
        self.device = self._on_gpu[0].device if self._on_gpu else None
        self.all_on_gpu = len(self._on_gpu) == len(programs)
        self.cpu = None if self.all_on_gpu else Cpu()
        self._figures = [(p.plan, PlanFigures(p.plan, p.graph)) for p in self._on_gpu]

    def run(self, case: Case, repetitions: int) -> dict[str, Any]:
        """A test's figures, for JSON."""
        speed = self._run(case, repetitions)
        rate = statistics.median(speed.rates)
        return {
            "test": case.name,
            "depth": case.depth,
            "tok_s": round(rate, 2),
            "tok_s_min": round(min(speed.rates), 2),
            "tok_s_max": round(max(speed.rates), 2),
            "repetitions": repetitions,
            **self._beside_cpu(case, rate),
            **(self._beside_device(case, rate, speed) if self.all_on_gpu else {}),
        }

    def _run(self, case: Case, repetitions: int) -> Speed:
        vocab = self.engine.vocab_size
        before = [(i * 17 + 1) % vocab for i in range(case.depth)]
        speed = Speed([], [])
        for repetition in range(repetitions + 1):
            if before:
                self._generate(before, 0)
            # A first token that differs each time leaves the cache nothing to re-use but what is meant.
            tokens = [(repetition * 7919 + i * 31) % vocab for i in range(case.n if case.kind == "pp" else 1)]
            rates, host = self._generate(before + tokens, 1 if case.kind == "pp" else case.n + 1)
            if repetition:  # the first run warms up
                speed.rates.append(rates[case.kind])
                speed.host_seconds.append(host[case.kind] / case.n)
            if self.cpu is not None:
                self.cpu.measure()
        return speed

    def _generate(self, tokens: list[int], count: int) -> tuple[dict[str, float], dict[str, float]]:
        """Tokens per second of reading and of making, and the seconds that the processor worked for each."""
        busy = [self._busy()]
        for event in run_request(self.engine, Request(tokens, count, _GREEDY, ignore_eos=True)):
            if event.token_id is not None and len(busy) == 1:
                busy.append(self._busy())
            last = event
        busy.append(self._busy())
        assert last.stats is not None
        stats = last.stats
        host = {"pp": busy[1] - busy[0], "tg": busy[-1] - busy[1]}
        return {"pp": stats.prefill_rate, "tg": stats.decode_rate}, host

    def _busy(self) -> float:
        """Seconds of this thread's processor, without those in which it asked a device whether it is ready."""
        waited = self.device.waited.seconds if self.device is not None else 0.0
        return time.thread_time() - waited

    # Beside the CPU

    def _beside_cpu(self, case: Case, rate: float) -> dict[str, Any]:
        programs = self.engine.pipeline.programs
        weight_bytes = sum(p.weight_bytes for p in programs)
        per_row, per_out_row = self._products()
        # A prompt is read in steps, of which the last alone has logits.
        head_bytes = sum(p.head_bytes for p in programs)
        steps = math.ceil(case.n / self.engine.largest_step)
        prompt_bytes = steps * (weight_bytes - head_bytes) + head_bytes
        # The CPU's speeds tell nothing of a graphics card.
        cpu = None if self._on_gpu else self.cpu
        operations = 2 * (per_row + per_out_row / case.n)
        return {
            "bytes_per_token": weight_bytes if case.kind == "tg" else prompt_bytes / case.n,
            "bandwidth_share": round(weight_bytes * rate / cpu.bandwidth, 4)
            if case.kind == "tg" and cpu
            else None,
            "flops_share": round(operations * rate / cpu.flops, 4) if case.kind == "pp" and cpu else None,
            "gemv_bytes_s": None if self.cpu is None else round(self.cpu.bandwidth),
            "gemm_flops": None if self.cpu is None else round(self.cpu.flops),
        }

    def _products(self) -> tuple[int, int]:
        """Weights that each row, and each row with logits, is multiplied with."""
        products = [p.products for p in self.engine.pipeline.programs]
        return sum(row for row, _ in products), sum(out for _, out in products)

    # Beside the device

    def _beside_device(self, case: Case, rate: float, speed: Speed) -> dict[str, Any]:
        assert self.device is not None
        dispatches, touched = self._launched(case)
        host_peak = peak_memory()
        roofline = measure(self.device)
        best = least_seconds(roofline, self.work(), case) / case.n
        return {
            "dispatches_per_token": round(dispatches, 2),
            "device_bytes_per_token": round(touched),
            "python_seconds_per_token": round(statistics.median(speed.host_seconds), 7),
            "roofline_tok_s": round(1 / best, 2),
            "roofline_share": round(rate * best, 4),
            "read_bytes_s": round(roofline.read_bandwidth),
            "copy_bytes_s": round(roofline.copy_bandwidth),
            "fma_flops": round(roofline.flops),
            "dispatch_gap_seconds": round(roofline.gap, 9),
            "host_peak_bytes": host_peak,
            "device_buffer_bytes": sum(plan.size for plan, _ in self._figures),
        }

    def work(self) -> Work:
        """What the model asks for, in the formulas of the roofline."""
        c = self.config
        programs = self.engine.pipeline.programs
        windows = [
            math.inf if (window := p.graph.windows[str(t.shape[2])]) is None else float(window)
            for p in programs
            for t in p.graph.of_kind("state")
            if t.name.endswith(".k.state")
        ]
        options = programs[0].options
        kv_bytes = sum(KV_BITS[options.kv_type_of(f"{x}.state")] / 8 for x in (".k", ".v"))
        weights = sum(p.weight_bytes for p in programs)
        row, head = self._products()
        return Work(weights, row, head, tuple(windows), c.n_heads, c.n_kv_heads, c.head_dim, kv_bytes)

    def _launched(self, case: Case) -> tuple[float, float]:
        """Dispatches, and the bytes that they touch, for a token on average."""
        ahead = debug.steps_ahead() != 0 and self.engine.pipeline.steps_ahead() is not None
        dispatches = touched = 0
        for plan, figures in self._figures:
            parts = {n.part for n in plan.nodes}
            counts: Counter[tuple[Width, int]] = Counter()
            for rows, cells, ends in self._steps(case):
                if "body" in parts:
                    counts[plan.schedule("body", rows, cells)[0], cells] += 1
                if ends and "tail" in parts:
                    counts[plan.schedule("tail", 1)[0], 0] += 1
                if case.kind == "tg" and ahead:
                    counts[plan.schedule("greedy", 1)[0], 0] += 1
            for (width, cells), times in counts.items():
                # Of the cells that a schedule is made for attention reads those in use.
                made = figures.schedule(width._replace(cells=cells), plan.schedules[width])
                dispatches += times * made.dispatches
                touched += times * made.traffic.all
        return dispatches / case.n, touched / case.n

    def _steps(self, case: Case) -> list[tuple[int, int, bool]]:
        """Rows, positions that are in use with them, and whether logits are made."""
        if case.kind == "tg":
            return [(1, case.depth + 2 + i, True) for i in range(case.n)]
        most, end = self.engine.largest_step, case.depth + case.n
        starts = range(case.depth, end, most)
        return [(min(most, end - s), min(s + most, end), s + most >= end) for s in starts]


def least_seconds(roofline: Roofline, work: Work, case: Case) -> float:
    """Of the whole test. A token that is made sees those before it and itself; time grows evenly with these."""
    if case.kind == "pp":
        return roofline.prefill_seconds(work, case.n, case.depth)
    return sum(roofline.decode_seconds(work, case.depth + 2 + i) for i in range(case.n))


def peak_memory() -> int:
    """The most bytes of the machine's memory that this process has had at a time."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
