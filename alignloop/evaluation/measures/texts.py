"""Lengths, endings and repetitions of completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.chat.reasoning import has_answer
from alignloop.evaluation.measures.figures import Figures
from alignloop.evaluation.standard_error import mean
from alignloop.selection.cleaning import repeated_ngram_share


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
