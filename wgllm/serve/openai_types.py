"""Bodies of OpenAI's chat and text completions, with llama.cpp's samplers; each field bounded.

Fields that nobody knows are ignored. Those that would change the answer and are not supported are refused by name.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from wgllm.errors import UsageError
from wgllm.sampling.params import SamplingOptions, SamplingParams, value_range
from wgllm.serve.bodies import MOST_TEXT, at_most

MAX_TOP_LOGPROBS = 20
_MOST_MESSAGES = 10_000
_MOST_STOPS = 16
_MOST_STOP_CHARS = 1_000
_MOST_BIASES = 1_024
_MOST_TOOLS = 256
_INT32 = 2**31 - 1
_INT64 = 2**63

TokenId = Annotated[int, Field(ge=0, le=_INT32)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Text = Annotated[str, Field(max_length=MOST_TEXT)]


def _unsupported(text: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported", "{text}", {"text": text})


def _refuse(value: Any) -> None:
    if value not in (None, False, "", [], {}):
        raise _unsupported("is not supported: leave it out")


Unsupported = Annotated[None, BeforeValidator(_refuse)]
"""A field without which an answer would not be what was asked for."""


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "numbers must be finite")
    if isinstance(value, dict):
        for inner in value.values():
            _finite(inner)
    elif isinstance(value, list):
        for inner in value:
            _finite(inner)
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_finite)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class TextPart(_Strict):
    type: str = Field(max_length=100)
    text: str

    @field_validator("type")
    @classmethod
    def _is_text(cls, value: str) -> str:
        if value != "text":
            raise _unsupported(f"parts of type '{value}' are not supported: the model reads text alone")
        return value


Parts = Annotated[list[TextPart], Field(fail_fast=True, max_length=_MOST_MESSAGES)]


class FunctionCall(_Strict):
    name: str
    arguments: str | JsonObject


class ToolCall(_Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=_MOST_TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    token_ids: TokenIds | None = None
    """The tokens that the content was made of."""

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise PydanticCustomError("missing", "content must be a text or a list of text parts")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates have messages: texts in one, instructions from ``system``, arguments as objects."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content or "",
        }
        for name in ("name", "tool_call_id", "reasoning_content", "token_ids"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id or "",
                    "type": call.type,
                    "function": {
                        "name": call.function.name,
                        "arguments": _as_object(call.function.arguments),
                    },
                }
                for call in self.tool_calls
            ]
        return message


def _as_object(arguments: str | dict[str, Any]) -> str | dict[str, Any]:
    """OpenAI's clients send the arguments of a call as a text of JSON, templates write them as JSON once more."""
    if isinstance(arguments, dict):
        return arguments
    try:
        made = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return made if isinstance(made, dict) else arguments


class Function(_Strict):
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(_Strict):
    type: Literal["function"]
    function: Function


class StreamOptions(_Strict):
    include_usage: bool = False


class Choice(_Strict):
    """How an answer is to be formed, where that is more than a word: only the word's kind is looked at."""

    type: str = Field(max_length=100)


def _sampler(name: str, low: float | None = None) -> Any:
    least, most = value_range(name)
    return Field(default=None, ge=least if low is None else low, le=most)


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopText = Annotated[str, Field(max_length=_MOST_STOP_CHARS)]


