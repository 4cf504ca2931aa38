"""Questions on their way to a model: as lm-eval carries them, as they are rendered, whether they fit, what is judged.

lm-eval carries prompts as strings. A rendered template as string would have to be tokenised again, and special tokens
written by a user would turn into control tokens on the way. So the "rendered" prompt is the list of messages as JSON
behind a mark, and only the chat format turns it into ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.chat.reasoning import THINK_START, split_reasoning
from alignloop.errors import DataError
from alignloop.records import Message

MARK = "\x00alignloop/messages\x00"


def pack_messages(messages: Sequence[dict[str, str]]) -> str:
    """Messages as one marked string."""
    return MARK + json.dumps(list(messages), ensure_ascii=False)


def unpack_messages(context: str) -> tuple[Message, ...] | None:
    """The messages of a marked string; None for a plain one."""
    if not context.startswith(MARK):
        return None
    return tuple(Message(**message) for message in json.loads(context[len(MARK) :]))


class RenderedPrompts:
    """SHA-256 over the token ids of each task's prompts, in order: what a template writes by itself, such as a date, is
    in them."""

    def __init__(self) -> None:
        self._digests: dict[str, hashlib._Hash] = {}
        self._last: tuple[str, object] | None = None

    def note(self, task: str, ids: Sequence[int]) -> None:
        """Take a prompt's ids in; the same object twice in a row (a question's options) is one prompt."""
        if self._last is not None and self._last[0] == task and self._last[1] is ids:
            return
        self._last = (task, ids)
        self._digests.setdefault(task, hashlib.sha256()).update(f"{' '.join(map(str, ids))}\n".encode())

    def digest(self, task: str) -> str | None:
        """Of a task's prompts; None where none was noted."""
        found = self._digests.get(task)
        return None if found is None else found.hexdigest()


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


@dataclass(frozen=True)
class TooLong:
    """A task with questions that do not fit."""

    task: str
    num_long: int
    num_asked: int
    num_shots: int
    longest: int
    """Tokens that the longest takes up, the first token of its answer included."""

    def __str__(self) -> str:
        shots = f" with {self.num_shots} shots before each" if self.num_shots else ""
        return f"{self.task}: {self.num_long} of {self.num_asked} questions{shots} (the longest needs {self.longest})"


def refuse(found: Sequence[TooLong], *, max_model_len: int) -> None:
    """Raise a DataError where anything is `found` not to fit."""
    if not found:
        return
    longest = max(task.longest for task in found)
    lines = "".join(f"\n  {task}" for task in found)
    fewer = ", or give fewer shots (mmlu=FOLDER takes as many as dev/ has)" if any(t.num_shots for t in found) else ""
    raise DataError(
        f"evaluate: questions that do not fit the context of {max_model_len} tokens:{lines}\nRaise "
        f"engine.max_model_len to {longest} or more, if the model has as many positions{fewer}."
    )
