"""What the n-gram rule finds of real benchmarks' questions, and what it takes for one: the figures of docs/data.md.

`pytest -s` prints the table. Questions: IFEval's prompts and MMLU's of ten subjects; rows: real preferences and
candidates.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from alignloop.pruning.benchmark_index import MIN_SHARE, NGRAM, WHOLE_UNITS, BenchmarkIndex, BenchmarkText
from alignloop.pruning.decontaminate import local_texts
from alignloop.pruning.text_units import normalised, units

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
EVERY = 10
LENGTHS = {"under 12": (0, 12), "12 to 15": (12, 16), "16 to 23": (16, 24), "24 and more": (24, 10_000)}
KINDS = ("one word changed", "one word left out", "one word put in", "two words changed", "other case and signs")


def index_of(questions: Sequence[BenchmarkText]) -> BenchmarkIndex:
    return BenchmarkIndex(questions, ngram=NGRAM, min_share=MIN_SHARE)


def found(index: BenchmarkIndex, texts: Sequence[str]) -> int:
    return sum(1 for _ in index.held(texts))


def near_copies(words: Sequence[str], kind: str, draw: random.Random) -> Iterator[str]:
    """A copy for each place of a question, with a word that no question has."""
    if kind == "other case and signs":
        yield " -- ".join(words).upper() + "?!"
        return
    for at in range(len(words)):
        copy = list(words)
        if kind == "one word put in":
            copy.insert(at, "zyzzyva")
        elif kind == "one word left out":
            del copy[at]
        else:
            copy[at] = "zyzzyva"
        if kind == "two words changed":
            copy[draw.choice([other for other in range(len(words)) if other != at])] = "zyzzyva"
        yield " ".join(copy)


def table(index: BenchmarkIndex, split: Sequence[Sequence[str]]) -> list[str]:
    """Share of near-copies found, by kind and by words of the question."""
    lines = [f"| near-copies found | {' | '.join(f'{name} words' for name in LENGTHS)} |"]
    for kind in KINDS:
        cells = []
        for low, high in LENGTHS.values():
            draw = random.Random(0)
            asked = [words for words in split[::EVERY] if low <= len(words) < high]
            copies = [copy for words in asked for copy in near_copies(words, kind, draw)]
            cells.append(f"{found(index, copies) / len(copies):.1%}")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def lines_of(name: str) -> list[Any]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def real_rows() -> list[str]:
    graded, sampled = lines_of("preferences/alpacaeval_graded.jsonl"), lines_of("candidates/alpacaeval_120x20.jsonl")
    texts = [f"{row['prompt']}\n\n{row[name]}" for row in graded for name in ("chosen", "rejected")]
    chinese = json.loads((DATA / "preferences/sharegpt_zh.json").read_text())
    for row in lines_of("preferences/sharegpt_en.jsonl") + chinese:
        dialog = "\n\n".join(turn["value"] for turn in row["conversations"])
        texts += [f"{dialog}\n\n{row[name]['value']}" for name in ("chosen", "rejected")]
    return texts + [f"{row['prompt']}\n\n{one['completion']}" for row in sampled for one in row["candidates"]]


def like_others(questions: Sequence[BenchmarkText], split: Sequence[Sequence[str]]) -> int:
    """Questions that contain another question: as hard as rows can be that are none."""
    number = 0
    for half in (0, 1):  # of two like questions each is looked for among the others
        same = {tuple(words) for words in split[half::2]}
        others = [" ".join(words) for words in split[1 - half :: 2] if tuple(words) not in same]
        number += found(index_of(questions[half::2]), others)
    return number


@pytest.mark.skipif(not DATA.is_dir(), reason="the published benchmarks are not part of this repository")
def test_the_figures_of_the_documentation() -> None:
    questions = local_texts((f"ifeval={DATA / 'ifeval' / 'input_data.jsonl'}", f"mmlu={DATA / 'mmlu'}"), None)
    index, split = index_of(questions), [units(normalised(question.text)) for question in questions]
    rows, lines = real_rows(), table(index, split)
    lines.append(
        f"of {len(rows):,} real rows {found(index, rows)} are taken for one of the {len(questions):,} questions; "
        f"of the questions themselves, in two halves, {like_others(questions, split)} for one of the other half"
    )
    print("\n".join(["", *lines]))
    documented = " ".join((ROOT / "docs" / "data.md").read_text().split())
    assert [line for line in lines if " ".join(line.split()) not in documented] == []
    one_word = next(line for line in lines if line.startswith("| one word changed"))
    assert one_word.split("|")[4:6] == [" 100.0% ", " 100.0% "], "from 16 words on every copy with one other word"
    assert WHOLE_UNITS == 12
