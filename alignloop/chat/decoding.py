"""A sampled completion's text: what the template has a model generate around it, taken off again.

Reasoning comes out in the form that rows carry (`reasoning`), whatever tags or channels the template has for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.chat.answer import AnswerForm, AssistantTurn
from alignloop.chat.encoder import Encoder, unmarked
from alignloop.chat.reasoning import THINK_START, join_reasoning


@dataclass(frozen=True)
class AnswerReader:
    """The literals of a template's answers as they come out of decoding, whitespace at their edges aside.

    Attributes:
        opening: before an answer without reasoning.
        thinking: before reasoning, and between it and the answer; None where the template has no reasoning.
    """

    opening: str
    thinking: tuple[str, str] | None

    @classmethod
    def of(cls, turn: AssistantTurn, encoder: Encoder) -> AnswerReader:
        def core(literal: str) -> str:
            return encoder.marked(encoder.template(literal)).strip()

        form: AnswerForm | None = turn.thinking
        opening = "" if turn.plain is None else core(turn.plain.opening)
        return cls(opening, None if form is None else (core(form.opening), core(form.middle)))

    @property
    def reads(self) -> bool:
        """Whether there is anything to take off."""
        return bool(self.opening) or self.thinking is not None

    def read(self, marked: str) -> str:
        """The text of a completion without its termination.

        Args:
            marked: as `Encoder.marked` gives it.
        """
        start = marked.lstrip()
        if self.thinking is not None and start.startswith(self.thinking[0]):
            opening, middle = self.thinking
            reasoning, closed, answer = start.removeprefix(opening).partition(middle)
            if closed:
                return _joined(unmarked(reasoning), unmarked(answer))
            if opening or not self.opening:  # cut off in the middle of a thought
                return f"{THINK_START}\n{unmarked(reasoning).lstrip()}"
        if self.opening and start.startswith(self.opening):
            return unmarked(start.removeprefix(self.opening)).lstrip("\n")
        return unmarked(marked)


def _joined(reasoning: str, answer: str) -> str:
    thought = reasoning.strip("\n")
    return join_reasoning(thought, answer.lstrip("\n")) if thought.strip() else answer.lstrip("\n")
