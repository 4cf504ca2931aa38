"""The tokens of a laid-out row, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alignloop.config import Recipe
from alignloop.config.training import ObjectiveName
from alignloop.look.setting import Setting
from alignloop.packing.layout import Piece

Use = Literal["masked", "trained", "formatting", "reward"]
"""What becomes of a token: seen only; trained as content; a formatting token; the place a reward is read at."""


@dataclass(frozen=True)
class Token:
    """One token of a laid-out row.

    Attributes:
        index, position, segment: its place in the packed row, its position id, 0 for the prompt or the completion.
        copy: a completion's own copy of the prompt's last token, at which its first token is predicted.
    """

    index: int
    token_id: int
    text: str
    position: int
    segment: int
    use: Use
    copy: bool = False


@dataclass(frozen=True)
class Part:
    """The prompt, or a completion. `facts` says in words what of it counts."""

    name: str
    tokens: tuple[Token, ...]
    facts: str


def tokens_of(piece: Piece, objective: ObjectiveName, setting: Setting) -> list[Token]:
    # A position's flags are those of the token it predicts: the next one.
    uses: list[Use] = ["masked"] * piece.num_tokens
    if objective == "reward":
        for index in piece.last_index.tolist():
            uses[index] = "reward"
    else:
        for index in np.flatnonzero(piece.loss_mask).tolist():
            uses[index + 1] = "formatting" if piece.formatting_mask[index] else "trained"
    starts = {int(np.flatnonzero(piece.segments == segment)[0]) for segment in set(piece.segments.tolist()) - {0}}
    texts = setting.chat.token_texts(piece.token_ids.tolist())
    return [
        Token(
            index,
            int(piece.token_ids[index]),
            texts[index],
            int(piece.position_ids[index]),
            int(piece.segments[index]),
            uses[index],
            copy=index in starts,
        )
        for index in range(piece.num_tokens)
    ]


def prompt_facts(tokens: Sequence[Token]) -> str:
    num_trained = sum(token.use in ("trained", "formatting") for token in tokens)
    trained = f"{num_trained} trained" if num_trained else "masked"
    return f"{_count(len(tokens), 'token')}, {trained}"


def completion_facts(tokens: Sequence[Token], name: str, objective: ObjectiveName, recipe: Recipe) -> str:
    total = _count(len(tokens), "token")
    if objective == "reward":
        return f"{total}, reward read at the last" if tokens else total
    num_formatting = sum(token.use == "formatting" for token in tokens)
    num_content = sum(token.use == "trained" for token in tokens)
    if objective == "sft":
        return f"{total}, {num_content + num_formatting} trained, {num_formatting} of them formatting"
    in_sums = num_content if recipe.dpo.mask_formatting_tokens else num_content + num_formatting
    facts = f"{total}: {in_sums} in its DPO sum"
    if name == "chosen" and recipe.dpo.nll_coefficient:
        facts += f", {num_content + num_formatting} in the NLL"
    return f"{facts}; {num_formatting} formatting"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
