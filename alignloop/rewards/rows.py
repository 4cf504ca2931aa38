"""A batch of rows as a rule sees it: one answer, and the values of the columns that it goes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from alignloop.chat.reasoning import answer_of
from alignloop.errors import DataError

Messages = Sequence[dict[str, Any]]
"""A dialog, or the messages of a completion: `role` and `content`."""


def by_row(
    rule: Callable[..., float | None],
    *columns: Sequence[Any],
    name: str,
    prompts: Sequence[Messages],
    completions: Sequence[Messages],
) -> list[float | None]:
    """`rule(answer, *values)` of each of B rows; None where one of its values is None.

    Args:
        columns: B values each.
        name: of the function, for messages.

    Raises:
        DataError: the rule raises ValueError, as where a column holds what it cannot go by; names function and prompt.
    """
    found: list[float | None] = []
    for prompt, completion, *values in zip(prompts, completions, *columns, strict=True):
        if any(value is None for value in values):
            found.append(None)
            continue
        try:
            found.append(rule(answer_of(completion[-1]["content"]), *values))
        except ValueError as error:
            raise DataError(
                f"reward function alignloop.rewards:{name}: prompt {prompt[-1]['content'][:60]!r}: {error}"
            ) from error
    return found
