"""A checkpoint's chat format, from its tokenizer and its generation config."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.chat.answer import template_text
from alignloop.chat.format import ChatFormat
from alignloop.chat.template_defaults import Value, defaults_of
from alignloop.chat.templates import is_shipped
from alignloop.chat.trial import check_ends
from alignloop.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    """The chat format of a tokenizer from outside, whose template is tried before it runs here.

    Args:
        name: whose tokenizer it is, for errors.

    Raises:
        ModelError: it has no template, or one that does not come to an end or cannot be used.
    """
    jinja = template_text(tokenizer)
    if jinja and not is_shipped(jinja):
        check_ends(jinja, name=name)
    try:
        return ChatFormat.from_tokenizer(tokenizer, extra_stop_ids=extra_stop_ids)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def template_kwargs_of(folder: Path) -> dict[str, Value]:
    """What a checkpoint's chat template is rendered with, as it says at its head; no tokenizer is loaded."""
    jinja, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if jinja.is_file():
        return defaults_of(jinja.read_text(encoding="utf-8"))
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return defaults_of(template) if isinstance(template, str) else {}


def _eos_ids(checkpoint: Path) -> tuple[int, ...]:
    path = checkpoint / "generation_config.json"
    if not path.is_file():
        return ()
    eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)
