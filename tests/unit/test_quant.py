"""Every block format against the ``gguf`` package, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants as reference

from wgllm.errors import UsageError
from wgllm.formats.model_file import TensorView
from wgllm.quant import QuantFormat, all_formats, chunked, format_by_id, format_by_name
from wgllm.quant.base import F32, U8
from wgllm.quant.grid_quants import GridFormat
from wgllm.quant.random_blocks import set_split_halves

NAMES = [
    *("F32", "F16", "BF16"),
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    *("IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0"),
]
QUANTIZABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]

# Where the float16 numbers of a block begin.
HALVES = {
    "F32": (),
    "BF16": (),
    "F16": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ1_S": (0,),
    "IQ1_M": (),  # in four parts
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
SPECIAL_HALVES = np.array(
    [
        *(0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400),  # zeros and subnormals
        *(0x3C00, 0xBC00, 0x7BFF, 0xFBFF),  # ±1, ±65504
        *(0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFE00, 0xFFFF),  # infinities and NaNs
    ],
    np.uint16,
)

every_format = pytest.mark.parametrize("fmt", [format_by_name(name) for name in NAMES], ids=NAMES)
every_quantizer = pytest.mark.parametrize(
    "fmt", [format_by_name(name) for name in QUANTIZABLE], ids=QUANTIZABLE
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Numbers per chunk: few enough that tests cross its borders, and those of stretches, cheaply."""
    monkeypatch.setattr(chunked, "CHUNK", 4096)
    monkeypatch.setattr(chunked, "STRETCH", 1024)
    return 4096


def random_blocks(fmt: QuantFormat, n: int, rng: np.random.Generator) -> U8:
    return rng.integers(0, 256, (n, fmt.type_size), dtype=np.uint8)


def dequantize(fmt: QuantFormat, blocks: U8) -> F32:
    out = np.full((len(blocks), fmt.block_size), 12345, np.float32)
    fmt.dequantize_blocks(blocks, out)
    return out


def reference_dequantize(fmt: QuantFormat, blocks: U8) -> F32:
    with np.errstate(all="ignore"):
        numbers = reference.dequantize(blocks, gguf.GGMLQuantizationType[fmt.name])
    return np.asarray(numbers, np.float32).reshape(len(blocks), fmt.block_size)


def reference_quantize(fmt: QuantFormat, values: F32) -> U8:
    with np.errstate(all="ignore"):
        data = reference.quantize(values, gguf.GGMLQuantizationType[fmt.name])
    return data.view(np.uint8).reshape(len(values), fmt.type_size)


def assert_same_numbers(fmt: QuantFormat, blocks: U8, got: F32, want: F32) -> None:
    """Equal bits (so -0 is not 0), or both NaN. Shows the block with most differences."""
    differs = (got.view(np.uint32) != want.view(np.uint32)) & ~(np.isnan(got) & np.isnan(want))
    if differs.any():
        worst = int(differs.sum(axis=1).argmax())
        i = int(differs[worst].argmax())
        pytest.fail(
            f"{fmt.name}: {int(differs.any(axis=1).sum())} of {len(blocks)} blocks differ; block {worst} in "
            f"{int(differs[worst].sum())} numbers, first in number {i}: {got[worst, i]!r}, not "
            f"{want[worst, i]!r}\n{bytes(blocks[worst]).hex(' ')}"
        )


def assert_same_blocks(fmt: QuantFormat, values: F32, got: U8, want: U8) -> None:
    assert got.dtype == np.uint8
    assert got.shape == want.shape
    differs = got != want
    if differs.any():
        worst = int(differs.sum(axis=1).argmax())
        pytest.fail(
            f"{fmt.name}: {int(differs.any(axis=1).sum())} of {len(values)} blocks differ; worst is block "
            f"{worst} of {values[worst].tolist()}\ngot  {bytes(got[worst]).hex(' ')}\n"
            f"want {bytes(want[worst]).hex(' ')}"
        )


