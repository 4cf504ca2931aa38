"""Texts as units: words where a script puts spaces between them, single characters where it does not.

English, Chinese and mixed texts go one way: "用 GPT-4 写" is 用 / gpt / 4 / 写. A sequence of n units is an n-gram of
words in English and of characters in Chinese.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
# Thai, Lao, Tibetan, Burmese, Khmer, kana, Bopomofo, Han and their extensions: no spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
# Accents and vowel signs are part of their word, which Python's \w does not say.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u200c\u200d"
_UNIT = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[{_MARKS}])+")
_ASCII_UNIT = re.compile(r"[a-z0-9]+")
_SPACES = re.compile(r"\s+")
_MIX = np.uint64(0x9E3779B97F4A7C15)


def normalised(text: str) -> str:
    """Compatibility forms unified (NFKC), case folded, each run of spaces one space: what counts as the same text."""
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _SPACES.sub(" ", folded).strip()


def units(text: str) -> list[str]:
    """Units of a normalised text, in order; punctuation and symbols are none."""
    return (_ASCII_UNIT if text.isascii() else _UNIT).findall(text)


def joined(words: Sequence[str]) -> str:
    """Units as a text to show: a space between two words, none beside a character of a script without spaces."""
    parts: list[str] = []
    for word in words:
        if parts and not (_is_unspaced(parts[-1]) or _is_unspaced(word)):
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


@dataclass(frozen=True)
class Texts:
    """Hashes of the units of N texts, one after another.

    Attributes:
        hashes: [T].
        starts: [N + 1]; text n is `hashes[starts[n] : starts[n + 1]]`.
    """

    hashes: Hashes
    starts: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.intp]:
        return np.diff(self.starts)

    def ngrams(self, length: int) -> Texts:
        """Hashes of each text's n-grams; a text with fewer units has none."""
        counts = np.maximum(self.lengths - length + 1, 0)
        total = np.zeros(max(len(self.hashes) - length + 1, 0), dtype=np.uint64)
        with np.errstate(over="ignore"):
            for place in range(length):  # a polynomial in an odd base, modulo 2^64
                total = total * _MIX + self.hashes[place : place + len(total)]
        starts = np.concatenate([[0], np.cumsum(counts)])
        # An n-gram begins at the text's start plus its place within the text; those that cross a border are left out.
        begins = np.repeat(self.starts[:-1] - starts[:-1], counts) + np.arange(starts[-1])
        return Texts(mixed(total[begins]), starts)


def mixed(hashes: Hashes) -> Hashes:
    """The finaliser of splitmix64: every bit of the result depends on every bit given."""
    with np.errstate(over="ignore"):
        hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return hashes ^ (hashes >> np.uint64(31))


def _is_unspaced(word: str) -> bool:
    return re.fullmatch(rf"[{_UNSPACED}]", word) is not None
