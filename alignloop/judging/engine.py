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
    """A question on its way, and what came of it so far; `answer` is None until one can be read."""

    prompt_ids: tuple[int, ...]
    seed: int
    texts: list[str] = field(default_factory=list)
    answer: Answer | None = None
    reason: str = ""

    def last_answer(self) -> Answer:
        return self.answer or Answer(None, self.reason, tuple(self.texts))


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
            rendered = [[self._rendered(chat, q, takes_system) for q in unit.questions] for unit in shard]
            self._answer(chat, [question for questions in rendered for question in questions])
            keep([(u, tuple(q.last_answer() for q in questions)) for u, questions in zip(shard, rendered, strict=True)])

    def _rendered(self, chat: ChatFormat, question: Question, takes_system: bool) -> _Rendered:
        messages = question.messages if takes_system else in_first_user_turn(question.messages)
        rendered = _Rendered(chat.prompt_ids(messages), question.seed)
        num_tokens, longest = len(rendered.prompt_ids), self._config.max_tokens
        if self._max_model_len is not None and num_tokens + longest > self._max_model_len:
            reason = (
                f"too long for the judge: a prompt of {num_tokens} tokens and judge.max_tokens ({longest}) are "
                f"{num_tokens + longest}, more than engine.max_model_len ({self._max_model_len})"
            )
            rendered.answer = Answer(None, reason)
        return rendered

    def _answer(self, chat: ChatFormat, rendered: Sequence[_Rendered]) -> None:
        """Ask all; ask those again that cannot be read."""
        for attempt in range(self._config.max_retries + 1):
            waiting = [one for one in rendered if one.answer is None]
            if not waiting:
                return
            completions = self._engine.generate([self._request(chat, one, attempt) for one in waiting])
            for one, (completion,) in zip(waiting, completions, strict=True):
                self._read(chat, one, completion)

    def _request(self, chat: ChatFormat, rendered: _Rendered, attempt: int) -> GenerateRequest:
        lowest = RETRY_TEMPERATURE if attempt else 0.0
        return GenerateRequest(
            prompt_ids=rendered.prompt_ids,
            max_tokens=self._config.max_tokens,
            temperature=max(self._config.temperature, lowest),
            seed=derive_seed(rendered.seed, attempt),
            stop_token_ids=chat.stop_token_ids,
            json_schema=self._schema,
        )

    def _read(self, chat: ChatFormat, rendered: _Rendered, completion: Completion) -> None:
        text = chat.decode(completion.token_ids)
        rendered.texts.append(text)
        try:
            found = self._reader.read(text, cut=completion.finish_reason == "length")
            rendered.answer = replace(found, texts=tuple(rendered.texts))
        except UnreadableAnswer as error:
            rendered.reason = str(error)
