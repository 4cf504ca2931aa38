"""What a reward function says of candidates: their rows as TRL's convention has them, in batches of whole prompts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from alignloop.records import CandidateRow, Message
from alignloop.sampling.reward_functions import call_function, load, missing_columns

BATCH_CANDIDATES = 256
"""Candidates in a call of a reward function at least, where there are so many; all K of a prompt together."""
_NO_COLUMNS = ("prompt", "completion", "prompts", "completions", "completion_ids")
"""Not passed on from `meta`: these names are the candidates' own."""


def function_values(name: str, prompts: Sequence[Sequence[CandidateRow]]) -> dict[str, float]:
    """Candidate id -> value of a reward function; only those it applies to.

    It is not asked about rows without a column that its signature requires: there it does not apply.
    """
    function = load(name).function
    values: dict[str, float] = {}
    wanted = missing_columns(function, [])
    asked = [[row for row in group if all(row.meta.get(key) is not None for key in wanted)] for group in prompts]
    keys = {key: None for group in asked for row in group for key in row.meta if key not in _NO_COLUMNS}
    for batch in _batches(asked):
        found = call_function(
            function,
            name=name,
            prompts=[[_message(message) for message in row.messages] for row in batch],
            completions=[[_message(Message(role="assistant", content=row.completion))] for row in batch],
            columns={
                "completion_ids": [list(row.completion_ids) for row in batch],
                # Copies: what a function does to its arguments must not reach the rows.
                **{key: [copy.deepcopy(row.meta.get(key)) for row in batch] for key in keys},
            },
            ids=[f"candidate {row.id}" for row in batch],
        )
        values |= {row.id: value for row, value in zip(batch, found, strict=True) if value is not None}
    return values


def _batches(prompts: Sequence[Sequence[CandidateRow]]) -> Iterator[list[CandidateRow]]:
    batch: list[CandidateRow] = []
    for group in prompts:
        batch += group
        if len(batch) >= BATCH_CANDIDATES:
            yield batch
            batch = []
    if batch:
        yield batch


def _message(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}
