"""Chat templates by name, against the formats that the makers of the models published."""

from __future__ import annotations

import pytest

from tests.tiny import tiny
from wgllm.builtin_templates import TEMPLATES, template_source
from wgllm.chat_template import ChatTemplate
from wgllm.errors import UsageError
from wgllm.tokenizer import Tokenizer, load_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be terse."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]

# Published examples and templates, with <s> and </s> for BOS and EOS.
EXPECTED = {
    "chatml": "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<s><start_of_turn>user\nBe terse.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "llama2": "<s>[INST] <<SYS>>\nBe terse.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe terse.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Hi[/INST] Hello</s>[INST] Be terse.\n\nBye[/INST]",
    "phi3": "<|system|>\nBe terse.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
    "<|user|>\nBye<|end|>\n<|assistant|>\n",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(tiny("llama-tied.f32").path)


def render(name: str, tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    text = ChatTemplate(template_source(name), tokenizer).render(messages)
    for i, shown in ((tokenizer.bos_id, "<s>"), (tokenizer.eos_id, "</s>")):
        assert i is not None
        text = text.replace(tokenizer.token_text(i), shown)
    return text


@pytest.mark.parametrize("name", [*EXPECTED])
def test_formats(name: str, tokenizer: Tokenizer) -> None:
    assert set(EXPECTED) == set(TEMPLATES)
    assert render(name, tokenizer, MESSAGES) == EXPECTED[name]


def test_without_a_system_message(tokenizer: Tokenizer) -> None:
    assert render("llama2", tokenizer, MESSAGES[1:2]) == "<s>[INST] Hi [/INST]"
    assert render("mistral", tokenizer, MESSAGES[1:2]) == "<s>[INST] Hi[/INST]"
    assert render("gemma", tokenizer, MESSAGES[1:2]).startswith("<s><start_of_turn>user\nHi<end_of_turn>\n")


@pytest.mark.parametrize("name", ["gemma", "llama2", "mistral"])
def test_turns_that_do_not_alternate_are_refused(name: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="must alternate"):
        render(name, tokenizer, [MESSAGES[1], MESSAGES[1]])


def test_names_and_texts() -> None:
    assert template_source("{{ messages[0].content }}") == "{{ messages[0].content }}"
    with pytest.raises(UsageError, match="no chat template 'chatlm'; built in are chatml, gemma"):
        template_source("chatlm")
