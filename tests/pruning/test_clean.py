from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alignloop.evaluation.measures import repeated_ngram_share, words
from alignloop.pruning.clean import APOLOGY, Balance, CleanRow, clean
from alignloop.pruning.verdict import Pruned

CANDIDATES = Path(__file__).resolve().parents[2] / "../shared/data/candidates/alpacaeval_120x20.jsonl"


def run(rows: list[CleanRow], **limits: object) -> Pruned:
    usual: dict[str, object] = {
        "max_apology_share": 1.0,
        "max_exclamations_per_100_words": 10.0,
        "max_emojis_per_100_words": 10.0,
        "max_repeated_ngram_share": 0.5,
    }
    return clean(rows, **(usual | limits))  # type: ignore[arg-type]


def row(name: str, text: str, *, truncated: bool = False, reward: float | None = 0.0) -> CleanRow:
    return CleanRow(name, text, truncated, reward)


def test_each_rule_names_itself() -> None:
    result = run(
        [
            row("fine", "The cat sat on the mat and looked at the moon."),
            row("empty", " \n"),
            row("cut", "The cat sat", truncated=True),
            row("loud", "Yes! Yes! Yes!"),  # 3 in 3 words
            row("gay", "so nice 😀😀👩‍👩‍👧"),  # 3 emojis (a family is one) in 2 words
            row("loop", "a b c d " * 10),  # 37 sequences, 4 distinct: 33/37 = 0.89
            row("short", "Hi!"),  # one mark is no habit
        ]
    )
    assert result.kept == (0, 6)
    assert [drop.reason.partition(":")[0] for drop in result.dropped] == [
        "empty",
        "truncated",
        "exclamations",
        "emojis",
        "repeated n-grams",
    ]
    assert "150 per 100 words" in result.dropped[3].reason
    assert "0.89" in result.dropped[4].reason
    assert run([row("cut", "The cat sat", truncated=True)], drop_truncated=False).kept == (0,)


def test_repeated_ngram_share_by_hand() -> None:
    assert repeated_ngram_share("one two three") == 0.0
    assert repeated_ngram_share("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert len(words("hello, world 你好 x1")) == 5


APOLOGIES = (
    "I'm sorry, but I can't",
    "I am very sorry",
    "Sorry, no.",
    "I apologize for",
    "My sincere apologies",
    "很抱歉\uff0c我不能",
    "I\u2019m afraid not",
    "Oh, I'm so sorry",
)
OTHERS = ("The sorry state of", "I am happy", "Apologetics is", "I said I'm sorry", "她说抱歉")


def test_apologies_are_openings() -> None:
    assert [text for text in (*APOLOGIES, *OTHERS) if APOLOGY.search(text)] == list(APOLOGIES)


def test_apologies_are_balanced_to_the_share() -> None:
    rows = [row(f"r{n}", f"Answer number {n} is here.") for n in range(6)]
    sorry = [row(f"s{n}", "I'm sorry, but no.", reward=reward) for n, reward in enumerate((0.5, -1.0, None, 0.5))]
    result = run([*sorry, *rows], max_apology_share=0.25)
    # 2 of 8 rows are a quarter: two of four apologies go, the lowest reward first, then the later of equals
    assert [drop.id for drop in result.dropped] == ["s1", "s3"]
    assert run([*sorry, *rows], max_apology_share=0.0).kept == (4, 5, 6, 7, 8, 9)
    assert run([*sorry, *rows], max_apology_share=1.0).dropped == ()


def test_most_real_completions_are_kept() -> None:
    if not CANDIDATES.exists():
        pytest.skip(f"{CANDIDATES} is not there")
    texts = [c["completion"] for line in CANDIDATES.open(encoding="utf-8") for c in json.loads(line)["candidates"]]
    result = run([row(str(n), text) for n, text in enumerate(texts)], max_apology_share=0.05)
    assert len(result.kept) + len(result.dropped) == len(texts) == 2400
    assert 0.85 < len(result.kept) / len(texts) < 1.0


def test_any_pattern_can_be_balanced_and_one_after_another() -> None:
    rows = [row(f"r{n}", f"Answer number {n} is here.") for n in range(8)]
    sure = [row(f"c{n}", "Certainly! Here it is.", reward=float(n)) for n in range(4)]
    result = run(
        [*rows, *sure], balance=[Balance("certainly", re.compile(r"(?i)^certainly\b"), 0.2)]
    )  # 2 of 10 are a fifth
    assert [(drop.id, drop.reason) for drop in result.dropped] == [
        ("c0", "certainly: 33.3% of the rows match certainly, the limit is 20.0%"),
        ("c1", "certainly: 33.3% of the rows match certainly, the limit is 20.0%"),
    ]
    assert result.metrics["num_certainly"] == 2
    none = run([*rows, *sure], balance=[Balance("certainly", re.compile("^Certainly"), 0.0)])
    assert none.kept == tuple(range(8))
    assert run([], balance=[Balance("x", re.compile("x"), 0.0)]).kept == ()


def test_chinese_loops_and_marks_are_counted_by_character() -> None:
    result = run(
        [
            row("loud", "好\uff01好\uff01好\uff01"),  # 3 in 3 words
            row("loop", "我们都是好人" * 10),  # 57 sequences of 4 signs, 6 distinct
            row("fine", "自行车之所以能够保持平衡\uff0c是因为车轮转动时骑车的人不断地调整方向。"),
        ]
    )
    assert result.kept == (2,)
    assert "repeated n-grams: 0.89" in result.dropped[1].reason


def test_a_foreign_completion_is_dropped_where_it_is_asked_for() -> None:
    foreign = CleanRow(
        "f", "自行车之所以能够保持平衡\uff0c是因为车轮转动。", False, 1.0, "How does a bicycle stay upright at all?"
    )
    assert run([foreign]).kept == (0,)
    (drop,) = run([foreign], language="script").dropped  # type: ignore[arg-type]
    assert drop.reason == "language: the prompt is in Latin script, 100% of the completion in Han"
