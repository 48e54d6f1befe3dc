"""A model that was named, opened with what the user asks of its file: the options that everyone who runs it takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wgllm.builtin_templates import template_source
from wgllm.formats.model_file import ModelFile
from wgllm.model_text import ModelText
from wgllm.models.opening import open_model
from wgllm.rope_options import rope_overrides

if TYPE_CHECKING:
    from wgllm.hub_progress import Progress


@dataclass(frozen=True)
class OpenedModel:
    file: ModelFile
    template: str | None
    """The text of the chat template that takes the place of the file's."""
    template_name: str | None
    template_kwargs: Mapping[str, Any]

    def give_template(self, text: ModelText) -> None:
        """Raises UsageError when it is no template."""
        text.template_kwargs = dict(self.template_kwargs)
        if self.template is not None:
            text.use_template(self.template, self.template_name)


def open_with_options(
    model: str | os.PathLike[str],
    *,
    rope_scaling: str | None = None,
    rope_scale: float | None = None,
    rope_freq_base: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    quantize: str | None = None,
    chat_template: str | None = None,
    chat_template_name: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    offline: bool = False,
    download_progress: Progress | None = None,
    mapped: bool = True,
) -> OpenedModel:
    """The model of this name or path, downloaded first when it is not here; options as in ``wgllm.load``, ``mapped`` as
    in ``open_model``.

    Raises a ``WgllmError`` whose text is one line.
    """
    from wgllm.hub import resolve

    template = None if chat_template is None else template_source(chat_template)
    if template != chat_template:
        chat_template_name = chat_template
    if chat_template_kwargs:
        from wgllm.chat_template import check_variables

        check_variables(chat_template_kwargs)
    path = resolve(os.fspath(model), download=not offline, progress=download_progress)
    file = open_model(path, overrides, quantize=quantize, mapped=mapped)
    try:
        file.override(rope_overrides(file.architecture, rope_scaling, rope_scale, rope_freq_base))
    except BaseException:
        file.close()
        raise
    return OpenedModel(file, template, chat_template_name, chat_template_kwargs or {})
