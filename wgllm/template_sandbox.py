"""Runs chat templates, which come with model files and may be hostile, with bounds on time and memory.

Jinja's immutable sandbox keeps a template from reaching Python's internals. It does not keep it from looping
for hours or filling the memory, so on top of it:

- Every loop turn and macro call costs steps, as many as there are nodes in its body, and looks at the clock.
- All that operators, filters, methods and captured blocks make is charged to a budget of bytes, and what
  could be large (``*``, ``**``, ``join``, ``replace``, ``center``, ``format`` …) is foreseen before it is made.
- Values are weighed before they are compared, printed or serialized: lists that hold the same list in many
  places are small in memory and endless as text.
- Only the filters and methods listed here can be called, and sources and syntax trees are bounded too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace

from wgllm.template_guards import Budget, Refusal, Rewrite, TemplateLimitError, bound, tree_size

MAX_SOURCE = 1 << 16  # characters; the longest templates in use have about half of that
_MAX_NODES = 3_000  # likewise; compiling takes up to 20 KB for each
_MAX_RANGE = 1 << 14
_MAX_WIDTH = 1 << 13
_MAX_BITS = 256

# Formats whose width or precision is large or comes from an argument.
_WIDE = re.compile(r"%(\([^)]*\))?[^a-zA-Z%(]*([0-9]{4}|\*)|\{[^{}]*([0-9]{4}|\{)")


def _words(text: str) -> list[str]:
    return text.split()


class _Generation(Extension):
    """``{% generation %}`` marks what a model wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (as Extension declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _of_nothing(*_: Any) -> int:
    return 0  # about as long as the text at most, and charged when it is made


def _of_pieces(text: str, separator: Any = None, *_: Any) -> int:
    pieces = text.count(separator) if isinstance(separator, str) and separator else len(text)
    return 80 * (pieces + 1) + 4 * len(text)


def _of_width(text: str, width: Any = 0, *_: Any) -> int:
    bound(width, _MAX_WIDTH, "a width")
    return 4 * (len(text) + int(width))


def _of_replace(text: str, old: Any = "", new: Any = "", *_: Any) -> int:
    if not isinstance(old, str) or not isinstance(new, str):
        return 0
    return 4 * (len(text) + text.count(old) * len(new))


# Method of str → the bytes that its result may take, given the text and the arguments.
_STR_METHODS: dict[str, Callable[..., int]] = (
    dict.fromkeys(
        _words(
            "strip lstrip rstrip upper lower title capitalize casefold swapcase removeprefix removesuffix "
            "partition rpartition startswith endswith find rfind index rindex count isdigit isdecimal "
            "isnumeric isalpha isalnum isspace isupper islower istitle isascii isidentifier isprintable"
        ),
        _of_nothing,
    )
    | dict.fromkeys(("split", "rsplit", "splitlines"), _of_pieces)
    | dict.fromkeys(("center", "ljust", "rjust", "zfill"), _of_width)
    | {"replace": _of_replace}
)
_OTHER_METHODS = {dict: {"get", "items", "keys", "values", "copy"}, list: {"index", "count", "copy"}}
_OTHER_METHODS[tuple] = {"index", "count"}

_FILTERS = _words(
    "abs batch capitalize center count d default dictsort e escape first float forceescape format groupby "
    "indent int items join last length list lower map max min reject rejectattr replace reverse round select "
    "selectattr slice sort string sum title trim truncate unique upper urlencode wordcount"
)

# Tests that take the same time whatever the value is.
_FREE_TESTS = frozenset(
    _words(
        "defined undefined none boolean false true integer float string mapping number sequence iterable "
        "callable sameas escaped"
    )
)

# Filter → bytes that its result may take for each character or element of the value.
_GROWTH = (
    dict.fromkeys(("list", "batch", "slice", "sort", "unique"), 80)
    | dict.fromkeys(("urlencode", "e", "escape", "forceescape"), 9)
    | {"string": 16}
)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs one template at a time: set ``budget`` before running it."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_Generation, loopcontrols],
            finalize=_finalize,
            cache_size=0,
        )
        self.budget = Budget(0, 0)
        self.filters = {name: self._filter(name, FILTERS[name]) for name in _FILTERS}
        self.filters["safe"] = self._filter("safe", str)
        self.filters["tojson"] = self._filter("tojson", self._tojson)
        # ``is`` comes here, and so do the filters that take a test's name.
        tests: dict[str, Any] = dict(TESTS)
        self.tests = {n: f if n in _FREE_TESTS else self._test(n, f) for n, f in tests.items()}
        self.globals = {
            "range": self._range,
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._functions = set(self.globals.values())

    def compile_guarded(self, source: str) -> Any:
        """The template of ``source``. Raises TemplateError, or what a hostile source makes Python raise."""
        if len(source) > MAX_SOURCE:
            raise TemplateLimitError(f"is longer than {MAX_SOURCE} characters")
        tree = self.parse(source)
        if tree_size(tree) > _MAX_NODES:
            raise TemplateLimitError("is too complicated")
        tree = Rewrite().visit(tree)
        code = self.compile(tree.set_environment(self))
        return self.template_class.from_code(self, code, self.make_globals(None))

    # What the rewritten tree calls.

    def tick(self, steps: int) -> bool:
        self.budget.spend(steps)
        return True

    def weighed(self, value: Any) -> Any:
        self.budget.spend(1)
        if not isinstance(value, (str, int, type(None))):
            self.budget.weigh(value)
        return value

    def concat_values(self, *values: Any) -> str:
        return self.concat([_text(self, value) for value in values])

    def slice_value(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        self.budget.spend(1)
        return self.budget.made(value[start:stop:step])

    # What Jinja calls.

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.spend(1)  # filters look up 'a.b.c' in every element
        if not isinstance(argument, (str, int)):
            self.budget.weigh(argument)  # before it is hashed, or printed in an error
        return super().getitem(obj, argument)

    def concat(self, parts: Iterable[str]) -> str:
        parts = list(parts)
        self.budget.take(sum(map(sys.getsizeof, parts)))
        return "".join(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.spend(1)
        for value in (left, right):
            if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise TemplateLimitError("computes with too large a number")
        function = self.binop_table[operator]
        if operator == "**":
            bound(right, _MAX_BITS, "a power")
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    self.budget.take(sys.getsizeof(value) * max(times, 0))
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, type(left)):
            self.budget.take(sys.getsizeof(left) + sys.getsizeof(right))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, (right,))
        return function(left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(function, MethodType) and function.__self__ is self and function.__name__ != "_range":
            return function(*args)
        if isinstance(function, (Macro, BlockReference, LoopContext, Undefined, _Format)):
            self.budget.spend(1)
            return self.budget.made(super().call(context, function, *args, **kwargs))
        if isinstance(function, MethodType) and isinstance(function.__self__, LoopContext):
            self.budget.weigh(args)  # loop.changed compares them
            return super().call(context, function, *args, **kwargs)
        if isinstance(function, BuiltinMethodType) and function.__self__ is not None:
            self._check_method(function.__self__, function.__name__, args)
        elif not _in(function, self._functions):
            raise SecurityError(f"{type(function).__name__} is not a function that templates may call")
        elif function is not Namespace:
            self.budget.weigh(args)
        self.budget.spend(1)
        return self.budget.made(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else _Format(self, value.__self__, wrapped)

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> None:
        if isinstance(owner, str):
            if name == "join":
                self._check_join(owner, args[0] if args else ())
                return
            size = _STR_METHODS.get(name)
            if size is not None:
                self.budget.take(size(owner, *args))
                return
        for kind, names in _OTHER_METHODS.items():
            if isinstance(owner, kind) and name in names:
                for arg in args:
                    self.weighed(arg)
                if name in ("index", "count"):
                    self.budget.weigh(owner)
                return
        raise SecurityError(f"{type(owner).__name__}.{name} is not a method that templates may call")

    def _check_join(self, separator: Any, values: Any) -> None:
        if isinstance(values, (list, tuple, str, dict)):
            weight = self.budget.weigh(values)
            self.budget.take(4 * (weight + len(values) * len(str(separator))))

    def _check_format(self, template: str, values: tuple[Any, ...]) -> None:
        if _WIDE.search(template):
            raise TemplateLimitError("formats with a width that is too large or not fixed")
        weight = sum(map(self.budget.weigh, values))
        fields = template.count("{") + template.count("%") + 1
        self.budget.take(4 * (len(template) + fields * (weight * 2 + 1000)))

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, with its arguments checked before and its result charged after."""
        takes = getattr(function, "jinja_pass_arg", None)

        # Taking the context keeps Jinja from running it while it compiles.
        @pass_context
        def guarded(context: Context, value: Any = "", *args: Any, **kwargs: Any) -> Any:
            value, args = self._check_filter(name, value, args, kwargs)
            passed = {None: (), "context": (context,), "eval_context": (context.eval_ctx,)}
            first = passed.get(takes.name if takes is not None else None, (self,))
            result = function(*first, value, *args, **kwargs)
            if name in ("e", "escape", "forceescape", "join", "replace", "indent", "title", "truncate"):
                result = str(result)  # no Markup, which escapes what it meets
            return self.budget.made(_listed(result))

        return guarded

    def _test(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The test, with what it compares weighed before."""
        first = (self,) if getattr(function, "jinja_pass_arg", None) is not None else ()

        # Taking the context keeps Jinja from running it while it compiles.
        @pass_context
        def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            for item in (value, *args, *kwargs.values()):
                self.weighed(item)
            if isinstance(value, str) and name in ("odd", "even", "divisibleby"):
                self._check_format(value, (*args, *kwargs.values()))  # they take it ``%`` a number
            return function(*first, value, *args, **kwargs)

        return guarded

    def _check_filter(
        self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, tuple[Any, ...]]:
        budget = self.budget
        budget.spend(1)
        if name == "int" and isinstance(value, str):
            bound(len(value), 4300, "a number of digits")
        if name in ("length", "count", "first", "last", "default", "d", "abs", "int", "float", "items"):
            return value, args
        if isinstance(value, Iterator):
            value = _listed(value)
        everything = [value, *args, *kwargs.values()]
        weights = [budget.weigh(item) for item in everything]
        budget.spend(weights[0] // 64 if isinstance(value, str) else weights[0])
        if name == "replace":
            texts = [str(item) for item in everything[:3]]
            budget.take(_of_replace(*texts))
        elif name == "join":
            separator = args[0] if args else kwargs.get("d", "")
            budget.take(
                4 * (weights[0] + (len(value) if hasattr(value, "__len__") else 0) * len(str(separator)))
            )
        elif name == "format":
            self._check_format(str(value), (*args, *kwargs.values()))
        else:
            for item in everything[1:]:
                if isinstance(item, (int, float)):
                    bound(item, 20 if name == "round" else _MAX_WIDTH, f"an argument of {name}")
                elif name == "sum" and isinstance(item, (list, tuple)):
                    raise TemplateLimitError("sums lists")  # it copies what it has with every element
        if name == "indent":
            width = args[0] if args else kwargs.get("width", 4)
            size = width if isinstance(width, int) else len(str(width))
            budget.take(4 * (str(value).count("\n") + 1) * size)
        budget.take(weights[0] * _GROWTH.get(name, 0))
        return value, args

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As in transformers: Unicode as it is, nothing escaped for HTML."""
        bound(indent or 0, 16, "an indent")
        characters, elements, depth = self.budget.measure(value)
        between = (indent or 0) * depth + sum(map(len, separators or ()))
        self.budget.take(characters + elements * (8 + between))
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def _range(self, *args: int) -> range:
        values = range(*args)
        bound(len(values), _MAX_RANGE, "a range")
        return values


class _Format:
    """``str.format`` of one text, sandboxed."""

    def __init__(self, environment: TemplateEnvironment, text: str, function: Callable[..., str]) -> None:
        self._environment, self._text, self._function = environment, text, function

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        self._environment._check_format(self._text, (*args, *kwargs.values()))
        return self._function(*args, **kwargs)


@pass_context
def _finalize(context: Context, value: Any) -> str:
    environment: Any = context.environment
    return _text(environment, value)


def _text(environment: TemplateEnvironment, value: Any) -> str:
    """``str(value)``, of a value that has been weighed."""
    if isinstance(value, str):
        return value
    if not isinstance(value, (int, float)):
        environment.budget.take(16 * environment.budget.weigh(value))
    return str(value)


def _listed(value: Any) -> Any:
    """Lazy results as lists, so that their work is done and counted where they are made."""
    if not isinstance(value, Iterator):
        return value
    found = []
    for item in value:
        found.append(item)
        bound(len(found), _MAX_RANGE * 4, "a sequence")
    return found


def _in(value: Any, values: set[Any]) -> bool:
    try:
        return value in values
    except TypeError:
        return False


def _raise_exception(message: Any = "") -> None:
    raise Refusal(str(message)[:1000])


def _strftime_now(form: Any) -> str:
    if not isinstance(form, str) or len(form) > 256 or re.search(r"%[^a-zA-Z%]*[0-9]", form):
        raise TemplateLimitError("asks for a strange date")
    return datetime.now().strftime(form)
