"""A checkpoint's chat format, from its tokenizer and its generation config; and a base's, given what a recipe asks.

Templates without a place for a system turn have what stands in it before the first user turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.chat.answer import template_text
from alignloop.chat.format import ChatFormat
from alignloop.chat.template_defaults import Value, defaults_of, with_defaults
from alignloop.chat.templates import Template, give_template, is_shipped
from alignloop.chat.trial import check_ends, names_read
from alignloop.errors import ModelError
from alignloop.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OURS = frozenset({"messages", "add_generation_prompt", "tools", "documents", "raise_exception", "strftime_now"})
"""What every rendering sets itself, as it does the tokenizer's special tokens: a default would never count."""


def load_format(checkpoint: Path) -> ChatFormat:
    """Read the tokenizer of a Hugging Face directory and find its template's spans.

    Raises:
        ModelError: there is no tokenizer, or its template cannot be rendered.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ModelError(f"{checkpoint}: no usable tokenizer ({error}); a base needs its tokenizer files") from error
    return format_of(tokenizer, name=str(checkpoint), extra_stop_ids=_eos_ids(checkpoint))


def format_of(tokenizer: PreTrainedTokenizerBase, *, name: str, extra_stop_ids: Iterable[int] = ()) -> ChatFormat:
    """The chat format of a tokenizer from elsewhere, whose template is tried before it runs here; `name` is for errors.

    Raises:
        ModelError: it has no template, or one that does not come to an end or cannot be used.
    """
    jinja = template_text(tokenizer)
    if jinja and not is_shipped(jinja):
        check_ends(jinja, name=name)
    try:
        return ChatFormat(tokenizer, extra_stop_ids=extra_stop_ids)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def template_kwargs_of(folder: Path) -> dict[str, Value]:
    """What a checkpoint's chat template is rendered with, as it says at its head; no tokenizer is loaded."""
    jinja, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if jinja.is_file():
        return defaults_of(jinja.read_text(encoding="utf-8"))
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return defaults_of(template) if isinstance(template, str) else {}


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, template: Template | None, kwargs: Mapping[str, Value], name: str
) -> ChatFormat:
    """Give a tokenizer a template (None: it keeps its own) that asks as the recipe says; its chat format.

    What the template is rendered with, chosen or found, is put at its head: the checkpoint renders alike wherever it is
    loaded. `name` is the base's, for errors.

    Raises:
        ModelError: the template cannot be used, or does not read one of the kwargs.
    """
    if template is not None:
        give_template(tokenizer, template)
    if kwargs:
        read = names_read(template_text(tokenizer)) - _OURS - set(tokenizer.special_tokens_map)
        if unread := next((key for key in kwargs if key not in read), None):
            known = ", ".join(sorted(read)) or "nothing beside the messages"
            raise ModelError(
                f"chat_template_kwargs: the chat template does not take {unread} from a recipe; it reads {known}"
            )
        _set_defaults(tokenizer, kwargs)
    chat = format_of(tokenizer, name=name)
    if chat.template_kwargs != defaults_of(template_text(tokenizer)):
        _set_defaults(tokenizer, chat.template_kwargs)
    return chat


def _set_defaults(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Value]) -> None:
    jinja = with_defaults(template_text(tokenizer), kwargs)
    several = tokenizer.chat_template
    tokenizer.chat_template = several | {"default": jinja} if isinstance(several, dict) else jinja


def takes_system_turn(chat: ChatFormat) -> bool:
    """Whether the template takes a system turn; some refuse one (Gemma 2)."""
    try:
        chat.prompt_ids([Message(role="system", content="a"), Message(role="user", content="a")])
    except ModelError:
        return False
    return True


def in_first_user_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The dialog with its system turn, if it has one, at the head of the user turn that follows."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return tuple(messages)
    content = "\n\n".join(message.content.strip("\n") for message in messages[:2])
    return (Message(role="user", content=content), *messages[2:])


def _eos_ids(checkpoint: Path) -> tuple[int, ...]:
    path = checkpoint / "generation_config.json"
    if not path.is_file():
        return ()
    eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)
