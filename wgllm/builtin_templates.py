"""Chat templates by name, for files that have none or a wrong one: the formats that their makers published.

Where a format has no system role, its message goes where the makers put it: before the first user's (Gemma 3), or
before the last user's (Mistral v3). Templates that know only alternating turns say so when turns don't alternate.
"""

from __future__ import annotations

from wgllm.errors import UsageError, printable

_BOS = "{%- set bos = bos_token if bos_token is defined else '' -%}"
_EOS = "{%- set eos = eos_token if eos_token is defined else '' -%}"
_SPLIT_SYSTEM = """\
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system, turns = messages[0]['content'], messages[1:] -%}
{%- else -%}
    {%- set system, turns = '', messages -%}
{%- endif -%}
"""
_ALTERNATE = """\
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('roles must alternate: user, assistant, user, ...') -}}
{%- endif -%}
"""

_CHATML = """\
{%- for m in messages -%}
    {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_LLAMA2 = f"""\
{_BOS}{_EOS}{_SPLIT_SYSTEM}
{{%- for m in turns -%}}
    {_ALTERNATE}
    {{%- set content = m['content'] -%}}
    {{%- if loop.first and system -%}}
        {{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content -%}}
    {{%- endif -%}}
    {{%- if m['role'] == 'user' -%}}
        {{{{- bos + '[INST] ' + content.strip() + ' [/INST]' -}}}}
    {{%- else -%}}
        {{{{- ' ' + content.strip() + ' ' + eos -}}}}
    {{%- endif -%}}
{{%- endfor -%}}
"""

_LLAMA3 = f"""\
{_BOS}
{{{{- bos -}}}}
{{%- for m in messages -%}}
    {{{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
    {{{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}}}
{{%- endif -%}}
"""

_GEMMA = f"""\
{_BOS}{_SPLIT_SYSTEM}
{{{{- bos -}}}}
{{%- for m in turns -%}}
    {_ALTERNATE}
    {{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}}
    {{{{- '<start_of_turn>' + role + '\\n' -}}}}
    {{%- if loop.first and system -%}}
        {{{{- system + '\\n\\n' -}}}}
    {{%- endif -%}}
    {{{{- m['content'] | trim + '<end_of_turn>\\n' -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
    {{{{- '<start_of_turn>model\\n' -}}}}
{{%- endif -%}}
"""

_MISTRAL = f"""\
{_BOS}{_EOS}{_SPLIT_SYSTEM}
{{{{- bos -}}}}
{{%- for m in turns -%}}
    {_ALTERNATE}
    {{%- if m['role'] == 'user' -%}}
        {{{{- '[INST] ' + (system + '\\n\\n' if loop.last and system else '') + m['content'] + '[/INST]' -}}}}
    {{%- else -%}}
        {{{{- ' ' + m['content'] | trim + eos -}}}}
    {{%- endif -%}}
{{%- endfor -%}}
"""

_PHI3 = """\
{%- for m in messages -%}
    {{- '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

TEMPLATES = {
    "chatml": _CHATML,
    "gemma": _GEMMA,
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "phi3": _PHI3,
}


def template_source(name_or_text: str) -> str:
    """The built-in template of that name, or the text itself when it is a template. Raises UsageError."""
    if name_or_text in TEMPLATES:
        return TEMPLATES[name_or_text]
    if "{{" in name_or_text or "{%" in name_or_text:
        return name_or_text
    names = ", ".join(TEMPLATES)
    raise UsageError(f"no chat template {printable(name_or_text)!r}; built in are {names}")
