"""``wgllm generate --prompts``: many prompts from a file, results in order; a run that was cut goes on.

With a seed, the results are the same bytes whether the run was cut or not: each line has its own seed, results have no
times, and of the cache only what a fresh run would compute alike is re-used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from wgllm.cli.console import read_text, write_text
from wgllm.cli.sampling_options import NUMBERS
from wgllm.cli.session import Session
from wgllm.engine import Event, Request
from wgllm.errors import UsageError, WgllmError, printable
from wgllm.hub_progress import animates
from wgllm.sampling import SamplingParams

_SAMPLING = frozenset(f.name for f in fields(SamplingParams))
_KEYS = _SAMPLING | {"id", "prompt", "messages", "tools", "max_tokens", "stop", "ignore_eos"}
_ALIASES = {
    **{name.lstrip("-").replace("-", "_"): number.field for number in NUMBERS for name in number.names},
    **dict.fromkeys(("n", "predict", "n_predict"), "max_tokens"),
    **dict.fromkeys(("r", "reverse_prompt"), "stop"),
    "l": "logit_bias",
    "dry_sequence_breaker": "dry_sequence_breakers",
}
"""The command line's names."""


class Batch:
    """A run over the lines of a file."""

    def __init__(self, session: Session, system: str | None) -> None:
        self._session = session
        self._system = system
        options = session.options
        assert options.prompts is not None
        text = read_text(options.prompts)
        # Not splitlines: JSON may hold other characters that end a line.
        lines = enumerate(text.split("\n"), 1)
        self._lines = [(number, line) for number, line in lines if line.strip()]
        if not self._lines:
            raise UsageError(f"{options.prompts}: there are no prompts in it")
        self._settings = _settings(session, system)
        self._failed = 0
        self._made = 0
        self._started = time.perf_counter()

    def run(self) -> int:
        """Runs what has no result yet; returns the exit code."""
        session, out = self._session, self._session.options.out
        done = 0
        try:
            file = None if out is None else _open(Path(out))
            try:
                if file is not None:
                    done = self._resume(file)
                if done:
                    session.messages.info(f"{done} of {len(self._lines)} results are there already")
                for i, (number, line) in enumerate(self._lines[done:], done):
                    self._progress(i)
                    result = self._result(number, line)
                    if session.interrupts.seen:
                        raise KeyboardInterrupt
                    self._failed += "error" in result
                    _write(file, json.dumps(result, ensure_ascii=False) + "\n")
            finally:
                self._progress(None)
                if file is not None:
                    file.close()
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise WgllmError(f"{out or 'stdout'}: {error.strerror}") from error
        seconds = time.perf_counter() - self._started
        failed = f", {self._failed} with errors" if self._failed else ""
        session.messages.info(
            f"{len(self._lines)} results{failed} · {self._made} tokens in {seconds:.1f} s, "
            f"{self._made / max(seconds, 1e-9):.1f} tok/s"
        )
        return 1 if self._failed else 0

    def _resume(self, file: BinaryIO) -> int:
        """How many results are there; cuts a half line off the end."""
        data = file.read()
        whole = data.rfind(b"\n") + 1
        results = data[:whole].splitlines()
        for i, result in enumerate(results):
            expected = self._lines[i][0] if i < len(self._lines) else None
            try:
                found = json.loads(result)
                line = found["line"]
            except (ValueError, TypeError, KeyError, RecursionError):
                line, found = -1, {}
            if line != expected or found.get("id") != _id(self._lines[i][1]):
                raise UsageError(
                    f"{self._session.options.out}: line {i + 1} is no result of line {expected} of the prompts; "
                    "name another file"
                )
            if found.get("hash") != self._hash(self._lines[i][1]):
                raise UsageError(
                    f"{self._session.options.out}: result {i + 1} is of another prompt, model or settings; "
                    "name another file"
                )
            self._failed += "error" in found
        if whole < len(data):
            file.truncate(whole)
        file.seek(whole)
        return len(results)

    def _result(self, number: int, line: str) -> dict[str, Any]:
        """The result of a line; what is wrong with it is part of its result."""
        result: dict[str, Any] = {"line": number, "hash": self._hash(line)}
        try:
            try:
                data = json.loads(line, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"is not JSON: {error}") from None
            if not isinstance(data, dict):
                raise UsageError("is no JSON object")
            if "id" in data:
                result = {"id": data["id"], **result}
            last, text = self._generate(self._request(number, data))
        except WgllmError as error:
            return {**result, "error": printable(" ".join(str(error).split()), 1000)}
        assert last.finish is not None and last.stats is not None
        self._made += last.stats.generated_tokens
        return {
            **result,
            "text": text,
            "finish": last.finish.value,
            "prompt_tokens": last.stats.prompt_tokens,
            "generated_tokens": last.stats.generated_tokens,
            "seed": last.stats.seed,
        }

    def _hash(self, line: str) -> str:
        """What decides the result of a line, in short."""
        data = f"{self._settings}\n{line.strip()}".encode("utf-8", "replace")
        return hashlib.sha256(data).hexdigest()[:16]

    def _generate(self, request: Request) -> tuple[Event, str]:
        text = []
        last = None
        for last in self._session.stream(request):
            text.append(last.text)
        assert last is not None
        return last, "".join(text)

    def _request(self, number: int, data: dict[str, Any]) -> Request:
        session = self._session
        data = _with_own_names(data)
        request = session.request(self._tokens(data), self._sampling(number, data))
        if "max_tokens" in data:
            n = data["max_tokens"]
            if type(n) is not int or n < -2:
                raise UsageError("max_tokens is no number of tokens")
            shift = session.options.context_shift and n != -2
            request = replace(request, max_tokens=None if n < 0 else n, context_shift=shift)
        if "stop" in data:
            stop = [data["stop"]] if isinstance(data["stop"], str) else data["stop"]
            if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
                raise UsageError("stop is neither a text nor a list of texts, none of them empty")
            request = replace(request, stop=(*request.stop, *stop))
        if "ignore_eos" in data:
            if not isinstance(data["ignore_eos"], bool):
                raise UsageError("ignore_eos is neither true nor false")
            request = replace(request, ignore_eos=data["ignore_eos"])
        return replace(request, exact=True)

    def _tokens(self, data: dict[str, Any]) -> list[int]:
        session = self._session
        if ("prompt" in data) == ("messages" in data):
            raise UsageError("needs either prompt or messages")
        messages: list[dict[str, Any]] = data.get("messages", [])
        tools = data.get("tools")
        if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
            raise UsageError("tools is no list of objects")
        if tools and not session.uses_template:
            raise UsageError("tools need a chat template")
        if "prompt" in data:
            prompt = data["prompt"]
            if not isinstance(prompt, str):
                raise UsageError("prompt is no text")
            if not session.uses_template:
                if self._system is not None:
                    raise UsageError("a system prompt needs a chat template")
                return session.text_tokens(prompt)
            messages = [{"role": "user", "content": prompt}]
        if not session.uses_template:
            raise UsageError("messages need a chat template")
        if self._system is not None and not (
            messages and isinstance(messages[0], dict) and messages[0].get("role") == "system"
        ):
            messages = [{"role": "system", "content": self._system}, *messages]
        return session.chat_tokens(messages, tools or None)

    def _sampling(self, number: int, data: dict[str, Any]) -> SamplingParams:
        given = {name: data[name] for name in _SAMPLING if name in data}
        if "logit_bias" in given:
            given["logit_bias"] = _biases(given["logit_bias"])
        base = self._session.sampling
        if "seed" not in given and base.seed is not None and base.seed >= 0:
            digest = hashlib.sha256(f"{base.seed}:{number}".encode()).digest()
            given["seed"] = int.from_bytes(digest[:4], "little")
        try:
            return replace(base, **given)
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"sampling: {error}") from None

    def _progress(self, done: int | None) -> None:
        """One line of a terminal's stderr, drawn anew; None takes it away."""
        options = self._session.options
        if options.quiet or options.simple_io or not animates(sys.stderr):
            return
        if options.out is None and sys.stdout.isatty():  # the results would come into its line
            return
        line = ""
        if done is not None:
            n = len(self._lines)
            filled = 20 * done // n
            failed = f" · {self._failed} with errors" if self._failed else ""
            rate = self._made / max(time.perf_counter() - self._started, 1e-9)
            line = f"[{'#' * filled}{'.' * (20 - filled)}] {done}/{n}{failed} · {rate:.1f} tok/s"
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def _settings(session: Session, system: str | None) -> str:
    """All but a line that decides its result."""
    llm, options = session.llm, session.options
    template = (llm.template.source, llm.template_kwargs) if session.uses_template else None
    decisive: dict[str, Any] = {
        "model": (llm.fingerprint() if llm.model is not None else None, llm.ctx_size, llm.kv_type),
        "prompt": (template, system, options.parse_special),
        "end": (options.max_tokens, options.ignore_eos, session.stop),
        "shift": (options.context_shift, options.keep),
        "special": options.special,
        "sampling": session.sampling,
    }
    return repr(decisive)


