"""How a family's Hugging Face checkpoints say what its GGUF files say: the declaration that stands in its file.

A family that reads such directories has a constant ``HF``, a tuple of ``HfFamily``, one for each kind of
``config.json`` that leads to its graph. It is data: names on the left, names or small functions of the configuration on
the right. ``models/hugging_face.py`` does the rest, and the graph is built as from a GGUF file::

    HF = (
        HfFamily(
            model_types=("llama",),
            architecture="llama",
            tensors=LLAMA_TENSORS,
            defaults={"rms_norm_eps": 1e-6},
            expects={"hidden_act": ("silu", "swish")},
            rope_types=(*ROPE_TYPES, "llama3"),
        ),
    )

**Tensors.** Left a name without ``.weight`` or ``.bias``, with ``{i}`` for the first number in it (the layer) and
``{e}`` for the second (an expert, a head); right GGUF's name, also without. A name that has its ``.weight`` or
``.bias`` (or none of the two) on the left says it on the right too. What a file has and no rule knows is refused.

- ``"blk.{i}.attn_q"``: as it is.
- A name with ``{e}`` on the left: what all experts have, stacked to [n, …] in their order.
- ``Transposed(name)``: the file has [inputs, outputs] (GPT-2's Conv1D). A bias stays as it is.
- ``Rows(name, runs)``: some rows, in an order that ``runs(config)`` tells as (first, last) pairs: a part of a fused
  matrix, or GPT-NeoX's heads of q, k, v, one after the other. For a bias, its numbers.
- ``Share(name, number, of)``: of each matrix of a stack [n, of · rows, …] the rows of one share: experts whose gate and
  up lie in one tensor.
- A tuple of these: one tensor of the file becomes several.

All of them are views: nothing is copied before it is used, and then a piece at a time.

**Keys.** ``KEYS`` is what all families share; ``keys`` adds to it or replaces: GGUF's key without the architecture →
names in ``config.json`` of which the first that is there and not null counts, or a function of the configuration. None
leaves the key out. Rope's keys and tensors come from ``models/hf_rope.py``.

``defaults`` are those of transformers' configuration class, for what a file leaves out (nested ones leave out much).
``expects`` guards mathematics that GGUF's keys cannot say: any other value (null and absent are fine) is refused.
``present`` guards what a graph finds out by looking whether the file has a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wgllm.errors import ModelFileError

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope")
"""What every family may have; models whose graph takes frequency factors add ``llama3``."""
PLAIN_ROPE_TYPES = ("default", "linear", "dynamic", "yarn")
"""For models whose graph takes no frequency factors."""

# A list of each head's rows must not fill the memory because a file lies.
_MOST_HEADS = 1 << 14


@dataclass(frozen=True)
class Transposed:
    """The matrix lies [inputs, outputs] in the file."""

    target: str


@dataclass(frozen=True)
class Rows:
    """Rows of the file's tensor, run by run."""

    target: str
    runs: Callable[[HfConfig], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Share:
    """One of ``of`` equal shares of each matrix's rows, counted from 0."""

    target: str
    number: int
    of: int


Rule = str | Transposed | Rows | Share
Source = str | tuple[str, ...] | Callable[["HfConfig"], Any]


@dataclass(frozen=True)
class HfFamily:
    """See the module's docstring."""

    model_types: tuple[str, ...]
    """``model_type`` of config.json, or of its text_config."""
    architecture: str
    """GGUF's ``general.architecture``."""
    tensors: Mapping[str, Rule | tuple[Rule, ...]]
    keys: Mapping[str, Source] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    expects: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    rope_types: tuple[str, ...] = ROPE_TYPES
    renames: tuple[tuple[str, str], ...] = ()
    """Beginnings of the file's names and what they mean: ("language_model.model.", "model.")."""
    skip: tuple[str, ...] = ()
    """Patterns (``*``) of tensors that the text does not need, before renaming."""
    present: Mapping[str, Callable[[HfConfig], bool]] = field(default_factory=dict)
    """Tensors by GGUF's name (``{i}`` for the layer), of which the configuration says whether they are there. The graph
    goes by what is there: a file that says one thing and has another is refused."""
    norm_offset: float = 0.0
    """What norms add to their weights (Gemma's 1 + w)."""
    rope_interleaved: bool = False
    """Whether this family turns neighbours (2i, 2i + 1) in transformers, too."""


class HfConfig:
    """``config.json``, checked as it is read; a ``text_config`` in it goes before what is beside it."""

    def __init__(self, path: Path, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """``path`` is for messages."""
        self.path = path
        inner = values.get("text_config")
        self._levels: tuple[Mapping[str, Any], ...] = (
            (inner, values, defaults) if isinstance(inner, dict) else (values, defaults)
        )

    def fail(self, key: str, problem: str) -> ModelFileError:
        return ModelFileError(self.path, key, problem)

    def get(self, key: str) -> Any:
        """The value, or None: where it is null, or where neither the file nor the defaults have it."""
        return next((level[key] for level in self._levels if key in level), None)

    def first(self, *keys: str) -> Any:
        """The first value that is there."""
        return next((value for key in keys if (value := self.get(key)) is not None), None)

    def integer(self, *keys: str) -> int:
        """The first that is there, a whole number above 0. Raises ModelFileError where none is."""
        value = self.first(*keys)
        if type(value) is not int or value < 1:
            raise self.fail(
                keys[0], "missing" if value is None else f"{value!r} should be a whole number above 0"
            )
        return value

    def number(self, key: str, among: Mapping[str, Any] | None = None) -> float | None:
        """A finite number or None; ``among`` is an object of the file to look in instead."""
        value = self.get(key) if among is None else among.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
            raise self.fail(key, f"{value!r} should be a number")
        return float(value)

    def positive(self, key: str) -> float:
        """A number above 0."""
        value = self.number(key)
        if value is None or value <= 0:
            raise self.fail(key, "missing" if value is None else f"{value} makes no sense")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fail(key, f"{value!r} should be true or false")
        return bool(value)

    @property
    def n_layers(self) -> int:
        return self.integer("num_hidden_layers", "n_layer", "n_layers", "num_layers")

    @property
    def n_heads(self) -> int:
        return self.integer("num_attention_heads", "n_head", "n_heads")

    @property
    def n_kv_heads(self) -> int:
        given = self.first("num_key_value_heads", "num_kv_heads", "n_head_kv")
        return (
            self.n_heads
            if given is None
            else self.integer("num_key_value_heads", "num_kv_heads", "n_head_kv")
        )

    @property
    def d_model(self) -> int:
        return self.integer("hidden_size", "n_embd", "d_model")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads if self.get("head_dim") is None else self.integer("head_dim")

    @property
    def n_ctx_train(self) -> int:
        return self.integer("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")

    def rope(self, layer_type: str = "full_attention") -> dict[str, Any]:
        """Rope's settings, wherever they stand: ``rope_parameters`` (perhaps per type of layer), or the older
        ``rope_scaling``, which goes before it (it is what people add to a file), and ``rope_theta``."""
        settings: dict[str, Any] = {}
        for key in ("rope_parameters", "rope_scaling"):
            value = self.get(key)
            if value is None:
                continue
            if not isinstance(value, dict):
                raise self.fail(key, "should be an object")
            by_type = any(isinstance(v, dict) for v in value.values())
            value = value.get(layer_type) if by_type else value
            if value is not None and not isinstance(value, dict):
                raise self.fail(f"{key}.{layer_type}", "should be an object")
            value = value or {}
            named = value.get("rope_type") or value.get("type")
            settings |= value | ({"rope_type": named} if named else {})
        if settings.get("rope_theta") is None:
            settings["rope_theta"] = self.first("rope_theta", "rotary_emb_base")
        kind = settings.get("rope_type") or "default"
        if not isinstance(kind, str):
            raise self.fail("rope_type", f"{kind!r} should be a name")
        # Phi-3's first files call longrope by its older name.
        settings["rope_type"] = {"su": "longrope", "none": "default", "mrope": "default"}.get(kind, kind)
        return settings

    def windowed_layers(self) -> list[bool] | None:
        """Which layers see a window only, by ``layer_types``; None where the file has no such list."""
        types = self.get("layer_types")
        if types is None:
            return None
        if not isinstance(types, list) or len(types) != self.n_layers:
            raise self.fail("layer_types", f"should name the kind of each of {self.n_layers} layers")
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                raise self.fail("layer_types", f"{kind!r} is not supported")
        return [kind == "sliding_attention" for kind in types]


def sliding_window(config: HfConfig) -> int | None:
    """The window, where any layer has one."""
    if config.get("use_sliding_window") is False or config.get("sliding_window") is None:
        return None
    windowed = config.windowed_layers()
    return None if windowed is not None and not any(windowed) else config.integer("sliding_window")


def same_window(config: HfConfig) -> int | None:
    """The window of a family whose layers all have it, or none has."""
    window, windowed = sliding_window(config), config.windowed_layers()
    if window is not None and windowed is not None and not all(windowed):
        raise config.fail("layer_types", "layers with a window beside such without are not supported here")
    return window


def no_window(config: HfConfig) -> None:
    """For a family whose graph knows no window."""
    most = config.get("max_window_layers")
    late = isinstance(most, int) and most >= config.n_layers and config.get("layer_types") is None
    if not late and (window := sliding_window(config)) is not None:
        raise config.fail("sliding_window", f"a window of {window} tokens is not supported for this family")


def never_window(config: HfConfig) -> None:
    """Like ``no_window`` for families whose ``max_window_layers`` does not say from where on layers have one."""
    if (window := sliding_window(config)) is not None:
        raise config.fail("sliding_window", f"a window of {window} tokens is not supported for this family")


def dense_layers(config: HfConfig) -> list[int]:
    """Layers without experts: those of ``mlp_only_layers``, and all but each ``decoder_sparse_step``th."""
    given = config.get("mlp_only_layers") or []
    if not isinstance(given, list) or any(type(i) is not int for i in given):
        raise config.fail("mlp_only_layers", "should be a list of layers")
    step = config.integer("decoder_sparse_step")
    return [i for i in range(config.n_layers) if i in given or (i + 1) % step]


def query_scale(config: HfConfig) -> float | None:
    """``attention.scale`` of families that give ``query_pre_attn_scalar``."""
    scalar = config.number("query_pre_attn_scalar")
    if scalar is not None and scalar <= 0:
        raise config.fail("query_pre_attn_scalar", f"{scalar} makes no sense")
    return None if scalar is None else 1 / math.sqrt(scalar)


def grouped_heads(config: HfConfig, n_kv_heads: int) -> list[tuple[int, int]]:
    """``Rows.runs`` of a fused matrix that has, for each head of keys, its heads of queries, the key and the value."""
    if config.n_heads > _MOST_HEADS:
        raise config.fail("num_attention_heads", f"{config.n_heads} are more than any model has")
    d, group = config.head_dim, config.n_heads // n_kv_heads
    rows = group + 2
    queries = [(i * rows * d, (i * rows + group) * d) for i in range(n_kv_heads)]
    others = [
        ((i * rows + group + part) * d, (i * rows + group + part + 1) * d)
        for part in range(2)
        for i in range(n_kv_heads)
    ]
    return queries + others


KEYS: dict[str, Source] = {
    "context_length": lambda c: c.n_ctx_train,
    "embedding_length": lambda c: c.d_model,
    "block_count": lambda c: c.n_layers,
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "attention.head_count": lambda c: c.n_heads,
    "attention.head_count_kv": lambda c: c.n_kv_heads,
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "vocab_size": "vocab_size",
}

EXPERT_KEYS: dict[str, Source] = {
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token"),
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
"""For mixtures of experts, to be merged into ``keys``."""

NORMALIZED_KEYS: dict[str, Source] = {"expert_weights_norm": lambda c: c.flag("norm_topk_prob")}
"""For those whose weights make 1 together only where config.json says so."""

ATTENTION_TENSORS: dict[str, Rule | tuple[Rule, ...]] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "model.layers.{i}.self_attn.q_proj": "blk.{i}.attn_q",
    "model.layers.{i}.self_attn.k_proj": "blk.{i}.attn_k",
    "model.layers.{i}.self_attn.v_proj": "blk.{i}.attn_v",
    "model.layers.{i}.self_attn.o_proj": "blk.{i}.attn_output",
    "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
    "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
}
"""What nearly all families call alike, without the feed-forward part."""

LLAMA_TENSORS: dict[str, Rule | tuple[Rule, ...]] = {
    **ATTENTION_TENSORS,
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
    "model.layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
    "model.layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
}

ATTENTION_BIASES: dict[str, Callable[[HfConfig], bool]] = {
    f"blk.{{i}}.attn_{part}.bias": lambda c: c.flag("attention_bias") for part in ("q", "k", "v", "output")
}
"""``present`` of families whose four matrices of attention have biases, or none has."""

EXPERT_TENSORS: dict[str, Rule | tuple[Rule, ...]] = {
    **ATTENTION_TENSORS,
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.mlp.gate": "blk.{i}.ffn_gate_inp",
    "model.layers.{i}.mlp.experts.{e}.gate_proj": "blk.{i}.ffn_gate_exps",
    "model.layers.{i}.mlp.experts.{e}.up_proj": "blk.{i}.ffn_up_exps",
    "model.layers.{i}.mlp.experts.{e}.down_proj": "blk.{i}.ffn_down_exps",
    "model.layers.{i}.mlp.experts.gate_up_proj": (
        Share("blk.{i}.ffn_gate_exps.weight", 0, 2),
        Share("blk.{i}.ffn_up_exps.weight", 1, 2),
    ),
    "model.layers.{i}.mlp.experts.down_proj": "blk.{i}.ffn_down_exps.weight",
}
"""Llama's with experts for MLPs: one by one, or stacked as transformers 5 has them in memory and may save them."""

SANDWICH_TENSORS: dict[str, Rule | tuple[Rule, ...]] = {
    **LLAMA_TENSORS,
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "model.layers.{i}.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}
"""Llama's with norms before and after each block (Gemma 2 and 3)."""
