"""What is known of a device: which kernel computes which product fastest. Plain data, kept in a folder.

There is a file per device. It counts for the driver and for the shaders that it was measured with; one that is
damaged, or of others, is as good as none and is written anew. ``wgllm.backends.tuner`` measures.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from wgllm.product_shape import REDUCE, After, Before, Choice, KernelName, Product, Target, candidates
from wgllm.quant import format_by_name
from wgllm.wgsl import shader_file

VERSION = 2
"""Of the files, and of how is measured."""

# What products are composed of, beside their kernels.
_SHADER_FOLDERS = ("inputs", "lanes", "lib", "outputs", "quant", "rows")


@dataclass(frozen=True)
class DeviceFacts:
    """What tells a device, and what it may do, from others."""

    name: str
    vendor_id: int
    device_id: int
    interface: str
    driver: str
    """With its version, in the driver's own words."""
    subgroup: int
    """The least size, 0 without subgroups; this and the limits decide which kernels there are."""
    invocations: int
    workgroup_memory: int


@dataclass(frozen=True)
class Verdict:
    """What measuring a product came to."""

    choice: Choice | None = None
    """None: the default stays, as the fastest or because time ran out."""
    default_us: float = 0.0
    """Microseconds of a dispatch with the default; 0 where it was not measured, or is wrong."""
    best_us: float = 0.0
    """The same of ``choice``."""


Table = Mapping[Product, Verdict]
"""By ``Product.bucket``."""


def choices(table: Table, target: Target) -> dict[Product, Choice]:
    """Where a device wants another kernel than the default: of those that would be measured, whatever a file says."""
    return {
        product: v.choice
        for product, v in table.items()
        if v.choice is not None and v.choice in candidates(product, target)
    }


def by_benefit(schedules: Iterable[Sequence[Product]]) -> list[Product]:
    """The distinct products (buckets) of schedules, those first that have the largest share of their schedule."""
    shares: Counter[Product] = Counter()
    for schedule in schedules:
        total = sum(p.multiplications for p in schedule)
        for product in schedule:
            shares[product.bucket] += product.multiplications / total  # type: ignore[assignment]
    return [product for product, _ in shares.most_common()]


def table_path(folder: Path, device: DeviceFacts) -> Path:
    """Where a device's table lies or will lie: one file for all versions of its driver."""
    told = {name: value for name, value in asdict(device).items() if name != "driver"}
    name = re.sub(r"\W+", "-", device.name, flags=re.ASCII).strip("-").lower()[:40] or "device"
    return folder / f"{name}-{_digest(json.dumps(told))}.json"


def read_table(folder: Path, device: DeviceFacts) -> dict[Product, Verdict]:
    """What is known of the device with this driver and these shaders; nothing where there is no sound file."""
    try:
        data = json.loads(table_path(folder, device).read_text(encoding="utf-8"))
        if data["head"] != _head(device):
            return {}
        return dict(_entry_from_json(entry) for entry in data["products"])
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        return {}


def write_table(folder: Path, device: DeviceFacts, table: Table) -> None:
    """Adds ``table`` to what the file holds. Where nothing can be written, nothing is kept."""
    path = table_path(folder, device)
    # Another process may have written since; what both measured is about the same.
    merged = {**read_table(folder, device), **table}
    entries = [_entry_to_json(product, verdict) for product, verdict in merged.items()]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    text = f'{{"head": {json.dumps(_head(device))},\n"products": [\n{lines}\n]}}\n'
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _head(device: DeviceFacts) -> dict[str, Any]:
    """What must be equal for a file to count."""
    return {"version": VERSION, "shaders": shader_version(), **asdict(device)}


@functools.cache
def shader_version() -> str:
    """A hash of all that products are composed of, so that other kernels are measured anew."""
    names = [f"kernels/{kernel}.wgsl" for kernel in (*get_args(KernelName), REDUCE)]
    root = importlib.resources.files("wgllm.shaders")
    for folder in _SHADER_FOLDERS:
        files = (file.name for file in root.joinpath(folder).iterdir())
        names += sorted(f"{folder}/{name}" for name in files if name.endswith(".wgsl"))
    return _digest("\0".join(text for name in names for text in (name, shader_file(name))))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _entry_to_json(product: Product, verdict: Verdict) -> dict[str, Any]:
    return {
        **{name: getattr(product, name) for name in ("rows", "inputs", "outputs", "before", "after")},
        "format": product.format.name,
        "choice": None if verdict.choice is None else asdict(verdict.choice),
        "default_us": round(verdict.default_us, 2),
        "best_us": round(verdict.best_us, 2),
    }


def _entry_from_json(entry: Mapping[str, Any]) -> tuple[Product, Verdict]:
    """Raises ValueError, KeyError or TypeError for what ``_entry_to_json`` did not make."""
    product = Product(
        _number(entry["rows"]), _number(entry["inputs"]), _number(entry["outputs"]),
        format_by_name(_one_of(str, entry["format"])),
        _literal(Before, entry["before"]), _literal(After, entry["after"]),
    )  # fmt: skip
    choice = None
    if (c := entry["choice"]) is not None:
        choice = Choice(
            _literal(KernelName, c["kernel"]), _number(c["workgroup"]), _number(c["rows"]),
            _number(c["outputs"]), _one_of(bool, c["subgroups"]), _number(c["splits"]),
        )  # fmt: skip
    times = (float(_one_of((int, float), entry[name])) for name in ("default_us", "best_us"))
    return product, Verdict(choice, *times)


T = TypeVar("T")


def _one_of(kind: type[T] | tuple[type[T], ...], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r}")
    return value


def _number(value: object) -> int:
    number = _one_of(int, value)
    if number < 1:
        raise ValueError(f"{number}")
    return number


def _literal(kind: Any, value: object) -> Any:
    """``value`` if it is one of a Literal's."""
    if value not in get_args(kind):
        raise ValueError(f"{value!r}")
    return value
