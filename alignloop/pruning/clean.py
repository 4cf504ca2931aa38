"""Step 1, cleaning by rules (4.2.3): unwanted patterns of the fine-tuning data are filtered or balanced.

The first rule that fires names the drop: empty, truncated, exclamations, emojis, repeated n-grams, language. Then
over-used patterns (apologetic openings, and what the recipe names) are cut, one by one, to a share of the rows left.

Languages are compared by script and by langdetect, but only where they can be known: not in short texts, code, prompts
of several scripts, or prompts that name a language or ask for a translation, where another language is wanted.

prompt, completion --without code, links--> letters by script --differ--> mismatch
                                                              --alike, `detect`--> langdetect, both sure
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alignloop.chat.reasoning import has_answer
from alignloop.config.pruning import CleanConfig
from alignloop.evaluation.language import best_guess, near, prose
from alignloop.evaluation.measures import NGRAM, repeated_ngram_share, words
from alignloop.pruning.items import Item
from alignloop.pruning.step import Pruned, StepResult, Tools, drop, left, pruned

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
"""`I'm sorry, but`, `I apologize`, `Apologies` and the like (English, Chinese)."""

MIN_LETTERS = 24
"""Fewer letters say nothing: a name, a number, a word. Letters that are a syllable or a word count three times."""
MIN_DETECT_LETTERS = 120
"""langdetect guesses on less."""
MIN_PROBABILITY = 0.99
_MAIN_SHARE = 0.75
"""A prompt is in a script where this share of its letters is."""
_LEAST_SHARE = 0.15
"""A completion with this share of its prompt's script is not foreign: it may quote, or explain a text."""

_ASKS_FOR_A_LANGUAGE = re.compile(
    r"translat|transliterat|\blanguages?\b|\b(?:english|chinese|mandarin|cantonese|french|german|spanish|italian|"
    r"portuguese|russian|ukrainian|japanese|korean|arabic|hindi|urdu|bengali|thai|vietnamese|turkish|polish|dutch|greek|"
    r"hebrew|latin|swedish|danish|norwegian|finnish|czech|hungarian|romanian|indonesian|persian|farsi|pinyin)\b"
    "|翻译|翻譯|译成|譯成|英文|英语|英語|中文|汉语|漢語|法语|德语|日语|日文|韩语|俄语|西班牙语|拼音"
    "|tradui|übersetz|traduc|traduz|перев[её]|翻訳|번역",
    re.IGNORECASE,
)
_RANGES = (
    ("Han", "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff", 3),
    ("Japanese", "\u3040-\u30ff", 3),
    ("Korean", "\u1100-\u11ff\uac00-\ud7af", 3),
    ("Latin", "A-Za-z\u00c0-\u024f\u1e00-\u1eff", 1),
    ("Cyrillic", "\u0400-\u052f", 1),
    ("Arabic", "\u0600-\u06ff\u0750-\u077f", 1),
    ("Devanagari", "\u0900-\u097f", 1),
    ("Bengali", "\u0980-\u09ff", 1),
    ("Thai", "\u0e00-\u0e7f", 1),
    ("Greek", "\u0370-\u03ff", 1),
    ("Hebrew", "\u0590-\u05ff", 1),
)
_SCRIPTS = tuple((name, re.compile(f"[{letters}]"), weight) for name, letters, weight in _RANGES)
_NO_ASCII_LETTERS = bytes(byte for byte in range(256) if not (byte < 128 and chr(byte).isalpha()))
_OTHER = re.compile("[^\\x00-\\x7f]+")
_ENGLISH = frozenset("the of and to a in is that for it with as are be this on or you i by an was not have".split())
_ENGLISH_SHARE = 0.15
"""Share of such words from which a text is English without asking langdetect."""


@dataclass(frozen=True)
class CleanRow:
    """What cleaning looks at; `reward` is None for rows by people, `prompt` is the user's last turn."""

    id: str
    completion: str
    truncated: bool
    reward: float | None
    prompt: str = ""


@dataclass(frozen=True)
class Balance:
    """At most `max_share` of the rows left may match the pattern, anywhere in the completion."""

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
    """Drop rows that break a rule; the excess of a pattern goes lowest reward first, rows by people last.

    Args:
        max_apology_share: apologetic openings among the rows that are kept; 1 switches the rule off.
        max_exclamations_per_100_words, max_emojis_per_100_words: more (and at least three) drop a row.
        max_repeated_ngram_share: see `repeated_ngram_share`.
    """
    limits = {"exclamations": max_exclamations_per_100_words, "emojis": max_emojis_per_100_words}
    reasons: dict[int, str] = {}
    for index, row in enumerate(rows):
        reason = (
            _without_answer(row, drop_truncated=drop_truncated)
            or _marks(row.completion, limits)
            or _repeats(row.completion, max_repeated_ngram_share)
            or _foreign(row, language)
        )
        if reason is not None:
            reasons[index] = reason
    for one in (Balance("apology", APOLOGY, max_apology_share), *balance):
        what = "open with an apology" if one.pattern is APOLOGY else f"match {one.name}"
        reasons |= _excess(rows, reasons, one, what=what)
    drops = {index: drop(rows[index].id, "clean", reason) for index, reason in reasons.items()}
    counts = Counter(reason.partition(":")[0].replace(" ", "_") for reason in reasons.values())
    return pruned([row.id for row in rows], drops, metrics={f"num_{name}": float(n) for name, n in counts.items()})


