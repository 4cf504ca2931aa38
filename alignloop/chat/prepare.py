"""A base's tokenizer, given the chat template that a recipe asks for, and the template the kwargs it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from alignloop.chat.answer import template_text
from alignloop.chat.format import ChatFormat
from alignloop.chat.load import format_of
from alignloop.chat.template_defaults import Value, defaults_of, with_defaults
from alignloop.chat.template_names import names_read
from alignloop.chat.templates import Template, give_template
from alignloop.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OURS = frozenset({"messages", "add_generation_prompt", "tools", "documents", "raise_exception", "strftime_now"})
"""What every rendering sets itself, as it does the tokenizer's special tokens: a default would never count."""


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, template: Template | None, kwargs: Mapping[str, Value], name: str
) -> ChatFormat:
    """Give a tokenizer a template (None: it keeps its own) that asks as the recipe says; its chat format.

    What the template is rendered with, chosen or found, is written at its head: the checkpoint renders alike wherever
    it is loaded.

    Args:
        name: the base's, for errors.

    Raises:
        ModelError: the template cannot be used, or does not read one of the kwargs.
    """
    if template is not None:
        give_template(tokenizer, template)
    if kwargs:
        _check(kwargs, names_read(template_text(tokenizer)) - _OURS - set(tokenizer.special_tokens_map))
        _set_defaults(tokenizer, kwargs)
    chat = format_of(tokenizer, name=name)
    if chat.template_kwargs != defaults_of(template_text(tokenizer)):
        _set_defaults(tokenizer, chat.template_kwargs)
    return chat


def _check(kwargs: Mapping[str, Value], read: frozenset[str]) -> None:
    for key in kwargs:
        if key not in read:
            known = ", ".join(sorted(read)) or "nothing beside the messages"
            raise ModelError(
                f"chat_template_kwargs: the chat template does not take {key} from a recipe; it reads {known}"
            )


def _set_defaults(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Value]) -> None:
    jinja = with_defaults(template_text(tokenizer), kwargs)
    several = tokenizer.chat_template
    tokenizer.chat_template = several | {"default": jinja} if isinstance(several, dict) else jinja
