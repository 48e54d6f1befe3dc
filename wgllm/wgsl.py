"""Shader files to the final WGSL text for one host, with the way back from its lines to the files'.

Shader files are plain WGSL with two kinds of comment that count, each a whole line::

    //!include "lib/reduce.wgsl"      that file's lines, here; once, however often it is asked for
    //!const EPS: f32                 a constant that the caller gives
    //!const OFFSET: f32 = 0.0        … or may give

A file may also be taken with some of its words replaced by others (``Renamed``), so that a shader has it twice: access
to keys and to values. Paths are relative to the folder of shaders. All declared constants stand in a prelude, after the
``enable`` lines that the host wants. Nothing here knows a device: the text goes to wgpu or to a browser.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Host = Literal["naga", "tint"]
Constant = bool | int | float

# naga refuses `enable subgroups;` and knows the functions without, tint requires it.
_ENABLE: Mapping[str, Mapping[Host, str]] = {
    "f16": {"naga": "enable f16;", "tint": "enable f16;"},
    "subgroups": {"naga": "", "tint": "enable subgroups;"},
}
_INCLUDE = re.compile(r'//!include "([\w./]+)"')
_CONST = re.compile(r"//!const (\w+): (bool|u32|i32|f32)(?: = (\S+))?")


class WgslError(ValueError):
    """A shader file or a call for one that is wrong; a mistake in wgllm, not of a user."""


@dataclass(frozen=True)
class Renamed:
    """A shader file, with whole words of it, and of what it includes, replaced by others."""

    name: str
    words: tuple[tuple[str, str], ...]
    """Each word and what stands for it."""


@dataclass(frozen=True)
class Source:
    """Final WGSL text."""

    text: str
    origin: tuple[tuple[str, int], ...]
    """The file and line number that each line of ``text`` comes from."""
    name: str
    """The files that were asked for, as ``kernels/matvec.wgsl + quant/q4_0.wgsl``."""

    def explain(self, line: int) -> str:
        """Where line ``line`` (from 1) of the text comes from, as ``kernels/matvec.wgsl:17``."""
        name, number = self.origin[line - 1]
        return f"{name}:{number}"

    def listing(self, line: int, around: int = 3) -> str:
        """The lines near ``line``, numbered as in their files, with a mark at ``line``."""
        lines = self.text.splitlines()
        low, high = max(1, line - around), min(len(lines), line + around)
        width = max(len(self.explain(i)) for i in range(low, high + 1))
        return "\n".join(
            f"{'>' if i == line else ' '} {self.explain(i):{width}} | {lines[i - 1]}".rstrip()
            for i in range(low, high + 1)
        )


@functools.cache
def shader_file(name: str) -> str:
    """The text of a shader file, such as ``kernels/matvec.wgsl``. Raises FileNotFoundError."""
    return importlib.resources.files("wgllm.shaders").joinpath(name).read_text(encoding="utf-8")


def compose(
    *files: str | Renamed,
    constants: Mapping[str, Constant] | None = None,
    host: Host = "naga",
    features: Iterable[str] = (),
    read: Callable[[str], str] = shader_file,
) -> Source:
    """The ``files`` one after the other, with what they include and ``constants`` (a kernel and its format).

    ``features`` are the names of WGSL extensions that the shader uses: ``f16``, ``subgroups``. Raises WgslError for
    a constant that is missing, unknown or of another type, and for includes that are missing or go round.
    """
    wanted = [file if isinstance(file, Renamed) else Renamed(file, ()) for file in files]
    name = " + ".join(file.name for file in wanted)
    found = _Files(read)
    for file in wanted:
        found.add(file, ())
    given = dict(constants or {})
    prelude = [line for feature in features if (line := _ENABLE[feature][host])]
    for const in found.constants.values():
        if const.name in given:
            value = _literal(const, given.pop(const.name))
        elif const.default is not None:
            value = const.default
        else:
            raise WgslError(f"{const.place}: {const.name} is not given")
        prelude.append(f"const {const.name}: {const.type} = {value};")
    if given:
        raise WgslError(f"{name} has no constant {', '.join(sorted(given))}")
    origin = [("prelude", i + 1) for i in range(len(prelude))] + found.origin
    return Source("\n".join([*prelude, *found.lines]) + "\n", tuple(origin), name)


@dataclass(frozen=True)
class _Const:
    name: str
    type: str
    default: str | None
    place: str = field(compare=False)


class _Files:
    """Lines of the files so far, and the constants that they declare."""

    def __init__(self, read: Callable[[str], str]) -> None:
        self.lines: list[str] = []
        self.origin: list[tuple[str, int]] = []
        self.constants: dict[str, _Const] = {}
        self._read = read
        self._done: set[Renamed] = set()

    def add(self, file: Renamed, within: tuple[str, ...]) -> None:
        """``within``: the files that are being included, outermost first."""
        name = file.name
        if name in within:
            raise WgslError(f"includes go round: {' > '.join((*within, name))}")
        if file in self._done:
            return
        self._done.add(file)
        try:
            text = self._read(name)
        except OSError as error:
            by = f", which {within[-1]} includes" if within else ""
            raise WgslError(f"no shader file {name}{by}") from error
        words = dict(file.words)
        for number, line in enumerate(text.splitlines(), 1):
            include = _INCLUDE.fullmatch(line.rstrip())
            if words and not include:
                line = re.sub(r"\w+", lambda word: words.get(word[0], word[0]), line)
            self.lines.append(line)
            self.origin.append((name, number))
            if not line.startswith("//!"):
                continue
            if include:
                self.add(Renamed(include[1], file.words), (*within, name))
            elif match := _CONST.fullmatch(line.rstrip()):
                self._declare(_Const(match[1], match[2], match[3], f"{name}:{number}"))
            else:
                raise WgslError(f"{name}:{number}: can't read {line.strip()}")

    def _declare(self, const: _Const) -> None:
        known = self.constants.setdefault(const.name, const)
        if known != const:
            raise WgslError(f"{const.place}: {const.name} is declared in another way at {known.place}")


def _literal(const: _Const, value: Constant) -> str:
    """``value`` as WGSL of the constant's type."""
    if const.type == "bool" and isinstance(value, bool):
        return "true" if value else "false"
    if const.type == "f32" and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            (rounded,) = struct.unpack("f", struct.pack("f", value))
        except OverflowError:
            rounded = float("inf")
        if abs(rounded) < float("inf"):  # WGSL has no literals for the others
            return repr(rounded)
    if const.type in ("u32", "i32") and isinstance(value, int) and not isinstance(value, bool):
        low, high = (0, 1 << 32) if const.type == "u32" else (-(1 << 31), 1 << 31)
        if low <= value < high:
            return str(value)
    raise WgslError(f"{const.place}: {const.name} is {const.type}, which {value!r} is not")
