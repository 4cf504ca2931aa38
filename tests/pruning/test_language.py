from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignloop.pruning.language import detected, language_mismatch, letters_by_script, prose

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
ENGLISH = "Please tell me how a bicycle stays upright while it moves along the road."
CHINESE = "自行车之所以能够保持平衡\uff0c是因为车轮转动时骑车的人不断地调整方向。"
FRENCH = (
    "Le vélo reste en équilibre parce que le cycliste corrige sans cesse sa direction, et que la roue avant se tourne "
    "toute seule du côté où le cadre penche. Plus on roule vite, plus ces petites corrections sont faciles à faire."
)


def test_scripts_that_differ_are_a_mismatch() -> None:
    assert language_mismatch(ENGLISH, CHINESE) == "the prompt is in Latin script, 100% of the completion in Han"
    assert language_mismatch("自行车为什么不会倒下呢\uff1f请详细地说明一下。", ENGLISH) is not None
    assert language_mismatch(ENGLISH, "Велосипед держится, потому что велосипедист правит рулём всё время.") is not None
    assert language_mismatch(ENGLISH, ENGLISH) is None
    assert language_mismatch(CHINESE, CHINESE) is None


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
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
            "道 means way; 德 means virtue, they say",
        ),
        (f"{CHINESE} What does this sentence say, and who wrote it? Tell me.", ENGLISH),  # mixed
        ("日本の首都はどこですか。教えてください。", "东京是日本的首都\uff0c也是日本最大的城市\uff0c人口很多。"),
    ],
)
def test_nothing_is_said_where_nothing_is_known(prompt: str, completion: str) -> None:
    assert language_mismatch(prompt, completion, detect=True) is None


def test_a_completion_that_quotes_is_not_foreign() -> None:
    assert language_mismatch(ENGLISH, f"The book says {CHINESE}, which is about wheels and riders.") is None


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
    wrong = [
        row
        for row in rows
        if language_mismatch(row["conversations"][-1]["value"], row["chosen"]["value"], detect=True) is not None
    ]
    assert len(wrong) <= 0.01 * len(rows)
