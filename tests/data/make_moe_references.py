"""Makes the tiny reference models of mixtures of experts: see README.md beside this file.

    python tests/data/make_moe_references.py [NAME …]

In an environment with transformers 5.23, torch 2.13 and gguf 0.19. Per model: a GGUF file as llama.cpp's converter
would write it, ``hf/`` (float16 safetensors and config.json in the styles of transformers 5 and 4) unless its weights
are quantized, and what transformers computes in float32 with eager attention. The script fails where a norm, a bias, a
router or a gate could be left out unnoticed, or where rounding could change which experts a row chooses.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from make_references import older_style

HERE = Path(__file__).parent / "tiny"
TOKENIZER = HERE / "qwen2" / "qwen2.f32.gguf"
V, CTX = 512, 512
LEAST_EFFECT = 0.3
# Between the logits of the last expert that a row chooses and of the first that it does not.
LEAST_GAP = 1e-4
Q4_K = gguf.GGMLQuantizationType.Q4_K


@dataclass
class Model:
    name: str
    arch: str
    """Of GGUF."""
    config: Any
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Metadata of the GGUF file beyond what all have, without the architecture."""
    quantized: bool = False
    """Whether matrices are Q4_K where they can be."""


def sizes(**options: Any) -> dict[str, Any]:
    return {
        "vocab_size": V, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": CTX, "rms_norm_eps": 1e-5, "bos_token_id": 509, "eos_token_id": 511,
        "pad_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **options,
    }  # fmt: skip


def models() -> list[Model]:
    t = transformers
    return [
        Model(
            "qwen2_moe", "qwen2moe",
            t.Qwen2MoeConfig(
                **sizes(), intermediate_size=80, moe_intermediate_size=32, shared_expert_intermediate_size=96,
                num_experts=6, num_experts_per_tok=3, norm_topk_prob=False, tie_word_embeddings=False,
            ),
            {
                "feed_forward_length": 80, "expert_feed_forward_length": 32,
                "expert_shared_feed_forward_length": 96, "expert_count": 6, "expert_used_count": 3,
            },
        ),
        Model(
            "olmoe", "olmoe",
            t.OlmoeConfig(
                **sizes(), intermediate_size=32, num_experts=10, num_experts_per_tok=4, norm_topk_prob=False,
                tie_word_embeddings=False,
            ),
            {"feed_forward_length": 32, "expert_count": 10, "expert_used_count": 4},
        ),
        # Experts in blocks of 256 numbers, and a first layer without any.
        Model(
            "qwen3_moe-k", "qwen3moe",
            t.Qwen3MoeConfig(
                **sizes(hidden_size=256), head_dim=16, intermediate_size=64, moe_intermediate_size=256,
                num_experts=3, num_experts_per_tok=2, norm_topk_prob=True, mlp_only_layers=[0], decoder_sparse_step=1,
                tie_word_embeddings=True,
            ),
            {
                "feed_forward_length": 64, "expert_feed_forward_length": 256, "expert_count": 3,
                "expert_used_count": 2, "attention.key_length": 16, "attention.value_length": 16,
            },
            quantized=True,
        ),
    ]  # fmt: skip


# Weights


