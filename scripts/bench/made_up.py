"""Made-up data: embeddings with planted near-duplicates, and preference files, from a seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIM, SEED = 384, 20_261_122
_BLOCK, _DECAY, _ROWS_PER_TOPIC, _SPREAD, _COSINES = 50_000, 0.5, 500, 0.8, (0.955, 0.995)
PLANTED_SHARE = 0.05
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Planted:
    """Unit vectors [N, D]; row `copies[i]` is row `sources[i]` turned away to a cosine of 0.955 to 0.995."""

    vectors: Vectors
    copies: NDArray[np.intp]
    sources: NDArray[np.intp]

    def recall(self, dropped: Sequence[int]) -> float:
        """Share of planted pairs of which one row is gone."""
        is_gone = np.zeros(len(self.vectors), dtype=bool)
        is_gone[list(dropped)] = True
        return float((is_gone[self.copies] | is_gone[self.sources]).mean())


def clustered(num_rows: int, *, dim: int = DIM) -> Planted:
    """`num_rows` vectors, a twentieth of them copies of others; float32, made in blocks.

    The variances of directions fall as a power law, as in text embeddings, so that neighbours are near and clusters
    have borders; rows lie around topics.
    """
    random = np.random.default_rng([SEED, num_rows])
    scale = ((np.arange(dim) + 1.0) ** -_DECAY).astype(np.float32)
    topics = random.standard_normal((max(8, num_rows // _ROWS_PER_TOPIC), dim), dtype=np.float32) * scale
    vectors = np.empty((num_rows, dim), dtype=np.float32)
    for start in range(0, num_rows, _BLOCK):
        rows = vectors[start : start + _BLOCK]
        random.standard_normal(out=rows, dtype=np.float32)
        rows *= _SPREAD * scale
        rows += topics[random.integers(len(topics), size=len(rows))]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    both = random.permutation(num_rows)[: 2 * int(PLANTED_SHARE * num_rows)]
    copies, sources = np.sort(both[: len(both) // 2]), both[len(both) // 2 :]
    for start in range(0, len(copies), _BLOCK):
        part = slice(start, start + _BLOCK)
        vectors[copies[part]] = _moved(vectors[sources[part]], scale, random)
    return Planted(vectors, copies, sources)


def _moved(rows: Vectors, scale: Vectors, random: np.random.Generator) -> Vectors:
    """Each row turned towards a random direction of the same kind until its cosine is the one drawn for it."""
    away = random.standard_normal(rows.shape, dtype=np.float32) * scale
    away -= (away * rows).sum(axis=1, keepdims=True) * rows
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    cosines = random.uniform(*_COSINES, size=(len(rows), 1)).astype(np.float32)
    moved: Vectors = cosines * rows + np.sqrt(1 - cosines**2) * away
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def write_preferences(file: Path, *, num_rows: int, bad_every: int | None = None) -> None:
    """A preference file in the canonical form, from a seed; not made again where it exists."""
    if not file.is_file():
        with file.with_suffix(".partial").open("w") as out:
            out.writelines(_lines(num_rows, bad_every=bad_every or num_rows + 1))
        file.with_suffix(".partial").rename(file)


def _lines(num_rows: int, *, bad_every: int) -> Iterator[str]:
    """One prompt in twenty repeats an earlier one with a word more; one row in `bad_every` cannot be read."""
    random = np.random.default_rng(7)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(random.choice(letters, size=random.integers(2, 10))) for _ in range(4_000)]
    # Words of a text lie anywhere in one long list: as many texts as starts and lengths, and made quickly.
    pool = [words[at] for at in random.integers(len(words), size=200_000)]
    prompt = "Say something."
    for row in range(num_rows):
        starts = random.integers(len(pool) - 90, size=3).tolist()
        lengths = [int(random.integers(8, 32)), *random.integers(30, 90, size=2).tolist()]
        asked, chosen, rejected = (" ".join(pool[at : at + count]) for at, count in zip(starts, lengths, strict=True))
        prompt = f"{prompt} please" if row % 20 == 19 else f"{asked}, as in {row}?"
        fields = {"id": f"row-{row}", "prompt": prompt, "chosen": f"{chosen}.", "rejected": f"{rejected}."}
        if row % bad_every == bad_every - 1:
            fields["rejected"] = fields["chosen"]
        yield json.dumps({**fields, "strength": "better"}) + "\n"
