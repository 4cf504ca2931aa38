from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

import alignloop.pruning.benchmark_index as module
import alignloop.pruning.text_units as text_units
from alignloop.pruning.benchmark_index import BenchmarkText, longest_run
from alignloop.pruning.decontaminate import decontaminate
from alignloop.pruning.text_units import UnitHashes, normalised, units

QUESTION = BenchmarkText("mmlu_astronomy", "17", "Why does the Moon always show the same face to the Earth below it?")
SHORT = BenchmarkText("trivia", "3", "Who wrote Hamlet?")
MIDDLE = BenchmarkText("trivia", "4", "What is the capital of France?")
CHINESE = BenchmarkText("cmmlu", "9", "下列关于光合作用的说法中哪一项是正确的?")
SIXTEEN = BenchmarkText(
    "birds", "1", "Farmers keep nine brown hens and two grey geese behind the old stone barn near Ghent."
)


def check(*texts: str, benchmarks: Sequence[BenchmarkText] = (QUESTION, SHORT, MIDDLE, CHINESE), **more: object):
    ids = [f"r{row}" for row in range(len(texts))]
    return decontaminate(ids, texts=list(texts), benchmarks=benchmarks, **({"min_share": 0.5} | more))  # type: ignore[arg-type]


def test_a_question_in_a_row_is_found_whatever_case_and_punctuation() -> None:
    # 14 units, 12 sequences of three. The second row has ten units in a row, "the moon always show the same face to the
    # earth", and so eight of the sequences: 67 %.
    half = "The moon always show the same face to the Earth."
    answer = check(
        "Q: why does the MOON always show the same face - to the earth, below it\nA: It turns once a month.",
        half,
        "The Moon shows one face to us.",
    )
    assert answer.kept == (2,)
    assert [drop.reason for drop in answer.dropped] == [
        "holds 100% of mmlu_astronomy 17, the longest piece 'why does the moon always show the same face to the earth "
        "below it'",
        "holds 67% of mmlu_astronomy 17, the longest piece 'the moon always show the same face to the earth'",
    ]
    assert [drop.twin for drop in answer.dropped] == ["mmlu_astronomy 17"] * 2
    assert answer.metrics == {"num_by_text": 2.0, "num_by_embedding": 0.0}
    assert check(half, min_share=8 / 12).kept == ()
    assert check(half, min_share=0.67).kept == check(half, ngram=11).kept == (0,)


def test_two_pieces_of_a_question_count_together_and_once() -> None:
    # The first 8 and the last 10 of 14 units, in two places: all sequences are there, though some lie in both.
    answer = check(
        "does the Moon x why does the moon always show the same ... y always show the same face to the earth below it"
    )
    found = "holds 100% of mmlu_astronomy 17, the longest piece 'always show the same"
    assert answer.dropped[0].reason.startswith(found)


def test_a_near_copy_of_a_question_of_sixteen_words_is_found_by_default() -> None:
    """One word changed, left out or put in at each place of the question; another case and other signs."""
    words = SIXTEEN.text.split()
    copies = [SIXTEEN.text.upper().replace(" ", " - "), SIXTEEN.text.replace(".", "?!").title()]
    for at in range(len(words)):
        before, after = words[:at], words[at + 1 :]
        copies += map(" ".join, ([*before, "zebra", *after], [*before, *after], [*before, "zebra", *words[at:]]))
    # A changed word takes three of the fourteen sequences at most: 11 / 14 = 79 % are left, and 70 % are enough.
    texts = [f"Here is one for you. {copy} How many birds are there?\n\nEleven." for copy in copies]
    assert check(*texts, benchmarks=[SIXTEEN], min_share=0.7).kept == ()
    # 3 x 3 of 14 sequences are gone where three changed words lie three apart: 36 % are left.
    words[4] = words[7] = words[10] = "zebra"
    assert check(" ".join(words), benchmarks=[SIXTEEN], min_share=0.7).kept == (0,)


def test_short_questions() -> None:
    # Six units, and fewer than twelve: they count in one piece. Three units count only as the whole row.
    answer = check(
        "Tell me: what is the capital of France?",
        "What is the capital, of all the places of France?",
        "who wrote hamlet",
        "Who wrote Hamlet? Shakespeare did.",
    )
    assert answer.kept == (1, 3)
    assert [drop.twin for drop in answer.dropped] == ["trivia 4", "trivia 3"]
    # All sequences of three of the ten words are there, but in two pieces: it is not the question.
    exam = BenchmarkText("exam", "1", "which of the following is not a fact about the moon")
    texts = [
        "Which of the following is not a fact? Is not a fact about the sun, a fact about the moon.",
        "Which of the following is not a fact about the sun?",
        "Q7. Which of the following is not a fact about the Moon?",
    ]
    assert check(*texts, benchmarks=[exam]).kept == (0, 1)


def test_chinese_and_mixed() -> None:
    # 18 characters; full-width forms fold to ASCII.
    answer = check("请回答:下列关于光合作用的说法中,哪一项是正确的?A 甲 B 乙", "光合作用是植物的能量来源。")
    found = "holds 100% of cmmlu 9, the longest piece '下列关于光合作用的说法中哪一项是正确的'"
    assert (answer.kept, answer.dropped[0].reason) == ((1,), found)
    mixed = BenchmarkText("code", "1", "用 Python 写一个函数 fib(n) 返回第n个数")
    assert check("请用Python写一个函数 FIB ( n ),返回第 n 个数。", benchmarks=[mixed]).kept == ()


