"""Reasoning and answer of a text, taken apart and put together."""

from __future__ import annotations

import pytest

from alignloop.chat.reasoning import answer_of, has_answer, join_reasoning, split_reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("It is 2.", None, "It is 2."),
        ("<think>\nAdd 2 to 0.\n</think>\n\nIt is 2.", "Add 2 to 0.", "It is 2."),
        ("<think>Add.</think>It is 2.", "Add.", "It is 2."),
        ("\n <think>\nAdd.\n\nSo.\n</think>\n\n    return 2\n", "Add.\n\nSo.", "    return 2\n"),
        ("<think>\n\n</think>\n\nIt is 2.", "", "It is 2."),
        ("<think>\nAdd.\n</think>", "Add.", ""),
        ("<think>\nAdd.\n</think>\n\nThe tag </think> ends it.", "Add.", "The tag </think> ends it."),
        # Cut off while thinking, and a block that is not at the start: text.
        ("<think>\nAdd", None, "<think>\nAdd"),
        ("It is <think>Add.</think> 2.", None, "It is <think>Add.</think> 2."),
        ("  It is 2.\n", None, "  It is 2.\n"),
        ("", None, ""),
    ],
)
def test_a_text_is_split_where_its_reasoning_ends(text: str, reasoning: str | None, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Add.\n</think>\n\nIt is 2.", ("Add.", "It is 2.")),
        ("<think>\nAdd.\n</think>\n\nIt is 2.", ("Add.", "It is 2.")),
        ("It is 2.", (None, "It is 2.")),
    ],
)
def test_a_block_that_the_prompt_opened_may_be_closed_only(text: str, expected: tuple[str | None, str]) -> None:
    assert split_reasoning(text, opened=True) == expected


def test_a_lone_end_is_text_where_nothing_opened_the_block() -> None:
    assert split_reasoning("Write </think> there.") == (None, "Write </think> there.")


@pytest.mark.parametrize(
    ("reasoning", "answer"), [(None, "It is 2."), ("Add.", "It is 2."), ("", "It is 2."), ("a\n\nb", "    return 2\n")]
)
def test_what_is_joined_splits_into_the_same(reasoning: str | None, answer: str) -> None:
    assert split_reasoning(join_reasoning(reasoning, answer)) == (reasoning, answer)


def test_the_joined_form_is_the_one_that_qwen3_writes() -> None:
    assert join_reasoning("Add.", "It is 2.") == "<think>\nAdd.\n</think>\n\nIt is 2."


@pytest.mark.parametrize("text", ["", " \n", "<think>\nAdd.\n</think>\n\n", " <think>\nAdd", "<think></think>"])
def test_reasoning_alone_is_no_answer(text: str) -> None:
    assert answer_of(text).strip() == ""
    assert not has_answer(text)
    assert has_answer(f"It is 2. {text}")
    assert not text.endswith("</think>") or has_answer(f"{text}2")
