"""The judge that stages use: questions from a prompt file, put to the engine or an endpoint, finished ones on disk.

What is judged is text and nothing else: it is put into the prompt once and never looked at again. A completion may hold
braces, a placeholder's name, or headings like those of the prompt. The first two stay as they are, for templates are
filled in one pass. Against the third each question has a mark of its own, which no text in it holds, in its headings.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from alignloop.artifacts import derive_seed, disk_errors_named, fingerprint
from alignloop.config.engine import JudgeConfig
from alignloop.engines.base import Engine
from alignloop.errors import DataError, EngineError, UserError
from alignloop.judging.askers import EndpointAsker, EngineAsker
from alignloop.judging.prompt_file import (
    PLACEHOLDER,
    EditPrompt,
    JudgingPrompt,
    PairwisePrompt,
    PointsPrompt,
    TextsPrompt,
    load_prompt,
)
from alignloop.judging.verdicts import (
    Appraisal,
    Asker,
    AskerFailed,
    Finished,
    Judge,
    JudgeAnswer,
    JudgeTexts,
    PairToCompare,
    PairToEdit,
    Points,
    Question,
    QuestionUnit,
    Verdict,
    verdict_of,
)
from alignloop.progress import Progress, QuietProgress
from alignloop.records import Message, Row

P = TypeVar("P", PairwisePrompt, PointsPrompt, TextsPrompt, EditPrompt)
FILE = "finished.jsonl"
_DOES = {
    "pairwise": "compares two",
    "points": "gives points",
    "texts": "asks for texts",
    "edit": "asks for a better text",
}


def open_judge(
    config: JudgeConfig,
    engine: Engine,
    *,
    dir: Path,
    seed: int,
    max_model_len: int | None = None,
    progress: Progress | None = None,
    labels: Sequence[str] = (),
) -> Judge:
    """The judge a recipe names. Nothing is loaded or called before it is asked.

    Args:
        engine: the judge's model is loaded into it where `config.endpoint` is None.
        dir: finished verdicts are kept in its `finished.jsonl`, and taken over from there.
        max_model_len: of the engine, in tokens; without one, what is too long is the engine's to refuse.
        labels: what a texts prompt with `one_of` chooses among.

    Raises:
        UserError: the judging prompt cannot be used.
    """
    progress = progress or QuietProgress()
    prompt = load_prompt(config.prompt)
    if isinstance(prompt, TextsPrompt):
        prompt = prompt.with_labels(labels)
    asker: Asker
    if config.endpoint is None:
        model = Path(config.model).expanduser()
        asker = EngineAsker(engine, model, config=config, prompt=prompt, max_model_len=max_model_len)
    else:
        asker = EndpointAsker(config, prompt=prompt, say=lambda line: progress.say(f"  {line}"))
    return PromptedJudge(config, prompt, asker, dir=dir, seed=seed, progress=progress)


class FinishedRow(Row):
    """A finished unit."""

    key: str
    id: str
    answers: tuple[JudgeAnswer, ...]


class FinishedFile:
    """The finished units of one stage: lines appended and synced, so that a crash costs at most what was in flight.

    `answers` maps a unit's key to the answers of all that is finished.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        self.answers: dict[str, tuple[JudgeAnswer, ...]] = {}
        self._size = self._take_over() if self.path.is_file() else 0

    def append(self, finished: Sequence[Finished]) -> None:
        """Units are on disk before this returns; on DiskFullError what was kept before stays readable."""
        rows = [FinishedRow(key=unit.key, id=unit.id, answers=answers) for unit, answers in finished]
        text = "".join(row.model_dump_json() + "\n" for row in rows).encode("utf-8")
        with disk_errors_named(self.path, needed_bytes=len(text)), self.path.open("ab") as file:
            file.truncate(self._size)  # what a failed append or a crash left of a line
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(text)
        self.answers |= {unit.key: answers for unit, answers in finished}

    def _take_over(self) -> int:
        """Read the whole lines and return their bytes: a line that a crash cut does not count.

        Where no answer at all can be read, the judge, its prompt or its server was not right: all are asked anew.
        """
        whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if newline else (), start=1):
            try:
                row = FinishedRow.model_validate_json(line)
            except ValidationError:
                raise DataError(
                    f"{self.path}, line {number}: not what a judge wrote there; the file was changed from outside: "
                    "remove it and run again, and everything is judged anew"
                ) from None
            self.answers[row.key] = row.answers
        if not any(answer.value is not None for answers in self.answers.values() for answer in answers):
            self.answers = {}
            return 0
        return len(whole) + len(newline)


