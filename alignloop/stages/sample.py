"""K completions a prompt from the policy, shard by shard (section 4.2.2).

prompts --draw--> --steer--> prompt ids that leave room --engine, a shard at a time--> shard files --> candidates
                                 | those that do not
                                 v
                              dropped
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from alignloop.artifacts import Artifact, write_whole
from alignloop.chat.reasoning import has_answer, holds_reasoning
from alignloop.config.engine import EngineComputes, computing
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import SampleConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.base import Completion, Engine, GenerateRequest
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.errors import DataError, ModelError, UserError, did_you_mean
from alignloop.records import CandidateRow, DroppedRow, PromptRow, by_prompt, candidates_of
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.steering import Steering, fitting, steer, topics_of, with_system_prompt
from alignloop.stages.facts import Facts, Findings

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


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    candidates: Artifact
    dropped: Artifact
    """Prompts that leave no room for a completion."""


class Settings(SampleConfig, EngineComputes):
    policy: str = Field("best", exclude=True)
    """How the loop picks the policy; which one it is counts, as an input."""


def settings(recipe: Recipe) -> Settings:
    """What the engine can hold and how it computes counts, too."""
    return Settings(**dict(recipe.sample), **computing(recipe.engine))


@dataclass(frozen=True)
class SteeredPrompt:
    prompt: PromptRow
    steering: Steering
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class Sampler:
    """Requests for prompts, and the rows of what comes back; `mark` stands before `k` in their ids."""

    chat: ChatFormat
    config: Settings
    policy: str
    round: int
    mark: str = ""

    def request(self, asked: SteeredPrompt) -> GenerateRequest:
        return GenerateRequest(
            prompt_ids=asked.prompt_ids,
            max_tokens=self.config.max_tokens,
            num_candidates=self.config.num_candidates,
            temperature=asked.steering.temperature,
            top_p=asked.steering.top_p,
            seed=asked.steering.seed,
            stop_token_ids=self.chat.stop_token_ids,
        )

    def rows(self, asked: SteeredPrompt, completions: Sequence[Completion]) -> Iterator[CandidateRow]:
        prompt, steering = asked.prompt, asked.steering
        seen = self.config.train_on_system_prompt
        for row_id, completion in zip(self.row_ids(prompt), completions, strict=True):
            yield CandidateRow(
                id=row_id,
                prompt_id=prompt.id,
                messages=steering.messages if seen else prompt.messages,
                completion=self.chat.decode(completion.token_ids),
                completion_ids=list(completion.token_ids),
                finish_reason=completion.finish_reason,
                round=self.round,
                policy=self.policy,
                temperature=steering.temperature,
                top_p=steering.top_p,
                system_prompt=None if seen else steering.system_prompt,
                meta=prompt.meta,
            )

    def row_ids(self, prompt: PromptRow) -> list[str]:
        start = candidates_of(prompt.id, round=self.round) + self.mark
        return [f"{start}{k}" for k in range(self.config.num_candidates)]

    def sample(self, asked: Sequence[SteeredPrompt], engine: Engine) -> list[CandidateRow]:
        """All K of each prompt, from the weights that the engine serves."""
        generated = engine.generate([self.request(one) for one in asked])
        return [row for one, completions in zip(asked, generated, strict=True) for row in self.rows(one, completions)]

    def finished(self, asked: Sequence[SteeredPrompt], file: Path) -> list[CandidateRow] | None:
        """The rows of a file with the candidates of exactly these prompts, else None. A power cut can leave a file
        without its bytes, and a person one of other prompts: both are sampled again."""
        if not file.is_file():
            return None
        try:
            rows = list(load_jsonl(file, CandidateRow))
        except DataError:
            return None
        wanted = [row_id for one in asked for row_id in self.row_ids(one.prompt)]
        return rows if [row.id for row in rows] == wanted else None


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format

    check_room(config, policy=inputs.policy.path)
    sampler = Sampler(load_format(inputs.policy.path), config, inputs.policy.digest, ctx.round)
    prompts = list(load_jsonl(inputs.prompts.path, PromptRow))
    check_ids(prompts, where=str(inputs.prompts.path))
    drawn = draw(prompts, num_prompts=config.num_prompts, seed=ctx.seed)
    everyone = [ask(prompt, chat=sampler.chat, config=config, round=ctx.round, seed=ctx.seed) for prompt in drawn]
    asked, dropped = with_room(
        everyone, config, room=config.max_model_len, stage="sample", where=str(inputs.prompts.path)
    )
    candidates = ctx.dir / "candidates.jsonl"
    with ctx.activity("sampling"):
        rows = _sample(sampler, asked, inputs.policy.path, ctx, into=candidates)
    reasoned = sum(holds_reasoning(row.completion) for row in rows)
    if reasoned and sampler.chat.asks_no_reasoning:
        ctx.progress.say(
            f"  {reasoned:,} of {len(rows):,} completions hold reasoning, though none was asked for "
            "(chat_template_kwargs): it is scored and trained as part of the answer"
        )
    return Outputs(
        candidates=Artifact.of(candidates),
        dropped=ctx.write_rows("dropped.jsonl", dropped),
        counts={"in": len(drawn), "kept": len(asked), "dropped": len(dropped), "candidates": len(rows)},
        metrics=_metrics(rows),
    )


def draw(prompts: Sequence[PromptRow], *, num_prompts: int, seed: int) -> list[PromptRow]:
    """The round's prompts; -1 takes all, in file order."""
    if num_prompts < 0 or num_prompts >= len(prompts):
        return list(prompts)
    return random.Random(seed).sample(list(prompts), num_prompts)


def ask(prompt: PromptRow, *, chat: ChatFormat, config: SampleConfig, round: int, seed: int) -> SteeredPrompt:
    """A prompt steered and in the policy's tokens; `seed` is the stage's; raises ModelError with its id where the
    template refuses it."""
    steering = steer(prompt, config=config, round=round, seed=seed)
    try:
        return SteeredPrompt(prompt, steering, chat.prompt_ids(steering.messages))
    except ModelError as error:
        steered = "" if steering.system_prompt is None else ", with a system prompt of sample.system_prompts"
        raise ModelError(f"prompt {prompt.id} ({prompt.source}){steered}: {error}") from error


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


def _sample(
    sampler: Sampler, asked: Sequence[SteeredPrompt], policy: Path, ctx: StageContext, *, into: Path
) -> list[CandidateRow]:
    """All candidates, in the order of the prompts; what a crash left finished is taken over."""
    rows = sampler.finished(asked, into)
    size = sampler.config.shard_prompts
    parts = [asked[start : start + size] for start in range(0, len(asked), size)]
    shards = [ctx.dir / f"shard-{number:05d}.jsonl" for number in range(len(parts))]
    if rows is None:
        rows = []
        with ctx.progress.task("sampling", total=len(asked), unit="prompts") as advance:
            for part, shard in zip(parts, shards, strict=True):
                done = sampler.finished(part, shard)
                if done is None:
                    ctx.engine.load_weights(policy)
                    done = sampler.sample(part, ctx.engine)
                    write_whole(shard, (row.model_dump_json().encode() + b"\n" for row in done))
                rows += done
                advance(len(part))
        write_whole(into, (shard.read_bytes() for shard in shards))
    for shard in shards:
        shard.unlink(missing_ok=True)
    return rows


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
