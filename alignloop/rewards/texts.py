"""What a text says and how long it is: equality, patterns, words, language, repetition."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from alignloop.evaluation.language import best_guess, known_languages, near, prose
from alignloop.evaluation.measures import repeated_ngram_share, words
from alignloop.rewards.rows import Messages, by_row

_EDGES = " \t\n.,;:!?\"'`*_\u2018\u2019\u201c\u201d\u00ab\u00bb\u3002\u3001\uff0c\uff01\uff1f"
"""Punctuation, quotation marks and Markdown's emphasis at the ends of a text: no part of what it says."""
MATCH_SECONDS = 10.0
"""A pattern that takes longer on one answer is an error: some take for ever on what a model happens to write."""


def exact_match(
    prompts: Sequence[Messages], completions: Sequence[Messages], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 where the whole answer is the row's, else 0, both `normalised`.

    Args:
        answer: a text, a number, or a list of them, one of which is enough. Numbers are compared as they are written.

    Raises:
        DataError: a column that holds anything else, or of which nothing is left when it is normalised.
    """
    return by_row(_is_same, answer, name="exact_match", prompts=prompts, completions=completions)


def matches_regex(
    prompts: Sequence[Messages], completions: Sequence[Messages], regex: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 where the row's regular expression is found in the answer (of several, all of them), else 0.

    Args:
        regex: a pattern or a list of them, in Python's syntax; `^` and `$` are the ends of the answer, `(?i)` ignores
            case.

    Raises:
        DataError: a column that is no pattern, or one that takes longer than `MATCH_SECONDS` on an answer.
    """
    return by_row(_matches, regex, name="matches_regex", prompts=prompts, completions=completions)


def at_least_words(
    prompts: Sequence[Messages], completions: Sequence[Messages], min_words: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 where the answer has `min_words` words or more, else 0; in scripts without spaces a character is a word."""

    def rule(text: str, limit: object) -> float:
        return float(len(words(text)) >= _count(limit, name="min_words"))

    return by_row(rule, min_words, name="at_least_words", prompts=prompts, completions=completions)


def at_most_words(
    prompts: Sequence[Messages], completions: Sequence[Messages], max_words: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 where the answer has `max_words` words or fewer, else 0; in scripts without spaces a character is a word."""

    def rule(text: str, limit: object) -> float:
        return float(len(words(text)) <= _count(limit, name="max_words"))

    return by_row(rule, max_words, name="at_most_words", prompts=prompts, completions=completions)


def in_language(
    prompts: Sequence[Messages], completions: Sequence[Messages], language: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 where langdetect's best guess at the answer's language, code and links apart, is the row's, else 0.

    What langdetect can hardly tell apart counts as the same (Danish and Norwegian, Croatian and Slovenian, ...), and
    an answer without words is in no language. It guesses on short answers: ask it where some sentences are wanted.

    Args:
        language: a code such as `en`; a region (`pt-BR`) does not count.

    Raises:
        DataError: a code that langdetect does not know.
    """
    return by_row(_is_in, language, name="in_language", prompts=prompts, completions=completions)


def not_repetitive(prompts: Sequence[Messages], completions: Sequence[Messages], **columns: Any) -> list[float | None]:
    """1 minus the share of the answer's 4-word sequences that stood in it before: 1 without repeats, 0 in a loop."""

    def rule(text: str) -> float:
        return 1.0 - repeated_ngram_share(text)

    return by_row(rule, name="not_repetitive", prompts=prompts, completions=completions)


def normalised(text: str) -> str:
    """Unicode NFKC, case folded, each run of white space one space, `_EDGES` off both ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


def _is_same(text: str, wanted: object) -> float:
    known = wanted if isinstance(wanted, list) else [wanted]
    if not known or not all(isinstance(one, str | int | float) for one in known):
        raise ValueError(f"column answer: {wanted!r}: a text, a number or a list of them is wanted")
    right = {normalised(str(one)) for one in known}
    if "" in right:
        raise ValueError(f"column answer: {wanted!r}: without punctuation and spaces nothing is left to compare with")
    return float(normalised(text) in right)


def _matches(text: str, wanted: object) -> float:
    import regex

    known = wanted if isinstance(wanted, list) else [wanted]
    if not known or not all(isinstance(one, str) for one in known):
        raise ValueError(f"column regex: {wanted!r}: a pattern or a list of them is wanted")
    for pattern in known:
        try:
            if regex.search(pattern, text, timeout=MATCH_SECONDS) is None:
                return 0.0
        except (regex.error, re.error) as error:
            raise ValueError(f"column regex: {pattern!r}: no regular expression: {error}") from error
        except TimeoutError as error:
            raise ValueError(
                f"column regex: {pattern!r} takes over {MATCH_SECONDS:g} s on the answer {text[:40]!r}: write it "
                "without one repetition inside another"
            ) from error
    return 1.0


def _count(value: object, *, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"column {name}: {value!r}: a whole number of words is wanted")
    return value


def _is_in(text: str, wanted: object) -> float:
    code = str(wanted).lower().replace("_", "-").partition("-")[0]
    if not isinstance(wanted, str) or code not in known_languages():
        raise ValueError(f"column language: {wanted!r}: langdetect knows {', '.join(sorted(known_languages()))}")
    found = best_guess(prose(text))
    return float(found is not None and near(found.language.partition("-")[0]) == near(code))
