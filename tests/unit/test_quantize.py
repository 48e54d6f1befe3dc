"""A model that is quantized as it is loaded is the model that was quantized before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import quantize as gguf_quantize

import wgllm
from tests.tiny import DATA, load_program, run_chunks, tiny
from wgllm.cli import main
from wgllm.errors import ModelFileError, UsageError
from wgllm.formats.gguf import open_gguf
from wgllm.formats.quantized import quantizable
from wgllm.models.opening import open_model

FLOAT = tiny("llama-tied.f32").path
IDS = tiny("llama-tied.f32").cases()[0]["ids"]


def quantized_file(path: Path, fmt: str) -> Path:
    """``FLOAT`` with its matrices quantized by the gguf package."""
    kind = gguf.GGMLQuantizationType[fmt.upper()]
    writer = gguf.GGUFWriter(path, "llama")
    source = open_gguf(FLOAT)
    for key, value in source.metadata.items():
        if key.startswith("llama."):
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for name, view in source.tensors.items():
        if len(view.shape) > 1:
            writer.add_tensor(name, gguf_quantize(view.array(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, view.array())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("fmt", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "bf16", "f16"])
@pytest.mark.parametrize("source", ["gguf", "hf"])
def test_it_is_the_file_that_was_quantized_before(tmp_path: Path, fmt: str, source: str) -> None:
    before = open_gguf(quantized_file(tmp_path / "before.gguf", fmt))
    after = open_model(FLOAT if source == "gguf" else DATA / "llama-tied" / "hf", quantize=fmt)
    assert before.tensors.keys() == after.tensors.keys()
    for name, view in before.tensors.items():
        mine = after.tensors[name]
        assert (mine.format, mine.shape, mine.nbytes) == (view.format, view.shape, view.nbytes)
        if source == "gguf" or not name.endswith(
            ("attn_q.weight", "attn_k.weight")
        ):  # whose rows GGUF has turned
            assert np.array_equal(mine.data, view.data), name
    if source == "gguf":
        expected = run_chunks(load_program(tmp_path / "before.gguf"), IDS, 64)
        for memory in (None, 0):
            made = run_chunks(load_program(FLOAT, quantize=fmt, memory=memory), IDS, 64)
            assert np.abs(made - expected).max() < (0 if memory is None else 1e-4) or np.array_equal(
                made, expected
            )


def test_the_reference_of_a_quantized_model_is_met(tmp_path: Path) -> None:
    file = open_model(FLOAT, quantize="q8_0")
    reference = open_gguf(tiny("llama-tied.q8_0").path)
    assert {n: t.format.name for n, t in file.tensors.items()} == {
        n: t.format.name for n, t in reference.tensors.items()
    }
    assert all(np.array_equal(t.data, reference.tensors[n].data) for n, t in file.tensors.items())


def test_what_is_left_alone() -> None:
    file = open_model(tiny("gemma3.f32").path, quantize="q4_0")
    left = {n for n, t in file.tensors.items() if t.format.name == "F32"}
    assert left == {n for n in file.tensors if n.endswith("norm.weight")}


def test_what_cannot_be_quantized_is_said() -> None:
    with pytest.raises(UsageError, match=r"cannot quantize to 'q9_9' \(it can to f32, f16, q4_0"):
        open_model(FLOAT, quantize="q9_9")
    with pytest.raises(ModelFileError, match="is Q4_0 already; only models of float weights"):
        open_model(tiny("llama-q.q4_0").path, quantize="q8_0")
    assert {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1"} <= set(quantizable())


def test_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    model = str(DATA / "llama-tied" / "hf")
    assert main(["generate", "-m", model, "--quantize", "Q8_0", "-n", "3", "-q", "--temp", "0", "hi"]) == 0
    capfd.readouterr()
    sizes = {}
    for options in ([], ["--quantize", "q4_0"]):
        assert main(["show", model, "--json", *options]) == 0
        facts: dict[str, Any] = json.loads(capfd.readouterr().out)
        sizes[len(options)] = facts["tensor_bytes"]
        assert main(["plan", "-m", model, "--json", *options]) == 0
        capfd.readouterr()
    assert sizes[2] < 0.16 * sizes[0]
    assert main(["generate", "-m", model, "--quantize", "q4_k_x", "hi"]) == 2
    assert "cannot quantize to 'q4_k_x'" in capfd.readouterr().err


def test_a_saved_state_belongs_to_the_quantization(tmp_path: Path) -> None:
    prints = set()
    for fmt in (None, "q8_0", "q4_0"):
        with wgllm.load(FLOAT, quantize=fmt) as llm:
            prints.add(llm.fingerprint())
    assert len(prints) == 3
