"""What is fastest on a device is found, and nothing that is wrong or takes too long; and it is found once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import wgllm
from tests.tiny import tiny
from wgllm import placement
from wgllm.backends import tuner
from wgllm.backends.device import Device, OutOfDeviceMemory, ShaderError
from wgllm.backends.product_trial import Arena, Kernel, Trial
from wgllm.cli import cli
from wgllm.errors import DeviceError
from wgllm.hub_progress import SilentProgress
from wgllm.plan import Limits
from wgllm.product_shape import After, Before, Choice, Product, Target, candidates, default
from wgllm.quant import QuantFormat, all_formats, format_by_name
from wgllm.tuning import Verdict
from wgllm.wgsl import Source

Q4 = format_by_name("Q4_0")
SMALL = Product(1, 64, 40, Q4, "normed")
PRODUCTS = (SMALL, Product(1, 96, 24, Q4, "plain", "added"), Product(16, 64, 70, Q4))
MATVEC = Choice("matvec")


@pytest.fixture
def target(own_device: Device) -> Target:
    """A software adapter in the role of a card, since more is measured on cards."""
    return Target(Limits.of(own_device.limits), subgroup=own_device.subgroup)


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "_ARENA", 4 << 20)


Speeds = Callable[[Mapping[Choice, float]], list[Choice]]


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Speeds:
    """Makes kernels seem to take given times, 1 where none is given; returns the list of those that were asked for."""
    real = Trial.kernel
    asked: list[Choice] = []
    choice_of: dict[int, Choice] = {}
    kept: list[Kernel] = []

    def kernel(trial: Trial, choice: Choice) -> Kernel | None:
        asked.append(choice)
        if (made := real(trial, choice)) is not None:
            choice_of[id(made.pipeline)] = choice
            kept.append(made)
        return made

    def install(times: Mapping[Choice, float]) -> list[Choice]:
        monkeypatch.setattr(Trial, "kernel", kernel)
        monkeypatch.setattr(
            Trial, "seconds", lambda trial, made: times.get(choice_of[id(made.pipeline)], 1.0)
        )
        return asked

    return install


class Clock:
    """Goes on by a second whenever someone looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def change(monkeypatch: pytest.MonkeyPatch, entry: str, changed: Callable[[str], str]) -> None:
    """Makes a driver that takes a kernel for another one."""
    real = Device.pipeline

    def pipeline(device: Device, source: Source, name: str, layout: Any = "auto") -> Any:
        if name == entry:
            assert changed(source.text) != source.text
            source = replace(source, text=changed(source.text))
        return real(device, source, name, layout)

    monkeypatch.setattr(Device, "pipeline", pipeline)


# What is measured


def test_every_product_gets_a_verdict(own_device: Device, target: Target) -> None:
    found = tuner.tune(own_device, target, PRODUCTS, clock=Clock(), seconds=8)
    assert list(found) == list(PRODUCTS)
    assert found[SMALL].default_us > 0 and found[SMALL].best_us > 0
    for product, verdict in found.items():
        assert verdict.choice is None or verdict.choice in candidates(product, target)
        assert verdict.choice != default(product, target)


def test_the_fastest_is_chosen(own_device: Device, target: Target, speeds: Speeds) -> None:
    first, quick = default(SMALL, target), Choice("matvec_wide", 32, 1, 2)
    asked = speeds({quick: 0.5, first: 0.8})
    found = tuner.tune(own_device, target, [SMALL], clock=Clock(), seconds=9)
    assert found == {SMALL: Verdict(quick, 0.8e6, 0.5e6)}
    assert asked[0] == first
    assert asked.index(quick) < 5  # it is like the default


def test_hardly_faster_is_not_enough(own_device: Device, target: Target, speeds: Speeds) -> None:
    speeds({Choice("matvec_wide", 32, 1, 2): 0.96})
    found = tuner.tune(own_device, target, [SMALL], clock=Clock(), seconds=9)
    assert found == {SMALL: Verdict(None, 1e6, 0.96e6)}


def test_no_more_time_than_was_given(own_device: Device, target: Target, speeds: Speeds) -> None:
    asked = speeds({})
    found = tuner.tune(own_device, target, PRODUCTS, clock=Clock(), seconds=2.5)
    assert asked == [default(SMALL, target)]
    assert found == {SMALL: Verdict(None, 1e6, 1e6), PRODUCTS[1]: Verdict(), PRODUCTS[2]: Verdict()}


