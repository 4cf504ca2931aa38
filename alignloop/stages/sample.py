"""K completions a prompt from the policy, shard by shard (section 4.2.2).

prompts --draw--> --steer--> prompt ids that leave room --engine, a shard at a time--> shard files --> candidates
                                 | those that do not
                                 v
                              dropped

With `collect.policies` some of the K are of other models, one after another on the same engine, each in a file of its
own: they are annotated beside the policy's, and nothing else reads them (section 4.2.1).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from alignloop.artifacts import Artifact
from alignloop.chat.reasoning import has_answer, holds_reasoning
from alignloop.config.base import NonNegativeInt
from alignloop.config.engine import EngineComputes, computing
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import SampleConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.errors import DataError, ModelError, UserError, did_you_mean
from alignloop.records import CandidateRow, DroppedRow, PromptRow, by_prompt
from alignloop.run_dir.manifest import optional
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.steering import fitting, topics_of, with_system_prompt
from alignloop.stages.facts import Facts, Findings
from alignloop.stages.sampler import CANDIDATES, Sampler, SteeredPrompt, ask, sample_all

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

MOST_CANDIDATES = 16_384
"""vLLM takes no larger K (its VLLM_MAX_N_SEQUENCES)."""
NUM_MEASURED = 200
"""Prompts measured with their system prompts: enough to see that they do not fit, and done in well under a second."""


@dataclass(frozen=True)
class Inputs:
    policy: Artifact
    prompts: Artifact
    other_policies: tuple[Artifact, ...] = optional()
    """Checkpoints whose answers are annotated beside the policy's (`collect.policies`)."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    candidates: Artifact
    """The policy's."""
    dropped: Artifact
    """Prompts that leave no room for a completion."""
    other_candidates: tuple[Artifact, ...] = optional()
    """Those of each other model, to be annotated alone."""


class Settings(SampleConfig, EngineComputes):
    policy: str = Field("best", exclude=True)
    """How the loop picks the policy; which one it is counts, as an input."""
    num_of_each_other: NonNegativeInt = Field(0, exclude_if=lambda num: not num)
    """How many of the K candidates each of the other models writes."""


def settings(recipe: Recipe) -> Settings:
    """What the engine can hold and how it computes counts, too."""
    collect = recipe.collect
    each = 0 if collect.policies is None else collect.pairs_per_prompt
    return Settings(**dict(recipe.sample), **computing(recipe.engine), num_of_each_other=each)


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format

    check_room(config, policy=inputs.policy.path)
    sampler, *others = _samplers(config, inputs, chat=load_format(inputs.policy.path), round=ctx.round)
    prompts = list(load_jsonl(inputs.prompts.path, PromptRow))
    check_ids(prompts, where=str(inputs.prompts.path))
    drawn = draw(prompts, num_prompts=config.num_prompts, seed=ctx.seed)
    everyone = [ask(prompt, chat=sampler.chat, config=config, round=ctx.round, seed=ctx.seed) for prompt in drawn]
    asked, dropped = with_room(
        everyone, config, room=config.max_model_len, stage="sample", where=str(inputs.prompts.path)
    )
    with ctx.activity("sampling"):
        rows = sample_all(sampler, asked, inputs.policy.path, ctx, file=CANDIDATES)
        files = [f"candidates-{number}.jsonl" for number in range(2, 2 + len(others))]
        num_others = 0
        for other, model, file in zip(others, inputs.other_policies, files, strict=True):
            num_others += len(sample_all(other, asked, model.path, ctx, file=file))
    reasoned = sum(holds_reasoning(row.completion) for row in rows)
    if reasoned and sampler.chat.asks_no_reasoning:
        ctx.progress.say(
            f"  {reasoned:,} of {len(rows):,} completions hold reasoning, though none was asked for "
            "(chat_template_kwargs): it is scored and trained as part of the answer"
        )
    return Outputs(
        candidates=ctx.artifact(CANDIDATES),
        dropped=ctx.write_rows("dropped.jsonl", dropped),
        other_candidates=tuple(map(ctx.artifact, files)),
        counts={
            "in": len(drawn),
            "kept": len(asked),
            "dropped": len(dropped),
            "candidates": len(rows),
            **({"other_candidates": num_others} if others else {}),
        },
        metrics=_metrics(rows),
    )


