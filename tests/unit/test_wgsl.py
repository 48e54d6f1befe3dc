"""Composing shader text: includes, constants, and the way back to the files' lines."""

from __future__ import annotations

from typing import Any

import pytest

from wgllm.wgsl import Constant, Host, Renamed, Source, WgslError, compose

FILES = {
    "main.wgsl": '// main\n//!const N: u32\n//!include "lib/a.wgsl"\nfn main() {}\n',
    "lib/a.wgsl": '//!include "lib/b.wgsl"\nfn a() {}\n//!const EPS: f32 = 1e-6\n',
    "lib/b.wgsl": "fn b() {}\n",
    "other.wgsl": '//!include "lib/b.wgsl"\nfn other() {}\n',
    "round/x.wgsl": '//!include "round/y.wgsl"\n',
    "round/y.wgsl": '//!include "round/x.wgsl"\n',
    "lost.wgsl": '//!include "nowhere.wgsl"\n',
    "typo.wgsl": '\n//!includes "lib/b.wgsl"\n',
    "again.wgsl": "//!const N: f32\n",
    "alike.wgsl": "//!const U: u32 = 1\n",
    "types.wgsl": "//!const U: u32 = 1\n//!const I: i32 = -1\n//!const F: f32 = 0.5\n//!const B: bool = true\n",
}


def read(name: str) -> str:
    try:
        return FILES[name]
    except KeyError:
        raise FileNotFoundError(name) from None


def make(*names: str | Renamed, **arguments: Any) -> Source:
    return compose(*names, read=read, **arguments)


def test_the_text_is_prelude_and_files_each_once() -> None:
    source = make("main.wgsl", "other.wgsl", constants={"N": 3})
    assert source.text.splitlines() == [
        "const N: u32 = 3;",
        "const EPS: f32 = 1e-6;",
        "// main",
        "//!const N: u32",
        '//!include "lib/a.wgsl"',
        '//!include "lib/b.wgsl"',
        "fn b() {}",
        "fn a() {}",
        "//!const EPS: f32 = 1e-6",
        "fn main() {}",
        '//!include "lib/b.wgsl"',
        "fn other() {}",
    ]
    assert source.name == "main.wgsl + other.wgsl"


def test_every_line_is_explained() -> None:
    source = make("main.wgsl", "other.wgsl", constants={"N": 3})
    lines = source.text.splitlines()
    assert len(source.origin) == len(lines)
    assert source.explain(1) == "prelude:1"
    assert source.explain(2) == "prelude:2"
    for number, line in enumerate(lines[2:], 3):
        name, at = source.explain(number).split(":")
        assert FILES[name].splitlines()[int(at) - 1] == line


def test_a_listing_shows_lines_by_their_files() -> None:
    source = make("main.wgsl", constants={"N": 3})
    assert source.listing(8, around=1) == (
        "  lib/b.wgsl:1 | fn b() {}\n> lib/a.wgsl:2 | fn a() {}\n  lib/a.wgsl:3 | //!const EPS: f32 = 1e-6"
    )
    assert source.listing(1, around=0) == "> prelude:1 | const N: u32 = 3;"
    assert source.listing(len(source.origin)).endswith("> main.wgsl:4  | fn main() {}")


@pytest.mark.parametrize(
    ("host", "features", "lines"),
    [
        ("naga", (), []),
        ("tint", (), []),
        ("naga", ("subgroups", "f16"), ["enable f16;"]),
        ("tint", ("subgroups", "f16"), ["enable subgroups;", "enable f16;"]),
    ],
)
def test_extensions_are_enabled_as_the_host_wants(
    host: Host, features: tuple[str, ...], lines: list[str]
) -> None:
    text = make("lib/b.wgsl", host=host, features=features).text
    assert text.splitlines() == [*lines, "fn b() {}"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("U", 4294967295, "U: u32 = 4294967295;"),
        ("I", -2147483648, "I: i32 = -2147483648;"),
        ("F", 1, "F: f32 = 1.0;"),
        ("F", 1e-6, "F: f32 = 9.999999974752427e-07;"),  # the float32 next to it, exactly
        ("F", 3.4028234663852886e38, "F: f32 = 3.4028234663852886e+38;"),
        ("B", False, "B: bool = false;"),
    ],
)
def test_constants_as_literals(name: str, value: Constant, text: str) -> None:
    assert f"const {text}\n" in make("types.wgsl", constants={name: value}).text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("U", -1), ("U", 1 << 32), ("U", 1.0), ("U", True)),
        *(("I", 1 << 31), ("I", False)),
        *(("F", float("inf")), ("F", float("nan")), ("F", 1e39), ("F", True)),
        *(("B", 1),),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: Constant) -> None:
    with pytest.raises(WgslError, match=rf"types\.wgsl:\d: {name} is "):
        make("types.wgsl", constants={name: value})


@pytest.mark.parametrize(
    ("names", "constants", "message"),
    [
        (("main.wgsl",), {}, r"main\.wgsl:2: N is not given"),
        (("main.wgsl",), {"N": 1, "M": 1}, r"main\.wgsl has no constant M"),
        (
            ("main.wgsl", "again.wgsl"),
            {"N": 1},
            r"again\.wgsl:1: N is declared in another way at main\.wgsl:2",
        ),
        (("round/x.wgsl",), {}, r"go round: round/x\.wgsl > round/y\.wgsl > round/x\.wgsl"),
        (("lost.wgsl",), {}, r"no shader file nowhere\.wgsl, which lost\.wgsl includes"),
        (("typo.wgsl",), {}, r"typo\.wgsl:2: can't read //!includes"),
    ],
)
def test_mistakes_are_named(names: tuple[str, ...], constants: dict[str, Constant], message: str) -> None:
    with pytest.raises(WgslError, match=message):
        make(*names, constants=constants)


def test_a_constant_may_be_declared_twice_alike() -> None:
    text = make("types.wgsl", "alike.wgsl").text
    assert text.count("const U: u32 = 1;") == 1


def test_the_packages_own_files_are_found() -> None:
    source = compose("lib/math.wgsl")
    assert "fn safe_tanh" in source.text
    with pytest.raises(WgslError, match=r"no shader file lib/nothing\.wgsl"):
        compose("lib/nothing.wgsl")


def test_a_file_stands_twice_with_other_words() -> None:
    twice = [Renamed("state.wgsl", (("state", x), ("at", f"{x}_at"), ("N", f"{x.upper()}_N"))) for x in "kv"]
    files = {
        "state.wgsl": (
            '//!const N: u32\n//!const M: u32 = 4\n//!include "state/at.wgsl"\n'
            "fn state() -> u32 { return at; }\n"
        ),
        "state/at.wgsl": "const at = state_at[N + M];\n",
    }
    source = compose(*twice, twice[0], constants={"K_N": 1, "V_N": 2}, read=files.__getitem__)
    assert [line for line in source.text.splitlines() if not line.startswith("//!")] == [
        "const K_N: u32 = 1;",
        "const M: u32 = 4;",
        "const V_N: u32 = 2;",
        "const k_at = state_at[K_N + M];",
        "fn k() -> u32 { return k_at; }",
        "const v_at = state_at[V_N + M];",
        "fn v() -> u32 { return v_at; }",
    ]
    assert source.name == "state.wgsl + state.wgsl + state.wgsl"
    assert source.explain(len(source.text.splitlines())) == "state.wgsl:4"