def q4_k(random: np.random.Generator, shape: tuple[int, ...], size: float) -> np.ndarray:
    """Random blocks of numbers d · s · (q - 7.5), of a deviation of about ``size``: bytes [..., row bytes]."""
    n = math.prod(shape) // 256
    blocks = random.integers(0, 256, (n, 144), dtype=np.uint8)
    # Scales and minima of 32 numbers are equal: eight numbers of 6 bits for each (ggml-quants.c, get_scale_min_k4).
    six = random.integers(24, 64, (n, 8))
    high = (six[:, 4:] >> 4) << 6
    blocks[:, 4:8] = blocks[:, 8:12] = six[:, :4] | high
    blocks[:, 12:16] = (six[:, 4:] & 15) * 17
    d = np.float16(size / (44 * 4.6))
    blocks[:, 0:2] = np.array([d]).view(np.uint8)
    blocks[:, 2:4] = np.array([np.float16(7.5 * d)]).view(np.uint8)
    return blocks.reshape(*shape[:-1], shape[-1] // 256 * 144)


def weights(model: torch.nn.Module, wanted: Model) -> dict[str, np.ndarray]:
    """Sets numbers that are large enough to matter, and that float16 has; the bytes of those that are Q4_K."""
    random = np.random.default_rng(zlib.crc32(wanted.name.encode()))
    packed: dict[str, np.ndarray] = {}
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        size = 0.1 if "embed" in name and model.config.tie_word_embeddings else 1.3 / math.sqrt(shape[-1])
        router = name.endswith("mlp.gate.weight")
        if wanted.quantized and len(shape) > 1 and shape[-1] % 256 == 0 and not router:
            packed[name] = q4_k(random, shape, size)
            values = gguf.quants.dequantize(packed[name], Q4_K).reshape(shape)
        elif name.endswith("bias"):
            values = random.normal(0, 0.6, shape)
        elif "norm" in name:
            values = random.uniform(0.3, 2.2, shape)
        elif "embed" in name:
            values = random.normal(0, 1, shape)
        else:
            values = random.normal(0, size, shape)
        if name not in packed:
            values = values.astype(np.float16)
        p.data = torch.from_numpy(values.astype(np.float32))
    if model.config.tie_word_embeddings:
        model.tie_weights()
    return packed


# What it computes


def logits(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def expected(name: str, model: torch.nn.Module) -> dict[str, Any]:
    random = np.random.default_rng(11)
    cases = []
    for n, rows, steps in ((1, 1, 16), (17, 4, 16), (150, 4, 24)):
        ids = random.integers(0, 509, n).tolist()
        made = logits(model, ids)[n - rows :]
        greedy: list[int] = []
        margins: list[float] = []
        for _ in range(steps):
            last = logits(model, ids + greedy)[-1]
            best = np.argsort(-last, kind="stable")[:2]
            greedy.append(int(best[0]))
            margins.append(round(float(last[best[0]] - last[best[1]]), 5))
        cases.append({
            "ids": ids, "logits_start": n - rows, "logits": [[round(float(v), 5) for v in row] for row in made],
            "greedy": greedy, "greedy_margins": margins,
        })  # fmt: skip
    return {
        "model": name, "dtype": "float32", "attn": "eager", "transformers": transformers.__version__,
        "torch": torch.__version__, "cases": cases,
    }  # fmt: skip


def watch_gaps(name: str, model: Any) -> list[float]:
    """The gap of each row that a router sends from now on; its logits are computed again."""
    gaps: list[float] = []
    chosen = model.config.num_experts_per_tok
    for parameter, module in model.named_modules():
        if parameter.endswith("mlp.gate"):

            def note(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
                x = inputs[0].reshape(-1, inputs[0].shape[-1])
                made, _ = (x @ module.weight.T).sort(dim=-1, descending=True)
                gaps.append(float((made[:, chosen - 1] - made[:, chosen]).min()))

            module.register_forward_hook(note)
    return gaps


def check_effects(name: str, model: torch.nn.Module, ids: list[int]) -> None:
    """Exits where a norm, a bias, a router or a gate could be left out unnoticed."""
    before = logits(model, ids)
    for parameter, p in model.named_parameters():
        gate = parameter.endswith(("mlp.gate.weight", "shared_expert_gate.weight"))
        if p.ndim == 1 or "norm" in parameter or gate:
            kept = p.data
            p.data = torch.zeros_like(kept) if gate or parameter.endswith("bias") else torch.ones_like(kept)
            effect = np.abs(logits(model, ids) - before).max()
            p.data = kept
            # A bias of keys moves all of a query's scores alike but for rope: softmax sees little of it.
            if effect < (0.0 if parameter.endswith("k_proj.bias") else LEAST_EFFECT):
                sys.exit(f"{name}: {parameter} moves logits by {effect} only")


# Files


def parts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gate and up of experts by themselves, under the names that gguf knows; their rows are the second dimension."""
    made: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        if name.endswith(".gate_up_proj"):
            for part, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                made[name.replace("gate_up_proj", f"{part}_proj.weight")] = half
        else:
            made[f"{name}.weight" if name.endswith("experts.down_proj") else name] = values
    return made


def write_gguf(path: Path, wanted: Model, model: Any, packed: Mapping[str, np.ndarray]) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, wanted.arch)
    writer.add_name(f"tiny-{wanted.name}")
    writer.add_context_length(CTX)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    for key, value in wanted.keys.items():
        writer.add_uint32(f"{wanted.arch}.{key}", value)
    for name, f in gguf.GGUFReader(TOKENIZER).fields.items():
        if name.startswith("tokenizer."):
            kind = f.types[0]
            writer.add_key_value(
                name, f.contents(), kind, f.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            )
    arch = next(arch for arch, of in gguf.MODEL_ARCH_NAMES.items() if of == wanted.arch)
    # Converters know no layers without experts among others; they have the names of a model without any.
    maps = [gguf.get_tensor_name_map(a, config.num_hidden_layers) for a in (arch, gguf.MODEL_ARCH.QWEN3)]
    tensors = {k: v.numpy() for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    blocks = parts(packed)
    for name, values in parts(tensors).items():
        found = (names.get_name(name, try_suffixes=(".weight", ".bias")) for names in maps)
        new = next(filter(None, found), None)
        if new is None:
            sys.exit(f"{wanted.name}: gguf knows no name for {name}")
        if name in blocks:
            writer.add_tensor(new, np.ascontiguousarray(blocks[name]), raw_dtype=Q4_K)
        else:
            exact = values.ndim == 1 or "norm" in name or ".ffn_gate_inp" in new
            writer.add_tensor(new, np.ascontiguousarray(values.astype(np.float32 if exact else np.float16)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(chosen: list[str]) -> None:
    for wanted in models():
        if chosen and wanted.name not in chosen:
            continue
        folder = HERE / wanted.name
        folder.mkdir(parents=True, exist_ok=True)
        model = transformers.AutoModelForCausalLM.from_config(
            wanted.config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        packed = weights(model, wanted)
        check_effects(wanted.name, model, np.random.default_rng(5).integers(0, 509, 24).tolist())
        kind = "q4_k" if wanted.quantized else "f16"
        write_gguf(folder / f"{wanted.name}.{kind}.gguf", wanted, model, packed)
        gaps = watch_gaps(wanted.name, model)
        text = json.dumps(expected(wanted.name, model), separators=(",", ":"))
        (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
        if min(gaps) < LEAST_GAP:
            sys.exit(f"{wanted.name}: two experts are {min(gaps)} apart")
        if not wanted.quantized:
            model.half().save_pretrained(folder / "hf")
            (folder / "hf" / "generation_config.json").unlink(missing_ok=True)
            (folder / "hf" / "model.safetensors").chmod(0o644)
            config = json.loads((folder / "hf" / "config.json").read_text(encoding="utf-8"))
            older = older_style({k: v for k, v in config.items() if k != "layer_types"})
            text = json.dumps(older, indent=2, sort_keys=True) + "\n"
            (folder / "hf" / "config.v4.json").write_text(text, encoding="utf-8")
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(f"{wanted.name}: {size / 1024:,.0f} KiB, experts at least {min(gaps):.1e} apart")


if __name__ == "__main__":
    main(sys.argv[1:])
