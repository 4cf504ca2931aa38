"""What a model thought before its answer, and whether that is judged with it."""

from __future__ import annotations

from alignloop.chat.reasoning import THINK_START, split_reasoning


def without_reasoning(text: str) -> tuple[str | None, str]:
    """(reasoning, answer) of what a model wrote; None where it holds no reasoning.

    Templates may open the block in the prompt, so that a text which only closes it holds reasoning, too. One that was
    cut before it closed the block has no answer.
    """
    reasoning, answer = split_reasoning(text, opened=True)
    if reasoning is None and text.lstrip().startswith(THINK_START):
        return text, ""
    return reasoning, answer


def judged_with_reasoning(num_holding: int, num_answers: int, *, remedy: str) -> str:
    """The line that says so."""
    return (
        f"{num_holding:,} of {num_answers:,} answers hold reasoning, which is judged as part of the answer; {remedy} "
        "takes it off first"
    )
