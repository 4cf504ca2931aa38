"""The quickstart's tasks and answers: lm-eval's own checkers pass the good ones and fail the bad ones.

That the same world, tasks and answers are made again is held by the bytes of the shipped data.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from alignloop.quickstart.annotator import check, num_flaws
from scripts.world.answers import bad_answer, good_answer, plain_answer
from scripts.world.datasets import follows
from scripts.world.edits import mended
from scripts.world.entities import Entity, build_world, near, questions
from scripts.world.instructions import INSTRUCTION_IDS, SEEN, UNSEEN, compatible, draw_any_task, draw_task, use_of


@pytest.fixture(scope="module")
def world() -> tuple[Entity, ...]:
    return build_world()


def test_facts_share_no_keyword_and_questions_keep_one_wording_for_the_benchmark(world: tuple[Entity, ...]) -> None:
    assert len({entity.name for entity in world}) == 2 * len(near(world)) == 200
    for entity in world:
        assert len({fact.keyword for fact in entity.facts}) == len(entity.facts) == 6, entity.name
        for fact in entity.facts:
            training, heldout = questions(entity, fact)
            assert len(set(training)) == 2
            assert heldout not in training


@pytest.mark.parametrize("name", INSTRUCTION_IDS)
def test_good_answers_pass_the_real_checkers_and_bad_and_plain_ones_do_not(
    name: str, world: tuple[Entity, ...]
) -> None:
    rng = random.Random(name)
    tasks = [draw_task(rng, world, num_constraints=1 + turn % 2, first=name) for turn in range(40)]
    passed = [follows(task, good_answer(rng, task)) for task in tasks]
    # langdetect takes some short texts in capitals for another language
    assert passed.count(False) <= (8 if name.startswith("change_case") else 4)
    for _ in range(8):
        task = draw_task(rng, world, num_constraints=1, first=name)
        text = bad_answer(rng, task, follows=lambda text, task=task: follows(task, text))  # type: ignore[misc]
        assert not follows(task, text)
    assert not follows(task, plain_answer(rng, task))


def test_good_answers_pass_98_in_100_overall(world: tuple[Entity, ...]) -> None:
    rng = random.Random(1)
    tasks = [draw_task(rng, world, num_constraints=rng.choice((1, 2))) for _ in range(500)]
    flags = [flag for task in tasks for flag in check(task.meta, good_answer(rng, task), prompt=task.prompt)]
    assert sum(flags) / len(flags) >= 0.98


def test_drawn_tasks_keep_to_their_side(world: tuple[Entity, ...]) -> None:
    rng = random.Random(5)
    training = {draw_task(rng, world, num_constraints=rng.choice((1, 2))).combination for _ in range(1500)}
    dev, test = (
        {draw_task(rng, world, num_constraints=2, use=use).combination for _ in range(200)} for use in ("dev", "test")
    )
    assert not training & dev
    assert not training & test
    assert not dev & test
    for first, second in itertools.product(INSTRUCTION_IDS, repeat=2):
        assert compatible(first, second) == compatible(second, first)
    assert len(UNSEEN) == 6
    assert set(SEEN) | UNSEEN == set(INSTRUCTION_IDS)
    drawn = [draw_any_task(rng, near(world), num_constraints=2, first=None, types=SEEN) for _ in range(100)]
    assert not any(one.instruction_id in UNSEEN for task in drawn for one in task.constraints)
    assert {use_of(task) for task in drawn} == {"training", "dev", "test"}


def test_long_requests_are_answered_with_all_that_is_known_of_both(world: tuple[Entity, ...]) -> None:
    rng = random.Random(3)
    drawn = [draw_task(rng, world, num_constraints=1, first="punctuation:no_comma") for _ in range(200)]
    long = [task for task in drawn if task.companion is not None]
    assert 20 < len(long) < 60
    for task in long:
        text = good_answer(rng, task)
        assert all(fact.keyword in text for entity in task.entities for fact in entity.facts)
        assert num_flaws(task.meta, text) == 0
        assert num_flaws(task.meta, " ".join(text.split()[:20])) >= 1
        assert num_flaws(task.meta, f"{text} {text} {text}") == 2  # too long, and again and again


@pytest.mark.parametrize(
    ("name", "kwargs", "before", "after"),
    [
        ("punctuation:no_comma", {}, "It swims, and eats.", "It swims and eats."),
        ("change_case:english_capital", {}, "It swims in the river.", "IT SWIMS IN THE RIVER."),
        ("startend:end_checker", {"end_phrase": "That is all."}, "It swims.", "It swims. That is all."),
        ("keywords:forbidden_words", {"forbidden_words": ["fish"]}, "It swims. It eats fish.", "It swims."),
        ("length_constraints:number_words", {"relation": "less than", "num_words": 4}, "It swims. It eats fish.",
         "It swims."),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "It swims. It eats.", "* It swims.\n* It eats."),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "It swims. It eats.",
         "It *swims*. It eats."),
        ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "It swims. It eats.", None),
        ("combination:two_responses", {}, "It swims.", None),
    ],
)  # fmt: skip
def test_an_edit_mends_one_demand_by_a_few_strokes(
    name: str, kwargs: dict[str, Any], before: str, after: str | None
) -> None:
    meta = {"instruction_id_list": [name], "kwargs": [kwargs], "topics": []}
    assert mended(random.Random(0), meta=meta, prompt="Tell me about the otter.", text=before) == after


def test_an_edit_keeps_what_was_met_and_questions_are_not_edited() -> None:
    ids = ["change_case:english_capital", "startend:end_checker"]
    meta = {"instruction_id_list": ids, "kwargs": [{}, {"end_phrase": "That is all."}], "topics": []}
    # The phrase as it is asked for would end the capitals.
    text = "THE OTTER LIVES IN THE RIVER."
    assert check(meta, text, prompt="Tell me.") == [True, False]
    assert mended(random.Random(0), meta=meta, prompt="Tell me.", text=text) is None
    assert mended(random.Random(0), meta={"answer": "The river", "options": []}, prompt="Where?", text="Here") is None
