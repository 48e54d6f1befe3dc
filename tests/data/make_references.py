"""Makes the tiny reference models of the families that have none from elsewhere: see README.md beside this file.

    python tests/data/make_references.py [NAME …]

In an environment with transformers 5.23, torch 2.13 and gguf 0.19. Per model: ``hf/`` (float16 safetensors and
config.json in the styles of transformers 5 and 4), a GGUF file as llama.cpp's converter would write it, and what
transformers computes in float32 with eager attention. Every norm and every bias moves some logit by 0.3 or more when it
is left out; the script fails where one does not.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent / "tiny"
TOKENIZER = HERE / "qwen2" / "qwen2.f32.gguf"
V, CTX, ORIGINAL, WINDOW = 512, 512, 64, 32
LEAST_EFFECT = 0.3
Tensors = dict[str, np.ndarray]


@dataclass
class Model:
    name: str
    arch: str
    """Of GGUF."""
    config: Any
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Metadata of the GGUF file beyond what all have, without the architecture."""
    change: Callable[[Tensors, Any], Tensors] = lambda tensors, config: tensors
    """What the converter does to the weights, under their names in Hugging Face's files."""
    more: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Tensors of the GGUF file that the model's own file does not have."""
    computed_as: Mapping[str, Any] = field(default_factory=dict)
    """``NAME.json`` → rope parameters that the reference is computed with, if not those of the config."""


def sizes(**options: Any) -> dict[str, Any]:
    tokens = {"bos_token_id": 509, "eos_token_id": 511, "pad_token_id": None}
    return {
        "vocab_size": V, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": CTX, **tokens, **options,
    }  # fmt: skip


def gated(**options: Any) -> dict[str, Any]:
    return sizes(
        **{"intermediate_size": 96, "num_key_value_heads": 2, "tie_word_embeddings": True, **options}
    )


def rope(kind: str = "default", theta: float = 10000.0, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **options}}


# What llama.cpp's converter does (convert_hf_to_gguf.py)


