"""What `data check` counts: a file's rows in one pass; tallies of a file's parts add up to the whole's.

Rows are not kept: a few numbers each (lengths, hashes), a sample, the first few, and the first rows that are bad.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeGuard, TypeVar, cast

from alignloop.data.reading import Reading, Seen
from alignloop.records import PreferenceRow, PromptRow, RejectedRow, SftRow

AnyRow = PreferenceRow | PromptRow | SftRow
K = TypeVar("K", bound=Hashable)
NUM_SAMPLED = 1000
NUM_FIRST = 20
MOST_BAD = 1000
MOST_CARRIED = 1000
_SPREAD = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_COUNTS = ("num_read", "num_kept", "num_rejected", "num_with_ids")
_SUMMED = (
    *(*_COUNTS, "num_rows", "prompt_characters", "completion_characters", "prompts", "rows"),
    *("shapes", "reasons", "carried", "scores", "first", "sample"),
)
_KINDS = ("score", "rating", "reward", "overall_score", "avg_rating")
_WORDINGS = ("{kind}_{side}", "{side}_{kind}", "{side}-{kind}")
SCORE_PAIRS = tuple(
    tuple(wording.format(kind=kind, side=side) for side in ("chosen", "rejected"))
    for kind in _KINDS
    for wording in _WORDINGS
)
"""Columns that hold the two scores, the chosen completion's first; more is better."""
_CHOSEN = frozenset(chosen for chosen, _ in SCORE_PAIRS)
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
QUANTILE_NAMES = ("least", "5%", "median", "95%", "most")
_SCRIPTS = {
    "Latin": "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u024f\u1e00-\u1eff",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": "\u0400-\u052f",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Thai": "\u0e00-\u0e7f",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Kana": "\u3040-\u30ff\u31f0-\u31ff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f",
}
_PATTERNS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_LEAST_SHARE = 0.1
"""Of a text's letters; a script with fewer is a foreign word."""
ScoreVerdict = Literal["against", "tie"]


class Shape(NamedTuple):
    """Features that many rows share; `strength` and `annotator` are None for rows that are not preferences."""

    strength: str | None
    annotator: str | None
    is_edited: bool
    has_system: bool
    num_user_turns: int