def test_each_product_has_its_share_of_the_time(own_device: Device, target: Target, speeds: Speeds) -> None:
    asked = speeds({})
    found = tuner.tune(own_device, target, PRODUCTS, clock=Clock(), seconds=12)
    assert 5 <= len(asked) <= 10
    assert all(v.default_us for v in found.values())


def test_one_candidate_is_nothing_to_measure(
    own_device: Device, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "Arena", lambda *args: pytest.fail("no need for it"))
    odd = Product(1, 33, 7, format_by_name("F16"))
    assert tuner.tune(own_device, target, [odd]) == {odd: Verdict()}


def test_of_long_products_a_part_is_measured(
    own_device: Device, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "_FEW", 1 << 12)
    monkeypatch.setattr(tuner, "_LONG", 1e-9)
    monkeypatch.setattr(tuner, "_LEAST_OUTPUTS", 16)
    seen: list[int] = []
    real = Trial.__init__

    def recorded(trial: Trial, device: Device, target: Target, product: Product, arena: Arena) -> None:
        seen.append(product.outputs)
        real(trial, device, target, product, arena)

    monkeypatch.setattr(Trial, "__init__", recorded)
    product = Product(1, 64, 1000, Q4)
    assert list(tuner.tune(own_device, target, [product], clock=Clock(), seconds=3)) == [product]
    assert seen == [62, 62]


SPLIT = Product(40, 544, 70, Q4, "plain", "biased_added")


def test_splits_are_measured(own_device: Device, target: Target, speeds: Speeds) -> None:
    first, quick = default(SPLIT, target), Choice("matmul", 64, 4, 32, splits=2)
    asked = speeds({quick: 0.5})
    assert tuner.tune(own_device, target, [SPLIT], clock=Clock(), seconds=9) == {
        SPLIT: Verdict(quick, 1e6, 0.5e6)
    }
    assert asked[:2] == [first, quick]


def test_both_dispatches_are_timed(
    own_device: Device, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[list[int]] = []
    real = Device.seconds

    def seconds(device: Device, calls: list[Any]) -> float:
        timed.append([call.groups for call in calls])
        return real(device, calls)

    arena = Arena(own_device, 4 << 20)
    try:
        with Trial(own_device, target, SPLIT, arena) as trial:
            kernel = trial.kernel(Choice("matmul", 64, 4, 32, splits=2))
            assert kernel is not None and len({id(first.bind_group) for first, _ in kernel.turns}) > 2
            monkeypatch.setattr(Device, "seconds", seconds)
            assert trial.seconds(kernel) > 0
    finally:
        arena.close()
    assert all(groups == [2 * 2 * 3, 44] * (len(groups) // 2) for groups in timed)


def test_in_a_part_of_a_product_more_splits_would_seem_to_gain(
    own_device: Device, target: Target, monkeypatch: pytest.MonkeyPatch, speeds: Speeds
) -> None:
    monkeypatch.setattr(tuner, "_FEW", 1 << 20)
    monkeypatch.setattr(tuner, "_LONG", 1e-9)
    monkeypatch.setattr(tuner, "_LEAST_OUTPUTS", 16)
    asked = speeds({})
    tuner.tune(own_device, target, [SPLIT], clock=Clock(), seconds=30)
    assert asked and all(choice.splits == 1 for choice in asked)


# What is refused


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: text.replace("sum += dot_group", "sum -= dot_group"),
        lambda text: text.replace("sum += dot_group", "sum += 1.0001 * dot_group"),
        lambda text: text.replace("if (o < OUTPUTS &&", "if (o + 1u < OUTPUTS &&"),
        lambda text: text.replace("g < GROUPS; g++) {\n        sum", "g + 1u < GROUPS; g++) {\n        sum"),
        lambda text: text.replace("sum += dot_group", "sum += no_such_function"),
    ],
    ids=["sign", "rounding", "an output left out", "a group left out", "no shader"],
)
def test_a_wrong_kernel_is_refused(
    own_device: Device,
    target: Target,
    speeds: Speeds,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[str], str],
) -> None:
    monkeypatch.setattr(tuner, "candidates", lambda product, target: [default(product, target), MATVEC])
    speeds({MATVEC: 0.1})
    assert tuner.tune(own_device, target, [SMALL], seconds=600)[SMALL].choice == MATVEC
    change(monkeypatch, "matvec", wrong)
    assert tuner.tune(own_device, target, [SMALL], seconds=600)[SMALL] == Verdict(None, 1e6, 1e6)


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("matmul_reduce", lambda text: text.replace("s = 0u", "s = 1u")),
        ("matmul_reduce", lambda text: text.replace("i < NUMBERS", "i + 1u < NUMBERS")),
        ("matmul_reduce", lambda text: text.replace("sum +=", "sum += no_such_function")),
        (
            "matmul",
            lambda text: text.replace("let first_row =", "if (split == 1u) { continue; } let first_row ="),
        ),
    ],
    ids=["a split left out", "a number left out", "no shader", "a split not written"],
)
def test_wrong_splits_are_refused(
    own_device: Device,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    entry: str,
    wrong: Callable[[str], str],
) -> None:
    arena, choice = Arena(own_device, 4 << 20), Choice("matmul", 64, 4, 32, splits=2)
    try:
        with Trial(own_device, target, SPLIT, arena) as trial:
            assert trial.kernel(choice) is not None
            change(monkeypatch, entry, wrong)
            assert trial.kernel(choice) is None
    finally:
        arena.close()


