"""Which kernel computes a product, with which constants and in how many workgroups. Plain arithmetic.

``shaders/lib/product.wgsl`` says what products share. Kernels for them:

- ``matvec``: one invocation per number; any width
- ``matvec_wide``: a workgroup per few outputs of few rows, on graphics cards
- ``matmul``: tiles in workgroup memory, for many rows on graphics cards; where tiles are few, their inputs in parts
  (split-K), which ``matmul_reduce`` adds up
- ``matmul_software``: tiles in registers, on processors that imitate a card
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from wgllm.plan import Limits, PlanError, step_widths
from wgllm.quant import QuantFormat

KernelName = Literal["matvec", "matvec_wide", "matmul", "matmul_software"]
REDUCE = "matmul_reduce"
"""The kernel of the second dispatch of a product in splits."""
Before = Literal["plain", "normed", "weighted"]
After = Literal["plain", "biased", "added", "biased_added", "gated_silu", "gated_gelu_tanh"]
Meeting = Literal["whole", "chosen", "sorted", "summed"]
"""Which rows of x meet which of w: a file of ``shaders/rows``. All but ``whole`` have experts."""
_OF_MEETING: Mapping[Meeting, tuple[str, ...]] = {
    "whole": (),
    "chosen": ("ids",),
    "sorted": ("sorted",),
    "summed": ("ids", "shares"),
}

_GROUP = 32
FEW_ROWS = 8
"""Of more rows, a graphics card makes tiles."""
# A card with fewer workgroups than this has idle cores.
_MANY_TILES = 64
_MANY_WORKGROUPS = 1024
# More workgroups than this gain nothing by more splits. It bounds partial sums too: to 4 MiB.
_MOST_PARTS = 256
# The least groups of 32 inputs for a split, and those that are worth a second dispatch even where none was measured.
_SPLIT_GROUPS, _SURE_SPLIT_GROUPS = 8, 16
# Software has few cores: as many workgroups as this share the work among them.
_SOFTWARE_WORKGROUPS = 16
_REDUCE_WORKGROUP = 64


class ShapeError(PlanError):
    """A choice that a product or a device does not allow."""


@dataclass(frozen=True)
class Product:
    """y = f(x wᵀ), for a part of w that one binding holds."""

    rows: int
    inputs: int
    outputs: int
    format: QuantFormat
    before: Before = "plain"
    """What becomes of x: a file of ``shaders/inputs``."""
    after: After = "plain"
    """What becomes of the products: a file of ``shaders/outputs``."""

    @property
    def parts(self) -> int:
        """Rows of w for an output: gate and up, or one."""
        return 2 if self.after.startswith("gated") else 1

    @property
    def multiplications(self) -> int:
        return self.parts * self.rows * self.inputs * self.outputs

    @property
    def bindings(self) -> tuple[str, ...]:
        """What is bound, by number."""
        normed = ("norm",) if self.before == "normed" else ()
        bias = ("bias",) if self.after.startswith("biased") else ()
        residual = ("residual",) if self.after.endswith("added") else ()
        return ("weights", "x", "y", *normed, *bias, *residual)

    @property
    def bucket(self) -> Product:
        """What stands for this product where choices are looked up: rows are a power of two, as schedules have them."""
        return replace(self, rows=_power_of_two(self.rows))


@dataclass(frozen=True)
class Choice:
    """A kernel and its tile."""

    kernel: KernelName
    workgroup: int = 64
    """Invocations; of ``matmul``, what follows from the tile."""
    rows: int = 1
    """Of a tile of ``matvec_wide``, else of an invocation."""
    outputs: int = 1
    """Of a tile of ``matvec_wide`` or ``matmul``, else of an invocation."""
    subgroups: bool = False
    splits: int = 1
    """Parts of the inputs, each with workgroups of its own; of ``matmul``."""


_TILES = (Choice("matmul", 64, 4, 32), Choice("matmul", 256, 4, 64), Choice("matmul", 128, 8, 64))
SMALL_TILE, _, LARGE_TILE = _TILES


@dataclass(frozen=True)
class Target:
    """What a device can do, and what is known of it."""

    limits: Limits = field(default_factory=Limits)
    software: bool = False
    """A processor that imitates a graphics card."""
    subgroup: int = 0
    """The least number of invocations in a subgroup; 0 where shaders have no subgroups."""
    choices: Mapping[Product, Choice] = field(default_factory=dict)
    """What was measured to be fastest, by ``Product.bucket``."""


@dataclass(frozen=True)
class Reduce:
    """The dispatch that adds partial sums up, and writes y."""

    files: tuple[str, ...]
    entry: str
    constants: dict[str, int]
    """But for where in y the outputs lie."""
    bindings: tuple[str, ...]
    """What is bound, by number."""
    groups: int


@dataclass(frozen=True)
class Shape:
    """What a plan needs to know of a product's dispatch; of both of them, where it is in splits."""

    files: tuple[str, ...]
    entry: str
    constants: dict[str, int]
    """But for those of the format's planes, the norm, and where in y the outputs lie; what stands here of that, for
    partial sums, overrules it."""
    bindings: tuple[str, ...]
    """What is bound, by number: ``Product.bindings``, with those of the meeting after the first three; or weights, x
    and partial_sums."""
    features: tuple[str, ...]
    """Of WGSL."""
    groups: int
    """Workgroups; kernels do with fewer."""
    memory: int
    """Bytes of workgroup memory."""
    scratch: int = 0
    """Bytes of partial sums; 0 without."""
    reduce: Reduce | None = None


