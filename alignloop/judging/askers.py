"""How a question comes to its answer: on the run's own engine, or behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.artifacts import derive_seed
from alignloop.chat.load import in_first_user_turn, takes_system_turn
from alignloop.config.engine import JudgeConfig
from alignloop.engines.base import Engine, GenerateRequest
from alignloop.judging.chat_completions import (
    ChatCompletions,
    ChatReply,
    EndpointFault,
    EndpointUnusable,
    RequestRefused,
)
from alignloop.judging.prompt_file import JudgingPrompt
from alignloop.judging.reading import UnreadableAnswer, VerdictReader
from alignloop.judging.verdicts import AskerFailed, JudgeAnswer, Keep, Question, QuestionUnit

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

RETRY_TEMPERATURE = 0.3
"""An unreadable answer is asked for again with another seed and at least this temperature: at 0 it would be the
same again."""
SHARD_UNITS = 64
"""Units a call of the engine: what a crash costs at most."""
FIRST_WAIT = 1.0
"""Seconds before a failed call is made again; twice as long each further time."""
_LONGEST_WAIT = 30.0
_LAST_ANSWERS_SECONDS = 5.0
"""How long requests that are on their way are waited for once the endpoint has failed."""


@dataclass
class _Answering:
    """`answer` is None until one can be read."""

    reader: VerdictReader
    texts: list[str] = field(default_factory=list)
    answer: JudgeAnswer | None = None
    reason: str = ""

    def take(self, text: str, *, cut: bool) -> None:
        self.texts.append(text)
        try:
            self.answer = replace(self.reader.read(text, cut=cut), texts=tuple(self.texts))
        except UnreadableAnswer as error:
            self.reason = str(error)

    def refuse(self, reason: str) -> None:
        """Give up on the question: it is not asked (again)."""
        self.answer = JudgeAnswer(None, reason, tuple(self.texts))

    def final(self) -> JudgeAnswer:
        return self.answer or JudgeAnswer(None, self.reason, tuple(self.texts))


def _temperature(config: JudgeConfig, attempt: int) -> float:
    return max(config.temperature, RETRY_TEMPERATURE if attempt else 0.0)


@dataclass
class _OnEngine:
    prompt_ids: tuple[int, ...]
    seed: int
    state: _Answering


class EngineAsker:
    """Asks the model in `checkpoint`, loaded into `engine`: its chat template, answers held to the prompt's schema.

    `max_model_len` is the engine's, in tokens. A question that leaves too little of it for the longest answer is
    unreadable, and is never cut; where it is None, the engine refuses the call.
    """

    def __init__(
        self, engine: Engine, checkpoint: Path, *, config: JudgeConfig, prompt: JudgingPrompt, max_model_len: int | None
    ) -> None:
        self._engine = engine
        self._checkpoint = checkpoint
        self._config = config
        self._reader = VerdictReader(prompt)
        self._schema = json.dumps(prompt.answer_schema)
        self._max_model_len = max_model_len

    def ask(self, units: Sequence[QuestionUnit], *, done: Collection[str], keep: Keep) -> None:
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
            asked = [[self._rendered(chat, q, takes_system) for q in unit.questions] for unit in shard]
            self._answer(chat, [question for questions in asked for question in questions])
            keep([(u, tuple(q.state.final() for q in questions)) for u, questions in zip(shard, asked, strict=True)])

    def _rendered(self, chat: ChatFormat, question: Question, takes_system: bool) -> _OnEngine:
        messages = question.messages if takes_system else in_first_user_turn(question.messages)
        rendered = _OnEngine(chat.prompt_ids(messages), question.seed, _Answering(self._reader))
        num_tokens, longest = len(rendered.prompt_ids), self._config.max_tokens
        if self._max_model_len is not None and num_tokens + longest > self._max_model_len:
            rendered.state.refuse(
                f"too long for the judge: a prompt of {num_tokens} tokens and judge.max_tokens ({longest}) are "
                f"{num_tokens + longest}, more than engine.max_model_len ({self._max_model_len})"
            )
        return rendered

    def _answer(self, chat: ChatFormat, questions: Sequence[_OnEngine]) -> None:
        for attempt in range(self._config.max_retries + 1):
            waiting = [question for question in questions if question.state.answer is None]
            if not waiting:
                return
            requests = [
                GenerateRequest(
                    prompt_ids=question.prompt_ids,
                    max_tokens=self._config.max_tokens,
                    temperature=_temperature(self._config, attempt),
                    seed=derive_seed(question.seed, attempt),
                    stop_token_ids=chat.stop_token_ids,
                    json_schema=self._schema,
                )
                for question in waiting
            ]
            for question, (completion,) in zip(waiting, self._engine.generate(requests), strict=True):
                question.state.take(chat.decode(completion.token_ids), cut=completion.finish_reason == "length")


class _Stopped(Exception):
    """Another request has failed for good."""


class EndpointAsker:
    """Asks the model served at `config.endpoint`: many requests at a time, each finished unit kept at once.

    A call that fails (no connection, no answer in time, a server's error) is made again `max_retries` times, after 1,
    2, 4, ... seconds. A busy endpoint (429, 503) also gets `timeout_seconds`, and as long as it asks for.
    """

    def __init__(
        self, config: JudgeConfig, *, prompt: JudgingPrompt, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._config = config
        self._schema = prompt.answer_schema
        self._reader = VerdictReader(prompt)
        self._say = say

    def ask(self, units: Sequence[QuestionUnit], *, done: Collection[str], keep: Keep) -> None:
        """Units in any order, each kept as it is finished.

        Raises:
            AskerFailed: the endpoint failed for good; names it and what it did.
        """
        waiting = [unit for unit in units if unit.key not in done]
        if waiting:
            asyncio.run(self._ask(waiting, keep))

    async def _ask(self, waiting: Sequence[QuestionUnit], keep: Keep) -> None:
        todo, stop = iter(waiting), asyncio.Event()
        async with ChatCompletions(self._config, say=self._say) as client:
            num_workers = min(self._config.concurrency, len(waiting))
            workers = [asyncio.create_task(self._work(client, todo, keep, stop)) for _ in range(num_workers)]
            try:
                finished, others = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                stop.set()
                try:
                    for worker in finished:
                        worker.result()
                except (EndpointFault, EndpointUnusable) as failure:
                    if others:
                        await asyncio.wait(others, timeout=_LAST_ANSWERS_SECONDS)
                    raise AskerFailed(f"{client.url} (model {self._config.model}): {failure}") from failure
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(
        self, client: ChatCompletions, todo: Iterator[QuestionUnit], keep: Keep, stop: asyncio.Event
    ) -> None:
        with suppress(_Stopped):
            for unit in todo:
                keep([(unit, tuple([await self._answer(client, question, stop) for question in unit.questions]))])
                if stop.is_set():
                    return

    async def _answer(self, client: ChatCompletions, question: Question, stop: asyncio.Event) -> JudgeAnswer:
        state = _Answering(self._reader)
        for attempt in range(self._config.max_retries + 1):
            try:
                reply = await self._call(client, question, attempt, stop)
                state.take(reply.text, cut=reply.cut)
            except RequestRefused as error:
                state.refuse(str(error))
            if state.answer is not None:
                break
        return state.final()

    async def _call(self, client: ChatCompletions, question: Question, attempt: int, stop: asyncio.Event) -> ChatReply:
        """One answer, through failures that pass; EndpointFault where it went on failing."""
        temperature = _temperature(self._config, attempt)
        patient_until = time.monotonic() + self._config.timeout_seconds
        failures = 0
        while not stop.is_set():
            try:
                return await client.complete(
                    question.messages,
                    temperature=temperature,
                    max_tokens=self._config.max_tokens,
                    # Greedy answers have no use for one, and a vLLM server on CPU may end on it.
                    seed=derive_seed(question.seed, attempt) if temperature > 0 else None,
                    schema=self._schema,
                )
            except EndpointFault as fault:
                wait = min(_LONGEST_WAIT, FIRST_WAIT * 2.0**failures)
                wait = max(wait, min(fault.wait_seconds or 0.0, self._config.timeout_seconds))
                failures += 1
                patient = fault.busy and time.monotonic() + wait < patient_until
                if failures > self._config.max_retries and not patient:
                    tries = "once" if failures == 1 else f"{failures} times"
                    raise EndpointFault(f"failed {tries}, the last time with {fault}") from fault
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait)
        raise _Stopped
