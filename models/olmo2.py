"""OLMo 2 and 3: norms after each block and none before, all queries and all keys normed as one row; of OLMo 3 three
of four layers attend to a window."""

from __future__ import annotations

from wgllm.models.blocks import Blocks
from wgllm.models.config import Keys
from wgllm.models.hf_family import ATTENTION_BIASES, PLAIN_ROPE_TYPES, SANDWICH_TENSORS, HfFamily

ARCHITECTURES = ("olmo2",)

_BEFORE = ("input_layernorm", "pre_feedforward_layernorm")

HF = (
    HfFamily(
        model_types=("olmo2",),
        architecture="olmo2",
        tensors={name: rule for name, rule in SANDWICH_TENSORS.items() if not name.endswith(_BEFORE)},
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
        expects={"hidden_act": ("silu", "swish")},
        rope_types=PLAIN_ROPE_TYPES,
        present=ATTENTION_BIASES,
    ),
)


def build(b: Blocks) -> None:
    c = b.config
    windows = Keys(b.file).windows(c.n_layers, 4)
    x = b.embed()
    for i, window in enumerate(windows):
        b.graph.layer = i
        p = f"blk.{i}"
        # What extends the context is for layers that see all of it.
        rope = c.rope if window is None else c.rope.plain()
        y = b.attention(x, i, rope=rope, window=window, qk_norm="row")
        y = b.norm(f"{p}.attn_out.normed", y, f"{p}.post_attention_norm.weight", c.d_model)
        x = b.add(f"{p}.attn.sum", x, y)
        y = b.norm(f"{p}.ffn_out.normed", b.gated_mlp(x, i, "silu"), f"{p}.post_ffw_norm.weight", c.d_model)
        x = b.add(f"{p}.ffn.sum", x, y)
    b.head(x)