def shape(
    product: Product, target: Target, choice: Choice | None = None, meeting: Meeting = "whole"
) -> Shape:
    """The product with ``choice``, or with what is best as far as one knows. Raises ShapeError."""
    chosen = choice or _measured(product, target) or default(product, target)
    if problem := _problem(product, target, chosen):
        raise ShapeError(f"{chosen.kernel} for {product.rows} rows of {product.inputs}: {problem}")
    files = [
        f"kernels/{chosen.kernel}.wgsl",
        product.format.wgsl,
        f"rows/{meeting}.wgsl",
        f"inputs/{product.before}.wgsl",
        f"outputs/{'plain' if chosen.splits > 1 else product.after}.wgsl",
    ]
    if chosen.kernel == "matvec_wide":
        files.append(f"lanes/sums_{'subgroups' if chosen.subgroups else 'workgroup'}.wgsl")
    if chosen.kernel == "matmul_software":
        files.append(f"lanes/inputs_{'shared' if chosen.subgroups else 'own'}.wgsl")
    return Shape(
        tuple(files),
        chosen.kernel,
        {"ROWS": product.rows, "INPUTS": product.inputs, "OUTPUTS": product.outputs}
        | _tile_constants(chosen, target)
        | _split_constants(product, chosen),
        (*product.bindings[:3], *_OF_MEETING[meeting], *product.bindings[3:])
        if chosen.splits == 1
        else ("weights", "x", "partial_sums"),
        ("subgroups",) if chosen.subgroups else (),
        min(_tiles(product, chosen) * chosen.splits, target.limits.workgroups),
        _memory(product, chosen),
        _scratch(product, chosen),
        _reduce(product, target, chosen) if chosen.splits > 1 else None,
    )


def most_partial_sums(product: Product, target: Target) -> int:
    """Bytes of partial sums that suffice for all widths of step up to the product's rows, whatever is chosen."""
    return 0 if target.software else _most_partial_sums(product, target.limits)


@functools.lru_cache(maxsize=256)  # the layers of a model are alike
def _most_partial_sums(product: Product, limits: Limits) -> int:
    return max(
        _scratch(narrower, replace(tile, splits=splits))
        for narrower in (replace(product, rows=rows) for rows in step_widths(product.rows))
        for tile in _TILES
        for splits in _splits(narrower, Target(limits), tile)
    )


def _measured(product: Product, target: Target) -> Choice | None:
    """What the device is known to do best, if it may be done with these rows and limits."""
    choice = target.choices.get(product.bucket)
    if (
        choice is None
        or _problem(product, target, choice)
        or choice.splits not in _splits(product, target, choice)
    ):
        return None
    return choice


