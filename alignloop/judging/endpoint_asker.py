"""A judge behind an OpenAI-compatible endpoint: many requests at a time, each finished comparison kept at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Event, Thread

from alignloop.artifacts import derive_seed
from alignloop.config.engine import JudgeConfig
from alignloop.judging.base import RETRY_TEMPERATURE, Answer, AskerFailed, Keep, Question, Unit
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
        self,
        config: JudgeConfig,
        *,
        prompt: JudgingPrompt,
        say: Callable[[str], None] = lambda line: None,
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
        todo: SimpleQueue[Unit] = SimpleQueue()
        waiting = [unit for unit in units if unit.key not in done]
        for unit in waiting:
            todo.put(unit)
        if not waiting:
            return
        with ChatCompletions(self._config, say=self._say) as client:
            finished: SimpleQueue[tuple[Unit, tuple[Answer, ...] | BaseException]] = SimpleQueue()
            stop = Event()
            # Daemons: an interrupted run does not wait for a model that answers late.
            threads = [
                Thread(target=self._work, args=(client, todo, finished, stop), daemon=True)
                for _ in range(min(self._config.concurrency, len(waiting)))
            ]
            for thread in threads:
                thread.start()
            try:
                for _ in waiting:
                    self._take(finished.get(), keep)
            except (EndpointFault, EndpointUnusable) as failure:
                stop.set()
                self._keep_last(threads, finished, keep)
                raise AskerFailed(f"{client.url} (model {self._config.model}): {failure}") from failure
            finally:
                stop.set()

    def _work(
        self,
        client: ChatCompletions,
        todo: SimpleQueue[Unit],
        finished: SimpleQueue[tuple[Unit, tuple[Answer, ...] | BaseException]],
        stop: Event,
    ) -> None:
        while not stop.is_set():
            try:
                unit = todo.get_nowait()
            except Empty:
                return
            try:
                finished.put((unit, tuple(self._answer(client, question, stop) for question in unit.questions)))
            except BaseException as error:
                finished.put((unit, error))
                return

    def _take(self, outcome: tuple[Unit, tuple[Answer, ...] | BaseException], keep: Keep) -> None:
        unit, answers = outcome
        if isinstance(answers, BaseException):
            raise answers
        keep([(unit, answers)])

    def _keep_last(
        self,
        threads: Sequence[Thread],
        finished: SimpleQueue[tuple[Unit, tuple[Answer, ...] | BaseException]],
        keep: Keep,
    ) -> None:
        deadline = time.monotonic() + _LAST_ANSWERS_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        while not finished.empty():
            unit, answers = finished.get()
            if not isinstance(answers, BaseException):
                keep([(unit, answers)])

    def _answer(self, client: ChatCompletions, question: Question, stop: Event) -> Answer:
        """Ask until an answer can be read, as often as `max_retries` allows."""
        texts: list[str] = []
        reason = ""
        for attempt in range(self._config.max_retries + 1):
            try:
                reply = self._call(client, question, attempt, stop)
            except RequestRefused as error:
                return Answer(None, str(error), tuple(texts))
            texts.append(reply.text)
            try:
                return replace(self._reader.read(reply.text, cut=reply.cut), texts=tuple(texts))
            except UnreadableAnswer as error:
                reason = str(error)
        return Answer(None, reason, tuple(texts))

    def _call(self, client: ChatCompletions, question: Question, attempt: int, stop: Event) -> Reply:
        """One answer, through failures that pass.

        Raises:
            EndpointFault: it went on failing.
        """
        temperature = max(self._config.temperature, RETRY_TEMPERATURE if attempt else 0.0)
        patient_until = time.monotonic() + self._config.timeout_seconds
        failures = 0
        while True:
            if stop.is_set():
                raise _Stopped
            try:
                return client.complete(
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
            if stop.wait(wait):
                raise _Stopped