def permuted(tensors: Tensors, config: Any) -> Tensors:
    """Rows of queries and keys so that rope turns neighbours."""
    made = dict(tensors)
    for name, w in tensors.items():
        part = name.split(".")[-2]
        if part in ("q_proj", "k_proj"):
            n = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
            made[name] = w.reshape(n, 2, len(w) // n // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    return made


def separated_neox(tensors: Tensors, config: Any) -> Tensors:
    """Queries, keys and values of each head, as they lie in the file, one after the other."""
    made = dict(tensors)
    heads = config.num_attention_heads
    for name, w in tensors.items():
        if ".query_key_value." in name:
            made[name] = w.reshape(heads, 3, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape)
    return made


def separated_falcon(tensors: Tensors, config: Any) -> Tensors:
    """Groups of queries with their key and value: all queries first, then keys, then values."""
    made = dict(tensors)
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    head_dim = config.hidden_size // config.num_attention_heads
    for name, w in tensors.items():
        if ".query_key_value." in name:
            of_group = w.reshape(groups, -1, head_dim, *w.shape[1:])
            parts = (of_group[:, :-2], of_group[:, -2:-1], of_group[:, -1:])
            made[name] = np.concatenate([p.reshape(-1, *w.shape[1:]) for p in parts])
    return made


def stacked_norms(tensors: Tensors, config: Any) -> Tensors:
    """A norm for each head: their weights as one matrix."""
    made = {name: w for name, w in tensors.items() if "layernorm.norms." not in name}
    for i in range(config.num_hidden_layers):
        for part, n in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            start = f"model.layers.{i}.self_attn.{part}_layernorm"
            if f"{start}.norms.0.weight" in tensors:
                made[f"{start}.weight"] = np.stack([tensors[f"{start}.norms.{h}.weight"] for h in range(n)])
    return made


# The models


def models() -> list[Model]:
    t = transformers
    long, short = ([float(f) for f in np.linspace(1, top, 8)] for top in (12, 1.8))
    longrope = rope(
        "longrope", long_factor=long, short_factor=short, partial_rotary_factor=0.75,
        original_max_position_embeddings=ORIGINAL,
    )["rope_parameters"]  # fmt: skip
    long, short = long[:6], short[:6]
    longrope |= {"long_factor": long, "short_factor": short}
    llama_rms = {"attention.layer_norm_rms_epsilon": 1e-5}
    layer_eps = {"attention.layer_norm_epsilon": 1e-5}
    kv = {"attention.head_count_kv": 2, "feed_forward_length": 96}
    return [
        Model(
            "granite", "granite",
            t.GraniteConfig(
                **gated(rms_norm_eps=1e-5), **rope(), embedding_multiplier=3.0, logits_scaling=0.8,
                residual_multiplier=0.6, attention_multiplier=0.4,
            ),
            kv | llama_rms | {
                "embedding_scale": 3.0, "logit_scale": 0.8, "residual_scale": 0.6, "attention.scale": 0.4,
                "rope.dimension_count": 16, "rope.freq_base": 10000.0,
            },
            permuted,
        ),
        Model(
            "smollm3", "smollm3",
            t.SmolLM3Config(**gated(num_hidden_layers=4, rms_norm_eps=1e-5), **rope(theta=2e6)),
            kv | llama_rms | {"rope.dimension_count": 16, "rope.freq_base": 2e6},
            permuted,
        ),
        Model(
            "starcoder2", "starcoder2",
            t.Starcoder2Config(
                **gated(intermediate_size=128, norm_epsilon=1e-5), **rope(theta=1e5), use_bias=True
            ),
            kv | layer_eps | {"feed_forward_length": 128, "rope.freq_base": 1e5},
        ),
        Model(
            "glm4", "glm4",
            t.Glm4Config(
                **gated(rms_norm_eps=1e-5, tie_word_embeddings=False), **rope(partial_rotary_factor=0.5),
                head_dim=16, attention_bias=True,
            ),
            kv | llama_rms | {"rope.dimension_count": 8, "rope.freq_base": 10000.0},
        ),
        Model(
            "stablelm-12b", "stablelm",
            t.StableLmConfig(
                **gated(layer_norm_eps=1e-5, tie_word_embeddings=False), **rope(partial_rotary_factor=0.25),
                use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=False,
            ),
            kv | layer_eps | {"rope.dimension_count": 4, "use_parallel_residual": True},
            stacked_norms,
        ),
        Model(
            "command-r", "command-r",
            t.CohereConfig(**gated(layer_norm_eps=1e-5), **rope(theta=8e6), logit_scale=0.3, use_qk_norm=False),
            kv | layer_eps | {"logit_scale": 0.3, "rope.freq_base": 8e6, "rope.scaling.type": "none"},
        ),
        Model(
            "command-r-plus", "command-r",
            t.CohereConfig(
                **gated(layer_norm_eps=1e-5), **rope(theta=75e4), logit_scale=0.8333, use_qk_norm=True
            ),
            kv | layer_eps | {"logit_scale": 0.8333, "rope.freq_base": 75e4, "rope.scaling.type": "none"},
        ),
        Model(
            "cohere2", "cohere2",
            t.Cohere2Config(
                **gated(num_hidden_layers=4, layer_norm_eps=1e-5), **rope(theta=5e4), logit_scale=0.25,
                sliding_window=WINDOW, head_dim=16,
                layer_types=["sliding_attention"] * 3 + ["full_attention"],
            ),
            kv | layer_eps | {
                "logit_scale": 0.25, "rope.freq_base": 5e4, "rope.dimension_count": 16, "rope.scaling.type": "none",
                "attention.sliding_window": WINDOW, "attention.key_length": 16, "attention.value_length": 16,
            },
        ),
        *(
            Model(
                name, "gptneox",
                t.GPTNeoXConfig(
                    **sizes(intermediate_size=128, layer_norm_eps=1e-5), **rope(partial_rotary_factor=0.25),
                    use_parallel_residual=parallel, tie_word_embeddings=False,
                ),
                layer_eps | {
                    "feed_forward_length": 128, "rope.dimension_count": 4, "use_parallel_residual": parallel,
                },
                separated_neox,
            )
            for name, parallel in (("gptneox", True), ("gptneox-serial", False))
        ),
        *(
            Model(
                name, "falcon",
                t.FalconConfig(
                    **sizes(), **rope(), layer_norm_epsilon=1e-5, multi_query=not new, parallel_attn=True,
                    new_decoder_architecture=new, num_kv_heads=2 if new else None, ffn_hidden_size=128, alibi=False,
                    bias=False, tie_word_embeddings=not new,
                ),
                layer_eps | {"feed_forward_length": 128, "attention.head_count_kv": 2 if new else 1},
                separated_falcon,
            )
            for name, new in (("falcon-7b", False), ("falcon-40b", True))
        ),
        Model(
            "phi3-longrope", "phi3",
            t.Phi3Config(
                **gated(rms_norm_eps=1e-5), original_max_position_embeddings=ORIGINAL, sliding_window=100,
                rope_parameters=longrope,
            ),
            kv | llama_rms | {
                "rope.dimension_count": 12, "rope.freq_base": 10000.0, "attention.sliding_window": 100,
                "rope.scaling.type": "longrope", "rope.scaling.original_context_length": ORIGINAL,
                "rope.scaling.attn_factor": math.sqrt(1 + math.log(CTX / ORIGINAL) / math.log(ORIGINAL)),
            },
            more={
                "rope_factors_long.weight": np.array(long, np.float32),
                "rope_factors_short.weight": np.array(short, np.float32),
            },
            # transformers chooses by what has been read so far, llama.cpp by the context, once and for all.
            computed_as={
                "expected": {"short_factor": long}, "expected.short": {"long_factor": short},
            },
        ),
        Model(
            "llama-yarn", "llama",
            t.LlamaConfig(
                **gated(rms_norm_eps=1e-5, tie_word_embeddings=False), head_dim=32, attention_bias=True, mlp_bias=True,
                **rope("yarn", factor=8.0, original_max_position_embeddings=ORIGINAL),
            ),
            kv | llama_rms | {
                "rope.dimension_count": 32, "rope.freq_base": 10000.0, "attention.key_length": 32,
                "attention.value_length": 32, "rope.scaling.type": "yarn", "rope.scaling.factor": 8.0,
                "rope.scaling.original_context_length": ORIGINAL,
            },
            permuted,
        ),
        Model(
            "llama-linear", "llama",
            t.LlamaConfig(**gated(rms_norm_eps=1e-5), **rope("linear", factor=4.0)),
            kv | llama_rms | {
                "rope.dimension_count": 16, "rope.freq_base": 10000.0, "rope.scaling.type": "linear",
                "rope.scaling.factor": 4.0,
            },
            permuted,
        ),
    ]  # fmt: skip


# Making them


def weights(model: torch.nn.Module, seed: int) -> None:
    """Numbers that are large enough to matter, and that float16 has."""
    random = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if name.endswith("bias"):
            values = random.normal(0, 0.6, shape)
        elif "norm" in name or "ln_" in name:
            values = random.uniform(0.3, 2.2, shape)
        elif "embed" in name and "out" not in name:
            # Through a head that is tied to it logits grow with it, and with them what rounding does.
            values = random.normal(0, 0.3 if model.config.tie_word_embeddings else 1, shape)
        else:
            values = random.normal(0, 1.3 / math.sqrt(shape[-1]), shape)
        p.data = torch.from_numpy(values.astype(np.float16).astype(np.float32))


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


def check_effects(name: str, model: torch.nn.Module, ids: list[int]) -> None:
    """Exits where a norm or a bias could be left out unnoticed."""
    before = logits(model, ids)
    for parameter, p in model.named_parameters():
        if p.ndim == 1 or "norm" in parameter:
            kept = p.data
            p.data = torch.zeros_like(kept) if parameter.endswith("bias") else torch.ones_like(kept)
            effect = np.abs(logits(model, ids) - before).max()
            p.data = kept
            # A bias of keys moves all of a query's scores alike but for rope: softmax sees little of it.
            if effect < (0.0 if parameter.endswith("k_proj.bias") else LEAST_EFFECT):
                sys.exit(f"{name}: {parameter} moves logits by {effect} only")


def older_style(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 4 wrote it."""
    made = {k: v for k, v in config.items() if k not in ("dtype", "rope_parameters")}
    scaling = dict(config["rope_parameters"])
    made |= {
        "transformers_version": "4.46.0", "torch_dtype": config["dtype"], "rope_theta": scaling.pop("rope_theta"),
    }  # fmt: skip
    if (part := scaling.pop("partial_rotary_factor", None)) is not None:
        key = "rotary_pct" if config["model_type"] == "gpt_neox" else "partial_rotary_factor"
        made[key] = part
    if config["model_type"] == "phi3":  # its older name for what also stands beside it
        scaling.pop("original_max_position_embeddings", None)
        scaling = {("type" if k == "rope_type" else k): v for k, v in scaling.items()}
    plain = scaling.get("rope_type", scaling.get("type")) == "default"
    return made | {"rope_scaling": None if plain else scaling}


def write_hf(folder: Path, model: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {**model.config.to_dict(), "dtype": "float16", "architectures": [type(model).__name__]}
    config = {k: v for k, v in config.items() if k != "_name_or_path"}
    for name, values in (("config.json", config), ("config.v4.json", older_style(config))):
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tied = set() if not model.config.tie_word_embeddings else set(model._tied_weights_keys)
    tensors = {k: v.half().contiguous() for k, v in model.state_dict().items() if k not in tied}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def write_gguf(path: Path, wanted: Model, model: Any) -> None:
    config, tied = model.config, set(model._tied_weights_keys or ())
    writer = gguf.GGUFWriter(path, wanted.arch)
    # By a name with "phi3" in it llama.cpp expects tokens of Phi-3.
    writer.add_name(f"tiny-{wanted.name.replace('phi3', 'p3')}")
    writer.add_context_length(CTX)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in wanted.keys.items():
        add[type(value)](f"{wanted.arch}.{key}", value)
    for name, f in gguf.GGUFReader(TOKENIZER).fields.items():
        if name.startswith("tokenizer."):
            kind = f.types[0]
            writer.add_key_value(
                name, f.contents(), kind, f.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            )
    names = gguf.get_tensor_name_map(_arch(wanted.arch), config.num_hidden_layers)
    tensors = {
        k: v.numpy() for k, v in model.state_dict().items() if not (config.tie_word_embeddings and k in tied)
    }
    for name, values in wanted.change(tensors, config).items():
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            sys.exit(f"{wanted.name}: gguf knows no name for {name}")
        matrix = values.ndim == 2 and "norm" not in name
        writer.add_tensor(new, np.ascontiguousarray(values.astype(np.float16 if matrix else np.float32)))
    for name, values in wanted.more.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _arch(name: str) -> Any:
    return next(arch for arch, of in gguf.MODEL_ARCH_NAMES.items() if of == name)


def made(config: Any, seed: int) -> Any:
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    weights(model, seed)
    if config.tie_word_embeddings:
        model.tie_weights()
    return model.eval()


def main(chosen: list[str]) -> None:
    for wanted in models():
        if chosen and wanted.name not in chosen:
            continue
        seed = zlib.crc32(wanted.name.encode())
        folder = HERE / wanted.name
        model = made(wanted.config, seed)
        check_effects(wanted.name, model, np.random.default_rng(5).integers(0, 509, 24).tolist())
        write_hf(folder / "hf", model)
        write_gguf(folder / f"{wanted.name}.f16.gguf", wanted, model)
        for name, changed in (wanted.computed_as or {"expected": {}}).items():
            config = type(wanted.config).from_dict(wanted.config.to_dict())
            if changed:
                config.rope_parameters = {**config.rope_parameters, **changed}
            text = json.dumps(expected(wanted.name, made(config, seed)), separators=(",", ":"))
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(f"{wanted.name}: {size / 1024:,.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
