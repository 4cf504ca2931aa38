"""A judge behind an OpenAI-compatible endpoint: many requests at a time, each finished comparison kept at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from alignloop.artifacts import derive_seed
from alignloop.config.engine import JudgeConfig
from alignloop.judging.asking import RETRY_TEMPERATURE, Answer, AskerFailed, Keep, Question, Unit
from alignloop.judging.chat_completions import (
    ChatCompletions,
    EndpointFault,
    EndpointUnusable,
    Reply,
    RequestRefused,
)
from alignloop.judging.prompt_file import JudgingPrompt
from alignloop.judging.reading import AnswerReader, UnreadableAnswer

FIRST_WAIT = 1.0
"""Seconds before a failed call is made again; twice as long each further time."""
_LONGEST_WAIT = 30.0
_LAST_ANSWERS_SECONDS = 5.0
"""How long requests that are on their way are waited for once the endpoint has failed."""


class _Stopped(Exception):
    """Another request has failed for good."""


class EndpointAsker:
    """Asks the model served at `config.endpoint`.

    A call that fails (no connection, no answer in time, a server's error) is made again `max_retries` times, after 1,
    2, 4, ... seconds. A busy endpoint (429, 503) is given `timeout_seconds`, too, and as long as it asks for.
    """

    def __init__(
        self, config: JudgeConfig, *, prompt: JudgingPrompt, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._config = config
        self._schema = prompt.answer_schema
        self._reader = AnswerReader(prompt)
        self._say = say

    def ask(self, units: Sequence[Unit], *, done: Collection[str], keep: Keep) -> None:
        """Units in any order, each kept as it is finished.

        Raises:
            AskerFailed: the endpoint failed for good; names it and what it did.
        """
        waiting = [unit for unit in units if unit.key not in done]
        if waiting:
            asyncio.run(self._ask(waiting, keep))

    async def _ask(self, waiting: Sequence[Unit], keep: Keep) -> None:
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

    async def _work(self, client: ChatCompletions, todo: Iterator[Unit], keep: Keep, stop: asyncio.Event) -> None:
        with suppress(_Stopped):
            for unit in todo:
                keep([(unit, tuple([await self._answer(client, question, stop) for question in unit.questions]))])
                if stop.is_set():
                    return

    async def _answer(self, client: ChatCompletions, question: Question, stop: asyncio.Event) -> Answer:
        """Ask until an answer can be read, as often as `max_retries` allows."""
        texts: list[str] = []
        reason = ""
        for attempt in range(self._config.max_retries + 1):
            try:
                reply = await self._call(client, question, attempt, stop)
            except RequestRefused as error:
                return Answer(None, str(error), tuple(texts))
            texts.append(reply.text)
            try:
                return replace(self._reader.read(reply.text, cut=reply.cut), texts=tuple(texts))
            except UnreadableAnswer as error:
                reason = str(error)
        return Answer(None, reason, tuple(texts))

    async def _call(self, client: ChatCompletions, question: Question, attempt: int, stop: asyncio.Event) -> Reply:
        """One answer, through failures that pass.

        Raises:
            EndpointFault: it went on failing.
        """
        temperature = max(self._config.temperature, RETRY_TEMPERATURE if attempt else 0.0)
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