def default(product: Product, target: Target) -> Choice:
    """The choice for a device that has not been measured."""
    if product.inputs % _GROUP:
        return Choice("matvec")
    if target.software:
        return _software(product, target)
    if product.rows > FEW_ROWS and product.parts == 1 and product.before == "plain":
        fits = not _problem(product, target, LARGE_TILE) and _tiles(product, LARGE_TILE) >= _MANY_TILES
        return LARGE_TILE if fits else _in_splits(product, target, SMALL_TILE)
    groups = product.inputs // _GROUP
    workgroup = 32 if groups < 64 else 64 if groups < 256 else 128
    outputs = 4
    while outputs * product.parts > 4 or (outputs > 1 and product.outputs < outputs * _MANY_WORKGROUPS):
        outputs //= 2
    rows = min(_power_of_two(product.rows), 4)
    # Subgroups are for devices where they have been measured.
    return Choice("matvec_wide", workgroup, rows, outputs)


def candidates(product: Product, target: Target) -> Iterator[Choice]:
    """Choices that are worth measuring, ``default`` first."""
    first = default(product, target)
    if first.kernel == "matmul":
        # Kernels for few rows lose by far where there are many, and may keep a card busy for seconds.
        tiles = [tile for tile in _TILES if not _problem(product, target, tile)]
        split = (replace(tile, splits=n) for tile in tiles for n in _splits(product, target, tile))
        yield from dict.fromkeys((first, *split))
        return
    found = [first, Choice("matvec")]
    rows = min(_power_of_two(product.rows), 8)
    for subgroups in (False, True) if target.subgroup else (False,):
        for outputs in (1, 2, 4, 8):
            for workgroup in (16, 32, 64, 128, 256):
                found += [
                    Choice("matmul_software", workgroup, rows, outputs, subgroups),
                    Choice("matvec_wide", workgroup, min(rows, 4), outputs, subgroups),
                ]
    for choice in dict.fromkeys((*found, *_TILES)):
        # Kernels of the other kind of device lose by far.
        other = "matvec_wide" if target.software else "matmul_software"
        if choice.kernel != other and not _problem(product, target, choice):
            yield choice


def worth_fusing(product: Product, target: Target) -> bool:
    """Whether a norm before a product belongs into the product's kernel on this device.

    Software has few workgroups to hide what each would do again: there it costs a third of the speed.
    """
    return product.inputs % _GROUP == 0 and not target.software and product.rows <= FEW_ROWS


