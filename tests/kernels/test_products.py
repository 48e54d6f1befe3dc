"""Every kernel for products, in every shape, with what comes before and after."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.kernels.gpu import Gpu
from tests.kernels.test_formats import activations, weights
from tests.tolerances import KERNEL_DOT, KERNEL_ELEMENT
from wgllm.backends import numpy as reference
from wgllm.formats.model_file import TensorView
from wgllm.product_shape import After, Before, Choice, Product, Target, shape
from wgllm.quant import QuantFormat, all_formats, format_by_name
from wgllm.quant.base import F32
from wgllm.wgsl import compose

FORMATS = list(all_formats())
CHOICES = {
    "matvec": Choice("matvec", 32),
    "wide": Choice("matvec_wide", 32, 2, 4),
    "wide-8": Choice("matvec_wide", 64, 1, 8),
    "wide-subgroups": Choice("matvec_wide", 64, 4, 2, subgroups=True),
    "wide-subgroups-1": Choice("matvec_wide", 32, 1, 1, subgroups=True),
    "matmul-32": Choice("matmul", 64, 4, 32),
    "matmul-64": Choice("matmul", 256, 4, 64),
    "matmul-64-8": Choice("matmul", 128, 8, 64),
    "split-32": Choice("matmul", 64, 4, 32, splits=2),
    "split-64": Choice("matmul", 256, 4, 64, splits=4),
    "split-64-8": Choice("matmul", 128, 8, 64, splits=8),
    "software": Choice("matmul_software", 16, 4, 2),
    "software-1": Choice("matmul_software", 32, 1, 1),
    "software-shared": Choice("matmul_software", 16, 8, 4, subgroups=True),
    "software-shared-2": Choice("matmul_software", 64, 2, 1, subgroups=True),
}
# One of each way to read a format.
DISTINCT = ("matvec", "wide", "matmul-64-8", "split-32", "software")
BEFORE: tuple[Before, ...] = ("plain", "normed")
AFTER: tuple[After, ...] = ("plain", "biased", "added", "biased_added", "gated_silu", "gated_gelu_tanh")
every_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
EPS = 1e-5


@dataclass(frozen=True)
class Around:
    """What the products of a case are surrounded with."""

    norm: F32
    bias: F32
    residual: F32
    offset: float = 0.0

    @staticmethod
    def of(rows: int, inputs: int, outputs: int, offset: float = 0.0) -> Around:
        rng = np.random.default_rng(rows + inputs + outputs)
        sizes = (inputs, outputs, (rows, outputs))
        return Around(*(rng.standard_normal(size).astype(np.float32) for size in sizes), offset)


@pytest.fixture
def gpu_for(gpu: Gpu, request: pytest.FixtureRequest) -> Gpu:
    """For the test's choice: with subgroups where it takes them."""
    wanted = request.getfixturevalue("choice").subgroups
    return request.getfixturevalue("subgroup_gpu") if wanted else gpu


def least_subgroup(gpu: Gpu) -> int:
    text = (
        "@group(0) @binding(0) var<storage, read_write> y: array<u32>;\n"
        "@compute @workgroup_size(64)\n"
        "fn size(@builtin(local_invocation_index) at: u32) { y[at] = subgroupAdd(1u); }\n"
    )
    source = compose("size.wgsl", features=["subgroups"], read=lambda name: text)
    return int(gpu.run(source, "size", [np.zeros(64, np.uint32)], groups=1).min())


