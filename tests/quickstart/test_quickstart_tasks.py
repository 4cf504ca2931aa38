"""The quickstart's tasks and answers: lm-eval's own checkers pass the good ones and fail the bad ones.

That the same world, tasks and answers are made again is held by the bytes of the shipped data.
"""

from __future__ import annotations

import itertools
import random

import pytest

from alignloop.quickstart.annotator import check
from scripts.world.answers import bad_answer, flawed_answer, good_answer, num_words, plain_answer
from scripts.world.datasets import follows
from scripts.world.entities import Entity, build_world, questions
from scripts.world.instructions import INSTRUCTION_IDS, Constraint, Task, compatible, draw_task, is_held_out


@pytest.fixture(scope="module")
def world() -> tuple[Entity, ...]:
    return build_world()


def test_facts_share_no_keyword_and_questions_keep_one_wording_for_the_benchmark(world: tuple[Entity, ...]) -> None:
    assert len({entity.name for entity in world}) == 100
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
    heldout = [draw_task(rng, world, num_constraints=2, held_out=True) for _ in range(300)]
    assert all(is_held_out(task) for task in heldout)
    assert not training & {task.combination for task in heldout}
    for first, second in itertools.product(INSTRUCTION_IDS, repeat=2):
        assert compatible(first, second) == compatible(second, first)


def test_flaws_are_what_they_say(world: tuple[Entity, ...]) -> None:
    rng = random.Random(3)
    otter = next(entity for entity in world if entity.word == "otter")
    task = Task(otter, "Tell me about the otter.", (Constraint("detectable_format:title", {}, "..."),))
    repeated = flawed_answer(rng, task, flaw="repeated", world=world)
    assert repeated.count("<<The otter>>") == 3
    assert "otter" not in flawed_answer(rng, task, flaw="off_topic", world=world)
    assert num_words(flawed_answer(rng, task, flaw="truncated", world=world)) < num_words(repeated) / 3
