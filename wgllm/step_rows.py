"""How many rows a prefill step may have on a device: what its memory and the patience of its driver allow."""

from __future__ import annotations

import math
from collections.abc import Callable

from wgllm.cache import cell_counts
from wgllm.graph import Graph, Node
from wgllm.lowering import PlanOptions, widest_step
from wgllm.plan import Limits

# Multiplications in a dispatch; a slow integrated card makes some 1e11 a second.
_LARGEST_DISPATCH = 2e10


def step_rows(
    graph: Graph,
    fused: Graph,
    most: int,
    ctx: int,
    limits: Limits,
    kv_type_of: Callable[[str], str],
) -> int:
    """Rows of the widest step of a graph, which is ``fused`` for the device: at most ``most``."""
    rows = min(most, ctx)
    sizes = cell_counts(graph.windows, ctx, rows, slots=1)
    rows = widest_step(fused, PlanOptions(sizes, ctx, rows, kv_type_of, limits))
    # A product of r rows is one dispatch, which can't be cut, and systems reset a card that is busy for seconds.
    widest = max((weight_size(graph, n) for n in graph.nodes), default=0)
    while rows > 1 and rows * widest > _LARGEST_DISPATCH:
        rows = (rows + 1) // 2
    return rows


def weight_size(graph: Graph, node: Node) -> int:
    """Numbers of the matrix, or of the chosen experts, that each row of a step is multiplied with; two where gate
    and up are read together."""
    if node.op not in ("matmul", "expert_matmul") or node.layer is None:
        return 0
    numbers = math.prod(d for d in graph.tensors[node.inputs[1]].shape if isinstance(d, int))
    return int(2 * numbers * graph.share_read(node))
