"""Models of formats that no reference file has, of random blocks, and files that mix formats.

NumPy and WebGPU must make of each what NumPy makes of the same model as the ``gguf`` package dequantizes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants as reference

from tests.models.test_webgpu import load_webgpu, prompt
from tests.tiny import ALL, load_program, run_chunks, tiny
from tests.tolerances import NUMPY_SAME, WEBGPU_TINY
from wgllm.backends.device import Device
from wgllm.formats.gguf import open_gguf
from wgllm.quant import all_formats, format_by_name
from wgllm.quant.base import U8
from wgllm.quant.random_blocks import random_blocks

MODEL = tiny("llama-q.q8_0").path
FORMATS = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "MXFP4", "TQ1_0", "TQ2_0"]
# Much as llama.cpp's quantizer mixes types: by parts of names, in this order; "" is for all others.
PARTS = ("attn_v", "attn_output", "ffn_down", "token_embd", "")
MIXES = {
    "Q2_K": ("Q4_K", "Q3_K", "Q3_K", "Q6_K", "Q2_K"),
    "Q3_K_M": ("Q5_K", "Q4_K", "Q4_K", "Q6_K", "Q3_K"),
    "Q3_K_L": ("Q5_K", "Q5_K", "Q5_K", "Q6_K", "Q3_K"),
    "IQ2_M": ("Q4_K", "IQ3_S", "IQ3_S", "Q5_K", "IQ2_S"),
    "IQ1_M": ("Q4_K", "IQ2_XXS", "Q2_K", "Q2_K", "IQ1_M"),
    "MXFP4": ("Q8_0", "Q8_0", "MXFP4", "Q8_0", "MXFP4"),
}
TYPICAL = 0.05  # of the model's weights


def blocks_of(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> U8:
    """A matrix of numbers that are as large as the model's."""
    fmt = format_by_name(name)
    sample = np.empty((64, fmt.block_size), np.float32)
    fmt.dequantize_blocks(random_blocks(fmt, np.ones(64), rng), sample)
    n = int(np.prod(shape)) // fmt.block_size
    size = np.full(n, TYPICAL / np.sqrt((sample**2).mean()))
    return random_blocks(fmt, size, rng).reshape(*shape[:-1], -1)


def write(path: Path, tensors: dict[str, tuple[np.ndarray[Any, Any], str]]) -> Path:
    """The tiny model with other tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for field in gguf.GGUFReader(MODEL).fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for name, (data, type_name) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def twins(folder: Path, format_of: Callable[[str], str]) -> tuple[Path, Path]:
    """A file of random blocks, in the formats that ``format_of`` says for tensors, and the same numbers as F32."""
    rng = np.random.default_rng(7)
    packed, plain = {}, {}
    for name, view in open_gguf(MODEL).tensors.items():
        if len(view.shape) == 1:
            packed[name] = plain[name] = view.array(), "F32"
            continue
        kind = format_of(name)
        blocks = blocks_of(kind, view.shape, rng)
        packed[name] = blocks.view(np.float16) if kind == "F16" else blocks, kind
        numbers = reference.dequantize(blocks, gguf.GGMLQuantizationType[kind])
        plain[name] = np.asarray(numbers, np.float32).reshape(view.shape), "F32"
    return write(folder / "packed.gguf", packed), write(folder / "plain.gguf", plain)


def assert_all_agree(device: Device, packed: Path, plain: Path) -> None:
    ids = prompt(6)
    want = run_chunks(load_program(plain), ids, 6)
    assert np.isfinite(want).all()
    assert want.std() > 0.1
    assert np.abs(run_chunks(load_program(packed), ids, 6) - want).max() < NUMPY_SAME
    # Single rows, whose shaders compile fastest: those for many meet every format in the tests of products.
    with contextlib.closing(load_webgpu(device, packed, largest_step=1)) as program:
        assert np.abs(run_chunks(program, ids, 1) - want).max() < WEBGPU_TINY


def test_every_format_is_in_a_model() -> None:
    in_files = {view.format.name for model in ALL for view in open_gguf(model.path).tensors.values()}
    assert {fmt.name for fmt in all_formats()} - in_files == {*FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_models_of_one_format(own_device: Device, name: str, tmp_path: Path) -> None:
    assert_all_agree(own_device, *twins(tmp_path, lambda tensor: name))


@pytest.mark.parametrize("mix", MIXES)
def test_files_that_mix_formats(own_device: Device, mix: str, tmp_path: Path) -> None:
    kinds = dict(zip(PARTS, MIXES[mix], strict=True))
    packed, plain = twins(tmp_path, lambda tensor: next(kinds[part] for part in PARTS if part in tensor))
    formats = {view.format.name for view in open_gguf(packed).tensors.values()}
    assert formats == {*kinds.values(), "F32"}
    assert_all_agree(own_device, packed, plain)