def _samplers(config: Settings, inputs: Inputs, *, chat: ChatFormat, round: int) -> list[Sampler]:
    """The policy's, and one for each other model: K candidates between them.

    Raises:
        UserError: they leave the policy none, or another model answers in other tokens or has no room.
    """
    others, each, k = inputs.other_policies, config.num_of_each_other, config.num_candidates
    if others and not each:
        raise UserError("other_policies: how many candidates each of them writes is not said: set collect.policies")
    num_own = k - each * len(others)
    if num_own < 1:
        raise UserError(
            f"sample.num_candidates ({k}): {len(others)} other models (collect.policies) that write {each} each "
            "(collect.pairs_per_prompt) leave the policy none: raise the first or lower one of the others"
        )
    for other in others:
        check_room(config, policy=other.path)
        require_same_chat(other.path, chat)
    samplers = [Sampler(chat, config, inputs.policy.digest, round, range(num_own))]
    for other, start in zip(others, range(num_own, k, each or 1), strict=True):
        samplers.append(Sampler(chat, config, other.digest, round, range(start, start + each)))
    return samplers


def require_same_chat(checkpoint: Path, chat: ChatFormat) -> None:
    """Raises ModelError where a checkpoint writes a dialog in other tokens than `chat`: its answers could not be
    trained."""
    from alignloop.chat.alike import difference
    from alignloop.chat.load import load_format

    if found := difference(chat, load_format(checkpoint)):
        raise ModelError(
            f"{checkpoint}: {found}: its answers cannot be trained as they are sampled - name a model of the same base"
        )


def draw(prompts: Sequence[PromptRow], *, num_prompts: int, seed: int) -> list[PromptRow]:
    """The round's prompts; -1 takes all, in file order."""
    if num_prompts < 0 or num_prompts >= len(prompts):
        return list(prompts)
    return random.Random(seed).sample(list(prompts), num_prompts)


def check_ids(prompts: Sequence[PromptRow], *, where: str) -> None:
    """Raises DataError where two prompts have one id: their candidates could not be told apart."""
    first: dict[str, PromptRow] = {}
    for prompt in prompts:
        other = first.setdefault(prompt.id, prompt)
        if other is not prompt:
            raise DataError(
                f"{where}: two prompts have the id {prompt.id!r} ({other.source}; {prompt.source}): give each its own"
            )


def check_candidates(num: int, *, engine: str) -> None:
    """Raises UserError where K is beyond the engine's."""
    if num > MOST_CANDIDATES and engine == "vllm":
        raise UserError(
            f"sample.num_candidates: vLLM samples at most {MOST_CANDIDATES} candidates a prompt, not {num}: lower it"
        )


def check_room(config: Settings, *, policy: Path) -> None:
    """Raises UserError where K or the lengths are beyond the engine's or the model's; needs no engine."""
    check_candidates(config.num_candidates, engine=config.engine)
    if config.max_tokens >= config.max_model_len:
        raise UserError(
            f"sample.max_tokens ({config.max_tokens}) leaves no room for a prompt within engine.max_model_len "
            f"({config.max_model_len}): lower the first or raise the second"
        )
    positions = longest_sequence(text_config(policy))
    if positions is not None and config.max_model_len > positions:
        raise UserError(
            f"engine.max_model_len: {config.max_model_len} tokens, but {policy} has {positions} positions: set it to "
            f"at most {positions}, and sample.max_tokens below it"
        )