def test_the_first_of_equal_questions_is_named_and_the_greatest_share_wins() -> None:
    again = BenchmarkText("copy", "1", QUESTION.text)
    longer = BenchmarkText("long", "1", QUESTION.text + " Explain it with a drawing.")
    assert check(QUESTION.text, benchmarks=[longer, again, QUESTION]).dropped[0].twin == "copy 1"


def test_pieces_of_the_index_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    words = [f"w{n}" for n in range(12)]
    texts = [" ".join(random.choice(words, size=30)) for _ in range(60)]
    benchmarks = [
        BenchmarkText("t", str(n), " ".join([*text.split()[5:17], "tail"])) for n, text in enumerate(texts[:20])
    ]
    whole = check(*texts, benchmarks=benchmarks, ngram=4, min_share=0.4)
    assert len(whole.dropped) >= 20
    monkeypatch.setattr(module, "_PAIRS", 3)
    monkeypatch.setattr(module, "_ROWS", 4)
    monkeypatch.setattr(text_units, "_TEXTS", 7)
    assert check(*texts, benchmarks=benchmarks, ngram=4, min_share=0.4) == whole

    def plain(row: str, question: str) -> float:
        ours, theirs = (
            {tuple(words[at : at + 4]) for at in range(len(words) - 3)}
            for words in (units(normalised(row)), units(normalised(question)))
        )
        return len(ours & theirs) / len(theirs)

    wanted = [n for n, row in enumerate(texts) if max(plain(row, b.text) for b in benchmarks) < 0.4]
    assert list(whole.kept) == wanted


def test_embeddings() -> None:
    angles = np.radians([0.0, 10.0, 40.0])
    rows = np.concatenate([np.stack([np.cos(angles), np.sin(angles)], axis=1), np.zeros((1, 2))])
    asked = np.array([[0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    benchmarks = [BenchmarkText("t", str(n), f"question number {n}") for n in range(3)]
    answer = check("one", "two", "three", "four", benchmarks=benchmarks, embeddings=(rows, asked), threshold=0.9)
    assert answer.kept == (2, 3)
    assert [drop.reason for drop in answer.dropped] == ["cosine 1.0000 to t 1", "cosine 0.9848 to t 1"]
    assert answer.dropped[1].cosine == pytest.approx(math.cos(math.radians(10)))


def test_a_hundred_thousand_rows_take_seconds() -> None:
    random = np.random.default_rng(1)
    words = np.array([f"word{n}" for n in range(3000)])
    texts = [" ".join(words[random.integers(3000, size=40)]) for _ in range(20_000)]
    benchmarks = [BenchmarkText("t", str(n), text) for n, text in enumerate(texts[::200])]
    started = time.perf_counter()
    answer = check(*texts, benchmarks=benchmarks)
    assert time.perf_counter() - started < 10  # a fifth of the rows; half a second on one core
    assert [int(drop.id[1:]) for drop in answer.dropped] == list(range(0, 20_000, 200))


def test_nothing_to_do_and_bad_input() -> None:
    assert check().kept == ()
    assert check("a b c d e", "", "?!").kept == (0, 1, 2)
    assert check("a b c d e", benchmarks=[]).kept == (0,)
    assert check("a b c d e", "", benchmarks=[BenchmarkText("t", "1", "")]).kept == (0, 1)
    for rows, questions, message in (
        (np.full((1, 2), np.nan), np.zeros((4, 2)), r"embeddings\[0\] holds NaN"),
        (np.zeros((1, 2)), np.full((4, 2), np.inf), r"benchmark_embeddings\[0\] holds NaN or inf"),
    ):
        with pytest.raises(ValueError, match=message):
            check("text", embeddings=(rows, questions))


def test_longest_run() -> None:
    assert longest_run("a b c d e".split(), "x c d e a b".split()) == ("c", "d", "e")
    assert longest_run(["a", "a"], ["b"]) == ()


def test_hashes_of_units_are_the_same_in_a_row_of_texts_and_word_by_word() -> None:
    texts = ["Ab ab! 0xAB", "", "...", "ünder ab", "一 ab", "z", "A" * 300 + " ab", "ab"]
    hasher = UnitHashes()
    found = hasher.texts(texts)
    assert found.lengths.tolist() == [3, 0, 0, 2, 2, 1, 2, 1]
    parts = [found.hashes[start:end] for start, end in zip(found.starts[:-1], found.starts[1:], strict=True)]
    for text, hashes in zip(texts, parts, strict=True):
        assert hashes.tolist() == hasher.words(units(normalised(text))).tolist()
    ab = hasher.words(["ab"])[0]
    assert [np.flatnonzero(hashes == ab).tolist() for hashes in parts] == [[0, 1], [], [], [1], [1], [], [1], [0]]
    words = sorted({f"w{number}" for number in range(20_000)} | {"ba", "ab", "a", "b"})
    assert len(set(hasher.words(words).tolist())) == len(words)
