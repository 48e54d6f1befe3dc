"""Every shader composes to text that tint, Chromium's compiler, accepts: it is stricter than naga here and there."""

from __future__ import annotations

import contextlib
import importlib.resources
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.kernels.test_experts import KINDS, SUMMED
from tests.kernels.test_products import AFTER, BEFORE, CHOICES
from tests.web.browser import BrowserPage
from wgllm.attention_shape import state_snippet
from wgllm.fused_launches import store_snippet
from wgllm.kv_types import KV_TYPES
from wgllm.product_shape import REDUCE, Choice, Product, ShapeError, Target, shape
from wgllm.quant import QuantFormat, all_formats, format_by_name
from wgllm.wgsl import Constant, Source, compose

Constants = dict[str, Constant]

STATE: Constants = {"ROWS": 3, "KV_HEADS": 2, "HEAD_DIM": 64, "CELLS": 40}
ATTENTION: Constants = {**STATE, "HEADS": 4, "SEEN": 32}
SCALES = STATE["CELLS"] * STATE["HEAD_DIM"]

# Constants that each kernel may have: one set for kernels that stand alone …
PLAIN: dict[str, Constants] = {
    "attention_reduce": {"ROWS": 3, "HEADS": 4, "HEAD_DIM": 64, "SPLITS": 2},
    "cell_write": {"ROWS": 3, "CELLS": 40},
    "elementwise": {"COUNT": 65, "PARAMETER": 30.0, "WIDTH": 5},
    "gate_rows": {"ROWS": 3, "WIDTH": 65, "INPUTS": 33},
    "layer_norm": {"ROWS": 3, "WIDTH": 65, "EPS": 1e-5},
    "norm_add": {"ROWS": 3, "WIDTH": 65, "EPS": 1e-6, "OFFSET": 1.0},
    "mask": {"ROWS": 3, "HEADS": 4, "CELLS": 40, "SEEN": 32, "WINDOW": 8},
    "rms_norm": {"ROWS": 3, "WIDTH": 65, "EPS": 1e-6, "OFFSET": 1.0},
    "rope": {"ROWS": 3, "HEADS": 4, "HEAD_DIM": 64, "DIM": 48, "INTERLEAVED": True},
    "select_rows": {"OUT_ROWS": 2, "WIDTH": 65},
    "softmax": {"ROWS": 3, "WIDTH": 65},
    "sort_experts": {"ROWS": 9, "EXPERTS": 5, "TILE_ROWS": 4, "TILES": 6},
    "top_experts": {"ROWS": 3, "EXPERTS": 60, "COUNT": 4, "NORMALIZED": True},
    "weighted_sum": {"ROWS": 3, "COUNT": 4, "WIDTH": 65},
}
# … for those that read weights of any format, 3584 numbers of them, …
OF_WEIGHTS: dict[str, Constants] = {
    "embed": {"ROWS": 3, "WIDTH": 512, "COUNT": 7, "FIRST": 7},
}
# … for those that read KV state of any type, …
OF_STATE: dict[str, Constants] = {"attn_scores": ATTENTION, "attn_values": ATTENTION}
# … and for those that read keys of one type and values of another.
FUSED: Constants = {**ATTENTION, "SPLIT": 20, "SCALE": 0.125, "SOFTCAP": 30.0, "WINDOW": 8}
OF_TWO_STATES: dict[str, Constants] = {
    "attention_decode": {**FUSED, "HEADS_AT_ONCE": 2},
    "attention_prefill": FUSED,
}
# … and for those that write it, of one type or of two.
STORE: dict[str, Constants] = {
    "kv_write": STATE,
    "rope_write": {**STATE, "HEADS": 4, "DIM": 48, "INTERLEAVED": True},
}
# … and those that choose tokens, from logits or from what is left of them.
OF_CANDIDATES: dict[str, Constants] = {
    "best_candidates": {"COUNT": 5000, "SIZE": 1000, "KEEP": 128},
    "draw_token": {"COUNT": 600, "KEEP": 128},
    "greedy_token": {"COUNT": 600},
    "largest_candidate": {"COUNT": 5000, "SIZE": 1000},
}
# Those that `wgllm bench` measures a device with, in a folder of their own.
BENCH: dict[str, list[Constants]] = {
    "chain": [{}],
    "copy_all": [{"RUNS": runs, "WORKGROUP": 64} for runs in (False, True)],
    "fill": [{}],
    "multiply_add": [{"ROUNDS": 4}],
    "read_all": [{"RUNS": runs, "WORKGROUP": 64} for runs in (False, True)],
}
# Products have shapes.
OF_SHAPES = {choice.kernel for choice in CHOICES.values()} | {REDUCE}