def run(
    gpu: Gpu,
    choice: Choice,
    w: TensorView,
    x: F32,
    around: Around | None = None,
    *,
    before: Before = "plain",
    after: After = "plain",
    groups: int = 3,
    lanes: int = 0,
    first: int = 0,
    beyond: int = 0,
) -> F32:
    """y, of which ``first`` columns before the outputs and some ``beyond`` them belong to others."""
    fmt, inputs = w.format, w.shape[1]
    outputs = w.shape[0] // (2 if after.startswith("gated") else 1)
    product = Product(len(x), inputs, outputs, fmt, before, after)
    subgroup = lanes or (least_subgroup(gpu) if choice.subgroups else 0)
    made = shape(product, Target(subgroup=subgroup), choice)
    packed = fmt.pack(w.data.reshape(-1, fmt.type_size))
    width = first + outputs + beyond
    buffers = {
        "weights": packed.words,
        "x": x,
        "y": np.full((len(x), width), np.nan, np.float32),
        "partial_sums": np.full(made.scratch // 4, np.nan, np.float32),
    }
    if around:
        buffers |= {"norm": around.norm, "bias": around.bias}
    if around and "residual" in product.bindings:
        outside = ((0, 0), (first, beyond))
        buffers["residual"] = np.pad(around.residual, outside, constant_values=np.nan)
    norm = {"EPS": EPS, "OFFSET": around.offset} if around and before == "normed" else {}
    place = {"OUT_WIDTH": width, "OUT_FIRST": first}
    constants = {**place, **made.constants, **packed.layout.constants, **norm}
    source = compose(*made.files, constants=constants, features=made.features)
    bound = [buffers[name] for name in made.bindings]
    y = gpu.run(source, made.entry, bound, groups=groups, written=2).view(np.float32)
    if made.reduce:
        buffers["partial_sums"] = y
        source = compose(*made.reduce.files, constants={**place, **made.reduce.constants})
        bound = [buffers[name] for name in made.reduce.bindings]
        y = gpu.run(source, made.reduce.entry, bound, groups=groups, written=1).view(np.float32)
    return y.reshape(len(x), width)


def expected(
    w: TensorView, x: F32, around: Around | None = None, before: Before = "plain", after: After = "plain"
) -> tuple[F32, F32]:
    """The numbers, and how far from them one may be."""
    matrix = w.array()
    rows = x
    if before == "normed":
        assert around
        rows = reference.rms_norm(x, around.norm, eps=EPS, offset=around.offset)
    sums = rows @ matrix.T
    error = KERNEL_DOT * (np.abs(rows) @ np.abs(matrix).T)
    if before == "normed":
        error += KERNEL_ELEMENT * np.abs(sums)
    if after.startswith("gated"):
        gate, up = np.split(sums, 2, axis=1)
        gate_error, up_error = np.split(error, 2, axis=1)
        with np.errstate(over="ignore"):
            active = reference.silu(gate) if after == "gated_silu" else reference.gelu_tanh(gate)
        sums = active * up
        # No slope of silu or gelu is above 1.13.
        error = 1.13 * gate_error * np.abs(up) + up_error * np.abs(active)
        error += KERNEL_ELEMENT * np.abs(up)
    if around and "biased" in after:
        sums = sums + around.bias
    if around and "added" in after:
        sums = sums + around.residual
    return sums, error + KERNEL_ELEMENT * np.abs(sums)


def assert_within(got: F32, want: tuple[F32, F32]) -> None:
    error = np.abs(got - want[0])
    assert (error <= want[1]).all(), f"worst {np.nanmax(error / want[1])} of what is allowed"


@pytest.mark.parametrize("choice", [CHOICES[name] for name in DISTINCT], ids=DISTINCT)
@pytest.mark.parametrize("fmt", FORMATS, ids=[f.name for f in FORMATS])
def test_formats(gpu_for: Gpu, choice: Choice, fmt: QuantFormat) -> None:
    w, x = weights(fmt, 33, 768), activations(5, 768)
    assert_within(run(gpu_for, choice, w, x), expected(w, x))


@every_choice
@pytest.mark.parametrize(
    ("outputs", "rows", "groups"),
    [
        *((1, 1, 1), (7, 2, 5), (31, 3, 1), (33, 7, 40), (257, 8, 3), (1, 257, 2), (7, 33, 3)),
        *((33, 32, 2), (257, 31, 7)),
    ],
)
def test_shapes(gpu_for: Gpu, choice: Choice, outputs: int, rows: int, groups: int) -> None:
    w, x = weights(format_by_name("Q5_0"), outputs, 288), activations(rows, 288)
    assert_within(run(gpu_for, choice, w, x, groups=groups), expected(w, x))


@every_choice
@pytest.mark.parametrize("inputs", [32, 64, 8192])
def test_widths(gpu_for: Gpu, choice: Choice, inputs: int) -> None:
    if choice.splits > inputs // 32:
        pytest.skip("nothing to split")
    w, x = weights(format_by_name("Q8_0"), 9, inputs), activations(3, inputs)
    assert_within(run(gpu_for, choice, w, x), expected(w, x))


@every_choice
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", AFTER)
def test_what_comes_before_and_after(gpu_for: Gpu, choice: Choice, before: Before, after: After) -> None:
    if choice.kernel == "matmul" and (before == "normed" or after.startswith("gated")):
        pytest.skip("matmul does not take it")
    parts = 2 if after.startswith("gated") else 1
    most = {"matvec_wide": 8, "matmul_software": 4}.get(choice.kernel, 64)
    if parts * choice.outputs > most:
        choice = replace(choice, outputs=choice.outputs // 2)
    w, x = weights(format_by_name("Q4_1"), 37 * parts, 352), activations(5, 352) * 30
    around = Around.of(5, 352, 37, offset=1.0)
    got = run(gpu_for, choice, w, x, around, before=before, after=after)
    assert_within(got, expected(w, x, around, before, after))


@pytest.mark.parametrize("choice", [CHOICES[name] for name in DISTINCT], ids=DISTINCT)
@pytest.mark.parametrize(("rows", "outputs", "groups"), [(3, 37, 3), (70, 65, 1), (33, 130, 100)])
def test_part_of_a_wider_product(gpu_for: Gpu, choice: Choice, rows: int, outputs: int, groups: int) -> None:
    w, x = weights(format_by_name("Q8_0"), outputs, 288), activations(rows, 288)
    around = Around.of(rows, 288, outputs)
    y = run(gpu_for, choice, w, x, around, after="biased_added", groups=groups, first=8, beyond=5)
    assert_within(y[:, 8:-5], expected(w, x, around, after="biased_added"))
    assert np.isnan(y[:, :8]).all() and np.isnan(y[:, -5:]).all()


@pytest.mark.parametrize("splits", [2, 4, 8])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "groups"),
    [(33, 8 * 32, 33, 7), (32, 9 * 32, 64, 1), (65, 15 * 32, 129, 50), (257, 23 * 32, 31, 4)],
)
def test_inputs_in_parts_that_differ(
    gpu: Gpu, splits: int, rows: int, inputs: int, outputs: int, groups: int
) -> None:
    w, x = weights(format_by_name("Q4_0"), outputs, inputs), activations(rows, inputs)
    want = expected(w, x)
    for tile in (Choice("matmul", 64, 4, 32), Choice("matmul", 128, 8, 64)):
        assert_within(run(gpu, replace(tile, splits=splits), w, x, groups=groups), want)


