"""Whether a completion is in another language than its prompt, as far as scripts and langdetect can say.

    prompt, completion --without code, links--> letters by script --differ--> mismatch
                                                                  --alike, `detect`--> langdetect, both sure

Silent wherever it cannot know: short texts, code, prompts of several scripts, and prompts that name a language or ask
for a translation, in which another language is what was wanted.
"""

from __future__ import annotations

import re
from collections import Counter

MIN_LETTERS = 24
"""Fewer say nothing: a name, a number, a word. Where a letter is a syllable or a word it counts three times."""
MIN_DETECT_LETTERS = 120
"""langdetect guesses on less."""
MIN_PROBABILITY = 0.99
_MAIN_SHARE = 0.75
"""A prompt is of a script where this share of its letters is."""
_LEAST_SHARE = 0.15
"""A completion with this share of its prompt's script is not foreign to it: it may quote, or explain a text."""

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+", re.DOTALL)
_CODE_LINE = re.compile(
    r"[{};=<>]\s*$|^\s*(?:def |class |import |from \w+ import |#include|SELECT |function )", re.MULTILINE
)
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


def language_mismatch(prompt: str, completion: str, *, detect: bool = False) -> str | None:
    """Why the completion is in another language than its prompt; None where it is not, or nothing can be told.

    Args:
        prompt: what the user asked last.
        detect: tell languages of one script apart, too.
    """
    if not detect and prompt.isascii() and completion.isascii():
        return None
    mismatch = _mismatch(prose(prompt), prose(completion), detect=detect)
    return None if mismatch is None or _ASKS_FOR_A_LANGUAGE.search(prompt) else mismatch


def _mismatch(prompt: str, completion: str, *, detect: bool) -> str | None:
    """As `language_mismatch`, of texts without code, whatever the prompt asks for."""
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


def prose(text: str) -> str:
    """The text without code and links; nothing where most lines are code without a fence."""
    text = _CODE.sub(" ", text) if "`" in text or "://" in text else text
    if len(_CODE_LINE.findall(text)) * 2 > text.count("\n") + 1:
        return ""
    return text


def letters_by_script(text: str) -> Counter[str]:
    """Letters of each script; syllables and word signs count three times."""
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
    """Whether enough of the words are the commonest of English: what langdetect would take milliseconds to say."""
    words = text[:2000].lower().split()
    return sum(word in _ENGLISH for word in words) >= _ENGLISH_SHARE * max(len(words), 1)


def detected(text: str) -> str | None:
    """langdetect's language code where it is sure; None where it is not. The same text gets the same answer."""
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it draws random numbers
    try:
        best = langdetect.detect_langs(text[:2000])[0]
    except langdetect.LangDetectException:
        return None
    # Serbian and Croatian, Norwegian and Danish, ... are told apart by little: what is near is called the same.
    return _NEAR.get(best.lang, best.lang) if best.prob >= MIN_PROBABILITY else None


_NEAR = {"no": "da", "sl": "hr", "sk": "cs", "ca": "es", "gl": "es", "pt": "pt", "mk": "bg", "uk": "ru", "id": "ms"}
