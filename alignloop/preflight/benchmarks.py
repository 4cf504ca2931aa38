"""Local benchmarks' questions in tokens, without lm-eval: what does not fit is known in a second, before any engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignloop.chat.format import ChatFormat
from alignloop.chat.system_turn import in_first_user_turn, takes_system_turn
from alignloop.config.bundled import benchmark_data
from alignloop.evaluation.ifeval import read_form
from alignloop.evaluation.mmlu import AnswerForm, prompt_messages, read_mmlu, task_name
from alignloop.evaluation.room import TooLong
from alignloop.evaluation.tasks import MMLU_SHOTS
from alignloop.records import Message

SLACK = 8
"""Tokens that a tokenizer may add to a text, such as a space before its first word."""


@dataclass(frozen=True)
class TaskPrompts:
    """Attributes:
    name: lm-eval's of the task.
    shots: the messages before every question.
    questions: the last user message of each prompt.
    num_shots: examples among `shots`.
    answer_tokens: room that the shortest answer needs: the first token that is sampled, and before it what is scored.
    """

    name: str
    shots: tuple[Message, ...]
    questions: tuple[str, ...]
    num_shots: int = 0
    answer_tokens: int = 1


def local_prompts(name: str, *, bundled: bool) -> list[TaskPrompts]:
    """The prompts of `kind=PATH`, or of a bundled task; none for others, which lm-eval alone can build.

    Args:
        name: as in the recipe.
        bundled: whether `ifeval` and `mmlu` are the bundled ones.

    Raises:
        DataError: wrong data: file, line and field.
    """
    local = benchmark_data(name, bundled=bundled)
    if local is None:
        return []
    kind, data = local
    has_path = "=" in name
    if kind == "ifeval":
        return [TaskPrompts("ifeval", (), tuple(row.prompt for _, row in read_form(data)))]
    if kind == "mmlu":
        return _mmlu(data, form="letter" if has_path else "option_text", num_shots=MMLU_SHOTS if has_path else 0)
    return _mmlu(data, form="generated", num_shots=0) if kind == "mmlu_generative" else []


def too_long(task: TaskPrompts, *, chat: ChatFormat, limit: int | None, max_model_len: int) -> TooLong | None:
    """How many of a task's questions leave no room for an answer; None where all of them do.

    A message's tokens do not depend on its neighbours, so the shots are tokenised once; and a text has hardly more
    tokens than bytes, so most questions need not be.
    """

    in_turn = tuple if takes_system_turn(chat) else in_first_user_turn

    def num_tokens(*messages: Message) -> int:
        return len(chat.prompt_ids(in_turn(messages)))

    questions = task.questions[:limit]
    short = Message(role="user", content="a")
    before = num_tokens(*task.shots, short) - num_tokens(short) + task.answer_tokens
    sure = before + num_tokens(short) + SLACK
    lengths = [
        before + num_tokens(Message(role="user", content=question))
        for question in questions
        if sure + len(question.encode()) > max_model_len
    ]
    num_long = sum(length > max_model_len for length in lengths)
    if not num_long:
        return None
    return TooLong(task.name, num_long, len(questions), task.num_shots, max(lengths))


def _mmlu(folder: Path, *, form: AnswerForm, num_shots: int) -> list[TaskPrompts]:
    found = []
    for subject in read_mmlu(folder):
        prompts = [prompt_messages(subject, row, form=form, num_fewshot=num_shots) for row in subject.test]
        questions = _contents(prompts)
        name = task_name(subject.name, form=form)
        answer_tokens = 1 if form == "generated" else 2
        num_here = min(num_shots, len(subject.dev))
        found.append(TaskPrompts(name, tuple(prompts[0][:-1]), questions, num_here, answer_tokens))
    return found


def _contents(prompts: Sequence[Sequence[Message]]) -> tuple[str, ...]:
    return tuple(messages[-1].content for messages in prompts)