def _software(product: Product, target: Target) -> Choice:
    shared = target.subgroup >= 4
    rows = min(_power_of_two(product.rows), 8 if shared else 4)
    choice = Choice("matmul_software", 64, rows, 4 // product.parts, shared)
    for workgroup in (64, 32, 16):
        choice = Choice("matmul_software", workgroup, rows, 4 // product.parts, shared)
        if _tiles(product, choice) >= _SOFTWARE_WORKGROUPS:
            break
    return choice


def _splits(product: Product, target: Target, choice: Choice) -> Iterator[int]:
    """The numbers of splits that a plan may have with the tile of ``choice``: 1, and more where tiles are few."""
    yield 1
    for splits in (2, 4, 8) if product.rows > FEW_ROWS else ():
        few = _tiles(product, choice) * splits <= _MOST_PARTS
        long = product.inputs // _GROUP >= splits * _SPLIT_GROUPS
        if few and long and not _problem(product, target, replace(choice, splits=splits)):
            yield splits


def _in_splits(product: Product, target: Target, tile: Choice) -> Choice:
    """``tile`` with as many splits as clearly help on a card: it has cores for all parts, and these are long."""
    best = tile
    for splits in _splits(product, target, tile):
        parts, groups = _tiles(product, tile) * splits, product.inputs // _GROUP
        if parts <= _MANY_TILES and groups >= splits * _SURE_SPLIT_GROUPS:
            best = replace(tile, splits=splits)
    return best


def _tile_constants(choice: Choice, target: Target) -> dict[str, int]:
    if choice.kernel == "matvec":
        return {"WORKGROUP": choice.workgroup}
    if choice.kernel == "matvec_wide":
        return {
            "WORKGROUP": choice.workgroup,
            "ROWS_AT_ONCE": choice.rows,
            "OUTPUTS_AT_ONCE": choice.outputs,
        }
    if choice.kernel == "matmul":
        return {"TILE": choice.outputs, "ROWS_EACH": choice.rows}
    lanes = {"LANES": min(target.subgroup, 8)} if choice.subgroups else {}
    return {
        "WORKGROUP": choice.workgroup,
        "ROWS_EACH": choice.rows,
        "OUTPUTS_EACH": choice.outputs,
        **lanes,
    }


def _split_constants(product: Product, choice: Choice) -> dict[str, int]:
    if choice.splits == 1:
        return {}
    return {"SPLITS": choice.splits, "OUT_WIDTH": product.outputs, "OUT_FIRST": 0}


def _reduce(product: Product, target: Target, choice: Choice) -> Reduce:
    return Reduce(
        (f"kernels/{REDUCE}.wgsl", f"outputs/{product.after}.wgsl"),
        REDUCE,
        {
            "ROWS": product.rows,
            "OUTPUTS": product.outputs,
            "SPLITS": choice.splits,
            "WORKGROUP": _REDUCE_WORKGROUP,
        },
        ("partial_sums", *product.bindings[2:]),
        min(-(-product.rows * product.outputs // _REDUCE_WORKGROUP), target.limits.workgroups),
    )


def _scratch(product: Product, choice: Choice) -> int:
    return 4 * choice.splits * product.rows * product.outputs if choice.splits > 1 else 0


def _tiles(product: Product, choice: Choice) -> int:
    """Of a split."""
    rows, outputs = {
        "matvec": (1, choice.workgroup),
        "matvec_wide": (choice.rows, choice.outputs),
        "matmul": (choice.outputs, choice.outputs),
        "matmul_software": (choice.rows, choice.workgroup * choice.outputs),
    }[choice.kernel]
    return -(-product.rows // rows) * -(-product.outputs // outputs)


def _sums(product: Product, choice: Choice) -> int:
    """That a workgroup of matvec_wide makes."""
    return choice.rows * (product.parts * choice.outputs + (product.before == "normed"))


def _memory(product: Product, choice: Choice) -> int:
    if choice.kernel == "matmul":
        return 2 * choice.outputs * _GROUP * 4
    reduced = 4 * choice.workgroup if product.before == "normed" else 0
    if choice.kernel != "matvec_wide":
        return reduced
    shares = choice.workgroup // 4 if choice.subgroups else choice.workgroup
    return 4 * shares * _sums(product, choice) + reduced


def _problem(product: Product, target: Target, choice: Choice) -> str | None:
    """What does not go with what, or None."""
    products = product.parts * choice.outputs
    if product.inputs % _GROUP and (choice.kernel != "matvec" or product.inputs % product.format.block_size):
        return f"rows are not multiples of {_GROUP}"
    if product.before == "normed" and product.inputs % 4:
        return "rows are not multiples of 4"
    if choice.workgroup > target.limits.invocations:
        return f"a workgroup of {choice.workgroup}"
    if _power_of_two(choice.workgroup) != choice.workgroup:
        return f"{choice.workgroup} is no power of two"
    if _memory(product, choice) > target.limits.workgroup_memory:
        return f"{_memory(product, choice)} bytes of workgroup memory"
    if choice.subgroups and target.subgroup < 4:
        return "no subgroups of 4 or more"
    if choice.kernel == "matmul":
        if product.parts > 1 or product.before != "plain":
            return f"{product.before} rows to {product.after} outputs"
        if replace(choice, subgroups=False, splits=1) not in _TILES:
            return f"a tile of {choice.outputs}, {choice.rows} rows each, {choice.workgroup} invocations"
    if choice.splits != 1 and (problem := _split_problem(product, target, choice)):
        return problem
    if choice.kernel == "matvec_wide":
        if products not in (1, 2, 4, 8) or choice.rows not in (1, 2, 4):
            return f"a tile of {choice.rows} rows and {choice.outputs} outputs"
        if _sums(product, choice) > choice.workgroup:
            return f"{_sums(product, choice)} sums for {choice.workgroup} invocations"
    if choice.kernel == "matmul_software" and (products not in (1, 2, 4) or choice.rows not in (1, 2, 4, 8)):
        return f"{choice.rows} rows and {choice.outputs} outputs each"
    return None


def _split_problem(product: Product, target: Target, choice: Choice) -> str | None:
    if choice.kernel != "matmul" or choice.splits not in (2, 4, 8):
        return f"{choice.splits} splits"
    if target.software:  # it has few cores
        return "splits on a processor"
    if choice.splits > product.inputs // _GROUP:
        return f"{choice.splits} splits of {product.inputs // _GROUP} groups"
    if _scratch(product, choice) > min(target.limits.binding, target.limits.buffer):
        return f"{_scratch(product, choice)} bytes of partial sums"
    return None


def _power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << (n - 1).bit_length()