@every_choice
def test_large_activations_stay_finite(gpu_for: Gpu, choice: Choice) -> None:
    before: Before = "plain" if choice.kernel == "matmul" else "normed"
    w, x = weights(format_by_name("Q8_0"), 9, 512), activations(3, 512)
    x[1] = 7e4
    around = Around.of(3, 512, 9)
    for one in ("plain", before):
        assert_within(run(gpu_for, choice, w, x, around, before=one), expected(w, x, around, one))


@every_choice
def test_normed_rows_of_zeros_are_zero(gpu_for: Gpu, choice: Choice) -> None:
    if choice.kernel == "matmul":
        pytest.skip("matmul does not norm")
    w, x = weights(format_by_name("F16"), 9, 64), np.zeros((2, 64), np.float32)
    assert not run(gpu_for, choice, w, x, Around.of(2, 64, 9), before="normed").any()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("inputs", "before"), [(7, "plain"), (33, "plain"), (36, "normed"), (4, "normed")])
def test_rows_of_single_numbers_may_have_other_widths(
    gpu: Gpu, name: str, inputs: int, before: Before
) -> None:
    w, x = weights(format_by_name(name), 34, inputs), activations(3, inputs)
    around = Around.of(3, inputs, 17)
    for after in ("plain", "gated_silu"):
        got = run(gpu, Choice("matvec"), w, x, around, before=before, after=after)
        assert_within(got, expected(w, x, around, before, after))


@pytest.mark.parametrize("lanes", [4, 8])
def test_fewer_lanes_than_a_subgroup_has(subgroup_gpu: Gpu, lanes: int) -> None:
    if least_subgroup(subgroup_gpu) < lanes:
        pytest.skip("subgroups are smaller here")
    w, x = weights(format_by_name("Q4_0"), 40, 96), activations(9, 96)
    choice = Choice("matmul_software", 16, 8, 2, subgroups=True)
    assert_within(run(subgroup_gpu, choice, w, x, lanes=lanes), expected(w, x))