def with_room(
    asked: Sequence[SteeredPrompt], config: SampleConfig, *, room: int, stage: str, where: str
) -> tuple[list[SteeredPrompt], list[DroppedRow]]:
    """Those that leave room for the longest completion within `room` tokens, and the others with their reason.

    Raises:
        DataError: none does.
    """
    kept = [one for one in asked if len(one.prompt_ids) + config.max_tokens <= room]
    others = [one for one in asked if len(one.prompt_ids) + config.max_tokens > room]
    dropped = [_too_long(one, config, room=room, stage=stage) for one in others]
    if kept:
        return kept, dropped
    first = f" (the first: {dropped[0].id}: {dropped[0].reason})" if dropped else ""
    raise DataError(
        f"{where}: none of {len(asked)} prompts leaves room for a completion of {config.max_tokens} tokens within "
        f"{room}{first}: raise engine.max_model_len or lower sample.max_tokens"
    )


def _too_long(one: SteeredPrompt, config: SampleConfig, *, room: int, stage: str) -> DroppedRow:
    steered = "" if one.steering.system_prompt is None else " (the system prompt among them)"
    reason = f"{len(one.prompt_ids)} prompt tokens{steered} and {config.max_tokens} for the completion exceed {room}"
    return DroppedRow(id=one.prompt.id, stage=stage, rule="length", reason=reason)


def _metrics(rows: Sequence[CandidateRow]) -> dict[str, float]:
    """Rates over all candidates; `unique_candidates`: different texts a prompt, on average."""
    prompts = by_prompt(rows)
    stopped = sum(row.finish_reason == "stop" for row in rows)
    num_unique = sum(len({row.completion.strip() for row in group}) for group in prompts.values())
    return {
        "stop_rate": stopped / len(rows),
        "truncation_rate": (len(rows) - stopped) / len(rows),
        "mean_tokens": sum(len(row.completion_ids) for row in rows) / len(rows),
        "empty_rate": sum(not has_answer(row.completion) for row in rows) / len(rows),
        "reasoning_rate": sum(holds_reasoning(row.completion) for row in rows) / len(rows),
        "unique_candidates": num_unique / len(prompts),
        "duplicate_rate": (len(rows) - num_unique) / len(rows),
    }


STAGE = Stage("sample", Inputs, Outputs, settings, run)


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
        for topic in [topic for topic in system_prompt.topics if topic not in known]:
            text = f"sample.system_prompts[{index}].topics: no prompt has the topic {topic!r}"
            if near := did_you_mean(topic, known, most=2, cutoff=0.75):
                findings.problems.append(f"{text} - {near}")
            else:
                findings.notes.append(text if known else f"{text} - the prompts have no `topic` column")
    has_system = [any(message.role == "system" for message in prompt.messages) for prompt in prompts]
    one_each = {(topics_of(prompt), own): prompt for prompt, own in zip(prompts, has_system, strict=True)}.values()
    rounds = range(1, recipe.rounds + 1)
    used = {fitting(prompt, system_prompts, round=number) for prompt in one_each for number in rounds}
    for index in range(len(system_prompts)):
        if index not in used:
            findings.notes.append(
                f"sample.system_prompts[{index}] is put before no prompt in rounds 1 to {recipe.rounds}: by its rounds "
                "and topics, because an earlier one fits first, or because the prompts have system messages"
            )
    if any(has_system):
        findings.notes.append(
            f"sample.system_prompts: {sum(has_system)} of {len(prompts)} prompts have a system message of their own "
            "and keep it"
        )


def _check_system_role(facts: Facts, *, chat: ChatFormat) -> None:
    """The chat template takes a system message before these prompts, and they still leave room for a completion."""
    recipe, prompts, findings = facts.recipe, facts.rows.prompts, facts.findings
    measured = random.Random(recipe.seed).sample(list(prompts), min(NUM_MEASURED, len(prompts)))
    refused: dict[int, str] = {}
    lengths: dict[tuple[str, int], int] = {}
    for number in range(1, recipe.rounds + 1):
        for prompt in measured:
            index = fitting(prompt, recipe.sample.system_prompts, round=number)
            if index is None or index in refused or (prompt.id, index) in lengths:
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
    check_lengths(facts, list(lengths.values()), steered=True)


def check_lengths(facts: Facts, lengths: Sequence[int], *, steered: bool = False) -> None:
    """Whether prompts of these lengths (`steered`: with their system prompts) leave room for a completion: all that are
    too long are a problem, some a note."""
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
