"""Which kernel computes a product, with which constants and in how many workgroups. Plain arithmetic.

``shaders/lib/product.wgsl`` says what products share. Kernels for them:

- ``matvec``: one invocation per number; any width
- ``matvec_wide``: a workgroup per few outputs of few rows, on graphics cards
- ``matmul``: tiles in workgroup memory, for many rows on graphics cards
- ``matmul_software``: tiles in registers, on processors that imitate a card
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from wgllm.plan import Limits, PlanError
from wgllm.quant import QuantFormat

KernelName = Literal["matvec", "matvec_wide", "matmul", "matmul_software"]
Before = Literal["plain", "normed"]
After = Literal["plain", "biased", "added", "biased_added", "gated_silu", "gated_gelu_tanh"]

_GROUP = 32
# Of more rows, a graphics card makes tiles.
_FEW_ROWS = 8
# A card with fewer workgroups than this has idle cores.
_MANY_TILES = 64
_MANY_WORKGROUPS = 1024
# Software has few cores: as many workgroups as this share the work among them.
_SOFTWARE_WORKGROUPS = 16


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
class Shape:
    """What a plan needs to know of a product's dispatch."""

    files: tuple[str, ...]
    entry: str
    constants: dict[str, int]
    """But for those of the format's planes, the norm, and where in y the outputs lie."""
    features: tuple[str, ...]
    """Of WGSL."""
    groups: int
    """Workgroups; kernels do with fewer."""
    memory: int
    """Bytes of workgroup memory."""


def shape(product: Product, target: Target, choice: Choice | None = None) -> Shape:
    """The product with ``choice``, or with what is best as far as one knows. Raises ShapeError."""
    chosen = choice or _measured(product, target) or default(product, target)
    if problem := _problem(product, target, chosen):
        raise ShapeError(f"{chosen.kernel} for {product.rows} rows of {product.inputs}: {problem}")
    files = [
        f"kernels/{chosen.kernel}.wgsl",
        product.format.wgsl,
        f"inputs/{product.before}.wgsl",
        f"outputs/{product.after}.wgsl",
    ]
    if chosen.kernel == "matvec_wide":
        files.append(f"lanes/sums_{'subgroups' if chosen.subgroups else 'workgroup'}.wgsl")
    if chosen.kernel == "matmul_software":
        files.append(f"lanes/inputs_{'shared' if chosen.subgroups else 'own'}.wgsl")
    return Shape(
        tuple(files),
        chosen.kernel,
        {"ROWS": product.rows, "INPUTS": product.inputs, "OUTPUTS": product.outputs}
        | _tile_constants(chosen, target),
        ("subgroups",) if chosen.subgroups else (),
        min(_tiles(product, chosen), target.limits.workgroups),
        _memory(product, chosen),
    )


def _measured(product: Product, target: Target) -> Choice | None:
    """What the device is known to do best, if it may be done with these rows and limits."""
    choice = target.choices.get(product.bucket)
    return None if choice is None or _problem(product, target, choice) else choice


def default(product: Product, target: Target) -> Choice:
    """The choice for a device that has not been measured."""
    if product.inputs % _GROUP:
        return Choice("matvec")
    if target.software:
        return _software(product, target)
    if product.rows > _FEW_ROWS and product.parts == 1 and product.before == "plain":
        large = Choice("matmul", 128, 8, 64)
        fits = not _problem(product, target, large) and _tiles(product, large) >= _MANY_TILES
        return large if fits else Choice("matmul", 64, 4, 32)
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
    tiles = [Choice("matmul", 64, 4, 32), Choice("matmul", 256, 4, 64), Choice("matmul", 128, 8, 64)]
    if first.kernel == "matmul":
        # Kernels for few rows lose by far where there are many, and may keep a card busy for seconds.
        yield from dict.fromkeys((first, *(c for c in tiles if not _problem(product, target, c))))
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
    for choice in dict.fromkeys(found + tiles):
        # Kernels of the other kind of device lose by far.
        other = "matvec_wide" if target.software else "matmul_software"
        if choice.kernel != other and not _problem(product, target, choice):
            yield choice


def worth_fusing(product: Product, target: Target) -> bool:
    """Whether a norm before a product belongs into the product's kernel on this device.

    Software has few workgroups to hide what each would do again: there it costs a third of the speed.
    """
    return product.inputs % _GROUP == 0 and not target.software and product.rows <= _FEW_ROWS


def _software(product: Product, target: Target) -> Choice:
    shared = target.subgroup >= 4
    rows = min(_power_of_two(product.rows), 8 if shared else 4)
    choice = Choice("matmul_software", 64, rows, 4 // product.parts, shared)
    for workgroup in (64, 32, 16):
        choice = Choice("matmul_software", workgroup, rows, 4 // product.parts, shared)
        if _tiles(product, choice) >= _SOFTWARE_WORKGROUPS:
            break
    return choice


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


def _tiles(product: Product, choice: Choice) -> int:
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
        if product.parts > 1 or product.before == "normed":
            return f"{product.before} rows to {product.after} outputs"
        if (choice.rows, choice.outputs, choice.workgroup) not in ((4, 32, 64), (4, 64, 256), (8, 64, 128)):
            return f"a tile of {choice.outputs}, {choice.rows} rows each, {choice.workgroup} invocations"
    if choice.kernel == "matvec_wide":
        if products not in (1, 2, 4, 8) or choice.rows not in (1, 2, 4):
            return f"a tile of {choice.rows} rows and {choice.outputs} outputs"
        if _sums(product, choice) > choice.workgroup:
            return f"{_sums(product, choice)} sums for {choice.workgroup} invocations"
    if choice.kernel == "matmul_software" and (products not in (1, 2, 4) or choice.rows not in (1, 2, 4, 8)):
        return f"{choice.rows} rows and {choice.outputs} outputs each"
    return None


def _power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << (n - 1).bit_length()
