from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alignloop.evaluation.language import prose
from alignloop.evaluation.measures import repeated_ngram_share, words
from alignloop.pruning.clean import (
    APOLOGY,
    Balance,
    CleanRow,
    clean,
    detected,
    language_mismatch,
    letters_by_script,
)
from alignloop.pruning.step import Pruned

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
ENGLISH = "Please tell me how a bicycle stays upright while it moves along the road."
CHINESE = "自行车之所以能够保持平衡\uff0c是因为车轮转动时骑车的人不断地调整方向。"
FRENCH = (
    "Le vélo reste en équilibre parce que le cycliste corrige sans cesse sa direction, et que la roue avant se tourne "
    "toute seule du côté où le cadre penche. Plus on roule vite, plus ces petites corrections sont faciles à faire."
)


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
            row("loud zh", "好\uff01好\uff01好\uff01"),  # 3 in 3 words
            row("loop zh", "我们都是好人" * 10),  # 57 sequences of 4 signs, 6 distinct
            row("fine zh", CHINESE),
        ]
    )
    assert result.kept == (0, 6, 9)
    assert [drop.reason.partition(" per 100 words")[0].partition(" of its")[0] for drop in result.dropped] == [
        "empty: the completion has no text",
        "truncated: the completion hit its token limit",
        "exclamations: 100",
        "emojis: 150",
        "repeated n-grams: 0.89",
        "exclamations: 100",
        "repeated n-grams: 0.89",
    ]
    assert result.metrics["num_repeated_n-grams"] == 2
    assert run([row("cut", "The cat sat", truncated=True)], drop_truncated=False).kept == (0,)


def test_repeated_ngram_share_by_hand() -> None:
    assert repeated_ngram_share("one two three") == 0.0
    assert repeated_ngram_share("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert len(words("hello, world 你好 x1")) == 5


def test_apologies_are_openings() -> None:
    apologies = ["I'm sorry, but I can't", "I am very sorry", "Sorry, no.", "I apologize for", "My sincere apologies"]
    apologies += ["很抱歉\uff0c我不能", "I\u2019m afraid not", "Oh, I'm so sorry"]
    others = ["The sorry state of", "I am happy", "Apologetics is", "I said I'm sorry", "她说抱歉"]
    assert [text for text in [*apologies, *others] if APOLOGY.search(text)] == apologies


def test_apologies_are_balanced_to_the_share() -> None:
    rows = [row(f"r{n}", f"Answer number {n} is here.") for n in range(6)]
    sorry = [row(f"s{n}", "I'm sorry, but no.", reward=reward) for n, reward in enumerate((0.5, -1.0, None, 0.5))]
    result = run([*sorry, *rows], max_apology_share=0.25)
    # 2 of 8 rows are a quarter: two of four apologies go, the lowest reward first, then the later of equals
    assert [drop.id for drop in result.dropped] == ["s1", "s3"]
    assert run([*sorry, *rows], max_apology_share=0.0).kept == (4, 5, 6, 7, 8, 9)
    assert run([*sorry, *rows], max_apology_share=1.0).dropped == ()


def test_any_pattern_can_be_balanced_and_one_after_another() -> None:
    rows = [row(f"r{n}", f"Answer number {n} is here.") for n in range(8)]
    sure = [row(f"c{n}", "Certainly! Here it is.", reward=float(n)) for n in range(4)]
    certainly = Balance("certainly", re.compile(r"(?i)^certainly\b"), 0.2)
    result = run([*rows, *sure], balance=[certainly])  # 2 of 10 are a fifth
    assert [drop.id for drop in result.dropped] == ["c0", "c1"]
    assert result.dropped[0].reason == "certainly: 33.3% of the rows match certainly, the limit is 20.0%"
    assert result.metrics["num_certainly"] == 2
    none = run([*rows, *sure], balance=[Balance("certainly", re.compile("^Certainly"), 0.0)])
    assert none.kept == tuple(range(8))
    assert run([], balance=[certainly]).kept == ()


def test_most_real_completions_are_kept() -> None:
    file = DATA / "candidates/alpacaeval_120x20.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    texts = [c["completion"] for line in file.open(encoding="utf-8") for c in json.loads(line)["candidates"]]
    result = run([row(str(n), text) for n, text in enumerate(texts)], max_apology_share=0.05)
    assert len(result.kept) + len(result.dropped) == len(texts) == 2400
    assert 0.85 < len(result.kept) / len(texts) < 1.0


def test_a_foreign_completion_is_dropped_where_it_is_asked_for() -> None:
    foreign = CleanRow("f", CHINESE, False, 1.0, ENGLISH)
    assert run([foreign]).kept == (0,)
    (drop,) = run([foreign], language="script").dropped
    assert drop.reason == "language: the prompt is in Latin script, 100% of the completion in Han"


def test_scripts_that_differ_are_a_mismatch() -> None:
    assert language_mismatch("自行车为什么不会倒下呢\uff1f请详细地说明一下。", ENGLISH) is not None
    assert language_mismatch(ENGLISH, "Велосипед держится, потому что велосипедист правит рулём всё время.") is not None
    assert language_mismatch(ENGLISH, f"The book says {CHINESE}, which is about wheels and riders.") is None


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (ENGLISH, ENGLISH),
        (CHINESE, CHINESE),
        ("Translate this: the cat sat on the mat and slept.", CHINESE),
        ("Write a poem about the sea in Chinese, please, four lines.", CHINESE),
        ("把下面这句话翻译成英文\uff1a自行车为什么不会倒下呢\uff1f", ENGLISH),
        ("用英文写一封信给我的老师\uff0c说明我今天不能来上课。", ENGLISH),
        ("Name of the river?", "长江"),  # short
        ("自行车为什么不会倒\uff1f", "Tokyo"),
        (
            "写一个函数\uff0c计算斐波那契数列的第几项\uff0c请用循环来实现它。",
            "```python\ndef fib(n):\n    return n\n```",
        ),
        (
            "Explain the sign 道 and the sign 德 to me in a few words, thank you.",
            "道 means way; 德 means virtue, I say",
        ),
        (f"{CHINESE} What does this sentence say, and who wrote it? Tell me.", ENGLISH),  # mixed
        ("日本の首都はどこですか。教えてください。", "东京是日本的首都\uff0c也是日本最大的城市\uff0c人口很多。"),
    ],
)
def test_nothing_is_said_where_nothing_is_known(prompt: str, completion: str) -> None:
    assert language_mismatch(prompt, completion, detect=True) is None


