"""Sampling settings, before the engine starts: K, and system prompts that fit prompts and template."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence

from alignloop.chat.format import ChatFormat
from alignloop.config import Recipe
from alignloop.errors import ModelError
from alignloop.records import PromptRow
from alignloop.sampling.steering import fitting, topics_of, with_system_prompt
from alignloop.stages.facts import Facts, Findings
from alignloop.stages.sample import check_candidates, check_ids

NUM_MEASURED = 200
"""Prompts measured with their system prompts: enough to see that they do not fit, and done in well under a second."""


def check(facts: Facts) -> None:
    """K, ids, and system prompts that the stage would stop at."""
    recipe, prompts, findings = facts.recipe, facts.rows.prompts, facts.findings
    with findings.collecting():
        check_candidates(recipe.sample.num_candidates, engine=recipe.engine.name)
    with findings.collecting():
        check_ids(prompts, where="prompts")
    if recipe.sample.system_prompts and prompts:
        _check_topics(recipe, prompts, findings=findings)
        if facts.base.chat is not None:
            _check_system_role(facts, chat=facts.base.chat)


def _check_topics(recipe: Recipe, prompts: Sequence[PromptRow], *, findings: Findings) -> None:
    """Topics no prompt has, and system prompts that no prompt ever gets."""
    system_prompts = recipe.sample.system_prompts
    known = sorted({topic for prompt in prompts for topic in topics_of(prompt)})
    for index, system_prompt in enumerate(system_prompts):
        for topic in system_prompt.topics:
            near = [] if topic in known else difflib.get_close_matches(topic, known, n=2, cutoff=0.75)
            if near:
                findings.problems.append(
                    f"sample.system_prompts[{index}].topics: no prompt has the topic {topic!r} - did you mean "
                    f"{' or '.join(near)}?"
                )
            elif topic not in known:
                findings.notes.append(
                    f"sample.system_prompts[{index}].topics: no prompt has the topic {topic!r}"
                    + ("" if known else " - the prompts have no `topic` column")
                )
    one_each = {(topics_of(prompt), _has_system(prompt)): prompt for prompt in prompts}.values()
    rounds = range(1, recipe.rounds + 1)
    used = {fitting(prompt, system_prompts, round=number) for prompt in one_each for number in rounds}
    for index in range(len(system_prompts)):
        if index not in used:
            findings.notes.append(
                f"sample.system_prompts[{index}] is put before no prompt in rounds 1 to {recipe.rounds}: by its rounds "
                "and topics, because an earlier one fits first, or because the prompts have system messages"
            )
    own = sum(_has_system(prompt) for prompt in prompts)
    if own:
        findings.notes.append(
            f"sample.system_prompts: {own} of {len(prompts)} prompts have a system message of their own and keep it"
        )


def _check_system_role(facts: Facts, *, chat: ChatFormat) -> None:
    """The chat template takes a system message before these prompts, and they still leave room for a completion."""
    recipe, prompts, findings = facts.recipe, facts.rows.prompts, facts.findings
    measured = random.Random(recipe.seed).sample(list(prompts), min(NUM_MEASURED, len(prompts)))
    refused: dict[int, str] = {}
    lengths: dict[tuple[str, int], int] = {}
    for number in range(1, recipe.rounds + 1):
        steered = [
            (prompt, index)
            for prompt in measured
            if (index := fitting(prompt, recipe.sample.system_prompts, round=number)) is not None
        ]
        for prompt, index in steered:
            if index in refused or (prompt.id, index) in lengths:
                continue
            text = recipe.sample.system_prompts[index].text
            try:
                lengths[prompt.id, index] = len(chat.prompt_ids(with_system_prompt(prompt.messages, text)))
            except ModelError as error:
                refused[index] = str(error)
    for index, why in refused.items():
        findings.problems.append(
            f"sample.system_prompts[{index}]: the base's chat template takes no system message there: {why} - leave "
            "sample.system_prompts out, or give the base a template with a system role"
        )
    check_room(facts, list(lengths.values()), steered=True)


def check_room(facts: Facts, lengths: Sequence[int], *, steered: bool = False) -> None:
    """Whether prompts of these lengths leave room for a completion: all that are too long are a problem, some a note.

    Args:
        steered: they have their system prompts.
    """
    recipe, findings = facts.recipe, facts.findings
    room = recipe.engine.max_model_len - recipe.sample.max_tokens
    num_long = sum(length > room for length in lengths)
    if not num_long:
        return
    what = (
        f"{num_long} of {len(lengths)} prompts looked at exceed {room} tokens, which is what engine.max_model_len "
        f"({recipe.engine.max_model_len}) leaves beside sample.max_tokens ({recipe.sample.max_tokens})"
    )
    what = f"with their system prompts {what}" if steered else what
    if num_long == len(lengths):
        findings.problems.append(
            f"sample{'.system_prompts' if steered else ''}: {what} - raise the first or lower the second"
        )
    else:
        findings.notes.append(f"{'sample.system_prompts: ' if steered else ''}{what}: they are left out and counted")


def _has_system(prompt: PromptRow) -> bool:
    return any(message.role == "system" for message in prompt.messages)