def _without_answer(row: CleanRow, *, drop_truncated: bool) -> str | None:
    if not has_answer(row.completion):
        return "empty: the completion has no text"
    return "truncated: the completion hit its token limit" if row.truncated and drop_truncated else None


def _marks(text: str, limits: dict[str, float]) -> str | None:
    counts = {
        "exclamations": sum(map(text.count, _EXCLAMATIONS)),
        "emojis": 0 if text.isascii() else len(_EMOJI.findall(text)),
    }
    for name, count in counts.items():
        if count >= _MIN_MARKS and (rate := 100 * count / max(len(words(text)), 1)) > limits[name]:
            return f"{name}: {rate:.3g} per 100 words, the limit is {limits[name]:.3g}"
    return None


def _repeats(text: str, limit: float) -> str | None:
    share = repeated_ngram_share(text)
    if share <= limit:
        return None
    return f"repeated n-grams: {share:.2f} of its {NGRAM}-word sequences repeat, the limit is {limit:.3g}"


def _foreign(row: CleanRow, language: str) -> str | None:
    if language == "off":
        return None
    mismatch = language_mismatch(row.prompt, row.completion, detect=language == "detect")
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


def language_mismatch(prompt: str, completion: str, *, detect: bool = False) -> str | None:
    """Why the completion is in another language than the user's last turn; None where it is not or cannot be known.

    `detect` tells languages of one script apart, too.
    """
    if not detect and prompt.isascii() and completion.isascii():
        return None
    mismatch = _mismatch(prose(prompt), prose(completion), detect=detect)
    return None if mismatch is None or _ASKS_FOR_A_LANGUAGE.search(prompt) else mismatch


def _mismatch(prompt: str, completion: str, *, detect: bool) -> str | None:
    """As `language_mismatch`, for texts without code, whatever the prompt asks for."""
    of_prompt, of_completion = letters_by_script(prompt), letters_by_script(completion)
    num_prompt, num_completion = of_prompt.total(), of_completion.total()
    if num_prompt < MIN_LETTERS or num_completion < MIN_LETTERS:
        return None
    script = max(of_prompt, key=lambda name: of_prompt[name])
    other = max(of_completion, key=lambda name: of_completion[name])
    if of_prompt[script] < _MAIN_SHARE * num_prompt:
        return None
    if other == script:
        long_enough = min(of_prompt[script], of_completion[script]) >= MIN_DETECT_LETTERS
        return _detected_mismatch(prompt, completion) if detect and long_enough else None
    # Japanese is written with Han letters, too.
    if {script, other} == {"Han", "Japanese"} or of_completion[script] >= _LEAST_SHARE * num_completion:
        return None
    share = of_completion[other] / num_completion
    return f"the prompt is in {script} script, {share:.0%} of the completion in {other}"


def letters_by_script(text: str) -> Counter[str]:
    """Number of letters by script; syllables and word signs count three times."""
    plain = len(text.encode("utf-8", "replace").translate(None, _NO_ASCII_LETTERS))
    if text.isascii():
        return Counter({"Latin": plain})
    rest = "".join(_OTHER.findall(text))
    counts = {name: weight * len(pattern.findall(rest)) for name, pattern, weight in _SCRIPTS}
    counts["Latin"] += plain
    return Counter({name: count for name, count in counts.items() if count})


def _detected_mismatch(prompt: str, completion: str) -> str | None:
    if looks_english(prompt) and looks_english(completion):
        return None
    first, second = detected(prompt), detected(completion)
    if first is None or second is None or first == second:
        return None
    return f"the prompt is in the language {first!r}, the completion in {second!r} (langdetect, both surer than 0.99)"


def looks_english(text: str) -> bool:
    """Whether enough of the words are among the commonest of English; langdetect would take milliseconds."""
    words = text[:2000].lower().split()
    return sum(word in _ENGLISH for word in words) >= _ENGLISH_SHARE * max(len(words), 1)


def detected(text: str) -> str | None:
    """langdetect's language code where it is sure, else None; what is near is called the same."""
    best = best_guess(text)
    return None if best is None or best.probability < MIN_PROBABILITY else near(best.language)


def clean_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop what breaks a rule, and the excess of over-used patterns."""
    rows = [CleanRow(item.id, item.completion, item.truncated, item.reward, item.last_question) for item in items]
    return left(items, clean_by(rows, tools.config.clean))


def clean_by(rows: Sequence[CleanRow], config: CleanConfig) -> Pruned:
    """`clean` as a recipe has it: rows of SFT and pairs of DPO alike."""
    return clean(
        rows,
        max_apology_share=config.max_apology_share,
        max_exclamations_per_100_words=config.max_exclamations_per_100_words,
        max_emojis_per_100_words=config.max_emojis_per_100_words,
        max_repeated_ngram_share=config.max_repeated_ngram_share,
        drop_truncated=config.drop_truncated,
        language=config.language_mismatch,
        balance=[Balance(one.name, re.compile(one.regex), one.max_share) for one in config.balance],
    )
