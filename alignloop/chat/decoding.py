"""A sampled completion's text: what the template has a model generate around it, taken off again.

Reasoning comes out in the form that rows carry (`reasoning`), whatever tags or channels the template has for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.chat.answer import AnswerForm, AssistantTurn
from alignloop.chat.encoder import Encoder, mark, unmarked
from alignloop.chat.reasoning import THINK_END, THINK_START, join_reasoning, split_reasoning


@dataclass(frozen=True)
class AnswerReader:
    """The literals of a template's answers as they come out of decoding, whitespace at their edges aside.

    Attributes:
        opening: before an answer without reasoning.
        thinking: before reasoning, and between it and the answer; None where the template has no reasoning, or asks
            without.
        lead: the opening as it is where it is whitespace alone.
        tags: whether the thinking tags are control tokens: a model may write them unasked.
    """

    opening: str
    thinking: tuple[str, str] | None
    lead: str
    tags: bool

    @classmethod
    def of(cls, turn: AssistantTurn, encoder: Encoder) -> AnswerReader:
        def core(literal: str) -> str:
            return encoder.marked(encoder.template(literal)).strip()

        form: AnswerForm | None = turn.thinking
        opening = "" if turn.plain is None else core(turn.plain.opening)
        tags = mark(THINK_START) in encoder.marked(encoder.template(THINK_START))
        lead = "" if turn.plain is None or opening else turn.plain.opening
        return cls(opening, None if form is None else (core(form.opening), core(form.middle)), lead, tags)

    @property
    def reads(self) -> bool:
        """Whether there is anything to take off."""
        return bool(self.opening) or self.thinking is not None or self.tags

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
        return _unasked(marked.removeprefix(self.lead)) if self.thinking is None else unmarked(marked)


def _unasked(marked: str) -> str:
    """A completion where reasoning has no place: the thinking tags that a model writes unasked stay in its text."""
    for tag in (THINK_START, THINK_END):
        marked = marked.replace(mark(tag), tag)
    text = unmarked(marked)
    reasoning, answer = split_reasoning(text)
    return text if reasoning is None else _joined(reasoning, answer)


def _joined(reasoning: str, answer: str) -> str:
    thought = reasoning.strip("\n")
    return join_reasoning(thought, answer.lstrip("\n")) if thought.strip() else answer.lstrip("\n")
