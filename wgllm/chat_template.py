"""Chat templates: messages → the prompt that a model was trained on.

The text of messages must not be able to write control tokens. A rendered prompt is one string, in which a
user's ``<|im_end|>`` looks like the template's own, so suspicious messages are rendered a second time: in all
that comes from outside, the characters that special tokens begin or end with are replaced by private-use
characters of the same number. No special token can then contain one of a user's, in whatever way the template
cuts, trims or joins texts; where such characters stand, the original ones are put back as untrusted text.
(In what the assistant said only control tokens are broken up, and ``</think>`` and the like never, since
templates look for it.)
If both renderings have the same special tokens, no message forged one, and the prompt is taken as it is.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from jinja2.exceptions import TemplateSyntaxError

from wgllm.errors import ModelFileError, UsageError, WgllmError, printable
from wgllm.template_guards import Budget, Refusal
from wgllm.template_sandbox import TemplateEnvironment
from wgllm.tokenizer.base import Tokenizer
from wgllm.tokenizer.special import SpecialSplitter

Segments = list[tuple[str, bool]]

_FIELD = "tokenizer.chat_template"
# Roles by their names, which templates put into special tokens (Phi-3: '<|' + role + '|>').
_ROLES = frozenset(
    ("system", "user", "assistant", "tool", "function", "developer", "model", "ipython", "observation")
)
_ASSISTANT = frozenset(("assistant", "model"))
_OTHER_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,63}")
_OWN_TAGS = re.compile(r"</?(think|thinking|reasoning|answer|tool_\w+)>")
_MAX_DEPTH = 32
# What a rendering gives the template itself.
_RESERVED = {"messages", "tools", "add_generation_prompt", "self"} | {
    "range", "dict", "namespace", "raise_exception", "strftime_now"
}  # fmt: skip
_PRIVATE_USE = range(0xE000, 0xF900)


class ChatTemplate:
    """A model's chat template (Jinja, as transformers runs it), bounded in time and memory."""

    def __init__(self, source: str, tokenizer: Tokenizer, *, origin: str | None = None) -> None:
        """``origin`` is what errors call a template of the user's; None: it is the model file's.

        Raises ModelFileError, or with an ``origin`` UsageError, when ``source`` is not a template.
        """
        self.source = source
        self._origin = origin
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._environment = TemplateEnvironment()
        try:
            self._template = self._environment.compile_guarded(source)
        except Exception as error:
            raise self._failure(error) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for ``messages`` (each with ``role`` and ``content``) as text.

        The template gets ``variables`` too. Raises UsageError when it refuses the messages, ModelFileError when it
        fails (UsageError, when it is the user's).
        """
        return self._render(self._inputs(messages, tools, variables), add_generation_prompt)

    def render_segments(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Segments:
        """Like ``render``, in pieces: (text, whether special tokens in it are meant as such)."""
        inputs = self._inputs(messages, tools, variables)
        text = self._render(inputs, add_generation_prompt)
        disguise = self._disguise(inputs)
        if disguise is None:
            return [(text, True)]
        disguised = self._render(disguise.inputs, add_generation_prompt)
        if self._specials(text) == self._specials(disguised):
            return [(text, True)]
        return disguise.uncover(disguised)

    def _render(self, inputs: dict[str, Any], add_generation_prompt: bool) -> str:
        tokenizer = self._tokenizer
        roles = (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("unk", tokenizer.unk_id))
        variables: dict[str, Any] = {f"{r}_token": tokenizer.token_text(i) for r, i in roles if i is not None}
        variables |= {**inputs, "add_generation_prompt": add_generation_prompt}
        parts: list[str] = []
        with self._lock:
            self._environment.budget = budget = Budget(*_measure(inputs))
            try:
                for part in self._template.generate(variables):
                    budget.take(sys.getsizeof(part))
                    parts.append(part)
            except Refusal as error:
                problem = printable(" ".join(str(error).split()))
                raise UsageError(f"the chat template refuses these messages: {problem}") from None
            except Exception as error:
                raise self._failure(error) from None
        return "".join(parts)

    def _inputs(self, messages: Any, tools: Any, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Plain copies of what the caller gave, with the errors that templates would word badly."""
        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
            raise UsageError("messages must be a list of objects with role and content")
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise UsageError(f"message {i} has no role")
            if not isinstance(message.get("content"), (str, list, tuple, type(None))):
                raise UsageError(f"the content of message {i} is neither a text nor a list of parts")
            if not self._is_role(message["role"]):
                shown = printable(repr(message["role"]), 60)
                raise UsageError(f"message {i} has the role {shown}, which is no role")
        if tools is not None and not _is_list_of_objects(tools):
            raise UsageError("tools must be a list of objects")
        check_variables(given or {})
        inputs: dict[str, Any] = _plain({**(given or {}), "messages": list(messages), "tools": tools})
        return inputs

    def _is_role(self, role: str) -> bool:
        """Whether no template can make a special token of ``role``."""
        if role in _ROLES:
            return True
        specials = self._tokenizer.special_tokens
        return _OTHER_ROLE.fullmatch(role) is not None and not any(role in name for name in specials)

    def _specials(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self._splitter.find(text)]

    @cached_property
    def _splitter(self) -> SpecialSplitter:
        return SpecialSplitter(self._tokenizer.special_tokens.items())

    @cached_property
    def _brackets(self) -> str:
        """Characters that special tokens begin or end with."""
        names = self._tokenizer.special_tokens
        return "".join(sorted({c for name in names for c in (name[0], name[-1]) if not c.isspace()}))

    @cached_property
    def _forbidden(self) -> list[str]:
        """The special tokens that what the assistant said may not hold either."""
        specials = self._tokenizer.special_tokens.items()
        return [
            name for name, i in specials if self._tokenizer.is_control(i) and not _OWN_TAGS.fullmatch(name)
        ]

    @cached_property
    def _forbidden_splitter(self) -> SpecialSplitter:
        return SpecialSplitter((name, 0) for name in self._forbidden)

    @cached_property
    def _forbidden_parts(self) -> tuple[frozenset[str], frozenset[str]]:
        """Proper beginnings and proper ends of those."""
        beginnings = frozenset(name[:k] for name in self._forbidden for k in range(1, len(name)))
        return beginnings, frozenset(name[k:] for name in self._forbidden for k in range(1, len(name)))

    def _disguise(self, inputs: dict[str, Any]) -> _Disguise | None:
        """``inputs`` with private characters for brackets, or None when there are none."""
        text = json.dumps(inputs, ensure_ascii=False)
        if not any(char in text for char in self._brackets):
            return None
        used = {ord(char) for char in {*text, *self.source} if ord(char) in _PRIVATE_USE}
        free = [code for code in _PRIVATE_USE if code not in used]
        if len(free) < len(self._brackets):
            raise UsageError("the messages use too many private-use characters")
        codes = secrets.SystemRandom().sample(free, len(self._brackets))
        table = {ord(char): chr(code) for char, code in zip(self._brackets, codes, strict=True)}

        def user(text: str) -> str:
            return text.translate(table)

        def assistant(text: str) -> str:
            for start, end in self._forbidden_spans(text):
                text = text[:start] + text[start:end].translate(table) + text[end:]
            return text

        messages = [
            {
                key: value if key == "role" else _map(value, assistant if m["role"] in _ASSISTANT else user)
                for key, value in m.items()
            }
            for m in inputs["messages"]
        ]
        others = {key: _map(value, user) for key, value in inputs.items() if key != "messages"}
        return _Disguise({**others, "messages": messages}, {new: chr(old) for old, new in table.items()})

    def _forbidden_spans(self, text: str) -> list[tuple[int, int]]:
        """Where ``text`` has control tokens, or parts of them at its ends that a template could complete."""
        spans = self._forbidden_splitter.find(text)
        beginnings, ends = self._forbidden_parts
        longest = max(map(len, self._forbidden), default=0)
        for k in range(1, min(len(text), longest) + 1):
            if text[:k] in ends:
                spans.append((0, k))
            if text[-k:] in beginnings:
                spans.append((len(text) - k, len(text)))
        return spans

    def _failure(self, error: Exception) -> WgllmError:
        if isinstance(error, TemplateSyntaxError):
            problem = f"line {error.lineno}: {error.message}"
        elif isinstance(error, RecursionError):
            problem = "is nested too deeply"
        else:
            line = _template_line(error)
            problem = f"{f'line {line}: ' if line else ''}{str(error) or type(error).__name__}"
        problem = " ".join(problem.split())
        if self._origin is not None:
            return UsageError(f"{printable(self._origin)}: {printable(problem)}")
        return ModelFileError(self._tokenizer.path, _FIELD, problem)


class _Disguise:
    """Inputs whose brackets are private characters, and the way back."""

    def __init__(self, inputs: dict[str, Any], originals: dict[str, str]) -> None:
        self.inputs = inputs
        self._originals = originals
        # JSON may have escaped them.
        escapes = "|".join(f"{ord(char):04x}" for char in originals)
        self._escaped = re.compile(rf"\\u({escapes})")

    def uncover(self, text: str) -> Segments:
        """The rendered text with its brackets, which are untrusted."""
        text = self._escaped.sub(lambda match: chr(int(match[1], 16)), text)
        originals = self._originals
        return [
            ("".join(originals[char] for char in group) if private else "".join(group), not private)
            for private, group in groupby(text, originals.__contains__)
        ]


def encode_chat(tokenizer: Tokenizer, segments: Iterable[tuple[str, bool]]) -> list[int]:
    """The ids of a rendered prompt, with BOS where the file asks for it and the template did not write it."""
    ids = tokenizer.tokenize_parts(segments, add_special=False)
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids


def check_variables(variables: Mapping[str, Any]) -> None:
    """Raises UsageError when a variable for the template has a name that is taken."""
    for name in variables:
        if name in _RESERVED:
            raise UsageError(f"a variable for the chat template may not be named {name!r}")


def _is_list_of_objects(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(inner, Mapping) for inner in value)
    )


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy made of dict, list, str, numbers, bool and None."""
    if depth > _MAX_DEPTH:
        raise UsageError("the messages are nested too deeply")
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UsageError("messages may only have texts as keys")
        return {str(key): _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, depth + 1) for inner in value]
    raise UsageError(f"messages may not hold a {type(value).__name__}")


def _map(value: Any, function: Callable[[str], str]) -> Any:
    """``value`` with all its texts changed, keys too."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {function(key): _map(inner, function) for key, inner in value.items()}
    return [_map(inner, function) for inner in value] if isinstance(value, list) else value


def _measure(value: Any) -> tuple[int, int]:
    """How many elements a plain value has, and how many bytes of text."""
    if isinstance(value, str):
        return 1, sys.getsizeof(value)
    inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return 1, 0
    counts = [_measure(item) for item in inner]
    return 1 + sum(count for count, _ in counts), sum(size for _, size in counts)


def _template_line(error: BaseException) -> int | None:
    """The line of the template that was running."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
