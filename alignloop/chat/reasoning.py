"""What a model thought before it answered, apart from the answer: the one form that rows carry it in.

A text that holds reasoning begins with it: `<think>`, the reasoning, `</think>`, the answer. Line breaks around the two
are the form's, not theirs: chat templates write their own.
"""

from __future__ import annotations

THINK_START = "<think>"
THINK_END = "</think>"


def split_reasoning(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """Reasoning and answer of an assistant's text; the reasoning is None where the text holds none.

    A block that is never closed is no reasoning but text that was cut, and stays in the answer; so does a block that
    stands further on in the text. An empty block is the reasoning "", which is not the same as none: templates write
    an empty block for a model that was asked not to think.

    `opened`: the block may have been opened before the text begins, as by a template that ends its generation prompt
    with `<think>`: then a text that only closes it holds reasoning, too.
    """
    body = text.lstrip()
    starts = body.startswith(THINK_START)
    if not starts and not opened:
        return None, text
    reasoning, end, answer = body.removeprefix(THINK_START).partition(THINK_END)
    if not end:
        return None, text
    return reasoning.strip("\n"), answer.lstrip("\n")


def join_reasoning(reasoning: str | None, answer: str) -> str:
    """The text that `split_reasoning` takes apart again (line breaks at the edges of the two aside)."""
    if reasoning is None:
        return answer
    return f"{THINK_START}\n{reasoning}\n{THINK_END}\n\n{answer}"


def answer_of(text: str) -> str:
    """A completion's answer, which is what annotators compare; empty where there is a thought alone."""
    body = text.lstrip()
    return body.partition(THINK_END)[2].lstrip("\n") if body.startswith(THINK_START) else text


def holds_reasoning(text: str) -> bool:
    """Whether a model thought in it: a block was closed somewhere, or one begins it and was cut."""
    return THINK_END in text or text.lstrip().startswith(THINK_START)


def has_answer(text: str) -> bool:
    """Whether a completion says anything beside its reasoning: a thought alone, closed or not, is no answer."""
    return bool(answer_of(text).strip())
