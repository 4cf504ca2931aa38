"""Step 1, cleaning by rules (4.2.3): unwanted patterns of the fine-tuning data are filtered or balanced.

Per row, the first rule that fires names the drop: empty, truncated, exclamations, emojis, repeated n-grams, language.
Then, over the rows that are left, over-used patterns are balanced to a share one after another: apologetic openings,
and what else the recipe names.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alignloop.chat.reasoning import has_answer
from alignloop.evaluation.measures import NGRAM, repeated_ngram_share, words
from alignloop.pruning.items import Item
from alignloop.pruning.language import language_mismatch
from alignloop.pruning.step import StepResult, Tools, left
from alignloop.pruning.verdict import Pruned, drop, pruned

# Fewer marks than this are no habit, however short the text: "Well done! 🎉" is not an excess.
_MIN_MARKS = 3
_PICTURE = "[\U0001f300-\U0001faff\u2600-\u26ff\u2728\u2764\u2b50\u2b55\u231a\u231b\u23e9-\u23f3\u2705\u274c]"
_EMOJI = re.compile(
    rf"[\U0001f1e6-\U0001f1ff]{{2}}|{_PICTURE}[\ufe0f\U0001f3fb-\U0001f3ff]*(?:\u200d{_PICTURE}[\ufe0f\U0001f3fb-\U0001f3ff]*)*"
)
_EXCLAMATIONS = ("!", "\uff01")
APOLOGY = re.compile(
    r"\A\W*(?:oh,?\s+|ah,?\s+|but\s+|well,?\s+)?(?:"
    r"(?:i['\u2019]?m|i\s+am|we['\u2019]?re|we\s+are)\s+(?:(?:so|very|really|truly|deeply|terribly|extremely)\s+)*(?:sorry|afraid)\b"
    r"|(?:i|we)\s+(?:(?:do|sincerely|deeply|must|would\s+like\s+to)\s+)*apologi[sz]e\b"
    r"|(?:my|our)\s+(?:\w+\s+)?apolog(?:y|ies)\b|apologies\b|sorry\b|please\s+(?:forgive|excuse)\s+me\b"
    r"|(?:非常|很|十分|真的)?(?:抱歉|对不起|遺憾|遗憾))",
    re.IGNORECASE,
)
"""Openings as `I'm sorry, but`, `I apologize`, `Apologies` and the like (English, Chinese)."""


@dataclass(frozen=True)
class CleanRow:
    """What cleaning looks at; `reward` is None for people's rows, `prompt` is what its language is compared with."""

    id: str
    completion: str
    truncated: bool
    reward: float | None
    prompt: str = ""


@dataclass(frozen=True)
class Balance:
    """An over-used pattern: no more than `max_share` of the rows left may match it, anywhere in the completion."""

    name: str
    pattern: re.Pattern[str]
    max_share: float


def clean(
    rows: Sequence[CleanRow],
    *,
    max_apology_share: float,
    max_exclamations_per_100_words: float,
    max_emojis_per_100_words: float,
    max_repeated_ngram_share: float,
    drop_truncated: bool = True,
    language: Literal["off", "script", "detect"] = "off",
    balance: Sequence[Balance] = (),
) -> Pruned:
    """Drop rows that break a rule; the excess of a pattern goes lowest reward first, people's rows last.

    Args:
        rows: N rows.
        max_apology_share: apologetic openings among the rows that are kept, at most; 1 switches the rule off.
        max_exclamations_per_100_words, max_emojis_per_100_words: more (and at least three) drop a row.
        max_repeated_ngram_share: see `repeated_ngram_share`; more drops a row.
        drop_truncated: drop completions that hit their token limit.
        language: see `language_mismatch`; `off` compares none.
        balance: further patterns, in order.
    """
    reasons: dict[int, str] = {}
    for index, row in enumerate(rows):
        reason = _row_rule(
            row,
            max_exclamations=max_exclamations_per_100_words,
            max_emojis=max_emojis_per_100_words,
            max_repeated=max_repeated_ngram_share,
            drop_truncated=drop_truncated,
            language=language,
        )
        if reason is not None:
            reasons[index] = reason
    apologies = Balance("apology", APOLOGY, max_apology_share)
    for one in (apologies, *balance):
        what = "open with an apology" if one is apologies else f"match {one.name}"
        reasons |= _excess(rows, reasons, one, what=what)
    drops = {index: drop(rows[index].id, "clean", reason) for index, reason in reasons.items()}
    counts = Counter(reason.partition(":")[0].replace(" ", "_") for reason in reasons.values())
    return pruned([row.id for row in rows], drops, metrics={f"num_{name}": float(n) for name, n in counts.items()})


def _row_rule(
    row: CleanRow,
    *,
    max_exclamations: float,
    max_emojis: float,
    max_repeated: float,
    drop_truncated: bool,
    language: str,
) -> str | None:
    text = row.completion
    if not has_answer(text):
        return "empty: the completion has no text"
    if row.truncated and drop_truncated:
        return "truncated: the completion hit its token limit"
    num_emojis = 0 if text.isascii() else len(_EMOJI.findall(text))
    num_exclamations = sum(map(text.count, _EXCLAMATIONS))
    for name, num_marks, limit in (
        ("exclamations", num_exclamations, max_exclamations),
        ("emojis", num_emojis, max_emojis),
    ):
        if num_marks >= _MIN_MARKS and (rate := 100 * num_marks / max(len(words(text)), 1)) > limit:
            return f"{name}: {rate:.3g} per 100 words, the limit is {limit:.3g}"
    share = repeated_ngram_share(text)
    if share > max_repeated:
        return f"repeated n-grams: {share:.2f} of its {NGRAM}-word sequences repeat, the limit is {max_repeated:.3g}"
    if language == "off":
        return None
    mismatch = language_mismatch(row.prompt, text, detect=language == "detect")
    return None if mismatch is None else f"language: {mismatch}"


def _excess(rows: Sequence[CleanRow], gone: dict[int, str], balance: Balance, *, what: str) -> dict[int, str]:
    limit = balance.max_share
    if limit >= 1.0:
        return {}
    remaining = [index for index in range(len(rows)) if index not in gone]
    found = [index for index in remaining if balance.pattern.search(rows[index].completion)]
    # a of the others' m may stay where a / (a + m) <= share.
    num_others = len(remaining) - len(found)
    allowed = math.floor(round(limit * num_others / (1.0 - limit), 9))

    def value(index: int) -> tuple[float, int]:
        reward = rows[index].reward
        return (math.inf if reward is None else reward, -index)

    excess = sorted(found, key=value)[: max(len(found) - allowed, 0)]
    share = len(found) / max(len(remaining), 1)
    reason = f"{balance.name}: {share:.1%} of the rows {what}, the limit is {limit:.1%}"
    return dict.fromkeys(excess, reason)


def clean_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop what breaks a rule, and the excess of over-used patterns."""
    config = tools.config.clean
    verdict = clean(
        [CleanRow(item.id, item.completion, item.truncated, item.reward, item.last_question) for item in items],
        max_apology_share=config.max_apology_share,
        max_exclamations_per_100_words=config.max_exclamations_per_100_words,
        max_emojis_per_100_words=config.max_emojis_per_100_words,
        max_repeated_ngram_share=config.max_repeated_ngram_share,
        drop_truncated=config.drop_truncated,
        language=config.language_mismatch,
        balance=[Balance(one.name, re.compile(one.regex), one.max_share) for one in config.balance],
    )
    return left(items, verdict)