def plain(kernel: str) -> Source:
    return compose(f"kernels/{kernel}.wgsl", constants=PLAIN[kernel], host="tint")


def of_weights(kernel: str, fmt: QuantFormat) -> Source:
    constants = OF_WEIGHTS[kernel] | fmt.layout(7 * 512 // fmt.block_size).constants
    return compose(f"kernels/{kernel}.wgsl", fmt.wgsl, constants=constants, host="tint")


def of_state(kernel: str, kv_type: str) -> Source:
    scales = {"SCALES": SCALES} if kv_type in ("q8_0", "q4_0") else {}
    constants = OF_STATE[kernel] | scales
    return compose(f"kernels/{kernel}.wgsl", f"kv/{kv_type}.wgsl", constants=constants, host="tint")


def of_shape(product: Product, choice: Choice) -> Iterator[Source]:
    """Of both dispatches, where there are two."""
    made = shape(product, Target(subgroup=4), choice)
    layout = product.format.layout(product.parts * 7 * 512 // product.format.block_size)
    norm = {"EPS": 1e-5, "OFFSET": 1.0} if product.before == "normed" else {}
    place = {"OUT_WIDTH": 9, "OUT_FIRST": 2}
    constants = place | made.constants | layout.constants | norm
    yield compose(*made.files, constants=constants, host="tint", features=made.features)
    if made.reduce:
        yield compose(*made.reduce.files, constants=place | made.reduce.constants, host="tint")


def of_experts(kind: str) -> Source:
    """A product of 7 outputs of 3 experts."""
    meeting, choice = KINDS[kind]
    fmt = format_by_name("Q4_1")
    made = shape(Product(64, 512, 7, fmt), Target(subgroup=4), choice, meeting)
    constants = {"SHARED": 2, "EXPERTS": 3, "FIRST_EXPERT": 2, "EXPERT_ROWS": 7, "OUT_WIDTH": 9}
    if meeting == "sorted":
        constants["TILE_ROWS"] = choice.outputs if choice.kernel == "matmul" else choice.rows
    constants |= made.constants | fmt.layout(3 * 7 * 512 // 32).constants
    return compose(*made.files, constants=constants, host="tint", features=made.features)


def of_sums(choice: Choice) -> Source:
    """The weighted sum of 2 of 3 experts."""
    fmt = format_by_name("Q4_1")
    made = shape(Product(3, 1024, 7, fmt, "weighted", "added"), Target(subgroup=4), choice, "summed")
    constants = {"CHOSEN": 2, "EXPERTS": 3, "OUT_WIDTH": 7} | made.constants
    constants |= fmt.layout(3 * 7 * 512 // 32).constants
    return compose(*made.files, constants=constants, host="tint", features=made.features)


def of_two_states(kernel: str, k_type: str, v_type: str) -> Source:
    quantized = [name for name, t in (("K", k_type), ("V", v_type)) if t in ("q8_0", "q4_0")]
    constants = OF_TWO_STATES[kernel] | {f"{name}_SCALES": SCALES for name in quantized}
    snippets = state_snippet(k_type, "k"), state_snippet(v_type, "v")
    return compose(f"kernels/{kernel}.wgsl", *snippets, constants=constants, host="tint")


def assert_accepted(page: BrowserPage, *sources: Source) -> None:
    mistakes = page.mistakes(sources)
    assert not mistakes, "\n\n".join(mistakes)


def test_every_kernel_is_listed_here() -> None:
    files = importlib.resources.files("wgllm.shaders").joinpath("kernels").iterdir()
    kernels = {f.name.removesuffix(".wgsl") for f in files if f.name.endswith(".wgsl")}
    assert (
        kernels
        == PLAIN.keys()
        | OF_WEIGHTS.keys()
        | OF_STATE.keys()
        | OF_TWO_STATES.keys()
        | STORE.keys()
        | OF_CANDIDATES.keys()
        | OF_SHAPES
    )


def test_kernels_that_measure_a_device(browser_page: BrowserPage) -> None:
    files = importlib.resources.files("wgllm.shaders").joinpath("bench").iterdir()
    assert {f.name for f in files} == {"span.wgsl", *(f"{kernel}.wgsl" for kernel in BENCH)}
    assert_accepted(
        browser_page,
        *(
            compose(f"bench/{kernel}.wgsl", constants=constants, host="tint")
            for kernel, sets in BENCH.items()
            for constants in sets
        ),
    )


def test_kernels_that_stand_alone(browser_page: BrowserPage) -> None:
    assert_accepted(browser_page, *map(plain, PLAIN))


def test_kernels_with_every_format(browser_page: BrowserPage) -> None:
    assert_accepted(
        browser_page, *(of_weights(kernel, fmt) for kernel in OF_WEIGHTS for fmt in all_formats())
    )


def test_products_with_every_format(browser_page: BrowserPage) -> None:
    products = [Product(3, 512, 7, fmt) for fmt in all_formats()]
    sources = [source for c in CHOICES.values() for p in products for source in of_shape(p, c)]
    assert_accepted(browser_page, *sources)


def test_products_with_all_that_comes_before_and_after(browser_page: BrowserPage) -> None:
    fmt = format_by_name("Q4_1")
    products = [Product(3, 512, 7, fmt, before, after) for before in BEFORE for after in AFTER]
    sources = []
    for product, choice in itertools.product(products, CHOICES.values()):
        with contextlib.suppress(ShapeError):
            sources += of_shape(product, choice)
    assert len(sources) > len(CHOICES) * len(products) / 2
    assert_accepted(browser_page, *sources)


def test_products_of_experts(browser_page: BrowserPage) -> None:
    assert_accepted(browser_page, *map(of_experts, KINDS), *map(of_sums, SUMMED.values()))


def test_kernels_with_every_kv_type(browser_page: BrowserPage) -> None:
    assert_accepted(browser_page, *(of_state(kernel, kv_type) for kernel in OF_STATE for kv_type in KV_TYPES))


def test_kernels_that_store(browser_page: BrowserPage) -> None:
    sources = []
    for kv_type, other in itertools.product(KV_TYPES, KV_TYPES):
        constants = STORE["kv_write"] | ({"SCALES": SCALES} if kv_type.startswith("q") else {})
        sources.append(
            compose("kernels/kv_write.wgsl", f"kv_store/{kv_type}.wgsl", constants=constants, host="tint")
        )
        types = {"k": kv_type, "v": other}
        scales = {f"{x.upper()}_SCALES": SCALES for x, t in types.items() if t.startswith("q")}
        for heads, norm in (("plain", {}), ("normed", {"EPS": 1e-6})):
            stores = [store_snippet(t, letter) for letter, t in types.items()]
            constants = STORE["rope_write"] | scales | norm
            files = ("kernels/rope_write.wgsl", f"heads/{heads}.wgsl", *stores)
            sources.append(compose(*files, constants=constants, host="tint"))
    assert_accepted(browser_page, *sources)


def test_kernels_with_two_kv_types(browser_page: BrowserPage) -> None:
    sources = (
        of_two_states(kernel, k_type, v_type)
        for kernel in OF_TWO_STATES
        for k_type in KV_TYPES
        for v_type in KV_TYPES
    )
    assert_accepted(browser_page, *sources)


def test_kernels_that_choose_tokens(browser_page: BrowserPage) -> None:
    sources = (
        compose(f"kernels/{kernel}.wgsl", f"candidates/{kind}.wgsl", constants=constants, host="tint")
        for kernel, constants in OF_CANDIDATES.items()
        for kind in ("logits", "pairs")
    )
    assert_accepted(browser_page, *sources)


def test_features_are_enabled_as_tint_wants_them(browser_page: BrowserPage) -> None:
    if "subgroups" not in browser_page.adapter_info()["features"]:
        pytest.skip("this adapter has no subgroups")
    text = "@compute @workgroup_size(32) fn f() { _ = subgroupAdd(1u); }\n"
    source = compose("f.wgsl", host="tint", features=["subgroups"], read=lambda name: text)
    assert_accepted(browser_page, source)


def test_what_is_broken_is_refused_with_its_place(browser_page: BrowserPage) -> None:
    text = "//!const N: u32\n\nfn f(i: u32) -> f32 {\n    return i * N;\n}\n"
    broken = compose("broken.wgsl", constants={"N": 3}, host="tint", read=lambda name: text)
    (mistake,) = browser_page.mistakes([plain("softmax"), broken, plain("mask")])
    assert mistake.startswith("broken.wgsl: broken.wgsl:4: ")
    assert "> broken.wgsl:4 |     return i * N;" in mistake


@pytest.mark.last
def test_whatever_the_tests_have_compiled(
    browser_page: BrowserPage, compiled_shaders: dict[str, Source]
) -> None:
    if not compiled_shaders:
        pytest.skip("no test has compiled a shader")
    assert_accepted(browser_page, *map(for_tint, compiled_shaders.values()))


def for_tint(source: Source) -> Source:
    """As ``compose`` makes it for tint of what it has made for naga."""
    if "subgroup" not in source.text:
        return source
    return replace(source, text=f"enable subgroups;\n{source.text}", origin=(("prelude", 0), *source.origin))
