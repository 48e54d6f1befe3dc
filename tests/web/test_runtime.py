"""runtime.js beside NumPy, on plans made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tolerances import KERNEL_ELEMENT
from tests.web.browser import BrowserPage, Inputs, Numbers, unpacked
from wgllm.backends import numpy as reference
from wgllm.plan import (
    Buffer,
    Dispatch,
    Fill,
    Kernel,
    Limits,
    Part,
    Plan,
    PlannedNode,
    Region,
    Role,
    Rows,
    State,
    Value,
    Width,
)
from wgllm.quant.base import F32
from wgllm.wgsl import Constant, Source, compose

WIDTH = 8
SLOTS, CELLS = 2, 4
BIAS = np.arange(WIDTH, dtype=np.float32) - 3.5
# Far more than any device does in one submission.
ENDLESS = 1 << 50


class Hand:
    """A plan in the making. Each value has a buffer of its own: no shader reads and writes the same one."""

    def __init__(self, rows: int, out_rows: int) -> None:
        self.plan = Plan(
            limits=Limits(),
            host="tint",
            buffers=[],
            fills=[],
            nodes=[],
            inputs={},
            outputs={},
            states={},
            rows=rows,
            out_rows=out_rows,
            cells=512,
            least_cells=256,
        )

    def region(self, name: str, numbers: int, role: Role = "scratch") -> Region:
        size = -(-numbers // 4) * 16
        self.plan.buffers.append(Buffer(name, size, role))
        return Region(len(self.plan.buffers) - 1, 0, size)

    def input(self, name: str, width: int, part: Part, dtype: str = "i32", pad: int = 0) -> Region:
        rows = self.plan.rows if part == "body" else self.plan.out_rows
        region = self.region(name, rows * width, "input")
        self.plan.inputs[name] = Value(region, 4 * width, part, dtype, pad)
        return region

    def output(self, name: str, width: int, part: Part, region: Region) -> None:
        self.plan.outputs[name] = Value(region, 4 * width, part, "f32")

    def launch(
        self, part: Part, file: str, entry: str, *bindings: Region, cost: int = 1, **constants: Constant
    ) -> Dispatch:
        source = compose(f"kernels/{file}.wgsl", constants=constants, host="tint")
        self.plan.kernels.append(Kernel(source, entry))
        self.plan.nodes.append(PlannedNode(entry, outputs=(), regions=(), layer=0, part=part))
        return Dispatch(len(self.plan.kernels) - 1, bindings, 1, len(self.plan.nodes) - 1, cost)


def chain(
    bodies: Sequence[tuple[int, int]] = ((4, 512),),
    tails: Sequence[int] = (2,),
    factor: Callable[[Width], float] = lambda width: 2.0,
    cost: int = 1,
) -> Plan:
    """hidden = x · factor + bias for all rows, logits = silu(hidden) for those asked for; cells hold positions.

    ``bodies`` are rows and cells of the widths that the plan has, ``tails`` rows.
    """
    hand = Hand(max(rows for rows, _ in bodies), max(tails))
    plan = hand.plan
    x = hand.input("x", WIDTH, "body", "f32")
    pos, slot = hand.input("pos", 1, "body", pad=-1), hand.input("slot", 1, "body")
    out_rows = hand.input("out_rows", 1, "tail")
    bias = hand.region("bias", WIDTH, "weights")
    plan.fills.append(Fill(bias, "numbers", (Rows("bias", 0, WIDTH),)))
    held = hand.region("held", SLOTS * CELLS, "state")
    plan.states["held"] = State(held, "i32", (SLOTS, CELLS))
    scaled, hidden = (hand.region(name, plan.rows * WIDTH) for name in ("scaled", "hidden"))
    selected, logits = (hand.region(name, plan.out_rows * WIDTH) for name in ("selected", "logits"))
    hand.output("hidden", WIDTH, "body", hidden)
    hand.output("logits", WIDTH, "tail", logits)
    for rows, cells in bodies:
        width, n = Width("body", rows, cells), rows * WIDTH
        plan.schedules[width] = (
            hand.launch(
                "body", "cell_write", "cell_write", pos, slot, held, cost=cost, ROWS=rows, CELLS=CELLS
            ),
            hand.launch(
                "body", "elementwise", "scale", x, scaled, cost=cost, COUNT=n, PARAMETER=factor(width)
            ),
            hand.launch(
                "body", "elementwise", "add_row", scaled, hidden, bias, cost=cost, COUNT=n, WIDTH=WIDTH
            ),
        )
    for rows in tails:
        plan.schedules[Width("tail", rows)] = (
            hand.launch(
                "tail", "select_rows", "select_rows", hidden, out_rows, selected, OUT_ROWS=rows, WIDTH=WIDTH
            ),
            hand.launch("tail", "elementwise", "silu", selected, logits, COUNT=rows * WIDTH),
        )
    return plan


def rows_of_x(rows: int) -> F32:
    return np.random.default_rng(rows).standard_normal((rows, WIDTH)).astype(np.float32)


def step(pos: Sequence[int], out_rows: Sequence[int] = (), slot: int = 0) -> dict[str, list[Any]]:
    x = rows_of_x(len(pos)).reshape(-1).tolist()
    return {"x": x, "pos": list(pos), "slot": [slot] * len(pos), "out_rows": list(out_rows)}


def assert_outputs(got: dict[str, Numbers], inputs: Inputs, factor: float = 2.0) -> None:
    x = np.float32(inputs["x"]).reshape(-1, WIDTH)
    hidden = x * np.float32(factor) + BIAS
    np.testing.assert_allclose(got["hidden"].reshape(hidden.shape), hidden, KERNEL_ELEMENT, KERNEL_ELEMENT)
    logits = reference.silu(hidden[np.int32(inputs["out_rows"])])
    np.testing.assert_allclose(got["logits"].reshape(logits.shape), logits, KERNEL_ELEMENT, KERNEL_ELEMENT)


def assert_runs(page: BrowserPage, plan: Plan, *steps: Inputs) -> None:
    for got, inputs in zip(page.run(plan, BIAS, steps), steps, strict=True):
        assert_outputs(got, inputs)


# A chain on the shared device, to look into: runtime, step(inputs) and held(), the positions in its cells.
OPEN = """async ([plan, weights, ...rest]) => {
    const device = await wgllm.sharedDevice();
    const runtime = await wgllm.open(await wgllm.fetchPlan(plan), weights, device);
    const held = async () => [...await runtime.readState("held")];
    try {
        return await (%s)(runtime, held, ...rest);
    } finally {
        runtime.destroy();
    }
}"""


def look(page: BrowserPage, plan: Plan, script: str, *arguments: object) -> Any:
    return page.evaluate(OPEN % script, [page.register(plan), page.register(BIAS), *arguments])


def test_a_full_body_and_tail(browser_page: BrowserPage) -> None:
    assert_runs(browser_page, chain(), step([0, 1, 2, 3], [3, 0]))


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_padding_are_thrown_away(browser_page: BrowserPage, rows: int) -> None:
    assert_runs(browser_page, chain(), step([0, 1, 2, 3], [1]), step(range(4, 4 + rows), [rows - 1]))


@pytest.mark.parametrize("out_rows", [[], [2], [3, 1, 0], [0, 1, 2, 3, 0]], ids=len)
def test_tails_run_in_pieces(browser_page: BrowserPage, out_rows: list[int]) -> None:
    assert_runs(browser_page, chain(), step([0, 1, 2, 3], out_rows))


@pytest.mark.parametrize(
    ("pos", "width"),
    [
        ([0], (1, 256)),
        ([255], (1, 256)),
        ([256], (1, 512)),
        ([0, 1], (4, 256)),
        ([300, 3, 1], (4, 512)),
        ([0] * 5, (8, 512)),
    ],
)
def test_the_narrowest_width_runs(browser_page: BrowserPage, pos: list[int], width: tuple[int, int]) -> None:
    bodies = [(8, 512), (4, 512), (1, 512), (4, 256), (1, 256)]
    plan = chain(bodies, tails=[2, 1], factor=lambda w: w.rows + w.cells / 1024)
    assert plan.schedule("body", len(pos), max(pos) + 1)[0] == ("body", *width)
    inputs = step(pos, [0])
    (got,) = browser_page.run(plan, BIAS, [inputs])
    assert_outputs(got, inputs, factor=width[0] + width[1] / 1024)


def test_cells_hold_positions_until_they_are_truncated(browser_page: BrowserPage) -> None:
    script = """async (runtime, held, steps) => {
        const seen = [await held()];
        for (const inputs of steps) {
            await runtime.step(inputs);
            seen.push(await held());
        }
        runtime.truncate(0, 4);
        seen.push(await held());
        runtime.truncate(1, 0);
        seen.push(await held());
        return seen;
    }"""
    steps = [step([0, 1, 2, 3]), step([0, 1], slot=1), step([4, 5])]
    assert look(browser_page, chain(), script, steps) == [
        [-1, -1, -1, -1, -1, -1, -1, -1],
        [0, 1, 2, 3, -1, -1, -1, -1],
        [0, 1, 2, 3, 0, 1, -1, -1],
        [4, 5, 2, 3, 0, 1, -1, -1],
        [-1, -1, 2, 3, 0, 1, -1, -1],
        [-1, -1, 2, 3, -1, -1, -1, -1],
    ]


def test_weights_come_in_pieces_of_any_size(browser_page: BrowserPage) -> None:
    """Larger than what is written at a time, and two regions whose border no piece knows."""
    hand = Hand(1, 1)
    sizes = {"a": 5 << 18, "b": 4}
    for name, numbers in sizes.items():
        region = hand.region(name, numbers, "weights")
        hand.plan.fills.append(Fill(region, "numbers", (Rows(name, 0, numbers),)))
        hand.plan.states[name] = State(region, "f32", (numbers,))  # to be read back
    packed = np.random.default_rng(0).integers(0, 256, 4 * sum(sizes.values()), np.uint8)
    script = """async ([planUrl, weightsUrl]) => {
        const bytes = new Uint8Array(await (await fetch(weightsUrl)).arrayBuffer());
        const pieces = async function* () {
            for (let at = 0; at < bytes.length; at += 99991) {
                yield bytes.subarray(at, at + 99991);
            }
        };
        const runtime = await wgllm.open(await wgllm.fetchPlan(planUrl), null, await wgllm.sharedDevice());
        const progress = [];
        await runtime.fill(pieces(), (...told) => progress.push(told));
        const regions = { a: await runtime.readState("a"), b: await runtime.readState("b") };
        runtime.destroy();
        return { progress, regions: wgllm.packedAll(regions) };
    }"""
    got = browser_page.evaluate(script, [browser_page.register(hand.plan), browser_page.register(packed)])
    regions = [unpacked(region) for region in got["regions"].values()]
    np.testing.assert_array_equal(np.concatenate(regions).view(np.uint8), packed)
    assert got["progress"] == [[4 << 20, packed.size], [5 << 20, packed.size], [packed.size, packed.size]]


def test_shaders_are_compiled_ahead_or_when_they_are_needed(browser_page: BrowserPage) -> None:
    script = """async ([planUrl, weightsUrl, inputs]) => {
        const [plan, device] = [await wgllm.fetchPlan(planUrl), await wgllm.openDevice()];
        let compiled = 0;
        const compile = device.createComputePipelineAsync;
        device.createComputePipelineAsync = (...a) => (compiled++, compile.apply(device, a));
        const lazy = await wgllm.open(plan, weightsUrl, device, { lazy: true });
        const counts = [compiled];
        await lazy.step(inputs);
        await lazy.step(inputs);
        counts.push(compiled);
        const progress = [];
        await wgllm.open(plan, null, device, { onCompile: (...told) => progress.push(told) });
        device.destroy();
        return { counts, progress };
    }"""
    plan = chain([(1, 512), (4, 512)])
    urls = [browser_page.register(plan), browser_page.register(BIAS)]
    got = browser_page.evaluate(script, [*urls, step([0], [0])])
    assert got["counts"] == [0, 5]  # of a body and a tail
    assert got["progress"] == [[done, 8] for done in range(1, 9)]


@pytest.mark.parametrize(("cost", "submissions"), [(1, 2), (ENDLESS, 4)])
def test_costly_schedules_are_cut(browser_page: BrowserPage, cost: int, submissions: int) -> None:
    script = """async (runtime, held, inputs) => {
        let count = 0;
        const stop = wgllm.countSubmissions(await wgllm.sharedDevice(), (n) => (count = n));
        const outputs = wgllm.packedAll(await runtime.step(inputs));
        stop();
        return { count, outputs };
    }"""
    inputs = step([0, 1, 2], [2])
    got = look(browser_page, chain(cost=cost), script, inputs)
    assert got["count"] == submissions
    assert_outputs({name: unpacked(output) for name, output in got["outputs"].items()}, inputs)


def test_an_aborted_step_leaves_its_cells_empty(browser_page: BrowserPage) -> None:
    script = """async (runtime, held, first, second) => {
        await runtime.step(first);
        const abort = new AbortController();
        const stop = wgllm.countSubmissions(await wgllm.sharedDevice(), (n) => n === 2 && abort.abort());
        const aborted = wgllm.failure(() => runtime.step(second, { signal: abort.signal }));
        const busy = await wgllm.failure(() => runtime.step(first));
        const error = await aborted;
        stop();
        const cells = await held();
        const outputs = wgllm.packedAll(await runtime.step(second));
        return { error: error.name, busy: busy.message, cells, after: await held(), outputs };
    }"""
    second = step([2, 3], [1])
    got = look(browser_page, chain(cost=ENDLESS), script, step([0, 1]), second)
    assert got["error"] == "AbortError"
    assert got["busy"] == "the runtime is still busy"
    assert got["cells"] == [0, 1, -1, -1, -1, -1, -1, -1]
    assert got["after"] == [0, 1, 2, 3, -1, -1, -1, -1]
    assert_outputs({name: unpacked(output) for name, output in got["outputs"].items()}, second)


def test_a_lost_device_ends_the_step_and_those_after_it(browser_page: BrowserPage) -> None:
    script = """async ([planUrl, weightsUrl, inputs]) => {
        const device = await wgllm.openDevice();
        const runtime = await wgllm.open(await wgllm.fetchPlan(planUrl), weightsUrl, device);
        wgllm.countSubmissions(device, (n) => n === 2 && device.destroy());
        return [await wgllm.failure(() => runtime.step(inputs)), await wgllm.failure(() => runtime.step(inputs))];
    }"""
    urls = [browser_page.register(chain(cost=ENDLESS)), browser_page.register(BIAS)]
    for error in browser_page.evaluate(script, [*urls, step([0], [0])]):
        assert error["name"] == "PlanReplayError"
        assert error["message"].startswith("the GPU was lost: ")
    assert_runs(browser_page, chain(), step([0], [0]))


def test_a_destroyed_runtime_says_so(browser_page: BrowserPage) -> None:
    script = """async (runtime, held, inputs) => {
        runtime.destroy();
        return wgllm.failure(() => runtime.step(inputs));
    }"""
    assert look(browser_page, chain(), script, step([0]))["message"] == "the runtime was destroyed"


def assert_fails(
    page: BrowserPage,
    plan: Plan,
    message: str,
    *,
    weights: bytes | Numbers | None = BIAS,
    inputs: Inputs | None = None,
) -> dict[str, str]:
    """The error of one step, whose message begins so, in one line; another plan then runs on the same device."""
    error = page.failure(plan, weights, [step([0], [0]) if inputs is None else inputs])
    assert error is not None
    assert error["name"] == "PlanReplayError"
    assert error["message"].startswith(message)
    assert "\n" not in error["message"]
    assert_runs(page, chain(), step([0, 1], [1]))
    return error


def broken_source(text: str) -> Source:
    return compose(
        "broken.wgsl", constants={"N": 1}, host="tint", read=lambda name: "//!const N: u32\n" + text
    )


def test_a_broken_shader_is_told_with_its_place(browser_page: BrowserPage) -> None:
    plan = chain()
    source = broken_source("@compute @workgroup_size(1)\nfn scale() {\n    let x: i32 = N;\n}\n")
    plan.kernels[1] = Kernel(source, "scale")
    error = assert_fails(browser_page, plan, "shader broken.wgsl:4: ")
    assert error["listing"] == source.listing(5)


def test_a_shader_without_its_entry_point(browser_page: BrowserPage) -> None:
    plan = chain()
    plan.kernels[1] = replace(plan.kernels[1], entry="skale")
    assert_fails(browser_page, plan, "shader kernels/elementwise.wgsl: can't build skale: ")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (BIAS[:-1], "the weights end after 28 of 32 bytes"),
        (b"", "the weights end after 0 of 32 bytes"),
        (BIAS.tobytes() + b"0", "the weights go on after 32 bytes"),
        (None, "the weights are not there yet"),
    ],
    ids=["short", "empty", "long", "none"],
)
def test_weights_of_another_size(
    browser_page: BrowserPage, weights: bytes | Numbers | None, message: str
) -> None:
    assert_fails(browser_page, chain(), message, weights=weights)


def test_limits_that_are_too_small_are_named(browser_page: BrowserPage) -> None:
    plan = chain()
    plan.limits = Limits(invocations=1 << 20)
    error = assert_fails(
        browser_page,
        plan,
        "the device allows too little: maxComputeInvocationsPerWorkgroup is 256, the plan needs 1048576",
    )
    assert "maxBufferSize" not in error["message"]


def test_required_limits_make_a_device_that_takes_the_plan(browser_page: BrowserPage) -> None:
    plan = chain()
    plan.limits = Limits(binding=256 << 20, bindings=9)
    assert_fails(browser_page, plan, "the device allows too little: maxStorageBufferBindingSize is ")
    script = """async ([planUrl]) => {
        const plan = await wgllm.fetchPlan(planUrl);
        const device = await wgllm.openDevice(plan);
        await wgllm.open(plan, null, device);
        device.destroy();
    }"""
    browser_page.evaluate(script, [browser_page.register(plan)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos": [512]}, "the plan has no body of 1 rows and 513 cells"),
        ({"pos": [0] * 5, "slot": [0] * 5, "x": [0] * 40}, "the plan has no body of 5 rows and 1 cells"),
        ({"pos": [], "slot": [], "x": []}, "the plan has no body of 0 rows and 0 cells"),
        ({"slot": [2]}, "there is no slot 2, only 2"),
        ({"slot": [0, 0]}, "input slot has 2 numbers, not 1 rows of 1"),
        ({"x": [1, 2, 3]}, "input x has 3 numbers, not 0 rows of 8"),
        ({"token": [1]}, "the plan has no input token"),
    ],
    ids=["cells", "rows", "no rows", "slot", "lengths", "part of a row", "unknown"],
)
def test_steps_that_do_not_fit(browser_page: BrowserPage, change: dict[str, Any], message: str) -> None:
    assert_fails(browser_page, chain(), message, inputs=step([0], [0]) | change)


def test_a_step_without_an_input(browser_page: BrowserPage) -> None:
    inputs = step([0], [0])
    del inputs["slot"]
    assert_fails(browser_page, chain(), "input slot is missing", inputs=inputs)


def test_buffers_that_the_device_refuses(browser_page: BrowserPage) -> None:
    plan = chain()
    plan.buffers.append(Buffer("vast", 1 << 40, "scratch"))
    assert_fails(browser_page, plan, f"buffer vast of {1 << 40} bytes: ")


def test_bindings_that_the_device_refuses(browser_page: BrowserPage) -> None:
    plan = chain()
    ((width, (first, second, *rest)), tail) = plan.schedules.items()
    beyond = second.bindings[0]._replace(size=1 << 20)
    second = replace(second, bindings=(beyond, *second.bindings[1:]))
    plan.schedules = dict([(width, (first, second, *rest)), tail])
    error = assert_fails(browser_page, plan, "body of 4 rows: ")
    assert "scale of layer 0" in error["message"]


def test_a_buffer_that_is_read_and_written_at_once(browser_page: BrowserPage) -> None:
    plan = chain()
    ((width, (first, second, *rest)), tail) = plan.schedules.items()
    second = replace(second, bindings=second.bindings[:1] * 2)
    plan.schedules = dict([(width, (first, second, *rest)), tail])
    assert_fails(browser_page, plan, "can't run: ")
