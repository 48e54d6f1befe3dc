"""Text and chats of a model as tokens, and back: its tokenizer and its chat template."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wgllm.errors import UsageError
from wgllm.formats.model_file import ModelFile
from wgllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from wgllm.chat_template import ChatTemplate


class ModelText(ABC):
    """What anyone who has opened a model can do with text, whoever computes."""

    def __init__(self, file: ModelFile | None) -> None:
        self.file = file
        """What it was loaded from, open until it is closed."""
        self._template: ChatTemplate | None = None
        self.template_kwargs: dict[str, Any] = {}
        """What the chat template gets with every chat."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer: ...

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of ``text``. ``add_special`` adds what the file asks for (BOS, EOS); special tokens written in the
        text are plain text unless ``parse_special``."""
        return self.tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; invalid UTF-8 becomes U+FFFD."""
        return self.tokenizer.detokenize(ids)

    def chat_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        parse_special: bool = False,
    ) -> list[int]:
        """The prompt that ``chat`` gives the model, as token ids. With ``parse_special`` messages may hold special
        tokens. ``token_ids`` of a message are the tokens that it was made of, which it is told with again; the template
        does not see them."""
        from wgllm.chat_template import encode_chat

        made_of = [m.get("token_ids") if isinstance(m, Mapping) else None for m in messages]
        if any(made_of):
            from wgllm.known_tokens import with_known_tokens

            plain = [{k: v for k, v in m.items() if k != "token_ids"} for m in messages]
            tokens = self.chat_tokens(plain, tools=tools, parse_special=parse_special)
            said = [
                (text if isinstance(text := m.get("content"), str) else "", ids or ())
                for m, ids in zip(messages, made_of, strict=True)
            ]
            return with_known_tokens(tokens, said, self.tokenizer)

        template, variables = self.template, self.template_kwargs
        if parse_special:
            text = template.render(messages, tools=tools, variables=variables)
            return encode_chat(self.tokenizer, [(text, True)])
        return encode_chat(
            self.tokenizer, template.render_segments(messages, tools=tools, variables=variables)
        )

    @property
    def has_template(self) -> bool:
        return self._template is not None or (self.file is not None and self.file.chat_template is not None)

    def use_template(self, source: str, name: str | None = None) -> None:
        """Makes the text ``source`` the chat template; errors call it ``name``. Raises UsageError when it is none."""
        from wgllm.chat_template import ChatTemplate

        origin = "the chat template" if name is None else f"the chat template {name}"
        self._template = ChatTemplate(source, self.tokenizer, origin=origin)

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises UsageError when it has none."""
        if self._template is None:
            source = self.file.chat_template if self.file is not None else None
            if source is None:
                raise UsageError("this model has no chat template; give it plain text instead")
            from wgllm.chat_template import ChatTemplate

            self._template = ChatTemplate(source, self.tokenizer)
        return self._template