# --- registry


def test_registry_has_exactly_the_formats_that_are_tested() -> None:
    assert sorted(fmt.name for fmt in all_formats()) == sorted(NAMES)
    assert [fmt.type_id for fmt in all_formats()] == sorted(fmt.type_id for fmt in all_formats())


@every_format
def test_numbers_and_sizes_are_those_of_ggml(fmt: QuantFormat) -> None:
    ggml_type = gguf.GGMLQuantizationType[fmt.name]
    assert fmt.type_id == ggml_type.value
    assert (fmt.block_size, fmt.type_size) == gguf.GGML_QUANT_SIZES[ggml_type]


@every_format
def test_formats_are_found_by_number_and_by_name_in_any_case(fmt: QuantFormat) -> None:
    assert format_by_id(fmt.type_id) is fmt
    assert format_by_name(fmt.name) is fmt
    assert format_by_name(fmt.name.lower()) is fmt


def test_an_unknown_number_gives_none_and_an_unknown_name_raises() -> None:
    assert format_by_id(4) is None  # Q4_2, long gone from ggml
    with pytest.raises(KeyError):
        format_by_name("Q4_2")


def test_two_formats_of_one_number_are_refused() -> None:
    with pytest.raises(TypeError, match="already"):
        type("Other", (QuantFormat,), {"name": "OTHER", "type_id": 2})


@every_format
def test_row_bytes_counts_whole_blocks_only(fmt: QuantFormat) -> None:
    assert fmt.row_bytes(3 * fmt.block_size) == 3 * fmt.type_size
    if fmt.block_size > 1:
        with pytest.raises(ValueError, match=fmt.name):
            fmt.row_bytes(fmt.block_size + 1)


# --- dequantize


@every_format
def test_random_blocks_decode_to_ggmls_bits(fmt: QuantFormat, rng: np.random.Generator) -> None:
    blocks = random_blocks(fmt, 2000, rng)
    assert_same_numbers(fmt, blocks, dequantize(fmt, blocks), reference_dequantize(fmt, blocks))


@every_format
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x7F, 0x80, 0x0F, 0xF0])
def test_blocks_of_one_byte_decode_to_ggmls_bits(fmt: QuantFormat, byte: int) -> None:
    blocks = np.full((3, fmt.type_size), byte, np.uint8)
    assert_same_numbers(fmt, blocks, dequantize(fmt, blocks), reference_dequantize(fmt, blocks))


@every_format
@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
def test_extreme_scales_decode_to_ggmls_bits_without_a_warning(
    fmt: QuantFormat, fill: str, rng: np.random.Generator
) -> None:
    n = len(SPECIAL_HALVES)
    blocks = random_blocks(fmt, n * n, rng)
    if fill != "random":
        blocks[:] = 0 if fill == "zeros" else 0xFF
    pairs = np.stack(np.meshgrid(SPECIAL_HALVES, SPECIAL_HALVES), axis=-1).reshape(-1, 2)
    for i, start in enumerate(HALVES[fmt.name]):
        blocks[:, start : start + 2] = np.ascontiguousarray(pairs[:, i : i + 1]).view(np.uint8)
    if fmt.name == "IQ1_M":
        set_split_halves(blocks, np.ascontiguousarray(pairs[:, 0]).view(np.float16))
    assert_same_numbers(fmt, blocks, dequantize(fmt, blocks), reference_dequantize(fmt, blocks))


def test_every_power_of_two_is_ggmls(rng: np.random.Generator) -> None:
    fmt = format_by_name("MXFP4")
    blocks = random_blocks(fmt, 1024, rng)
    blocks[:, 0] = np.arange(1024) % 256
    assert_same_numbers(fmt, blocks, dequantize(fmt, blocks), reference_dequantize(fmt, blocks))


