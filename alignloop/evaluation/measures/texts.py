"""Lengths, endings and repetitions of completions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.chat.reasoning import has_answer
from alignloop.evaluation.measures.figures import Figures
from alignloop.evaluation.standard_error import mean

NGRAM = 4
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)


@dataclass(frozen=True)
class Ending:
    """A completion as it is measured.

    Attributes:
        num_tokens: the stop token counted.
        stopped: it ended by itself; otherwise it was cut at its token limit.
    """

    text: str
    num_tokens: int
    stopped: bool


def add_texts(figures: Figures, completions: Sequence[Ending]) -> None:
    """`stop_rate`, `truncation_rate`, `repetition_rate`, `empty_rate` and `mean_tokens`, of one completion a prompt."""
    figures.add("stop_rate", mean([float(each.stopped) for each in completions]))
    figures.add("truncation_rate", mean([float(not each.stopped) for each in completions]))
    figures.add("repetition_rate", mean([repeated_ngram_share(each.text) for each in completions]))
    figures.add("empty_rate", mean([float(not has_answer(each.text)) for each in completions]))
    figures.add("mean_tokens", mean([float(each.num_tokens) for each in completions]))


def words(text: str) -> list[str]:
    """The text's words; in scripts written without spaces, characters."""
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)


def repeated_ngram_share(text: str) -> float:
    """Share of the text's 4-word sequences that occurred before in it: 0 without repeats, towards 1 in a loop."""
    found = words(text.casefold())
    num_ngrams = len(found) - NGRAM + 1
    if num_ngrams <= 0:
        return 0.0
    distinct = set(zip(*(found[start : start + num_ngrams] for start in range(NGRAM)), strict=True))
    return 1.0 - len(distinct) / num_ngrams
