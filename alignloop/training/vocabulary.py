"""Whether a tokenizer fits the embedding. Torch-free: the numbers come from the headers of the weights' files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alignloop.errors import ModelError

INPUT_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings|tok_embeddings)\.weight$")
OUTPUT_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
"""Stored only where it is not the input embedding."""


def embedding_rows(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the input embedding among a checkpoint's tensors; None where none is known by its name."""
    rows = [shape[0] for name, shape in shapes.items() if INPUT_EMBEDDING.search(name) and len(shape) == 2]
    return rows[0] if len(rows) == 1 else None


def check_tokenizer_fits(tokenizer: Any, *, num_rows: int, where: str) -> tuple[str, ...]:
    """Refuse a tokenizer that gives ids without an embedding row.

    Special tokens that nothing can produce are let through: text is never read as a special token here, so one that
    the chat template does not write either never reaches the model (Gemma 3's image token in its text-only models).

    Args:
        num_rows: of the input embedding.
        where: the model, for the message.

    Returns:
        The tokens without a row that cannot occur.

    Raises:
        ModelError: another token has no row.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= num_rows)
    used = [(number, token) for number, token in beyond if _can_occur(tokenizer, token, number)]
    if used:
        number, token = used[0]
        raise ModelError(
            f"{where}: its tokenizer has {len(vocabulary):,} tokens, its embedding only {num_rows:,} rows: {token!r} "
            f"has id {number} and no row. Tokenizer and weights are of different models (copy both from one place), "
            "or the embedding was never resized (model.resize_token_embeddings(len(tokenizer)), then save it again)"
        )
    return tuple(token for _, token in beyond)


def _can_occur(tokenizer: Any, token: str, number: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(number)
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    templates = tokenizer.chat_template or ""
    text = templates if isinstance(templates, str) else "".join(templates.values())
    return added is None or not added.special or number in named or token in text
