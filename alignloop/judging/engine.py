"""A judge model on the run's own engine: its chat template, its tokens, answers held to the prompt's schema."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.artifacts import derive_seed
from alignloop.chat.system_turn import in_first_user_turn, takes_system_turn
from alignloop.config.engine import JudgeConfig
from alignloop.engines.base import Completion, Engine, GenerateRequest
from alignloop.judging.asking import RETRY_TEMPERATURE, Answer, Keep, Question, Unit
from alignloop.judging.prompt_file import JudgingPrompt
from alignloop.judging.reading import AnswerReader, UnreadableAnswer

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

SHARD_UNITS = 64
"""Units a call of the engine: what a crash costs at most."""


@dataclass
class _Rendered:
    """A question on its way: rendered, and what the model wrote so far."""

    prompt_ids: tuple[int, ...]
    seed: int
    texts: list[str] = field(default_factory=list)
    answer: Answer | None = None


class EngineAsker:
    """Asks the model in `checkpoint`, loaded into `engine`.

    Args:
        max_model_len: longest prompt + answer of the engine, in tokens. A question that leaves no room for the
            longest answer is unreadable, and is never cut. None: the engine refuses the call.
    """

    def __init__(
        self, engine: Engine, checkpoint: Path, *, config: JudgeConfig, prompt: JudgingPrompt, max_model_len: int | None
    ) -> None:
        self._engine = engine
        self._checkpoint = checkpoint
        self._config = config
        self._reader = AnswerReader(prompt)
        self._schema = json.dumps(prompt.answer_schema)
        self._max_model_len = max_model_len

    def ask(self, units: Sequence[Unit], *, done: Collection[str], keep: Keep) -> None:
        """Shard by shard, each whole or not at all, so that what is in a call does not depend on where a run broke."""
        from alignloop.chat.load import load_format

        shards = [units[start : start + SHARD_UNITS] for start in range(0, len(units), SHARD_UNITS)]
        open_shards = [shard for shard in shards if any(unit.key not in done for unit in shard)]
        if not open_shards:
            return
        chat = load_format(self._checkpoint)
        takes_system = takes_system_turn(chat)
        for shard in open_shards:
            self._engine.load_weights(self._checkpoint)
            asked = [[self._asked(chat, q, takes_system) for q in unit.questions] for unit in shard]
            self._answer(chat, [question for questions in asked for question in questions])
            keep([(unit, _answers(questions)) for unit, questions in zip(shard, asked, strict=True)])

    def _asked(self, chat: ChatFormat, question: Question, takes_system: bool) -> _Rendered:
        messages = question.messages if takes_system else in_first_user_turn(question.messages)
        asked = _Rendered(chat.prompt_ids(messages), question.seed)
        total = len(asked.prompt_ids) + self._config.max_tokens
        if self._max_model_len is not None and total > self._max_model_len:
            asked.answer = Answer(
                None,
                f"too long for the judge: a prompt of {len(asked.prompt_ids)} tokens and judge.max_tokens "
                f"({self._config.max_tokens}) are {total}, more than engine.max_model_len ({self._max_model_len})",
                (),
            )
        return asked

    def _answer(self, chat: ChatFormat, asked: Sequence[_Rendered]) -> None:
        """Ask all; ask those again that cannot be read."""
        for attempt in range(self._config.max_retries + 1):
            waiting = [one for one in asked if one.answer is None]
            if not waiting:
                return
            generated = self._engine.generate([self._request(chat, one, attempt) for one in waiting])
            last = attempt == self._config.max_retries
            for one, (completion,) in zip(waiting, generated, strict=True):
                self._read(chat, one, completion, last=last)

    def _request(self, chat: ChatFormat, asked: _Rendered, attempt: int) -> GenerateRequest:
        lowest = RETRY_TEMPERATURE if attempt else 0.0
        return GenerateRequest(
            prompt_ids=asked.prompt_ids,
            max_tokens=self._config.max_tokens,
            temperature=max(self._config.temperature, lowest),
            seed=derive_seed(asked.seed, attempt),
            stop_token_ids=chat.stop_token_ids,
            json_schema=self._schema,
        )

    def _read(self, chat: ChatFormat, asked: _Rendered, completion: Completion, *, last: bool) -> None:
        text = chat.decode(completion.token_ids)
        asked.texts.append(text)
        try:
            found = self._reader.read(text, cut=completion.finish_reason == "length")
            asked.answer = replace(found, texts=tuple(asked.texts))
        except UnreadableAnswer as error:
            if last:
                asked.answer = Answer(None, str(error), tuple(asked.texts))


def _answers(asked: Sequence[_Rendered]) -> tuple[Answer, ...]:
    answers = tuple(one.answer for one in asked if one.answer is not None)
    assert len(answers) == len(asked), "a question was not answered"
    return answers
