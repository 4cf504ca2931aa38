"""Honest edits that make a copy or a paraphrase of a text: deterministic, and None where an edit changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_CONTRACTIONS = {
    "do not": "don't",
    "does not": "doesn't",
    "did not": "didn't",
    "is not": "isn't",
    "are not": "aren't",
    "cannot": "can't",
    "can not": "can't",
    "will not": "won't",
    "would not": "wouldn't",
    "should not": "shouldn't",
    "it is": "it's",
    "that is": "that's",
    "there is": "there's",
    "i am": "I'm",
    "you are": "you're",
    "we are": "we're",
    "they are": "they're",
    "i have": "I've",
    "you will": "you'll",
    "let us": "let's",
}
_SYNONYMS = {
    "also": "additionally",
    "answer": "reply",
    "begin": "start",
    "big": "large",
    "buy": "purchase",
    "choose": "select",
    "common": "frequent",
    "correct": "right",
    "create": "make",
    "difficult": "hard",
    "easy": "simple",
    "ensure": "make sure",
    "error": "mistake",
    "fast": "quick",
    "finally": "lastly",
    "find": "locate",
    "get": "obtain",
    "good": "fine",
    "great": "excellent",
    "happy": "glad",
    "help": "assist",
    "however": "but",
    "idea": "thought",
    "important": "essential",
    "job": "work",
    "keep": "retain",
    "kind": "sort",
    "many": "numerous",
    "method": "way",
    "need": "require",
    "often": "frequently",
    "people": "persons",
    "problem": "issue",
    "provide": "give",
    "show": "display",
    "small": "little",
    "such as": "like",
    "therefore": "so",
    "use": "employ",
    "using": "by means of",
    "various": "different",
    "while": "whereas",
}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def copied(text: str) -> str | None:
    return text


def lower_case(text: str) -> str | None:
    return _changed(text, text.lower())


def without_punctuation(text: str) -> str | None:
    """Without commas, colons, semicolons, quotation marks and list marks."""
    return _changed(text, re.sub(r"[,;:\"*#]|(?m:^\s*[-\d]+[.)]?\s+)", "", text))


def contractions(text: str) -> str | None:
    """`do not` becomes `don't`; where there is nothing to contract, the other way round."""
    short = _replaced(text, _CONTRACTIONS)
    return short or _replaced(text, {value: key for key, value in _CONTRACTIONS.items()})


def synonyms(text: str) -> str | None:
    """Every word of a small list by another of the same meaning."""
    return _replaced(text, _SYNONYMS)


def sentence_swaps(text: str) -> str | None:
    """The second half of the sentences before the first."""
    sentences = _SENTENCE_END.split(text.strip())
    if len(sentences) < 4:
        return None
    middle = len(sentences) // 2
    return " ".join([*sentences[middle:], *sentences[:middle]])


def framed(text: str) -> str | None:
    """An opening and a closing sentence around it, as chat models write them."""
    return f"Sure, here is an answer to that. {text} I hope this helps!"


def all_at_once(text: str) -> str | None:
    """Synonyms, contractions, swapped sentences and lower case together, where at least the first three apply."""
    for edit in (synonyms, contractions, sentence_swaps, lower_case):
        edited = edit(text)
        if edited is None and edit is not lower_case:
            return None
        text = edited or text
    return text


EDITS: Mapping[str, Callable[[str], str | None]] = {
    "copy": copied,
    "case": lower_case,
    "punctuation": without_punctuation,
    "contractions": contractions,
    "synonyms": synonyms,
    "sentences": sentence_swaps,
    "frame": framed,
    "all": all_at_once,
}


def _replaced(text: str, words: Mapping[str, str]) -> str | None:
    pattern = re.compile(rf"\b({'|'.join(re.escape(word) for word in words)})\b", re.IGNORECASE)
    lowered = {word.lower(): other for word, other in words.items()}
    return _changed(text, pattern.sub(lambda found: _like(found[0], lowered[found[0].lower()]), text))


def _like(word: str, other: str) -> str:
    return other[0].upper() + other[1:] if word[0].isupper() else other


def _changed(text: str, edited: str) -> str | None:
    return None if edited == text else edited
