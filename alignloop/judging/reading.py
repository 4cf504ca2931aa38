"""A judge's answer, read: strict JSON of the prompt's schema, alone, in a fenced block or after other text."""

from __future__ import annotations

import json
import re
from typing import Any

from alignloop.judging.http_client import bounded_json
from alignloop.judging.prompt_file import EditPrompt, JudgingPrompt, PairwisePrompt, TextsPrompt
from alignloop.judging.verdicts import JudgeAnswer

_FENCE = re.compile(r"```[ \t]*(?:\w+[ \t]*)?\n(.*?)```", re.DOTALL)
_MAX_STARTS = 256
"""Braces, counted from the end of an answer, at which its object may begin."""
_LONGEST_OBJECT = 2**16
_MOST_READ = 2**19
"""Characters, of an object and of all tries to read one: each brace is a try to read from there to the end, so that
without a bound a long answer takes minutes."""


class UnreadableAnswer(Exception):
    """The answer is not what the prompt asks for; says why."""


class VerdictReader:
    def __init__(self, prompt: JudgingPrompt) -> None:
        from jsonschema import Draft202012Validator

        self._prompt = prompt
        self._validator = Draft202012Validator(prompt.answer_schema)

    def read(self, text: str, *, cut: bool = False) -> JudgeAnswer:
        """The verdict in an answer, and its reason; the asker fills in `texts`.

        `cut`: the model was stopped at its token limit.

        Raises:
            UnreadableAnswer: no JSON object at its end or in its one fenced block, or one that the schema refuses.
        """
        try:
            value = object_in(text)
        except UnreadableAnswer as error:
            raise UnreadableAnswer(f"{error} (it was cut at judge.max_tokens)" if cut else str(error)) from None
        errors = sorted(self._validator.iter_errors(value), key=lambda error: list(map(str, error.path)))
        if errors:
            where = ".".join(map(str, errors[0].path))
            message = f"{where}: {errors[0].message}" if where else errors[0].message
            raise UnreadableAnswer(f"the answer is not of the prompt's schema: {_short(message)}")
        reason = value[self._prompt.reason] if self._prompt.reason else ""
        return self._answer(value, reason if isinstance(reason, str) else json.dumps(reason, ensure_ascii=False))

    def _answer(self, value: dict[str, Any], reason: str) -> JudgeAnswer:
        prompt = self._prompt
        if isinstance(prompt, TextsPrompt):
            fields = prompt.verdict.fields
            return JudgeAnswer(tuple(text for field in fields for text in _texts(value[field], field)), reason)
        found = value[prompt.verdict.field]
        if isinstance(prompt, EditPrompt):
            if isinstance(found, str):  # a blank one is an answer: it improves nothing
                return JudgeAnswer((found.strip(),), reason)
        elif isinstance(prompt, PairwisePrompt):
            for name, meaning, strength in prompt.verdict.meanings:
                if found == name and isinstance(found, str):
                    return JudgeAnswer(meaning, reason, strength=strength)
        elif type(found) is int and 1 <= found <= prompt.verdict.maximum:
            return JudgeAnswer(found, reason)
        raise UnreadableAnswer(f"{prompt.verdict.field} holds {_short(repr(found))}, which is no verdict")


def _texts(found: Any, field: str) -> list[str]:
    """A field's text, or its list of texts; blank ones say nothing."""
    if isinstance(found, str):
        if found.strip():
            return [found.strip()]
        raise UnreadableAnswer(f"{field} is blank")
    if isinstance(found, list) and all(isinstance(text, str) for text in found):
        return [text.strip() for text in found if text.strip()]
    raise UnreadableAnswer(f"{field} holds {_short(repr(found))}, which is neither a text nor a list of texts")


def object_in(text: str) -> dict[str, Any]:
    """The JSON object that an answer is, ends with, or holds in its one fenced block; else UnreadableAnswer.

    What a judge quotes before its answer does not count: of several places, the end of the text comes first.
    """
    text = text.strip()
    if not text:
        raise UnreadableAnswer("the answer is empty")
    blocks = list(_FENCE.finditer(text))
    if blocks and blocks[-1].end() == len(text):
        found = _strict(blocks[-1][1])
    else:
        found = _at_the_end(text)
        if found is None and len(blocks) == 1:
            found = _strict(blocks[0][1])
    if found is None:
        raise UnreadableAnswer(f"the answer holds no JSON object at its end or in one fenced block: {_short(text)}")
    return found


def _at_the_end(text: str) -> dict[str, Any] | None:
    text = text[-_LONGEST_OBJECT:]
    num_starts = min(_MAX_STARTS, _MOST_READ // max(1, len(text)))
    starts = [match.start() for match in re.finditer(r"\{", text)][-num_starts:]
    return next((found for start in starts if (found := _strict(text[start:])) is not None), None)


def _strict(text: str) -> dict[str, Any] | None:
    """A JSON object and nothing beside it; no key twice, no NaN, nothing that a file cannot hold."""
    try:
        value = bounded_json(text, object_pairs_hook=_unique, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode()  # "\ud800" is JSON, and half a character
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _refuse("a key twice")


def _refuse(found: str) -> Any:
    raise ValueError(found)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:80]} ... {text[-36:]}"
