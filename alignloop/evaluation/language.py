"""The language of a text, by langdetect, and the part of a text that has one."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+", re.DOTALL)
_CODE_LINE = re.compile(
    r"[{};=<>]\s*$|^\s*(?:def |class |import |from \w+ import |#include|SELECT |function )", re.MULTILINE
)
_NEAR = {"no": "da", "sl": "hr", "sk": "cs", "ca": "es", "gl": "es", "pt": "pt", "mk": "bg", "uk": "ru", "id": "ms"}


class Guess(NamedTuple):
    """langdetect's code (`en`, `zh-cn`), and how sure it is, from 0 to 1."""

    language: str
    probability: float


def prose(text: str) -> str:
    """The text without code and links; empty where most lines are code without a fence."""
    text = _CODE.sub(" ", text) if "`" in text or "://" in text else text
    if len(_CODE_LINE.findall(text)) * 2 > text.count("\n") + 1:
        return ""
    return text


def best_guess(text: str) -> Guess | None:
    """The likeliest language of a text's first 2,000 characters; None where it has no letters. Deterministic."""
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it draws random numbers
    try:
        best = langdetect.detect_langs(text[:2000])[0]
    except langdetect.LangDetectException:
        return None
    return Guess(best.lang, best.prob)


def near(language: str) -> str:
    """One code for languages that are told apart by little: Norwegian and Danish, Slovenian and Croatian, ..."""
    return _NEAR.get(language, language)


@cache
def known_languages() -> frozenset[str]:
    """The codes of langdetect's profiles, without regions."""
    from langdetect import PROFILES_DIRECTORY

    return frozenset(file.name.partition("-")[0] for file in Path(PROFILES_DIRECTORY).iterdir())
