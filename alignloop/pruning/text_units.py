"""Texts as units, and units as hashes: words where a script puts spaces between them, single characters elsewhere.

Mixed texts need no special case: "用 GPT-4 写" is 用 / gpt / 4 / 写.

A unit's hash is a polynomial of its bytes. ASCII texts, most of the work in English, never become lists of words:
their letters stay in one array, and the sum of a word is the difference of two running sums. Other texts are hashed
word by word, with the same result.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
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
_ONE_UNSPACED = re.compile(rf"[{_UNSPACED}]")
_SPACES = re.compile(r"\s+")
_BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""
_INVERSE = pow(_BASE, -1, 2**64)
_TEXTS, _LETTERS = 2_048, 1_000_000
"""Texts and letters in a block: some 40 MB."""
_IS_UNIT = np.zeros(128, dtype=bool)
_IS_UNIT[[ord(letter) for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]] = True


def normalised(text: str) -> str:
    """NFKC, case folded, each run of spaces one space: what counts as the same text."""
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _SPACES.sub(" ", folded).strip()


def units(text: str) -> list[str]:
    """Units of a normalised text, in order, without punctuation and symbols."""
    return (_ASCII_UNIT if text.isascii() else _UNIT).findall(text)


def joined(words: Sequence[str]) -> str:
    """Units as a text to show: a space between two words, none beside a character of a script without spaces."""
    parts: list[str] = []
    for word in words:
        if parts and not (_ONE_UNSPACED.fullmatch(parts[-1]) or _ONE_UNSPACED.fullmatch(word)):
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


def chunks(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(index of the first, texts) of blocks of texts, in order."""
    first, letters = 0, 0
    part: list[str] = []
    for text in texts:
        part.append(text)
        letters += len(text)
        if len(part) == _TEXTS or letters >= _LETTERS:
            yield first, part
            first, part, letters = first + len(part), [], 0
    if part:
        yield first, part


@dataclass(frozen=True)
class Texts:
    """Hashes [T] of the units of N texts; text n is `hashes[starts[n] : starts[n + 1]]`, with [N + 1] `starts`."""

    hashes: Hashes
    starts: NDArray[np.intp]

    @staticmethod
    def of(parts: Sequence[Hashes]) -> Texts:
        hashes = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
        return Texts(hashes, starts_of([len(part) for part in parts]))

    @property
    def lengths(self) -> NDArray[np.intp]:
        return np.diff(self.starts)

    def ngrams(self, length: int) -> Texts:
        """Hashes of each text's n-grams; a text with fewer units has none."""
        counts = np.maximum(self.lengths - length + 1, 0)
        total = np.zeros(max(len(self.hashes) - length + 1, 0), dtype=np.uint64)
        with np.errstate(over="ignore"):
            for position in range(length):  # a polynomial in an odd base, modulo 2^64
                total = total * np.uint64(_BASE) + self.hashes[position : position + len(total)]
        starts = starts_of(counts)
        # An n-gram begins at its text's start plus its position in it; those that cross a border are left out.
        begins = np.repeat(self.starts[:-1] - starts[:-1], counts) + np.arange(starts[-1])
        return Texts(mixed(total[begins]), starts)


def starts_of(lengths: Sequence[int] | NDArray[np.intp]) -> NDArray[np.intp]:
    """[N + 1] where each of N parts begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.intp)


def mixed(hashes: Hashes) -> Hashes:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the input."""
    with np.errstate(over="ignore"):
        hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return hashes ^ (hashes >> np.uint64(31))


class UnitHashes:
    def __init__(self) -> None:
        self._known = _Known()
        self._powers = self._inverses = np.ones(1, dtype=np.uint64)

    def texts(self, texts: Sequence[str]) -> Texts:
        """Hashes of the units of texts that are not normalised yet."""
        found: list[Hashes] = [np.zeros(0, dtype=np.uint64)] * len(texts)
        plain = [row for row, text in enumerate(texts) if text.isascii()]
        for row, hashes in zip(plain, self._of_ascii([texts[row] for row in plain]), strict=True):
            found[row] = hashes
        for row, text in enumerate(texts):
            if not text.isascii():
                found[row] = self.words(units(normalised(text)))
        return Texts.of(found)

    def words(self, words: Sequence[str]) -> Hashes:
        return mixed(np.array([self._known[word] for word in words], dtype=np.uint64))

    def _of_ascii(self, texts: Sequence[str]) -> list[Hashes]:
        if not texts:
            return []
        letters = np.frombuffer("\n".join(texts).lower().encode("ascii"), dtype=np.uint8)
        inside = np.concatenate([[False], _IS_UNIT[letters], [False]])
        starts = np.flatnonzero(inside[1:] & ~inside[:-1])
        ends = np.flatnonzero(~inside[1:] & inside[:-1])
        if len(self._powers) <= len(letters):
            self._powers, self._inverses = (_powers(base, len(letters) + 1) for base in (_BASE, _INVERSE))
        with np.errstate(over="ignore"):
            terms = (letters.astype(np.uint64) + np.uint64(1)) * self._powers[: len(letters)]
            sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)])
            hashes = mixed((sums[ends] - sums[starts]) * self._inverses[starts])
        borders = np.cumsum([len(text) + 1 for text in texts])[:-1]
        return np.split(hashes, np.searchsorted(starts, borders))


class _Known(dict[str, int]):
    def __missing__(self, word: str) -> int:
        total, power = 0, 1
        for byte in word.encode("utf-8", "surrogatepass"):
            total, power = total + (byte + 1) * power, power * _BASE % 2**64
        self[word] = value = total % 2**64
        return value


def _powers(base: int, size: int) -> Hashes:
    factors = np.full(size, base, dtype=np.uint64)
    factors[0] = 1
    with np.errstate(over="ignore"):
        found: Hashes = np.cumprod(factors, dtype=np.uint64)
    return found
