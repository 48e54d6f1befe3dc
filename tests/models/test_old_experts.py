"""GGUF files of 2023 and early 2024: a tensor for each expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests import tolerances
from tests.models.test_expert_directories import worst
from tests.tiny import load_on, load_program, run_chunks, tiny
from wgllm import models
from wgllm.backends.device import Device
from wgllm.backends.webgpu import WebGpuExecutor
from wgllm.errors import ModelFileError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.model_file import TensorView
from wgllm.formats.views import StackedView


def apart(
    path: Path, kinds: Callable[[str, int], str] = lambda name, e: "F32", drop: tuple[str, ...] = ()
) -> Path:
    """Mixtral with a tensor for each expert, whose type ``kinds`` of the tensor's name and the expert says."""
    file = gguf.GGUFReader(tiny("mixtral.f32").path)
    writer = gguf.GGUFWriter(path, "llama")
    for name, f in file.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = f.types[0]
            writer.add_key_value(
                name, f.contents(), kind, f.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            )
    for tensor in file.tensors:
        if "_exps" not in tensor.name:
            writer.add_tensor(tensor.name, tensor.data)
            continue
        for e, values in enumerate(tensor.data):
            name = tensor.name.replace("_exps.weight", f".{e}.weight")
            kind = gguf.GGMLQuantizationType[kinds(tensor.name, e)]
            if name not in drop:
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_tensor_for_each_expert(own_device: Device, tmp_path: Path) -> None:
    path, model = apart(tmp_path / "old.gguf"), tiny("mixtral.f32")
    assert "blk.1.ffn_down.3.weight" in open_gguf(path).tensors
    assert worst(load_program(path), model) < model.tolerance
    assert worst(load_program(path, memory=0), model) < model.tolerance
    assert worst(load_on(WebGpuExecutor(own_device), path), model) < tolerances.WEBGPU_TINY


def test_stacks_of_a_files_tensors_copy_nothing(tmp_path: Path) -> None:
    file = open_gguf(apart(tmp_path / "old.gguf"))
    view = models.build(file).weights["blk.1.ffn_up_exps.weight"]
    assert view.shape == (4, 64, 64) and isinstance(view, StackedView)
    for e, part in enumerate(view.parts):
        assert np.shares_memory(part.data, file.tensors[f"blk.1.ffn_up.{e}.weight"].data)
        # One expert's rows are the file's own bytes.
        assert np.shares_memory(view.blocks(4096 * e, 4096 * (e + 1)), part.data)


@pytest.mark.parametrize("quantize", [False, True])
def test_a_quantized_tensor_for_each_expert(own_device: Device, tmp_path: Path, quantize: bool) -> None:
    """In types that differ from matrix to matrix, or quantized as it is loaded."""
    types = {"gate": "Q8_0", "up": "Q5_0", "down": "Q4_0"}
    path = apart(
        tmp_path / "old.gguf",
        lambda name, e: (
            "F32" if quantize else types[name.split(".")[2].removeprefix("ffn_").removesuffix("_exps")]
        ),
    )
    fmt = "q8_0" if quantize else None
    ids = tiny("mixtral.f32").cases()[1]["ids"]
    program = load_on(WebGpuExecutor(own_device), path, quantize=fmt)
    made = run_chunks(program, ids, 64)
    program.close()
    for memory in (0, None):
        expected = run_chunks(load_program(path, quantize=fmt, memory=memory), ids, 64)
        assert np.abs(made - expected).max() < tolerances.WEBGPU_TINY


def test_experts_that_are_missing_too_many_or_of_different_types_are_refused(tmp_path: Path) -> None:
    missing = apart(tmp_path / "missing.gguf", drop=("blk.1.ffn_up.2.weight",))
    with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_up\.2\.weight: missing"):
        models.build(open_gguf(missing))
    more = open_gguf(apart(tmp_path / "more.gguf"), {"llama.expert_count": 3})
    with pytest.raises(ModelFileError, match="its shape is"):
        models.build(more)
    mixed = apart(tmp_path / "mixed.gguf", lambda name, e: "Q8_0" if "down" in name and e == 3 else "F32")
    with pytest.raises(
        ModelFileError, match=r"ffn_down\.3\.weight: is Q8_0, but .*ffn_down\.0\.weight is F32"
    ):
        models.build(open_gguf(mixed))
    file = open_gguf(apart(tmp_path / "odd.gguf"))
    odd: dict[str, TensorView] = dict(file.tensors)
    odd["blk.0.ffn_gate.1.weight"] = replace(odd["blk.0.ffn_gate.1.weight"], shape=(32, 128))
    with pytest.raises(ModelFileError, match=r"ffn_gate\.1\.weight: its shape is"):
        models.build(replace(file, tensors=odd))
