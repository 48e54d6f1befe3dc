"""What is known of a device: its file, damaged or not, and what a plan makes of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from wgllm import tuning
from wgllm.plan import Limits
from wgllm.product_shape import Choice, Product, Target, default, shape
from wgllm.quant import format_by_name
from wgllm.tuning import DeviceFacts, Verdict, by_benefit, choices, read_table, table_path, write_table

Q4, Q6 = format_by_name("Q4_0"), format_by_name("Q6_K")
CARD = DeviceFacts("Card 9000 / Ti", 4318, 9019, "Vulkan", "driver 580.1", 32, 1024, 49152)
DOWN = Product(1, 1536, 576, Q4, "plain", "added")
HEAD = Product(1, 512, 49152, Q6, "normed")
WIDE = Choice("matvec_wide", 128, 1, 2, True)
TARGET = Target(Limits(workgroup_memory=49152, invocations=1024), subgroup=32)
TABLE = {DOWN: Verdict(WIDE, 12.5, 8.25), HEAD: Verdict()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert read_table(folder, CARD) == {}
    write_table(folder, CARD, TABLE)
    assert read_table(folder, CARD) == TABLE
    assert choices(read_table(folder, CARD), TARGET) == {DOWN: WIDE}
    assert [file.name for file in folder.iterdir()] == [table_path(folder, CARD).name]
    assert table_path(folder, CARD).name.startswith("card-9000-ti-")


@pytest.mark.parametrize(
    "senseless",
    [
        Choice("matvec_wide", 2, 1, 1, subgroups=True),
        Choice("matvec_wide", 128, 3, 2),
        Choice("matmul", 64, 4, 32, splits=1000),
        Choice("matmul_software", 64, 1, 4),
    ],
)
def test_a_choice_that_nobody_would_measure_does_not_count(senseless: Choice) -> None:
    assert choices({DOWN: Verdict(senseless, 2.0, 1.0)}, TARGET) == {}
    many = replace(DOWN, rows=256)
    assert choices({many: Verdict(Choice("matvec"), 2.0, 1.0)}, TARGET) == {}  # it may take seconds


def test_tables_are_added_to(tmp_path: Path) -> None:
    write_table(tmp_path, CARD, {DOWN: Verdict(WIDE, 12.5, 8.25)})
    write_table(tmp_path, CARD, {HEAD: Verdict()})  # another model, or another process
    assert read_table(tmp_path, CARD) == TABLE
    write_table(tmp_path, CARD, {DOWN: Verdict()})
    assert read_table(tmp_path, CARD)[DOWN] == Verdict()


@pytest.mark.parametrize(
    "other",
    [
        replace(CARD, name="Card 9001"),
        replace(CARD, device_id=1),
        replace(CARD, interface="D3D12"),
        replace(CARD, subgroup=0),
    ],
)
def test_devices_have_files_of_their_own(tmp_path: Path, other: DeviceFacts) -> None:
    write_table(tmp_path, CARD, TABLE)
    write_table(tmp_path, other, {DOWN: Verdict()})
    assert read_table(tmp_path, CARD) == TABLE
    assert read_table(tmp_path, other) == {DOWN: Verdict()}


def test_another_driver_or_other_shaders_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = replace(CARD, driver="driver 581.0")
    write_table(tmp_path, CARD, TABLE)
    assert read_table(tmp_path, newer) == {}
    write_table(tmp_path, newer, {HEAD: Verdict()})
    assert read_table(tmp_path, newer) == {HEAD: Verdict()}
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(tuning, "shader_version", lambda: "other shaders")
    assert read_table(tmp_path, newer) == {}


def test_the_version_is_of_all_that_a_product_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = tuning.shader_version(), tuning.shader_file
    for file in (
        "kernels/matmul.wgsl",
        "kernels/matmul_reduce.wgsl",
        "lib/group.wgsl",
        "quant/q4_0.wgsl",
        "lanes/sums_subgroups.wgsl",
    ):
        monkeypatch.setattr(tuning, "shader_file", lambda name, file=file: read(name) + "//" * (name == file))
        assert tuning.shader_version.__wrapped__() != before
    monkeypatch.setattr(tuning, "shader_file", read)
    assert tuning.shader_version.__wrapped__() == before


def sound() -> dict[str, object]:
    entry = {"rows": 1, "inputs": 64, "outputs": 8, "before": "plain", "after": "plain", "format": "Q4_0"}
    choice = asdict(Choice("matvec", 32))
    return entry | {"choice": choice, "default_us": 1, "best_us": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 0},
        {"default_us": 10**400},
        {"inputs": "64"},
        {"outputs": None},
        {"before": "unheard-of"},
        {"after": ["plain"]},
        {"format": "Q4_7"},
        {"format": 4},
        {"choice": {}},
        {"choice": "matvec"},
        {"choice": asdict(Choice("matvec", -1))},
        {"choice": asdict(Choice("matvec")) | {"kernel": "argmax"}},
        {"choice": asdict(Choice("matvec")) | {"subgroups": 2}},
        {"choice": asdict(Choice("matmul", splits=0))},
        {"choice": {name: value for name, value in asdict(Choice("matvec")).items() if name != "splits"}},
        {"best_us": "fast"},
    ],
    ids=str,
)
def test_a_damaged_entry_makes_no_table(tmp_path: Path, change: dict[str, object]) -> None:
    write_table(tmp_path, CARD, TABLE)
    path = table_path(tmp_path, CARD)
    data = json.loads(path.read_text())
    data["products"].append(sound())
    path.write_text(json.dumps(data))
    assert len(read_table(tmp_path, CARD)) == 3
    data["products"][-1] |= change
    path.write_text(json.dumps(data))
    assert read_table(tmp_path, CARD) == {}
    write_table(tmp_path, CARD, TABLE)
    assert read_table(tmp_path, CARD) == TABLE


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"7", b'{"head": {}, "products": []}',
        b'{"products": 7}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_file_is_no_table_and_is_written_anew(tmp_path: Path, content: bytes) -> None:
    table_path(tmp_path, CARD).write_bytes(content)
    assert read_table(tmp_path, CARD) == {}
    write_table(tmp_path, CARD, TABLE)
    assert read_table(tmp_path, CARD) == TABLE


def test_half_a_file_is_no_table(tmp_path: Path) -> None:
    write_table(tmp_path, CARD, TABLE)
    path = table_path(tmp_path, CARD)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:size])
        assert read_table(tmp_path, CARD) == {}


def test_a_folder_that_cannot_be_written_is_harmless(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    write_table(tmp_path / "file", CARD, TABLE)
    assert read_table(tmp_path / "file", CARD) == {}
    table_path(tmp_path, CARD).mkdir()  # nothing can take its place
    write_table(tmp_path, CARD, TABLE)
    assert read_table(tmp_path, CARD) == {}
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file is left


def test_the_largest_shares_come_first() -> None:
    small, large = Product(1, 64, 64, Q4), Product(1, 64, 640, Q4)
    many = Product(100, 64, 64, Q4)
    found = by_benefit([[small, small, large, small], [many]])
    assert found == [many.bucket, large, small]
    assert found[0].rows == 128
    assert by_benefit([[small] * 11 + [large]]) == [small, large]


# What a plan makes of it


def target(choice: Choice, **options: object) -> Target:
    return replace(Target(choices={DOWN: choice}), **options)  # type: ignore[arg-type]


def test_a_known_choice_is_taken() -> None:
    small = Choice("matvec_wide", 32, 1, 1)
    assert default(DOWN, Target()) != Choice("matvec")
    assert shape(DOWN, target(Choice("matvec"))).entry == "matvec"
    assert shape(DOWN, target(small)).constants["WORKGROUP"] == 32
    assert shape(DOWN, target(WIDE, subgroup=32)).features == ("subgroups",)
    assert shape(DOWN, target(small), Choice("matvec")).entry == "matvec"  # what is asked for goes first
    assert shape(HEAD, target(small)) == shape(HEAD, Target())


@pytest.mark.parametrize(
    "impossible",
    [
        WIDE,  # no subgroups here
        Choice("matvec_wide", 512, 1, 1),
        Choice("matvec_wide", 64, 3, 1),
        Choice("matvec", 48),
        Choice("matmul", 64, 4, 64),
        Choice("matmul_software", 64, 1, 8),
        Choice("matmul", 64, 4, 32, splits=3),
    ],
)
def test_a_choice_that_the_device_does_not_allow_is_not_taken(impossible: Choice) -> None:
    assert shape(DOWN, target(impossible)) == shape(DOWN, Target())


def test_smaller_limits_than_those_it_was_measured_with() -> None:
    known = target(Choice("matvec_wide", 256, 1, 1), limits=Limits(invocations=128))
    assert shape(DOWN, known) == shape(DOWN, Target(Limits(invocations=128)))


def test_splits_that_were_measured() -> None:
    few = Product(64, 2048, 64, Q4)
    known = Target(choices={few: Choice("matmul", 64, 4, 32, splits=2)})
    assert default(few, Target()).splits == 4
    assert (
        shape(few, known).constants["SPLITS"] == shape(replace(few, rows=33), known).constants["SPLITS"] == 2
    )
    one = Product(1, 2048, 64, Q4)  # for which plans keep no room
    assert shape(one, replace(known, choices={one: Choice("matmul", 64, 4, 32, splits=2)})) == shape(
        one, known
    )


def test_rows_between_powers_of_two() -> None:
    known = Target(choices={Product(8, 64, 64, Q4): Choice("matvec")})
    for rows, entry in ((4, "matvec_wide"), (5, "matvec"), (8, "matvec"), (9, "matmul")):
        assert shape(Product(rows, 64, 64, Q4), known).entry == entry