class Sampled(_Strict):
    """What both kinds of completions have."""

    model: Annotated[str, Field(max_length=1_000)] | None = None
    max_tokens: int | None = Field(default=None, ge=-1, le=_INT32)
    stop: (
        Annotated[
            list[StopText],
            Field(fail_fast=True, max_length=_MOST_STOPS),
            BeforeValidator(_stops),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    progress: bool = False
    """Chunks that tell how far the request is, and token ids with each text."""
    seed: int | None = Field(default=None, ge=-_INT64, lt=2 * _INT64)
    temperature: float | None = _sampler("temperature", 0)
    top_p: float | None = _sampler("top_p")
    frequency_penalty: float | None = _sampler("frequency_penalty")
    presence_penalty: float | None = _sampler("presence_penalty")
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]], BeforeValidator(at_most(_MOST_BIASES))]
        | None
    ) = None
    top_k: int | None = _sampler("top_k")
    min_p: float | None = _sampler("min_p")
    typical_p: float | None = _sampler("typical_p")
    top_n_sigma: float | None = _sampler("top_n_sigma")
    xtc_probability: float | None = _sampler("xtc_probability")
    xtc_threshold: float | None = _sampler("xtc_threshold")
    repeat_penalty: float | None = _sampler("repeat_penalty")
    repeat_last_n: int | None = _sampler("repeat_last_n")
    dry_multiplier: float | None = _sampler("dry_multiplier")
    dry_base: float | None = _sampler("dry_base")
    dry_allowed_length: int | None = _sampler("dry_allowed_length")
    dry_penalty_last_n: int | None = _sampler("dry_penalty_last_n")
    dry_sequence_breakers: (
        Annotated[
            list[Annotated[StopText, Field(min_length=1)]], Field(fail_fast=True, max_length=_MOST_STOPS)
        ]
        | None
    ) = None
    dynatemp_range: float | None = _sampler("dynatemp_range")
    dynatemp_exponent: float | None = _sampler("dynatemp_exponent")
    mirostat: int | None = _sampler("mirostat")
    mirostat_tau: float | None = _sampler("mirostat_ent")
    mirostat_eta: float | None = _sampler("mirostat_lr")
    samplers: Annotated[list[StopText], Field(fail_fast=True, max_length=64)] | None = None
    ignore_eos: bool = False
    cache_prompt: bool | None = None
    """Whether all that the cache holds is used, at the price of repeatable rounding; None: see ``engine_host``."""
    # Not supported
    n: int | None = None
    best_of: int | None = None
    response_format: Choice | None = None
    grammar: Unsupported = None
    json_schema: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    structured_outputs: Unsupported = None
    use_beam_search: Unsupported = None
    lora: Unsupported = None

    @field_validator("n", "best_of")
    @classmethod
    def _one(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise _unsupported("only 1 is supported: ask several times for several answers")
        return value

    @field_validator("response_format")
    @classmethod
    def _plain_text(cls, value: Choice | None) -> Choice | None:
        if value is not None and value.type != "text":
            raise _unsupported(f"'{value.type}' is not supported: answers are text")
        return value

    @field_validator("samplers")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        try:
            SamplingParams(samplers=tuple(value or ()))
        except UsageError as error:
            raise PydanticCustomError("sampler", "{text}", {"text": str(error)}) from None
        return value

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= _INT32):
                raise PydanticCustomError("token_id", "its keys must be token ids")
        return value

    @property
    def sampling(self) -> dict[str, Any]:
        """``SamplingOptions`` of what was given."""
        made = {ours: getattr(self, name) for name, ours in _SAMPLING.items()}
        if self.logit_bias is not None:
            made["logit_bias"] = {int(key): bias for key, bias in self.logit_bias.items()}
        return {name: value for name, value in made.items() if value is not None}


_RENAMED = {"mirostat_ent": "mirostat_tau", "mirostat_lr": "mirostat_eta"}
_SAMPLING = {
    _RENAMED.get(name, name): name for name in SamplingOptions.__annotations__ if name != "logit_bias"
}
"""Field → the samplers' own name."""


class ChatRequest(Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=_MOST_MESSAGES)]
    max_completion_tokens: int | None = Field(default=None, ge=-1, le=_INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=_MOST_TOOLS)] | None = None
    tool_choice: str | Choice | None = None
    modalities: Annotated[list[StopText], Field(fail_fast=True, max_length=8)] | None = None
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    web_search_options: Unsupported = None
    chat_template: Unsupported = None
    chat_template_kwargs: Unsupported = None

    @field_validator("tool_choice")
    @classmethod
    def _not_forced(cls, value: str | Choice | None) -> str | Choice | None:
        if value not in (None, "auto", "none"):
            raise _unsupported("a forced choice is not supported: only 'auto' and 'none'")
        return value

    @field_validator("modalities")
    @classmethod
    def _text_alone(cls, value: list[str] | None) -> list[str] | None:
        if value not in (None, ["text"]):
            raise _unsupported("answers are text")
        return value

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs needs logprobs to be true")
        return self

    @property
    def template_messages(self) -> list[dict[str, Any]]:
        return [message.for_template() for message in self.messages]

    @property
    def template_tools(self) -> list[dict[str, Any]] | None:
        """None too where no tool may be chosen."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_unset=True) for tool in self.tools]


class CompletionRequest(Sampled):
    """``POST /v1/completions``."""

    prompt: Text | TokenIds | Annotated[list[Text | TokenIds], Field(fail_fast=True, max_length=_INT32)]
    max_tokens: int | None = Field(default=16, ge=-1, le=_INT32)
    """OpenAI's default: without a chat's end a text may go on for ever."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    suffix: Unsupported = None
    echo: Unsupported = None

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        if isinstance(value, list) and value and not isinstance(value[0], int) and len(value) != 1:
            raise _unsupported("only one prompt at a time is supported")
        return value

    @property
    def only_prompt(self) -> str | list[int]:
        """The prompt, out of the list that it may stand in."""
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return prompt[0]
        return cast("str | list[int]", prompt)
