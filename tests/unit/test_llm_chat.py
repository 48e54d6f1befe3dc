"""``Llm.chat``: tools, the template's variables, and whose fault a broken template is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import wgllm
from tests.tiny import tiny
from wgllm.cli import main
from wgllm.errors import UsageError
from wgllm.fake import FakeEngine
from wgllm.llm import Llm
from wgllm.template_sandbox import TemplateEnvironment

MODEL = str(tiny("qwen2.f32").path)
MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
BROKEN = {"{% if %}": "line 1: ", "{% endfor %}": "line 1: ", "\n{{ gone.x }}": "line 2: 'gone' is undefined"}


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    code = main(["generate", "-m", MODEL, "-n", "2", "-q", *arguments, "hi"])
    return code, *capfd.readouterr()


@pytest.fixture
def llm() -> Llm:
    made = Llm(FakeEngine("ok"))
    made.use_template("{{ tools | tojson }} {{ messages[0].content }}{{ mood }}")
    return made


def test_tools_reach_the_template(llm: Llm) -> None:
    text = '[{"type": "function", "function": {"name": "add"}}] hi'
    assert llm.chat_tokens(MESSAGES, tools=TOOLS) == llm.tokenize(text)
    assert llm.chat_tokens(MESSAGES, tools=TOOLS, parse_special=True) == llm.tokenize(text)
    assert llm.chat_tokens(MESSAGES) == llm.tokenize("null hi")
    assert "".join(event.text for event in llm.chat(MESSAGES, tools=TOOLS, max_tokens=5)) == "ok"
    assert isinstance(llm.engine, FakeEngine)
    assert llm.engine.requests[0].tokens == llm.tokenize(text)


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "self", "range"])
def test_names_that_variables_may_not_have(llm: Llm, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    says = f"may not be named '{name}'"
    with pytest.raises(UsageError, match=says):
        wgllm.load("no-such-model", chat_template_kwargs={name: []})
    llm.template_kwargs = {name: []}
    for parse_special in (False, True):
        with pytest.raises(UsageError, match=says):
            llm.chat_tokens(MESSAGES, parse_special=parse_special)
    code, out, err = run(capfd, "-cnv", "--chat-template-kwargs", f'{{"{name}": 1}}')
    assert (code, out) == (2, "") and says in err


def test_all_that_templates_can_call_keeps_its_name(llm: Llm) -> None:
    for name in TemplateEnvironment().globals:
        with pytest.raises(UsageError, match=f"may not be named '{name}'"):
            llm.template.render(MESSAGES, variables={name: 1})


def test_tools_that_are_none(llm: Llm) -> None:
    for tools in ("x", {"name": "x"}, ["x"], 1):
        with pytest.raises(UsageError, match="tools must be a list of objects"):
            llm.chat_tokens(MESSAGES, tools=tools)  # type: ignore[arg-type]


def test_variables(llm: Llm) -> None:
    llm.template_kwargs = {"mood": "!"}
    assert llm.chat_tokens(MESSAGES) == llm.tokenize("null hi!")


def test_variables_nested_too_deeply_for_json(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capfd, "--chat-template-kwargs", "[" * 100_000)
    assert (code, out) == (2, "") and "no JSON" in err


@pytest.mark.parametrize("source", BROKEN)
def test_a_broken_template_of_the_user(
    source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(source, encoding="utf-8")
    for flag in ("--chat-template", "--chat-template-file"):
        code, out, err = run(capfd, "-cnv", flag, str(file))
        assert (code, out) == (2, "")
        assert "the chat template " in err and f"mine.jinja: {BROKEN[source]}" in err
    code, out, err = run(capfd, "-cnv", "--chat-template", source)
    assert (code, out) == (2, "") and f"the chat template: {BROKEN[source]}" in err
    with (
        pytest.raises(UsageError, match="the chat template: line"),
        wgllm.load(MODEL, chat_template=source) as llm,
    ):
        llm.chat_tokens(MESSAGES)


def test_a_built_in_template_is_named() -> None:
    messages = [{"role": "user", "content": None}]
    with (
        wgllm.load(MODEL, chat_template="chatml") as llm,
        pytest.raises(UsageError, match=r"^the chat template chatml: line"),
    ):
        llm.chat_tokens(messages)