class PromptedJudge:
    """A `Judge` by one judging prompt; see `open_judge`."""

    def __init__(
        self, config: JudgeConfig, prompt: JudgingPrompt, asker: Asker, *, dir: Path, seed: int, progress: Progress
    ) -> None:
        self._config = config
        self._prompt = prompt
        self._asker = asker
        self._finished = FinishedFile(dir)
        self._seed = seed
        self._progress = progress

    @property
    def name(self) -> str:
        """The model's name, without the path to it."""
        config = self._config
        return config.model if config.endpoint is not None else Path(config.model).expanduser().resolve().name

    def compare(self, items: Sequence[PairToCompare]) -> list[Verdict]:
        prompt = self._wanted(PairwisePrompt, "comparing wants a pairwise prompt")
        orders = (False, True) if self._config.both_orders else (False,)
        units = [
            self._unit(item.id, [compare_messages(prompt, item, swapped=swapped) for swapped in orders])
            for item in items
        ]
        answers = self._ask(units, what="comparisons")
        return [verdict_of(item.id, both) for item, both in zip(items, answers, strict=True)]

    def rate(self, items: Sequence[Appraisal]) -> list[Points]:
        answers = self._ask_about(self._wanted(PointsPrompt, "rating wants a points prompt"), items)
        return [
            Points(item.id, answer.value if isinstance(answer.value, int) else None, answer.reason, answer.texts)
            for item, answer in zip(items, answers, strict=True)
        ]

    def describe(self, items: Sequence[Appraisal]) -> list[JudgeTexts]:
        answers = self._ask_about(self._wanted(TextsPrompt, "describing wants a texts prompt"), items)
        return [_texts_of(item.id, answer) for item, answer in zip(items, answers, strict=True)]

    def edit(self, items: Sequence[PairToEdit]) -> list[JudgeTexts]:
        prompt = self._wanted(EditPrompt, "editing wants an edit prompt")
        answers = self._ask([self._unit(item.pair.id, [edit_messages(prompt, item)]) for item in items], what="edits")
        return [_texts_of(item.pair.id, answer) for item, (answer,) in zip(items, answers, strict=True)]

    def _wanted(self, kind: type[P], wants: str) -> P:
        if isinstance(self._prompt, kind):
            return self._prompt
        raise UserError(f"judge.prompt: {self._config.prompt} {_DOES[self._prompt.kind]}; {wants}")

    def _ask_about(self, prompt: PointsPrompt | TextsPrompt, items: Sequence[Appraisal]) -> list[JudgeAnswer]:
        without = next((item.id for item in items if item.completion is None), None)
        if prompt.wants_completion and without is not None:
            raise UserError(f"judge.prompt: {self._config.prompt} grades a completion, and {without} has none")
        answers = self._ask([self._unit(item.id, [rate_messages(prompt, item)]) for item in items], what="items")
        return [answer for (answer,) in answers]

    def _unit(self, item_id: str, asked: Sequence[tuple[Message, ...]]) -> QuestionUnit:
        questions = tuple(
            Question(messages, derive_seed(self._seed, "judge", item_id, index)) for index, messages in enumerate(asked)
        )
        config = self._config
        described = {
            "model": config.model,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "prompt": self._prompt.digest,
            "asked": [[message.model_dump() for message in question.messages] for question in questions],
            "seeds": [question.seed for question in questions],
        }
        return QuestionUnit(item_id, fingerprint(described), questions)

    def _ask(self, units: Sequence[QuestionUnit], *, what: str) -> list[tuple[JudgeAnswer, ...]]:
        finished = self._finished
        with self._progress.task("judging", total=len(units), unit=what) as advance:
            taken_over = sum(unit.key in finished.answers for unit in units)
            if taken_over:
                advance(taken_over)

            def keep(more: Sequence[Finished]) -> None:
                num_new = sum(unit.key not in finished.answers for unit, _ in more)
                finished.append(more)
                advance(num_new)

            try:
                self._asker.ask(units, done=finished.answers.keys(), keep=keep)
            except (AskerFailed, EngineError) as error:
                num_done = sum(unit.key in finished.answers for unit in units)
                raise EngineError(
                    f"judge: {error}\n{num_done} of {len(units)} {what} are finished and kept in {finished.path}; run "
                    "the same command again to go on from there"
                ) from error
        return [finished.answers[unit.key] for unit in units]


def _texts_of(item_id: str, answer: JudgeAnswer) -> JudgeTexts:
    texts = answer.value if isinstance(answer.value, tuple) else None
    return JudgeTexts(item_id, texts, answer.reason, answer.texts)


def compare_messages(prompt: PairwisePrompt, item: PairToCompare, *, swapped: bool) -> tuple[Message, ...]:
    first, second = (item.second, item.first) if swapped else (item.first, item.second)
    values = {"first": first, "second": second}
    return _filled(prompt, item.messages, values, judged=(item.first, item.second))


def rate_messages(prompt: PointsPrompt | TextsPrompt, item: Appraisal) -> tuple[Message, ...]:
    completion = item.completion or ""
    return _filled(prompt, item.messages, {"completion": completion}, judged=(completion,))


def edit_messages(prompt: EditPrompt, item: PairToEdit) -> tuple[Message, ...]:
    pair = item.pair
    values = {
        "first": pair.first,
        "second": pair.second,
        "completion": item.completion,
        "better": item.better,
        "criticism": item.criticism or "(none was given)",
    }
    return _filled(prompt, pair.messages, values, judged=(pair.first, pair.second, item.criticism))


def _filled(
    prompt: JudgingPrompt, messages: Sequence[Message], more: Mapping[str, str], *, judged: Sequence[str]
) -> tuple[Message, ...]:
    """The prompt with a dialog and the texts that are judged; the mark is the same in whichever order they stand."""
    mark = mark_for(*(message.content for message in messages), *judged)
    turns = (f"[{message.role} #{mark}]\n{message.content}" for message in messages)
    asked = next((message.content for message in reversed(messages) if message.role == "user"), "")
    values = {"conversation": "\n\n".join(turns), "prompt": asked, "mark": mark, **more}
    user = Message(role="user", content=fill(prompt.user, values))
    if not prompt.system.strip():
        return (user,)
    return (Message(role="system", content=fill(prompt.system, values)), user)


def fill(template: str, values: Mapping[str, str]) -> str:
    """`{name}` becomes its value, `{{word}}` becomes `{word}`; values are not looked into."""

    def filled(match: re.Match[str]) -> str:
        return f"{{{match[1]}}}" if match[1] else values[match[2]]

    return PLACEHOLDER.sub(filled, template)


def mark_for(*texts: str) -> str:
    """Eight characters that none of the texts holds; the same ones for the same texts."""
    mark = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    while any(mark[:8] in text for text in texts):
        mark = hashlib.sha256(mark.encode()).hexdigest()
    return mark[:8]