def _with_own_names(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with the command line's names replaced; others than those and its own are refused."""
    named: dict[str, Any] = {}
    for key, value in data.items():
        plain = key.replace("-", "_")
        name = plain if plain in _KEYS else _ALIASES.get(plain)
        if name is None:
            raise UsageError(f"there is no option {printable(key, 40)!r}")
        if name in named:
            raise UsageError(f"{name} is given twice, once as {key}")
        named[name] = value
    return named


def _biases(given: Any) -> dict[int, Any]:
    if not isinstance(given, dict):
        raise UsageError('logit_bias is no object of token ids and numbers, as {"17": -2.5}')
    biases: dict[int, Any] = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise UsageError(f"logit_bias: {printable(key, 40)!r} is no token id")
        biases[int(key)] = bias
    return biases


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is no regular file; without --out results go to stdout")
    try:
        # Not append: a half line is cut off first.
        return path.open("r+b" if path.exists() else "w+b")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _write(file: BinaryIO | None, line: str) -> None:
    """A whole line, on the disk before the next one is begun."""
    if file is None:
        write_text(line)
        return
    file.write(line.encode("utf-8", "replace"))
    file.flush()
    os.fsync(file.fileno())


def _id(line: str) -> Any:
    """The id that the result of a line has."""
    try:
        data = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return data.get("id") if isinstance(data, dict) else None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
