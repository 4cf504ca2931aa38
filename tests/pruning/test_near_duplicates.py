from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from alignloop.pruning.near_duplicates import near_duplicates, rows_per_band, shingles, signatures
from alignloop.pruning.text_units import UnitHashes, joined, normalised, units


def drop(*texts: str, **more: object):
    return near_duplicates([f"r{row}" for row in range(len(texts))], texts=list(texts), **more)  # type: ignore[arg-type]


def test_units_of_english_chinese_mixed_and_others() -> None:
    assert units(normalised("Don't STOP,\n  naïve café!")) == ["don", "t", "stop", "naïve", "café"]
    assert units(normalised("用GPT-4写一首诗。")) == ["用", "gpt", "4", "写", "一", "首", "诗"]
    assert units(normalised("\uff21\uff22\uff23\u3000\uff11\uff12")) == ["abc", "12"]  # full-width forms
    assert units(normalised("हिन्दी में")) == ["हिन्दी", "में"]  # vowel signs stay in their word
    assert units(normalised("한국어 문장")) == ["한국어", "문장"]
    assert units(normalised("ภาษา")) == ["ภ", "า", "ษ", "า"]
    assert units("?!…") == []
    assert normalised("STRASSE") == normalised("Straße")
    assert joined(["用", "gpt", "4", "写", "a", "b"]) == "用gpt 4写a b"


def test_same_texts() -> None:
    answer = drop("Write a poem.", "  write\ta POEM.", "Write a poem!", "写一首诗", "写一首诗", jaccard=None)
    assert answer.kept == (0, 2, 3)
    assert [(d.id, d.twin, d.reason) for d in answer.dropped] == [
        ("r1", "r0", "same text as r0, but for case and spaces"),
        ("r4", "r3", "same text as r3, but for case and spaces"),
    ]
    assert answer.metrics["num_exact"] == 2
    # Punctuation is in no n-gram: with MinHash the third is a near-duplicate.
    assert drop("Write a poem.", "Write a poem!").dropped[0].reason == "estimated Jaccard 1.00 to r0"


def test_near_texts() -> None:
    words = [f"word{n}" for n in range(40)]
    text = " ".join(words)
    # One word more at the end: 36 of 37 5-grams in common, Jaccard 0.97. One changed in the middle: 31 of 41, 0.76.
    more, changed = text + " please", " ".join([*words[:20], "other", *words[21:]])
    answer = drop(text, more, changed, "something else altogether, and long enough for two")
    assert [(d.id, d.twin) for d in answer.dropped] == [("r1", "r0")]
    assert float(answer.dropped[0].reason.split()[2]) == pytest.approx(36 / 37, abs=0.05)
    assert [d.id for d in drop(text, more, changed, jaccard=0.6).dropped] == ["r1", "r2"]
    chinese = "请你写一篇关于春天的短文,要求语言优美,字数不少于三百字,并且分成三段"
    assert [d.id for d in drop(chinese, chinese + "吧", "请你写一首诗").dropped] == ["r1"]


def test_the_estimate_is_near_the_jaccard_similarity() -> None:
    for common in (10, 50, 90):
        first = " ".join(f"w{n}" for n in range(100))
        second = " ".join([f"w{n}" for n in range(common)] + [f"v{n}" for n in range(100 - common)])
        found, _ = signatures([first, second], num_perm=2048, ngram=1)
        # Of 200 - common words `common` are in both; four standard errors of 2,048 values are at most 0.045.
        assert (found[0] == found[1]).mean() == pytest.approx(common / (200 - common), abs=0.045)


def test_shingles_of_short_texts() -> None:
    grams = shingles(UnitHashes().texts(["a b c", "", "a b", "a", "a b c d", "a b"]), 3)
    assert grams.lengths.tolist() == [1, 0, 1, 1, 2, 1]
    first, short, one, *rest = (grams.hashes[grams.starts[n]] for n in (0, 2, 3, 4, 5))
    assert first == rest[0]  # abc begins abcd
    assert short == rest[1]
    assert len({int(first), int(short), int(one), int(grams.hashes[grams.starts[4] + 1])}) == 4
    assert drop("yes", "no", "Yes?", "?", "!", "").kept == (0, 1, 3, 4, 5)


def test_the_better_row_stays_and_what_was_dropped_drops_nothing() -> None:
    assert drop("a poem", "A poem", priorities=[0.0, 1.0]).dropped[0].id == "r0"
    words = [f"w{n}" for n in range(60)]
    chain = [
        " ".join(words[shift : shift + 40]) for shift in (0, 4, 8)
    ]  # 32 of 40 5-grams between neighbours, 28 of 44
    answer = drop(*chain, jaccard=0.75)
    assert [(d.id, d.twin) for d in answer.dropped] == [("r1", "r0")]


def test_pairs_at_the_bar_are_found() -> None:
    assert rows_per_band(0.8, 128) == 6
    for jaccard in (0.3, 0.5, 0.8, 0.95):
        rows = rows_per_band(jaccard, 128)
        assert (1 - jaccard**rows) ** (128 // rows) <= 0.01
    assert rows_per_band(1.0, 64) == 64
    random = np.random.default_rng(0)
    texts = [" ".join(f"x{n}" for n in random.integers(5000, size=30)) for _ in range(400)]
    answer = drop(*texts, *(text + " more" for text in texts))  # 26 of 27 5-grams
    assert answer.kept == tuple(range(400))


def test_same_answer_in_another_process() -> None:
    code = (
        "from alignloop.pruning.near_duplicates import signatures;"
        "print(signatures(['one two three four five six', '写一首诗'], num_perm=8, ngram=2)[0].tolist())"
    )
    here = signatures(["one two three four five six", "写一首诗"], num_perm=8, ngram=2)[0].tolist()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(here)


def test_no_rows_and_bad_input() -> None:
    assert drop().kept == ()
    with pytest.raises(ValueError, match=r"priorities\[0\] is nan"):
        drop("text", priorities=[float("nan")])
