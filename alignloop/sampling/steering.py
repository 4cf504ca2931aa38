"""How a prompt is sampled: its temperature, its top_p, and the system prompt put before it (section 4.2.2).

All a function of the config, the round, the prompt and its seed: the order of the prompts and what else is sampled do
not matter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.artifacts import derive_seed
from alignloop.config.sampling import SampleConfig, SystemPrompt
from alignloop.records import Message, PromptRow


@dataclass(frozen=True)
class Steering:
    messages: list[Message]
    system_prompt: str | None
    temperature: float
    top_p: float
    seed: int
    """Of its candidates."""


def steer(prompt: PromptRow, *, config: SampleConfig, round: int, seed: int) -> Steering:
    """How `prompt` is sampled in a round; all draws come from the stage's `seed` and the prompt's id."""
    index = fitting(prompt, config.system_prompts, round=round)
    system_prompt = None if index is None else config.system_prompts[index].text
    return Steering(
        messages=with_system_prompt(prompt.messages, system_prompt),
        system_prompt=system_prompt,
        temperature=_drawn(config.temperature, seed=derive_seed(seed, prompt.id, "temperature")),
        top_p=_drawn(config.top_p, seed=derive_seed(seed, prompt.id, "top_p")),
        seed=derive_seed(seed, prompt.id),
    )


def fitting(prompt: PromptRow, system_prompts: Sequence[SystemPrompt], *, round: int) -> int | None:
    """Index of the first system prompt for the prompt's round and topic.

    None where none fits, or the prompt has a system message of its own.
    """
    if any(message.role == "system" for message in prompt.messages):
        return None
    topics = topics_of(prompt)
    for index, system_prompt in enumerate(system_prompts):
        last = system_prompt.last_round
        in_round = system_prompt.first_round <= round and (last is None or round <= last)
        if in_round and (not system_prompt.topics or topics.intersection(system_prompt.topics)):
            return index
    return None


def topics_of(prompt: PromptRow) -> frozenset[str]:
    """The prompt's `topic` column: one value or a list of them."""
    topic = prompt.meta.get("topic")
    if topic is None:
        return frozenset()
    return frozenset(map(str, topic)) if isinstance(topic, list) else frozenset({str(topic)})


def with_system_prompt(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """The dialog with a system prompt before it, where there is one."""
    if system_prompt is None:
        return list(messages)
    return [Message(role="system", content=system_prompt), *messages]


def _drawn(value: float | tuple[float, float], *, seed: int) -> float:
    """A setting, or an even draw from its range."""
    if not isinstance(value, tuple):
        return value
    return min(value[1], random.Random(seed).uniform(*value))  # which may round up past the end
