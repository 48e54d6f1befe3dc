"""A model whose large float weights are rounded to a block format as they are read."""

from __future__ import annotations

from wgllm.errors import ModelFileError, UsageError
from wgllm.formats.model_file import ModelFile, TensorView
from wgllm.formats.views import QuantizedView
from wgllm.quant import QuantFormat, all_formats, format_by_name

# As llama.cpp's quantizer leaves them alone: routers, positions, small convolutions.
_KEPT = (
    "norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
    "ssm_conv1d.weight",
)


def quantizable() -> list[str]:
    """The names of formats that wgllm quantizes to, in small letters."""
    return [
        f.name.lower() for f in all_formats() if type(f).quantize_blocks is not QuantFormat.quantize_blocks
    ]


def quantized(file: ModelFile, name: str) -> ModelFile:
    """``file`` with its matrices of single numbers as views in the format ``name``; the file is closed with it.

    Norms, biases, routers and rows that are not whole blocks stay as they are. Nothing is read yet. Raises UsageError
    for a format that wgllm cannot quantize to, ModelFileError for a model that is quantized already.
    """
    if name.lower() not in quantizable():
        raise UsageError(f"wgllm cannot quantize to {name!r} (it can to {', '.join(quantizable())})")
    fmt = format_by_name(name)
    coarse = next((t for t in file.tensors.values() if t.format.block_size > 1), None)
    if coarse is not None:
        problem = f"is {coarse.format.name} already; only models of float weights can be quantized"
        raise ModelFileError(file.path, f"tensor {coarse.name}", problem)
    file.tensors = {
        key: QuantizedView(view, fmt) if _is_meant(view, fmt) else view for key, view in file.tensors.items()
    }
    return file


def _is_meant(view: TensorView, fmt: QuantFormat) -> bool:
    return (
        view.name.endswith(".weight")
        and len(view.shape) > 1
        and not view.name.endswith(_KEPT)
        and view.shape[-1] % fmt.block_size == 0
        and fmt is not view.format
    )
