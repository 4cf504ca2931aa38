"""The quickstart's tasks and answers: lm-eval's own checkers pass the good ones and fail the bad ones."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from alignloop.quickstart.annotator import check
from scripts.world.answers import bad_answer, flawed_answer, good_answer, num_words, plain_answer
from scripts.world.datasets import follows
from scripts.world.entities import Entity, build_world, questions
from scripts.world.instructions import (
    INSTRUCTION_IDS,
    Constraint,
    Task,
    combination_key,
    compatible,
    draw_task,
    is_held_out,
)


@pytest.fixture(scope="module")
def world() -> tuple[Entity, ...]:
    return build_world()


def test_the_world_is_always_the_same_600_facts(world: tuple[Entity, ...]) -> None:
    assert len(world) == 100
    assert sum(len(entity.facts) for entity in world) == 600
    assert world == build_world()
    assert len({entity.name for entity in world}) == 100


def test_no_two_facts_of_an_entity_share_a_keyword(world: tuple[Entity, ...]) -> None:
    for entity in world:
        assert len({fact.keyword for fact in entity.facts}) == 6, entity.name


def test_each_question_keeps_one_wording_for_the_benchmark(world: tuple[Entity, ...]) -> None:
    for entity in world:
        for fact in entity.facts:
            training, heldout = questions(entity, fact)
            assert len(set(training)) == 2
            assert heldout not in training


@pytest.mark.parametrize("name", INSTRUCTION_IDS)
def test_good_answers_pass_the_real_checkers(name: str, world: tuple[Entity, ...]) -> None:
    rng = random.Random(name)
    tasks = [draw_task(rng, world, num_constraints=1 + turn % 2, first=name) for turn in range(40)]
    passed = [follows(task, good_answer(rng, task)) for task in tasks]
    # langdetect takes some short texts in capitals for another language
    allowed = 8 if name.startswith("change_case") else 4
    assert passed.count(False) <= allowed


def test_good_answers_pass_98_in_100_overall(world: tuple[Entity, ...]) -> None:
    rng = random.Random(1)
    tasks = [draw_task(rng, world, num_constraints=rng.choice((1, 2))) for _ in range(500)]
    flags = [flag for task in tasks for flag in check(task.meta, good_answer(rng, task), prompt=task.prompt)]
    assert sum(flags) / len(flags) >= 0.98


@pytest.mark.parametrize("name", INSTRUCTION_IDS)
def test_bad_answers_fail_and_plain_ones_break_the_instruction(name: str, world: tuple[Entity, ...]) -> None:
    rng = random.Random(name)
    for _ in range(8):
        task = draw_task(rng, world, num_constraints=1, first=name)
        text = bad_answer(rng, task, follows=lambda text, task=task: follows(task, text))  # type: ignore[misc]
        assert not follows(task, text)
    assert not follows(task, plain_answer(rng, task))


def _task(world: tuple[Entity, ...], name: str, kwargs: dict[str, Any]) -> Task:
    otter = next(entity for entity in world if entity.word == "otter")
    return Task(otter, "Tell me about the otter.", (Constraint(name, kwargs, "..."),))


@pytest.mark.parametrize(
    ("name", "kwargs", "good", "bad"),
    [
        ("punctuation:no_comma", {}, "It eats fish.", "It eats fish, and sleeps."),
        ("startend:quotation", {}, '"It eats fish."', "It eats fish."),
        ("detectable_format:title", {}, "<<The otter>>\nIt eats fish.", "The otter\nIt eats fish."),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": 2},
            "* It eats fish.\n* It swims.",
            "* It eats fish.",
        ),
        (
            "detectable_content:postscript",
            {"postscript_marker": "P.S."},
            "It swims.\nP.S. It eats.",
            "It swims. It eats.",
        ),
        ("startend:end_checker", {"end_phrase": "That is all."}, "It swims. That is all.", "That is all. It swims."),
        (
            "keywords:frequency",
            {"keyword": "silver", "frequency": 2, "relation": "at least"},
            "silver silver",
            "silver",
        ),
        (
            "length_constraints:number_words",
            {"relation": "less than", "num_words": 4},
            "It eats fish.",
            "It eats big fish.",
        ),
        ("detectable_format:json_format", {}, '{"answer": "It swims."}', "answer: It swims."),
        ("combination:two_responses", {}, "It swims.\n******\nIt eats.", "It swims.\n***\nIt eats."),
    ],
)
def test_hand_written_answers(
    name: str, kwargs: dict[str, Any], good: str, bad: str, world: tuple[Entity, ...]
) -> None:
    task = _task(world, name, kwargs)
    assert follows(task, good)
    assert not follows(task, bad)


def test_combination_ignores_order_and_topic() -> None:
    title, comma = "detectable_format:title", "punctuation:no_comma"
    bullets = "detectable_format:number_bullet_lists"
    assert combination_key([title, comma], [{}, {}]) == combination_key([comma, title], [{}, {}])
    assert combination_key([bullets], [{"num_bullets": 2}]) != combination_key([bullets], [{"num_bullets": 3}])


def test_drawn_tasks_keep_to_their_side(world: tuple[Entity, ...]) -> None:
    rng = random.Random(5)
    training = {draw_task(rng, world, num_constraints=rng.choice((1, 2))).combination for _ in range(1500)}
    heldout = [draw_task(rng, world, num_constraints=2, held_out=True) for _ in range(300)]
    assert all(is_held_out(task) for task in heldout)
    assert not training & {task.combination for task in heldout}


def test_compatibility_is_symmetric() -> None:
    for first in INSTRUCTION_IDS:
        for second in INSTRUCTION_IDS:
            assert compatible(first, second) == compatible(second, first)


def test_flaws_are_what_they_say(world: tuple[Entity, ...]) -> None:
    rng = random.Random(3)
    task = _task(world, "detectable_format:title", {})
    repeated = flawed_answer(rng, task, flaw="repeated", world=world)
    assert repeated.count("<<The otter>>") == 3
    assert "otter" not in flawed_answer(rng, task, flaw="off_topic", world=world)
    assert num_words(flawed_answer(rng, task, flaw="truncated", world=world)) < num_words(repeated) / 3


def test_types_are_spread_evenly_over_training_tasks(world: tuple[Entity, ...]) -> None:
    rng = random.Random(2)
    tasks = [draw_task(rng, world, num_constraints=1) for _ in range(2000)]
    counts = Counter(task.constraints[0].instruction_id for task in tasks)
    assert set(counts) == set(INSTRUCTION_IDS)
    assert min(counts.values()) > 40
