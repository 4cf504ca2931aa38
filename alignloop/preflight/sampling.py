"""Sampling and scoring settings, before the engine starts: system prompts, ranges, K, reward functions."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence

from alignloop.chat.format import ChatFormat
from alignloop.config import Recipe
from alignloop.errors import ModelError
from alignloop.preflight.findings import Findings
from alignloop.records import PromptRow
from alignloop.sampling.reward_functions import load_function, missing_columns
from alignloop.sampling.steering import fitting, topics_of, with_system_prompt
from alignloop.stages.sample import MOST_CANDIDATES, check_ids
from alignloop.stages.score import unique

NUM_MEASURED = 200
"""Prompts measured with their system prompts: enough to see that they do not fit, and done in well under a second."""


def check_sampling(
    recipe: Recipe, *, prompts: Sequence[PromptRow], chat: ChatFormat | None, findings: Findings
) -> None:
    """What `sample` and `score` would stop at.

    Args:
        prompts: to sample for.
        chat: the base's format; None where it cannot be had.
    """
    if recipe.sample.num_candidates > MOST_CANDIDATES and recipe.engine.name == "vllm":
        findings.problems.append(
            f"sample.num_candidates: vLLM samples at most {MOST_CANDIDATES} candidates a prompt, not "
            f"{recipe.sample.num_candidates}: lower it"
        )
    with findings.collecting():
        check_ids(prompts, where="prompts")
    if recipe.sample.system_prompts and prompts:
        _check_topics(recipe, prompts, findings=findings)
        if chat is not None:
            _check_system_role(recipe, prompts, chat=chat, findings=findings)
    _check_functions(recipe, prompts, findings=findings)


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


def _check_system_role(recipe: Recipe, prompts: Sequence[PromptRow], *, chat: ChatFormat, findings: Findings) -> None:
    """The chat template takes a system message before these prompts, and they still leave room for a completion."""
    room = recipe.engine.max_model_len - recipe.sample.max_tokens
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
    num_long = sum(length > room for length in lengths.values())
    if not num_long:
        return
    what = (
        f"with their system prompts {num_long} of {len(lengths)} prompts looked at exceed {room} tokens, which is what "
        f"engine.max_model_len ({recipe.engine.max_model_len}) leaves beside sample.max_tokens "
        f"({recipe.sample.max_tokens})"
    )
    if num_long == len(lengths):
        findings.problems.append(f"sample.system_prompts: {what} - raise the first or lower the second")
    else:
        findings.notes.append(f"sample.system_prompts: {what}: they are left out and counted")


def _check_functions(recipe: Recipe, prompts: Sequence[PromptRow], *, findings: Findings) -> None:
    """Each reward function can be loaded and is given what it asks for."""
    with findings.collecting():
        unique(recipe.score.reward_functions)
    columns = sorted({key for prompt in prompts for key in prompt.meta})
    for name in {entry.function: None for entry in recipe.score.reward_functions}:
        with findings.collecting():
            missing = missing_columns(load_function(name), columns)
            if missing and prompts:
                findings.problems.append(
                    f"reward function {name} wants {', '.join(missing)}, which is no column of the prompts (columns: "
                    f"{', '.join(columns) or 'none'}) - add it to them, or give the parameter a default"
                )


def _has_system(prompt: PromptRow) -> bool:
    return any(message.role == "system" for message in prompt.messages)
