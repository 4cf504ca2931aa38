"""Rule-based cleaning (The Llama 3 Herd of Models, 4.2.3, data cleaning): patterns that spoil a fine-tuning mix.

Per row, the first rule that fires names the drop: empty, truncated, exclamations, emojis, repeated n-grams. Then,
over the rows that are left, apologetic openings are balanced to a share.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.selection.verdicts import Drop, Pruned, pruned

_NGRAM = 4
# Fewer marks than this are no habit, however short the text: "Well done! 🎉" is not an excess.
_MIN_MARKS = 3
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_PICTURE = "[\U0001f300-\U0001faff\u2600-\u26ff\u2728\u2764\u2b50\u2b55\u231a\u231b\u23e9-\u23f3\u2705\u274c]"
_EMOJI = re.compile(
    rf"[\U0001f1e6-\U0001f1ff]{{2}}|{_PICTURE}[\ufe0f\U0001f3fb-\U0001f3ff]*(?:\u200d{_PICTURE}[\ufe0f\U0001f3fb-\U0001f3ff]*)*"
)
_EXCLAMATION = re.compile("[!\uff01]")
_APOLOGY = re.compile(
    r"\W*(?:oh,?\s+|ah,?\s+|but\s+|well,?\s+)?(?:"
    r"(?:i['\u2019]?m|i\s+am|we['\u2019]?re|we\s+are)\s+(?:(?:so|very|really|truly|deeply|terribly|extremely)\s+)*(?:sorry|afraid)\b"
    r"|(?:i|we)\s+(?:(?:do|sincerely|deeply|must|would\s+like\s+to)\s+)*apologi[sz]e\b"
    r"|(?:my|our)\s+(?:\w+\s+)?apolog(?:y|ies)\b|apologies\b|sorry\b|please\s+(?:forgive|excuse)\s+me\b"
    r"|(?:非常|很|十分|真的)?(?:抱歉|对不起|遺憾|遗憾))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CleanRow:
    """What cleaning looks at; `reward` is None for people's rows."""

    id: str
    completion: str
    truncated: bool
    reward: float | None


def clean(
    rows: Sequence[CleanRow],
    *,
    max_apology_share: float,
    max_exclamations_per_100_words: float,
    max_emojis_per_100_words: float,
    max_repeated_ngram_share: float,
    drop_truncated: bool = True,
) -> Pruned:
    """Drop rows that break a rule; the excess of apologetic openings goes lowest reward first, people's rows last.

    Args:
        rows: N rows.
        max_apology_share: apologetic openings among the rows that are kept, at most; 1 switches the rule off.
        max_exclamations_per_100_words: more (and at least three) drop a row.
        max_emojis_per_100_words: the same for emojis.
        max_repeated_ngram_share: see `repeated_ngram_share`; more drops a row.
        drop_truncated: drop completions that hit their token limit.
    """
    reasons: dict[int, str] = {}
    for index, row in enumerate(rows):
        reason = _row_rule(
            row,
            max_exclamations=max_exclamations_per_100_words,
            max_emojis=max_emojis_per_100_words,
            max_repeated=max_repeated_ngram_share,
            drop_truncated=drop_truncated,
        )
        if reason is not None:
            reasons[index] = reason
    reasons |= _excess_apologies(rows, reasons, max_share=max_apology_share)
    drops = {index: Drop(rows[index].id, "clean", reason) for index, reason in reasons.items()}
    counts = Counter(reason.partition(":")[0].replace(" ", "_") for reason in reasons.values())
    return pruned([row.id for row in rows], drops, metrics={f"num_{name}": float(n) for name, n in counts.items()})


def _row_rule(
    row: CleanRow, *, max_exclamations: float, max_emojis: float, max_repeated: float, drop_truncated: bool
) -> str | None:
    text = row.completion
    if not text.strip():
        return "empty: the completion has no text"
    if row.truncated and drop_truncated:
        return "truncated: the completion hit its token limit"
    for name, pattern, limit in (("exclamations", _EXCLAMATION, max_exclamations), ("emojis", _EMOJI, max_emojis)):
        num_marks = len(pattern.findall(text))
        rate = 100 * num_marks / max(num_words(text), 1)
        if num_marks >= _MIN_MARKS and rate > limit:
            return f"{name}: {rate:.3g} per 100 words, the limit is {limit:.3g}"
    share = repeated_ngram_share(text)
    if share > max_repeated:
        return f"repeated n-grams: {share:.2f} of its {_NGRAM}-word sequences repeat, the limit is {max_repeated:.3g}"
    return None


def _excess_apologies(rows: Sequence[CleanRow], gone: dict[int, str], *, max_share: float) -> dict[int, str]:
    left = [index for index in range(len(rows)) if index not in gone]
    sorry = [index for index in left if opens_with_apology(rows[index].completion)]
    if max_share >= 1.0 or not sorry:
        return {}
    # a of the others' m may stay where a / (a + m) <= share.
    num_others = len(left) - len(sorry)
    allowed = math.floor(round(max_share * num_others / (1.0 - max_share), 9))

    def value(index: int) -> tuple[float, int]:
        reward = rows[index].reward
        return (math.inf if reward is None else reward, -index)

    excess = sorted(sorry, key=value)[: max(len(sorry) - allowed, 0)]
    share = len(sorry) / len(left)
    reason = f"apology: {share:.1%} of the rows open with an apology, the limit is {max_share:.1%}"
    return dict.fromkeys(excess, reason)


def opens_with_apology(text: str) -> bool:
    """Whether the text begins as `I'm sorry, but`, `I apologize`, `Apologies` and the like (English, Chinese)."""
    return _APOLOGY.match(text) is not None


def num_words(text: str) -> int:
    """Words; in scripts written without spaces, characters."""
    return len(_WORD.findall(text))


def repeated_ngram_share(text: str) -> float:
    """Share of the text's 4-word sequences that occurred before in it: 0 without repeats, towards 1 in a loop."""
    words = [word.casefold() for word in _WORD.findall(text)]
    ngrams = [tuple(words[start : start + _NGRAM]) for start in range(len(words) - _NGRAM + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