@dataclass
class Tally:
    """Counts over rows.

    Attributes:
        num_read, num_kept, num_rejected: rows of the file.
        num_rows: rows made of them: a ranked list makes several.
        num_with_ids: of those kept, rows whose token ids are left out.
        prompt_characters, completion_characters: of each row; of a preference its longer completion, of a prompt none.
        prompts, rows: a hash of each row's dialog, and of the whole row.
        shapes: what rows have in common -> rows.
        sample: (order, row): a fixed tenth, hundredth, ... of the rows, spread over the file.
        carried: columns that no form reads, as each row has them -> rows; no more than `MOST_CARRIED` sets of them.
        scores: `against` or `tie`, where scores do not confirm the choice -> preferences.
        reasons: (field, reason without its particulars) -> rejected rows.
    """

    num_read: int = 0
    num_kept: int = 0
    num_rejected: int = 0
    num_rows: int = 0
    num_with_ids: int = 0
    prompt_characters: array[int] = field(default_factory=lambda: array("I"))
    completion_characters: array[int] = field(default_factory=lambda: array("I"))
    prompts: array[int] = field(default_factory=lambda: array("q"))
    rows: array[int] = field(default_factory=lambda: array("q"))
    shapes: Counter[Shape] = field(default_factory=Counter)
    first: list[AnyRow] = field(default_factory=list)
    sample: list[tuple[int, AnyRow]] = field(default_factory=list)
    carried: Counter[tuple[str, ...]] = field(default_factory=Counter)
    scores: Counter[ScoreVerdict] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[RejectedRow] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    _limit: int = _MASK

    def count(self, reading: Reading[Any]) -> None:
        for row in reading:
            if type(row) is not RejectedRow:  # isinstance goes through pydantic's Python code
                self._keep(cast("AnyRow", row))
                continue
            self.reasons[(row.field or "", _kind_of_reason(row.reason))] += 1
            if len(self.bad) < MOST_BAD:
                self.bad.append(row)
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(reading, name))
        self.seen = dict(reading.seen)

    def add(self, later: Tally, *, lines: int) -> None:
        """Add what was counted of the part of the file that begins after `lines` lines.

        Rows that cannot be read have their true lines then; the sources of rows that can are those of the part.
        """
        for name in _SUMMED:
            total = getattr(self, name)
            total += getattr(later, name)
            setattr(self, name, total)
        del self.first[NUM_FIRST:]
        self._limit = min(self._limit, later._limit)
        self._thin()
        moved = [row.model_copy(update={"line": row.line + lines}) for row in later.bad if row.line is not None]
        self.bad = (self.bad + moved)[:MOST_BAD]
        for name, seen in later.seen.items():
            mine = self.seen.setdefault(name, Seen(0, 0))
            mine.first = mine.first if mine.count else seen.first + lines
            mine.count += seen.count

    # Value -> rows, in the order in which values came.

    @property
    def strengths(self) -> Counter[str]:
        return self._by(lambda shape: shape.strength)

    @property
    def annotators(self) -> Counter[str]:
        return self._by(lambda shape: shape.annotator)

    @property
    def turns(self) -> Counter[int]:
        return self._by(lambda shape: shape.num_user_turns)

    @property
    def systems(self) -> int:
        return self._by(lambda shape: shape.has_system)[True]

    @property
    def edited(self) -> int:
        return self._by(lambda shape: shape.is_edited)[True]

    @property
    def carried_columns(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for names, count in self.carried.items():
            found.update(dict.fromkeys(names, count))
        return found

    def _by(self, value: Callable[[Shape], K | None]) -> Counter[K]:
        found: Counter[K] = Counter()
        for shape, count in self.shapes.items():
            if (key := value(Shape(*shape))) is not None:
                found[key] += count
        return found

    def _keep(self, row: AnyRow) -> None:
        messages = row.messages
        strength = annotator = edited = None
        texts: tuple[str, ...] = ()
        longest = 0
        if type(row) is PreferenceRow:
            chosen, rejected, edited = row.chosen, row.rejected, row.edited
            strength, annotator = row.strength or "none given", row.annotator
            texts = (chosen, rejected, edited or "")
            longest = max(len(chosen), len(rejected), len(edited or ""))
            if row.meta and (verdict := scores_say(row.meta)) is not None:
                self.scores[verdict] += 1
        elif type(row) is SftRow:
            texts = (messages[-1].content,)
            longest = len(texts[0])
            messages = messages[:-1]
        contents = tuple([message.content for message in messages])
        prompt = hash(contents)
        self.num_rows += 1
        self.prompts.append(prompt)
        self.rows.append(hash((prompt, texts)))
        self.prompt_characters.append(sum(map(len, contents)))
        self.completion_characters.append(longest)
        roles = [message.role for message in messages]
        system = "system" in roles
        # A plain tuple equals the named one, and is made in a fraction of the time.
        self.shapes[(strength, annotator, edited is not None, system, roles.count("user"))] += 1  # type: ignore[index]
        if row.meta and (len(self.carried) < MOST_CARRIED or tuple(row.meta) in self.carried):
            self.carried[tuple(row.meta)] += 1
        if len(self.first) < NUM_FIRST:
            self.first.append(row)
        order = (self.num_rows * _SPREAD) & _MASK
        if order <= self._limit:
            self.sample.append((order, row))
            if len(self.sample) > 2 * NUM_SAMPLED:
                self._thin()

    def _thin(self) -> None:
        """Keep the rows of lowest order: the same share of every stretch of the file."""
        if len(self.sample) > NUM_SAMPLED:
            self.sample.sort(key=lambda item: item[0])
            del self.sample[NUM_SAMPLED:]
            self._limit = self.sample[-1][0]


def _kind_of_reason(reason: str) -> str:
    end = min((at for mark in (":", "'", " at ", ", found", ";", " (") if (at := reason.find(mark)) > 0), default=60)
    return reason[: min(end, 60)]


def num_repeated(hashes: Iterable[int]) -> int:
    import numpy as np

    values = np.asarray(hashes)
    return int(len(values) - len(np.unique(values)))


def scores_say(meta: Mapping[str, Any]) -> ScoreVerdict | None:
    """`against` where the rejected completion has the higher score, `tie` where both have the same; else None."""
    if not meta or _CHOSEN.isdisjoint(meta):
        return None
    for chosen, rejected in SCORE_PAIRS:
        good, bad = meta.get(chosen), meta.get(rejected)
        if _is_number(good) and _is_number(bad):
            return "against" if good < bad else "tie" if good == bad else None
    return None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def scores_text(against: int, ties: int, *, of: int) -> str | None:
    if not against and not ties:
        return None
    return (
        f"of {of:,} preferences {against:,} have scores that say the rejected completion is the better one, and "
        f"{ties:,} have scores that tie: the choice counts"
    )


def quantiles(values: Sequence[int]) -> tuple[int, ...]:
    """Least, 5 %, median, 95 % and most of `values`; of none, zeros."""
    import numpy as np

    if not len(values):
        return (0,) * len(QUANTILES)
    return tuple(int(value) for value in np.quantile(np.asarray(values), QUANTILES, method="nearest"))


def scripts_of(text: str) -> str:
    """The scripts a text is written in, the most used first: `Latin`, `Han + Latin`; `none` for a text without letters.

    Japanese is `Kana + Han` or `Han + Kana`, Chinese `Han`.
    """
    text = text[:4000]
    counts = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    total = sum(counts.values())
    used = [name for name in sorted(counts, key=lambda name: -counts[name]) if counts[name] > _LEAST_SHARE * total]
    return " + ".join(used) if total else "none"


def shares(items: Iterable[str]) -> dict[str, float]:
    counts = Counter(items)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()}


def counted(counts: Mapping[str, int], *, most: int = 6) -> str:
    """`better 120, slightly_better 80`, the most frequent first."""
    names = sorted(counts, key=lambda name: -counts[name])
    parts = [f"{name} {counts[name]:,}" for name in names[:most]]
    if len(names) > most:
        parts.append(f"{len(names) - most} more kinds")
    return ", ".join(parts)
