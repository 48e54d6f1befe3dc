"""The layout that shaders read holds every byte of every block, in one place, aligned."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest

from wgllm.quant import QuantFormat, all_formats, packing
from wgllm.quant.base import U8
from wgllm.wgsl import shader_file

FORMATS = list(all_formats())
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=[f.name for f in FORMATS])
COUNTS = (1, 2, 3, 7, 8, 31, 32, 33, 257)


def random_blocks(fmt: QuantFormat, n: int) -> U8:
    return np.random.default_rng(n).integers(0, 256, (n, fmt.type_size), dtype=np.uint8)


def unpack(fmt: QuantFormat, packed: packing.Packed) -> U8:
    data = packed.words.view(np.uint8)
    n = packed.layout.n_blocks
    blocks = np.zeros((n, fmt.type_size), np.uint8)
    for (start, stop), offset in zip(fmt.planes, packed.layout.offsets, strict=True):
        plane = data[4 * offset :][: n * (stop - start)]
        blocks[:, start:stop] = plane.reshape(n, -1)
    return blocks


@every_format
@pytest.mark.parametrize("n", COUNTS)
def test_round_trip(fmt: QuantFormat, n: int) -> None:
    blocks = random_blocks(fmt, n)
    packed = fmt.pack(blocks)
    assert packed.words.dtype == np.uint32
    np.testing.assert_array_equal(unpack(fmt, packed), blocks)
    assert packed.words.tobytes().startswith(fmt.table)


@every_format
@pytest.mark.parametrize("n", (1, 33, 257))
def test_any_bytes_are_read_alone(fmt: QuantFormat, n: int) -> None:
    blocks = random_blocks(fmt, n)
    parts = [blocks[: n // 3], blocks[n // 3 : n // 2], blocks[n // 2 :]]
    whole = fmt.pack(blocks).words.view(np.uint8)
    layout = fmt.layout(n)
    np.testing.assert_array_equal(layout.read(0, whole.size, *parts), whole)
    rng = np.random.default_rng(n)
    for _ in range(20):
        start, stop = sorted(rng.integers(0, whole.size + 1, 2).tolist())
        np.testing.assert_array_equal(layout.read(start, stop, *parts), whole[start:stop])


@every_format
def test_planes_hold_each_byte_once(fmt: QuantFormat) -> None:
    covered = sorted(i for start, stop in fmt.planes for i in range(start, stop))
    assert covered == list(range(fmt.type_size))


@every_format
@pytest.mark.parametrize("n", COUNTS)
def test_planes_are_aligned_and_nothing_else_is_added(fmt: QuantFormat, n: int) -> None:
    layout = fmt.layout(n)
    assert [offset % 4 for offset in (*layout.offsets, layout.size)] == [0] * (len(fmt.planes) + 1)
    assert list(layout.offsets) == sorted(set(layout.offsets))
    # Formats of single numbers are padded to groups of 32, so that a shader reads no further than the buffer.
    numbers = n if fmt.block_size > 1 else -(-n // 32) * 32
    assert 0 <= 4 * layout.size - len(fmt.table) - numbers * fmt.type_size < 16 * len(fmt.planes)
    assert layout.constants == {f"PLANE_{i}": offset for i, offset in enumerate(layout.offsets)}


@every_format
def test_many_blocks(fmt: QuantFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_PIECE", 1000)  # several chunks, the last one short
    blocks = random_blocks(fmt, 1001)
    np.testing.assert_array_equal(unpack(fmt, fmt.pack(blocks)), blocks)


def test_padding_is_zero() -> None:
    fmt = next(f for f in FORMATS if f.name == "Q4_0")
    packed = fmt.pack(random_blocks(fmt, 1))
    assert packed.words[packed.layout.offsets[1] :].view(np.uint8)[2:].tolist() == [0] * 14


@every_format
@pytest.mark.parametrize("n", COUNTS)
def test_pieces_are_whole_words_within_the_buffer(
    fmt: QuantFormat, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_PIECE", 1000)
    layout = fmt.layout(n)
    end = 0
    for at, piece in layout.pieces(random_blocks(fmt, n)):
        assert (at % 4, piece.size % 4) == (0, 0)
        end = max(end, at + piece.size)
    assert 0 < end <= 4 * layout.size


def test_another_number_of_blocks_is_refused() -> None:
    fmt = FORMATS[2]
    with pytest.raises(ValueError, match="do not fit"):
        list(fmt.layout(8).pieces(random_blocks(fmt, 7)))


def test_every_format_has_a_shader_that_reads_its_planes() -> None:
    for fmt in FORMATS:
        declared = re.findall(r"^//!const (\w+)", shader_file(fmt.wgsl), re.M)
        assert declared == [f"PLANE_{i}" for i in range(len(fmt.planes))], fmt.name
    there = {f"quant/{f.name}" for f in files("wgllm.shaders").joinpath("quant").iterdir()}
    assert there == {fmt.wgsl for fmt in FORMATS}
