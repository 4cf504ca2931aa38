"""A checkpoint's chat format, from its tokenizer and its generation config."""

from __future__ import annotations

import json
from pathlib import Path

from alignloop.chat.format import ChatFormat
from alignloop.errors import ModelError


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
    return ChatFormat.from_tokenizer(tokenizer, extra_stop_ids=_eos_ids(checkpoint))


def _eos_ids(checkpoint: Path) -> tuple[int, ...]:
    path = checkpoint / "generation_config.json"
    if not path.is_file():
        return ()
    eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)