GRIDS = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_ggmls(name: str) -> None:
    fmt = format_by_name(name)
    assert isinstance(fmt, GridFormat)
    ggml_type = gguf.GGMLQuantizationType[name]
    reference_dequantize(fmt, np.zeros((1, fmt.type_size), np.uint8))  # which makes its grid
    grid = reference._type_traits[ggml_type].grid  # type: ignore[attr-defined]
    assert np.array_equal(fmt.grid.entries, grid.reshape(fmt.grid.entries.shape))
    assert len(fmt.table) % 16 == 0


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_16_bit_number_widens_to_ggmls_bits(name: str) -> None:
    fmt = format_by_name(name)
    blocks = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    assert_same_numbers(fmt, blocks, dequantize(fmt, blocks), reference_dequantize(fmt, blocks))


@every_format
@pytest.mark.parametrize("base", [0, 1])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_blocks_at_the_borders_of_chunks_and_stretches_are_like_others(
    fmt: QuantFormat, base: int, more: int, small_chunks: int, rng: np.random.Generator
) -> None:
    border = (chunked.STRETCH, small_chunks)[base] // fmt.block_size
    blocks = random_blocks(fmt, border + more, rng)
    one_by_one = np.concatenate(
        [dequantize(fmt, blocks[i : i + 1]) for i in (0, border // 2, border + more - 1)]
    )
    got = dequantize(fmt, blocks)
    assert_same_numbers(fmt, blocks, got, reference_dequantize(fmt, blocks))
    assert_same_numbers(fmt, blocks[[0, border // 2, -1]], got[[0, border // 2, -1]], one_by_one)


@every_format
def test_no_blocks_give_no_numbers(fmt: QuantFormat) -> None:
    assert dequantize(fmt, np.empty((0, fmt.type_size), np.uint8)).shape == (0, fmt.block_size)


@every_format
def test_decoding_leaves_its_input_alone_and_fills_the_given_rows_only(
    fmt: QuantFormat, rng: np.random.Generator
) -> None:
    blocks = random_blocks(fmt, 40, rng)
    before = blocks.copy()
    blocks.flags.writeable = False
    out = np.full((60, fmt.block_size), 12345, np.float32)
    fmt.dequantize_blocks(blocks, out[10:50])
    assert np.array_equal(blocks, before)
    assert (out[:10] == 12345).all()
    assert (out[50:] == 12345).all()
    assert_same_numbers(fmt, blocks, out[10:50], reference_dequantize(fmt, blocks))


@every_format
def test_bytes_at_an_odd_address_decode_alike(fmt: QuantFormat, rng: np.random.Generator) -> None:
    raw = np.empty(1 + 50 * fmt.type_size, np.uint8)
    blocks = raw[1:].reshape(50, fmt.type_size)
    blocks[:] = random_blocks(fmt, 50, rng)
    assert_same_numbers(fmt, blocks, dequantize(fmt, blocks), reference_dequantize(fmt, blocks))


@every_format
def test_threads_can_share_the_rows(fmt: QuantFormat, small_chunks: int, rng: np.random.Generator) -> None:
    n = 4 * small_chunks // fmt.block_size
    blocks = random_blocks(fmt, n, rng)
    out = np.empty((n, fmt.block_size), np.float32)
    parts = [slice(i * n // 4, (i + 1) * n // 4) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: fmt.dequantize_blocks(blocks[part], out[part]), parts))
    assert_same_numbers(fmt, blocks, out, dequantize(fmt, blocks))


# --- quantize


def edge_values(block: int) -> F32:
    """Blocks [n, block] that a quantizer may stumble over."""
    ramp = np.linspace(-1, 1, block, dtype=np.float32) if block > 1 else np.array([0.7], np.float32)
    signs = np.where(np.arange(block) % 2, -1, 1).astype(np.float32)
    one_hot = np.zeros(block, np.float32)
    one_hot[block // 2] = 1
    rows = [
        np.zeros(block),
        -np.zeros(block),
        np.ones(block),
        -np.ones(block),
        *(
            ramp * s
            for s in (1, -1, 127, 127.5, 3e38, 1e30, 65504, 70000, 6e-5, 1e-7, 6e-8, 1e-38, 1e-40, 1e-45)
        ),
        *(signs * s for s in (1, -1, 3e38, 1e-40)),
        *(one_hot * s for s in (1, -1, 65520, -3.4e38, 1e-45)),
        *(np.arange(block) * s + 0.5 * s for s in (1, -1, 0.25)),  # ties
        *(ramp * signs * s for s in (7.5, 8, 15.5, 16)),
        np.where(signs > 0, 0.49999997, 127),
    ]
    return np.stack([np.asarray(row, np.float32) for row in rows])


@every_quantizer
def test_random_numbers_quantize_to_ggmls_bytes(fmt: QuantFormat, rng: np.random.Generator) -> None:
    normal = rng.standard_normal((1500, fmt.block_size))
    magnitude = np.exp2(rng.integers(-40, 20, (1500, 1)))
    shift = rng.integers(-2, 3, (1500, 1))
    values = ((normal + shift) * magnitude).astype(np.float32)
    assert_same_blocks(fmt, values, fmt.quantize_blocks(values), reference_quantize(fmt, values))


@every_quantizer
def test_numbers_on_a_grid_quantize_to_ggmls_bytes(fmt: QuantFormat, rng: np.random.Generator) -> None:
    values = (rng.integers(-16, 17, (1500, fmt.block_size)) / 2).astype(np.float32)  # many ties
    assert_same_blocks(fmt, values, fmt.quantize_blocks(values), reference_quantize(fmt, values))


@every_quantizer
def test_edge_values_quantize_to_ggmls_bytes_without_a_warning(fmt: QuantFormat) -> None:
    with np.errstate(all="ignore"):
        values = edge_values(fmt.block_size)
    assert_same_blocks(fmt, values, fmt.quantize_blocks(values), reference_quantize(fmt, values))


@every_quantizer
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_quantize_to_ggmls_bytes_and_stay_visible(
    fmt: QuantFormat, bad: float, rng: np.random.Generator
) -> None:
    values = rng.standard_normal((8, fmt.block_size), dtype=np.float32)
    for i in range(8):
        values[i, i * fmt.block_size // 8] = bad
    blocks = fmt.quantize_blocks(values)
    assert_same_blocks(fmt, values, blocks, reference_quantize(fmt, values))
    assert not np.isfinite(dequantize(fmt, blocks)).all(axis=1).any()


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_16_bit_rounding_is_ggmls_at_and_beside_every_tie(name: str) -> None:
    fmt = format_by_name(name)
    shift = 16 if name == "BF16" else 13
    tie = np.arange(0, 1 << 32, 1 << shift, dtype=np.uint64)[:: 1 if shift == 16 else 7] + (1 << (shift - 1))
    values = np.stack([tie - 1, tie, tie + 1], axis=1).astype(np.uint32).view(np.float32).reshape(-1, 1)
    assert_same_blocks(fmt, values, fmt.quantize_blocks(values), reference_quantize(fmt, values))


@every_quantizer
def test_a_round_trip_errs_by_no_more_than_the_format_allows(
    fmt: QuantFormat, rng: np.random.Generator
) -> None:
    values = rng.standard_normal((500, fmt.block_size), dtype=np.float32)
    got = dequantize(fmt, fmt.quantize_blocks(values))
    # As a part of the block's largest number: half a step (a whole one where the far end has no quant), and
    # the rounding of scale and minimum to float16.
    step = {"Q4_0": 1 / 8, "Q5_0": 1 / 16, "Q8_0": 1 / 254, "Q4_1": 1 / 15, "Q5_1": 1 / 31}
    bound = {"F32": 0, "F16": 2**-11, "BF16": 2**-8}
    largest = np.abs(values).max(axis=1, keepdims=True)
    allowed = bound[fmt.name] if fmt.name in bound else step[fmt.name] + 2**-9
    assert (np.abs(got - values) <= allowed * largest).all()


@every_quantizer
def test_quantizing_what_was_dequantized_changes_little(fmt: QuantFormat, rng: np.random.Generator) -> None:
    values = dequantize(
        fmt, fmt.quantize_blocks(rng.standard_normal((200, fmt.block_size), dtype=np.float32))
    )
    again = dequantize(fmt, fmt.quantize_blocks(values))
    assert np.abs(again - values).max() <= np.abs(values).max() * 2**-9


@every_quantizer
def test_quantizing_leaves_its_input_alone_and_takes_no_rows(
    fmt: QuantFormat, rng: np.random.Generator
) -> None:
    values = rng.standard_normal((4, fmt.block_size), dtype=np.float32)
    before = values.copy()
    blocks = fmt.quantize_blocks(values)
    assert np.array_equal(values, before)
    assert not np.shares_memory(blocks, values)
    assert fmt.quantize_blocks(values[:0]).shape == (0, fmt.type_size)


@every_quantizer
def test_quantizing_takes_rows_that_are_not_contiguous(fmt: QuantFormat, rng: np.random.Generator) -> None:
    values = rng.standard_normal((fmt.block_size, 9), dtype=np.float32).T
    want = fmt.quantize_blocks(np.ascontiguousarray(values))
    assert_same_blocks(fmt, values, fmt.quantize_blocks(values), want)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUANTIZABLE])
def test_formats_that_are_only_read_say_so_in_one_line(name: str) -> None:
    fmt = format_by_name(name)
    with pytest.raises(UsageError) as error:
        fmt.quantize_blocks(np.zeros((1, fmt.block_size), np.float32))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


# --- tensors


def tensor(fmt: QuantFormat, shape: tuple[int, ...], rng: np.random.Generator) -> TensorView:
    n_rows = int(np.prod(shape[:-1]))
    data: np.ndarray[Any, np.dtype[np.uint8]] = rng.integers(
        0, 256, n_rows * fmt.row_bytes(shape[-1]), np.uint8
    )
    data.flags.writeable = False
    return TensorView("t", shape, fmt, data)


@every_format
def test_rows_rows_into_gather_and_array_agree(fmt: QuantFormat, rng: np.random.Generator) -> None:
    width = 2 * fmt.block_size
    view = tensor(fmt, (3, 5, width), rng)
    want = reference_dequantize(fmt, view.data.reshape(-1, fmt.type_size)).reshape(15, width)
    rows = view.rows()
    assert_same_numbers(fmt, view.data.reshape(15, -1), rows, want)
    assert_same_numbers(fmt, view.data.reshape(15, -1), view.array().reshape(15, width), want)
    assert view.array().shape == (3, 5, width)

    assert np.array_equal(view.rows(4, 11).view(np.uint32), rows[4:11].view(np.uint32))
    into = np.zeros((6, width), np.float32)
    view.rows_into(into[1:4], 7)
    assert np.array_equal(into[1:4].view(np.uint32), rows[7:10].view(np.uint32))
    assert not into[[0, 4, 5]].any()
    picked = np.array([14, 0, 3, 3])
    assert np.array_equal(view.gather(picked).view(np.uint32), rows[picked].view(np.uint32))


@every_format
def test_tensors_without_rows_and_empty_picks_give_empty_arrays(
    fmt: QuantFormat, rng: np.random.Generator
) -> None:
    width = fmt.block_size
    assert tensor(fmt, (0, width), rng).rows().shape == (0, width)
    view = tensor(fmt, (4, width), rng)
    assert view.rows(2, 2).shape == (0, width)
    assert view.gather(np.empty(0, np.int64)).shape == (0, width)
