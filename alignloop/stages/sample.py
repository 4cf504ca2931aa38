"""K completions a prompt from the policy, shard by shard (section 4.2.2)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.artifacts import Artifact, derive_seed
from alignloop.config.recipe import SampleStageConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.engines.base import Completion, GenerateRequest
from alignloop.errors import DataError
from alignloop.records import CandidateRow, DroppedRow, PromptRow
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat


@dataclass(frozen=True)
class Inputs:
    policy: Artifact
    prompts: Artifact


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    candidates: Artifact
    dropped: Artifact
    """Prompts that leave no room for a completion."""


@dataclass(frozen=True)
class _Sampler:
    """Turns prompts into requests and completions into rows."""

    chat: ChatFormat
    config: SampleStageConfig
    policy: str
    round: int
    seed: int

    def request(self, prompt: PromptRow) -> GenerateRequest:
        return GenerateRequest(
            prompt_ids=self.chat.prompt_ids(prompt.messages),
            max_tokens=self.config.max_tokens,
            num_candidates=self.config.num_candidates,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            seed=derive_seed(self.seed, prompt.id),
            stop_token_ids=self.chat.stop_token_ids,
        )

    def rows(self, prompt: PromptRow, completions: Sequence[Completion]) -> Iterator[CandidateRow]:
        for k, completion in enumerate(completions):
            yield CandidateRow(
                id=f"{prompt.id}/{self.round}/{k}",
                prompt_id=prompt.id,
                messages=prompt.messages,
                completion=self.chat.decode(completion.token_ids),
                completion_ids=list(completion.token_ids),
                finish_reason=completion.finish_reason,
                round=self.round,
                policy=self.policy,
                meta=prompt.meta,
            )


def run(config: SampleStageConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format

    sampler = _Sampler(load_format(inputs.policy.path), config, inputs.policy.digest, ctx.round, ctx.seed)
    prompts = list(load_jsonl(inputs.prompts.path, PromptRow))
    drawn = draw(prompts, num_prompts=config.num_prompts, seed=ctx.seed)
    room = config.max_model_len - config.max_tokens
    fits, dropped = [], []
    for prompt in drawn:
        length = len(sampler.chat.prompt_ids(prompt.messages))
        if length <= room:
            fits.append(prompt)
        else:
            reason = f"{length} prompt tokens and {config.max_tokens} for the completion exceed {config.max_model_len}"
            dropped.append(DroppedRow(id=prompt.id, stage="sample", rule="length", reason=reason))
    if not fits:
        raise DataError(
            f"{inputs.prompts.path}: none of {len(drawn)} prompts leaves room for a completion of "
            f"{config.max_tokens} tokens within {config.max_model_len}: raise engine.max_model_len or lower "
            "sample.max_tokens"
        )
    with ctx.activity("sampling"):
        shards = _sample_shards(sampler, fits, inputs.policy.path, ctx)
    candidates = [row for shard in shards for row in load_jsonl(shard, CandidateRow)]
    dump_jsonl(ctx.dir / "candidates.jsonl", candidates)
    dump_jsonl(ctx.dir / "dropped.jsonl", dropped)
    for shard in shards:
        shard.unlink()
    stopped = sum(row.finish_reason == "stop" for row in candidates)
    return Outputs(
        candidates=Artifact.of(ctx.dir / "candidates.jsonl"),
        dropped=Artifact.of(ctx.dir / "dropped.jsonl"),
        counts={"in": len(drawn), "kept": len(fits), "dropped": len(dropped), "candidates": len(candidates)},
        metrics={
            "stop_rate": stopped / len(candidates),
            "mean_tokens": sum(len(row.completion_ids) for row in candidates) / len(candidates),
        },
    )


def draw(prompts: Sequence[PromptRow], *, num_prompts: int, seed: int) -> list[PromptRow]:
    """The round's prompts; -1 takes all, in file order."""
    if num_prompts < 0 or num_prompts >= len(prompts):
        return list(prompts)
    return random.Random(seed).sample(list(prompts), num_prompts)


def _sample_shards(sampler: _Sampler, prompts: Sequence[PromptRow], policy: Path, ctx: StageContext) -> list[Path]:
    """One file a shard, written whole or not at all: what a crash finds is taken over."""
    shards = []
    with ctx.progress.task("sampling", total=len(prompts), unit="prompts") as advance:
        size = sampler.config.shard_prompts
        for start in range(0, len(prompts), size):
            shard_prompts = prompts[start : start + size]
            shard = ctx.dir / f"shard-{start // size:05d}.jsonl"
            shards.append(shard)
            if not shard.exists():
                ctx.engine.wake()
                ctx.engine.load_weights(policy)
                generated = ctx.engine.generate([sampler.request(prompt) for prompt in shard_prompts])
                pairs = zip(shard_prompts, generated, strict=True)
                aside = shard.with_suffix(".tmp")
                dump_jsonl(aside, [row for prompt, done in pairs for row in sampler.rows(prompt, done)])
                aside.replace(shard)
            advance(len(shard_prompts))
    return shards


STAGE = Stage("sample", Inputs, Outputs, run)
