from __future__ import annotations

import pytest

from alignloop.selection.topics import accuracy, heldout_places, is_code, majority_share


def test_code_is_a_topic_or_a_fenced_block() -> None:
    topics = ("code", "programming")
    assert is_code("Code ", "hello", code_topics=topics)
    assert is_code("chat", "see", "so:\n```python\nprint(1)\n```", code_topics=topics)
    assert is_code(None, "  ~~~\nx\n~~~", code_topics=topics)
    assert not is_code("chat", "use ``` inline", code_topics=topics)
    assert not is_code(None, code_topics=topics)


def test_every_topic_is_learnt_from_and_measured_on() -> None:
    labels = ["a"] * 20 + ["b"] * 2 + ["c"]
    held = heldout_places(labels, fraction=0.1, seed=3)
    assert sorted(labels[place] for place in held) == ["a", "a", "b"]  # 2 of 20, 1 of 2, none of a single row
    assert held == heldout_places(labels, fraction=0.1, seed=3)
    assert len(heldout_places(labels, fraction=0.99, seed=3)) == 19 + 1


def test_accuracy_and_what_guessing_reaches() -> None:
    assert accuracy(["a", "b", "a"], ["a", "a", "a"]) == pytest.approx(2 / 3)
    assert accuracy([], []) == majority_share([]) == 0.0
    assert majority_share(["a", "b", "a"]) == pytest.approx(2 / 3)
