"""A judging prompt filled in. What is judged is text and nothing else: it is put in once and never looked at again.

A completion may hold braces, a placeholder's name, or headings like those of the prompt. The first two stay as they
are, for templates are filled in one pass. Against the third each question has a mark of its own that no text in it
holds: the headings carry it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from alignloop.judging.prompt_file import PLACEHOLDER, PairwisePrompt, PointsPrompt, TextsPrompt
from alignloop.judging.verdicts import Appraisal, Comparison
from alignloop.records import Message


def compare_messages(prompt: PairwisePrompt, item: Comparison, *, swapped: bool) -> tuple[Message, ...]:
    """The question which of an item's completions is better; `swapped` puts the second one first."""
    first, second = (item.second, item.first) if swapped else (item.first, item.second)
    mark = mark_for(*(message.content for message in item.messages), item.first, item.second)
    return _filled(prompt, {**_dialog(item.messages, mark), "first": first, "second": second})


def rate_messages(prompt: PointsPrompt | TextsPrompt, item: Appraisal) -> tuple[Message, ...]:
    """The question how many points an item gets, or what is to be said of it."""
    completion = item.completion or ""
    mark = mark_for(*(message.content for message in item.messages), completion)
    return _filled(prompt, {**_dialog(item.messages, mark), "completion": completion})


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


def _filled(prompt: PairwisePrompt | PointsPrompt | TextsPrompt, values: Mapping[str, str]) -> tuple[Message, ...]:
    user = Message(role="user", content=fill(prompt.user, values))
    if not prompt.system.strip():
        return (user,)
    return (Message(role="system", content=fill(prompt.system, values)), user)


def _dialog(messages: Sequence[Message], mark: str) -> dict[str, str]:
    turns = (f"[{message.role} #{mark}]\n{message.content}" for message in messages)
    asked = next((message.content for message in reversed(messages) if message.role == "user"), "")
    return {"conversation": "\n\n".join(turns), "prompt": asked, "mark": mark}