def test_a_wrong_default_is_replaced(
    own_device: Device, target: Target, speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "candidates", lambda product, target: [default(product, target), MATVEC])
    speeds({MATVEC: 9.0})
    change(
        monkeypatch,
        "matvec_wide",
        lambda text: text.replace("finish(row_of_y(r + row)", "finish(row_of_y(r + row * 0u + 1u)"),
    )
    assert tuner.tune(own_device, target, [SMALL], seconds=600)[SMALL] == Verdict(MATVEC, 0.0, 9e6)
    change(monkeypatch, "matvec", lambda text: text.replace("sum += dot_group", "sum -= dot_group"))
    assert tuner.tune(own_device, target, [SMALL], seconds=600)[SMALL] == Verdict()


AROUND: tuple[tuple[int, Before, After], ...] = (
    (1, "normed", "gated_silu"),
    (2, "normed", "gated_gelu_tanh"),
    (3, "plain", "biased_added"),
    (40, "plain", "added"),
)


@pytest.mark.parametrize(("number", "fmt"), list(enumerate(all_formats())), ids=str)
def test_right_kernels_are_not_refused(
    own_device: Device, target: Target, number: int, fmt: QuantFormat
) -> None:
    rows, before, after = AROUND[number % len(AROUND)]
    product = Product(rows, 512, 150, fmt, before, after)
    arena = Arena(own_device, 4 << 20)
    try:
        with Trial(own_device, target, product, arena) as trial:
            assert trial.kernel(default(product, target)) is not None
            assert trial.kernel(Choice("matvec", 32)) is not None
    finally:
        arena.close()


def test_formats_take_turns_with_the_same_weights(own_device: Device, target: Target) -> None:
    # With a table at the beginning, with powers of two as scales, with neither; those after the others twice.
    arena = Arena(own_device, 4 << 20)
    try:
        for name in ("IQ1_S", "Q8_0", "MXFP4", "Q8_0", "IQ3_S", "IQ2_XXS", "Q8_0"):
            product = Product(1, 256, 40, format_by_name(name), "plain", "gated_silu")
            with Trial(own_device, target, product, arena) as trial:
                assert trial.kernel(Choice("matvec", 32)) is not None, name
    finally:
        arena.close()


# Devices that fail


