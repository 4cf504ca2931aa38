"""Hashes of the units of many texts at once: a polynomial of a unit's bytes, all units of all texts in a few products.

Texts in ASCII, most of the work in English, never become lists of words: their letters stay in one array, and the sum
of a word is the difference of two running sums. Other texts are taken word by word, to the same hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from alignloop.selection.text_units import Hashes, Texts, mixed, normalised, units

_BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""
_INVERSE = pow(_BASE, -1, 2**64)
_LETTERS = 1_000_000
"""Letters worked on together: some 40 MB."""
_IS_UNIT = np.zeros(128, dtype=bool)
_IS_UNIT[[ord(letter) for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]] = True


class UnitHashes:
    """Hashes of units; the same for a unit whichever text it stands in."""

    def __init__(self) -> None:
        self._known = _Known()
        self._powers = self._inverses = np.ones(1, dtype=np.uint64)

    def texts(self, texts: Sequence[str]) -> Texts:
        """Texts as they are -> the hashes of their units, in order."""
        ascii_places = [place for place, text in enumerate(texts) if text.isascii()]
        others = [place for place, text in enumerate(texts) if not text.isascii()]
        found: list[Hashes] = [np.zeros(0, dtype=np.uint64)] * len(texts)
        for places in _groups(ascii_places, texts):
            for place, hashes in zip(places, self._of_ascii([texts[place] for place in places]), strict=True):
                found[place] = hashes
        for place in others:
            found[place] = self.words(units(normalised(texts[place])))
        starts = np.concatenate([[0], np.cumsum([len(hashes) for hashes in found])]).astype(np.intp)
        return Texts(np.concatenate(found) if found else np.zeros(0, dtype=np.uint64), starts)

    def words(self, words: Sequence[str]) -> Hashes:
        """The hashes of units."""
        known = self._known
        return mixed(np.array([known[word] for word in words], dtype=np.uint64))

    def _of_ascii(self, texts: Sequence[str]) -> list[Hashes]:
        letters = np.frombuffer("\n".join(texts).lower().encode("ascii"), dtype=np.uint8)
        inside = np.concatenate([[False], _IS_UNIT[letters], [False]])
        starts = np.flatnonzero(inside[1:] & ~inside[:-1])
        ends = np.flatnonzero(~inside[1:] & inside[:-1])
        self._grow(len(letters) + 1)
        with np.errstate(over="ignore"):
            terms = (letters.astype(np.uint64) + np.uint64(1)) * self._powers[: len(letters)]
            sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)])
            hashes = mixed((sums[ends] - sums[starts]) * self._inverses[starts])
        borders = np.cumsum([len(text) + 1 for text in texts])[:-1]
        return np.split(hashes, np.searchsorted(starts, borders))

    def _grow(self, size: int) -> None:
        if len(self._powers) < size:
            self._powers, self._inverses = _powers(_BASE, size), _powers(_INVERSE, size)


def _groups(places: Sequence[int], texts: Sequence[str]) -> Iterator[list[int]]:
    """Places of texts of about as many letters as are worked on together, in order."""
    group: list[int] = []
    letters = 0
    for place in places:
        group.append(place)
        letters += len(texts[place])
        if letters >= _LETTERS:
            yield group
            group, letters = [], 0
    if group:
        yield group


def _powers(base: int, size: int) -> NDArray[np.uint64]:
    factors = np.full(size, base, dtype=np.uint64)
    factors[0] = 1
    with np.errstate(over="ignore"):
        found: NDArray[np.uint64] = np.cumprod(factors, dtype=np.uint64)
    return found


class _Known(dict[str, int]):
    def __missing__(self, word: str) -> int:
        total, power = 0, 1
        for byte in word.encode("utf-8", "surrogatepass"):
            total, power = total + (byte + 1) * power, power * _BASE % 2**64
        self[word] = value = total % 2**64
        return value
