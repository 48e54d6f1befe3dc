"""What a template may use of time and memory, and the calls in its syntax tree that see to it."""

from __future__ import annotations

import sys
import time
from collections.abc import ItemsView, KeysView, Mapping, Sequence, Set, ValuesView
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

_MAX_DEPTH = 64


class TemplateLimitError(TemplateError):
    """A template took more than it is allowed to."""


class Refusal(TemplateError):
    """The template called ``raise_exception``."""


class Budget:
    """What one rendering may still use. It grows with what the template was given."""

    def __init__(self, items: int, input_bytes: int) -> None:
        self.steps = 400_000 + 4_000 * items
        # Templates that append to one text for each message make something of its size each time.
        self.bytes = (16 << 20) + 24 * input_bytes + min(items * input_bytes // 4, 256 << 20)
        self.weight = 50_000 + 4 * items + input_bytes
        self.seconds = 0.3 + 0.001 * items
        self.start = time.thread_time()
        self.look = time.perf_counter() + self.seconds

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateLimitError("takes too many steps")
        # The wall clock is cheap to read, but a process may have been stopped: then the CPU's clock decides.
        if time.perf_counter() > self.look:
            left = self.seconds - (time.thread_time() - self.start)
            if left <= 0:
                raise TemplateLimitError("takes too long")
            self.look = time.perf_counter() + left

    def take(self, size: int) -> None:
        """Charges ``size`` bytes."""
        self.bytes -= size
        if self.bytes < 0:
            raise TemplateLimitError("makes too much text")

    def made(self, value: Any) -> Any:
        """Charges a value that was made."""
        if isinstance(value, (str, list, tuple, dict)):
            self.take(sys.getsizeof(value))
        return value

    def weigh(self, value: Any) -> int:
        """Characters and elements of ``value`` as its text would have them, each as often as it appears."""
        if isinstance(value, str):
            return len(value)
        characters, elements, _ = self.measure(value)
        return characters + elements

    def measure(self, value: Any) -> tuple[int, int, int]:
        """Characters, elements and depth of ``value``, counted as ``weigh`` does."""
        characters = elements = deepest = 0
        stack: list[tuple[Any, int]] = [(value, 0)]
        while stack:
            item, depth = stack.pop()
            inner = _elements(item)
            characters += len(item) if isinstance(item, str) else 0
            elements += 1
            deepest = max(deepest, depth)
            if characters + elements + len(stack) + len(inner) > self.weight or depth > _MAX_DEPTH:
                raise TemplateLimitError("makes too large or too deep a value")
            stack.extend((x, depth + 1) for x in inner)
        self.spend(elements // 16)
        return characters, elements, deepest


def _elements(value: Any) -> Sequence[Any]:
    """What stands in a container."""
    if isinstance(value, (list, tuple, range)):
        return value
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, (KeysView, ValuesView, ItemsView, Set)) else ()


class Rewrite(NodeTransformer):
    """Puts guards into a syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        cost = tree_size(node)
        self.generic_visit(node)
        node.body.insert(0, _statement("tick", cost))
        if node.test is not None:
            node.test = nodes.And(_guard("tick", nodes.Const(cost)), node.test)
        return node.set_lineno(node.lineno)

    def _visit_body(self, node: nodes.Macro | nodes.CallBlock | nodes.Block) -> nodes.Node:
        cost = tree_size(node)
        self.generic_visit(node)
        node.body.insert(0, _statement("tick", cost))
        return node.set_lineno(node.lineno)

    visit_Macro = visit_CallBlock = visit_Block = _visit_body

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _guard("concat_values", *node.nodes).set_lineno(node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = [part or nodes.Const(None) for part in (node.arg.start, node.arg.stop, node.arg.step)]
        return _guard("slice_value", node.node, *ends).set_lineno(node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node.set_lineno(node.lineno)

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _weighed(node.key)  # a tuple's hash is that of all it holds
        return node.set_lineno(node.lineno)


def tree_size(node: nodes.Node) -> int:
    """The number of nodes."""
    return 1 + sum(map(tree_size, node.iter_child_nodes()))


def _guard(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


def _statement(name: str, value: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_guard(name, nodes.Const(value)))


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _guard("weighed", node)


def bound(value: Any, limit: float, what: str) -> None:
    """Raises TemplateLimitError for a number beyond ``limit``."""
    if isinstance(value, (int, float)) and not abs(value) <= limit:
        raise TemplateLimitError(f"asks for {what} beyond {limit}")