def test_memory_is_bounded_and_may_be_short(
    own_device: Device, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Device.buffer

    def buffer(device: Device, size: int, label: str, *, readback: bool = False) -> Any:
        if label == "weights to measure with":
            sizes.append(size)
            if size > room:
                raise OutOfDeviceMemory("no memory left")
        return real(device, size, label, readback=readback)

    monkeypatch.setattr(Device, "buffer", buffer)
    monkeypatch.setattr(tuner, "_ARENA", 16 << 20)
    room = 8 << 20
    assert tuner.tune(own_device, target, [SMALL], clock=Clock(), seconds=2)[SMALL].default_us > 0
    assert sizes == [16 << 20, 8 << 20]
    sizes.clear()
    tuner.tune(own_device, target, [SMALL], clock=Clock(), seconds=2, memory=5_000_000)
    assert sizes == [5_000_000 // 256 * 256]
    room = 0
    with pytest.raises(OutOfDeviceMemory):
        tuner.tune(own_device, target, [SMALL], seconds=600)


class Loads:
    """Loads a tiny model on a software adapter in the role of a card."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        monkeypatch.setenv("WGLLM_TUNE", "1")
        monkeypatch.setenv("WGLLM_CACHE_DIR", str(folder))
        opened, measured = placement.open_device, placement.tune

        def open_device(adapter: Any) -> Device:
            device = opened(adapter)
            return replace(device, adapter=replace(device.adapter, kind="discrete"))

        def tune(device: Device, target: Target, products: list[Product], **options: Any) -> Any:
            self.asked.append(products)
            if self.error is not None:
                raise self.error
            return measured(device, target, products, **options, seconds=0.2)

        monkeypatch.setattr(placement, "open_device", open_device)
        monkeypatch.setattr(placement, "tune", tune)
        self.folder = folder / "tuning"
        self.asked: list[list[Product]] = []
        self.error: DeviceError | None = None
        self.lines: list[str] = []

    def __call__(self, **options: Any) -> str:
        """What is generated."""
        loads = self

        class Told(SilentProgress):
            def message(self, text: str) -> None:
                loads.lines.append(text)

        path = tiny("llama-q.q4_0").path
        with wgllm.load(path, backend="webgpu", ctx_size=64, download_progress=Told(), **options) as llm:
            assert llm.where.startswith("webgpu on ")
            return repr(llm.logits([1]).argmax(axis=1))


@pytest.fixture
def loads(own_device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loads:
    return Loads(monkeypatch, tmp_path)


def test_the_second_start_measures_nothing(loads: Loads) -> None:
    made = loads()
    (file,) = loads.folder.iterdir()
    (products,) = loads.asked
    assert len(loads.lines) == 1
    assert loads.lines[0].startswith("tuning shaders for ") and loads.lines[0].endswith(
        ", about 2 s, once per model"
    )
    assert {p.rows for p in products} == {1, 64}
    whole = file.read_bytes()
    assert loads() == made
    assert (len(loads.asked), len(loads.lines)) == (1, 1)
    assert file.read_bytes() == whole
    file.write_bytes(whole[:100])  # damaged
    assert loads() == made
    assert (len(loads.asked), len(loads.lines)) == (2, 2)


def test_what_is_known_is_used(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_matvec(device: Device, target: Target, products: list[Product], **options: Any) -> Any:
        return {product: Verdict(MATVEC) for product in products}

    entries: set[str] = set()
    real = Device.pipeline

    def pipeline(device: Device, source: Source, entry: str, layout: Any = "auto") -> Any:
        entries.add(entry)
        return real(device, source, entry, layout)

    monkeypatch.setattr(placement, "tune", all_matvec)
    monkeypatch.setattr(Device, "pipeline", pipeline)
    for options in ({}, {}, {"tune": False}):  # measured, known, not used
        entries.clear()
        loads(**options)
        assert ("matvec" in entries, "matvec_wide" in entries) == (not options, bool(options))


def test_tuning_can_be_left_out(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    loads(tune=False)
    monkeypatch.setenv("WGLLM_TUNE", "0")
    loads()
    assert loads.asked == [] and loads.lines == [] and not loads.folder.exists()


def test_software_is_not_tuned(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = placement.open_device

    def open_device(adapter: Any) -> Device:
        device = opened(adapter)
        return replace(device, adapter=replace(device.adapter, kind="software"))

    monkeypatch.setattr(placement, "open_device", open_device)
    loads()
    assert loads.asked == [] and loads.lines == []


def test_a_device_that_fails_is_opened_again_and_not_asked_again(loads: Loads) -> None:
    loads.error = DeviceError("the device was lost")
    made = loads()
    assert loads() == made
    assert len(loads.asked) == 1


def test_memory_that_is_short_today_may_not_be_tomorrow(loads: Loads) -> None:
    loads.error = OutOfDeviceMemory("no memory left")
    made = loads()
    assert not loads.folder.exists()
    loads.error = None
    assert loads() == made
    assert len(loads.asked) == 2


def test_a_lost_device_is_told_from_a_bad_shader(
    own_device: Device, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(device: Device) -> None:
        raise DeviceError("the device was lost")

    def refused(device: Device, source: Source, entry: str, layout: Any = "auto") -> Any:
        if loses:
            monkeypatch.setattr(Device, "wait", lost)
        raise ShaderError("no such thing", source, None)

    monkeypatch.setattr(Device, "pipeline", refused)
    loses = False
    assert tuner.tune(own_device, target, [SMALL], seconds=600) == {SMALL: Verdict()}
    loses = True
    with pytest.raises(DeviceError, match="lost"):
        tuner.tune(own_device, target, [SMALL], seconds=600)


@pytest.mark.parametrize(("flags", "tunes"), [((), True), (("--no-tune",), False)])
def test_the_flag(monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], tunes: bool) -> None:
    asked: list[bool] = []

    def load(model: str, **options: Any) -> Any:
        asked.append(options["tune"])
        raise DeviceError("that is all")

    monkeypatch.setattr("wgllm.llm.load", load)
    CliRunner().invoke(cli, ["bench", *flags])
    assert asked == [tunes]
