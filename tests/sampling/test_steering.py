"""Temperature, top_p and system prompt of a prompt: a function of config, round, prompt and seed alone."""

from __future__ import annotations

import pytest

from alignloop.artifacts import derive_seed
from alignloop.config.sampling import SampleConfig, SystemPrompt
from alignloop.records import Message, PromptRow, Source
from alignloop.sampling.steering import fitting, steer

MATHS = SystemPrompt(text="Show your steps.", first_round=2, last_round=3, topics=("maths", "logic"))
LATER = SystemPrompt(text="Be brief.", first_round=3)
FIRST = SystemPrompt(text="Be kind.", last_round=1, topics=("talk",))
ALL = (MATHS, LATER, FIRST)


def prompt(row_id: str = "p", *, topic: object = None, system: str | None = None) -> PromptRow:
    messages = [Message(role="user", content="Why?")]
    if system is not None:
        messages.insert(0, Message(role="system", content=system))
    meta = {} if topic is None else {"topic": topic}
    return PromptRow(id=row_id, messages=messages, source=Source(file="f"), meta=meta)


@pytest.mark.parametrize(
    ("topic", "by_round"),
    [
        ("maths", [None, 0, 0, 1]),  # round 3: two fit, the first wins
        ("talk", [2, None, 1, 1]),
        (["cooking", "logic"], [None, 0, 0, 1]),
        (None, [None, None, 1, 1]),
        ("other", [None, None, 1, 1]),
    ],
)
def test_the_first_that_fits_round_and_topic_wins(topic: object, by_round: list[int | None]) -> None:
    assert [fitting(prompt(topic=topic), ALL, round=number) for number in (1, 2, 3, 4)] == by_round
    assert fitting(prompt(topic=7), (SystemPrompt(text="x", topics=("7",)),), round=1) == 0  # numbers are topics, too


def test_a_prompt_with_its_own_system_message_keeps_it() -> None:
    own = prompt(topic="maths", system="Be rude.")
    assert fitting(own, ALL, round=3) is None
    steering = steer(own, config=SampleConfig(system_prompts=ALL), round=3, seed=1)
    assert (steering.messages, steering.system_prompt) == (own.messages, None)


def test_a_system_prompt_is_put_before_the_dialog() -> None:
    steering = steer(prompt(), config=SampleConfig(system_prompts=ALL), round=3, seed=1)
    assert [(m.role, m.content) for m in steering.messages] == [("system", "Be brief."), ("user", "Why?")]
    assert steering.system_prompt == "Be brief."


def test_settings_without_a_range_are_as_given_and_the_seed_is_the_prompts() -> None:
    steering = steer(prompt("a"), config=SampleConfig(temperature=0.7, top_p=0.9), round=1, seed=5)
    assert (steering.temperature, steering.top_p, steering.system_prompt) == (0.7, 0.9, None)
    assert steering.seed == derive_seed(5, "a")
    # Nothing that is configured moves the seed: K and prompts may change and the others sample the same.
    ranged = SampleConfig(temperature=(0.5, 1.5), top_p=(0.5, 1.0), system_prompts=ALL, num_candidates=30)
    assert steer(prompt("a"), config=ranged, round=4, seed=5).seed == steering.seed


def test_ranges_are_drawn_evenly_with_the_prompts_seed() -> None:
    config = SampleConfig(temperature=(0.5, 1.5), top_p=(0.8, 1.0))
    drawn = [steer(prompt(f"p{n}"), config=config, round=1, seed=3) for n in range(400)]
    again = [steer(prompt(f"p{n}"), config=config, round=1, seed=3) for n in reversed(range(400))]
    assert drawn == again[::-1]
    for values, low, high in (
        ([steering.temperature for steering in drawn], 0.5, 1.5),
        ([steering.top_p for steering in drawn], 0.8, 1.0),
    ):
        assert all(low <= value <= high for value in values)
        quarters = [sum(value < low + (high - low) * q / 4 for value in values) for q in (1, 2, 3)]
        assert quarters == pytest.approx([100, 200, 300], abs=40)
    # The two settings are drawn apart, and a range of one does not move the other.
    alone = SampleConfig(temperature=0.7, top_p=(0.8, 1.0))
    assert steer(prompt("p7"), config=alone, round=1, seed=3).top_p == drawn[7].top_p
    assert steer(prompt("p7"), config=config, round=1, seed=4).temperature != drawn[7].temperature
    point = steer(prompt(), config=SampleConfig(temperature=(0.3, 0.3), top_p=(1.0, 1.0)), round=1, seed=0)
    assert (point.temperature, point.top_p) == (0.3, 1.0)