def test_languages_of_one_script_are_told_apart_where_asked_for() -> None:
    long_english = f"{ENGLISH} I would like to know it well, for I am to give a talk about it to a class of children."
    assert language_mismatch(long_english, FRENCH) is None
    assert "'en', the completion in 'fr'" in str(language_mismatch(long_english, FRENCH, detect=True))
    assert language_mismatch(FRENCH, FRENCH, detect=True) is None
    assert language_mismatch(long_english, "Bonjour, le vélo.", detect=True) is None  # too short to tell
    assert [detected(FRENCH) for _ in range(3)] == ["fr"] * 3


def test_letters_and_prose() -> None:
    assert letters_by_script("ab 你好 c") == {"Latin": 3, "Han": 6}  # a sign counts three times
    assert letters_by_script("12 + 3") == {"Latin": 0}
    assert prose("Say `x = 1` so:\n```\nfoo\n```\nor https://a.b/c now").split() == ["Say", "so:", "or", "now"]
    assert prose("def f(x):\n    return {x};\nimport os") == ""


def test_real_rows_of_either_language_match() -> None:
    english, chinese = DATA / "preferences/sharegpt_en.jsonl", DATA / "preferences/sharegpt_zh.json"
    if not english.exists():
        pytest.skip(f"{english} is not there")
    rows = [json.loads(line) for line in english.open(encoding="utf-8")] + json.loads(chinese.read_text("utf-8"))
    pairs = [(row["conversations"][-1]["value"], row["chosen"]["value"]) for row in rows]
    assert sum(language_mismatch(*pair, detect=True) is not None for pair in pairs) <= 0.01 * len(rows)
