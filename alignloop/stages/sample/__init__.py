"""K completions a prompt from the policy, shard by shard (section 4.2.2).

prompts --draw--> --steer--> prompt ids that leave room --engine, a shard at a time--> shard files --> candidates
                                 | those that do not
                                 v
                              dropped
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.artifacts import Artifact
from alignloop.chat.reasoning import has_answer, holds_reasoning
from alignloop.config.engine import EngineComputes, computing
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import SampleConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.base import Completion, Engine, GenerateRequest
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.errors import DataError, ModelError, UserError
from alignloop.records import CandidateRow, DroppedRow, PromptRow, by_prompt, candidate_id
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.steering import Steering, steer

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat


MOST_CANDIDATES = 16_384
"""vLLM takes no larger K (its VLLM_MAX_N_SEQUENCES)."""


@dataclass(frozen=True)
class Inputs:
    policy: Artifact
    prompts: Artifact


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    candidates: Artifact
    dropped: Artifact
    """Prompts that leave no room for a completion."""


class Settings(SampleConfig, EngineComputes): ...


def settings(recipe: Recipe) -> Settings:
    """What the engine can hold and how it computes counts, too."""
    return Settings(**dict(recipe.sample), **computing(recipe.engine))


@dataclass(frozen=True)
class Asked:
    """A prompt ready to be sampled."""

    prompt: PromptRow
    steering: Steering
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class _Sampler:
    """Turns prompts into requests and completions into rows."""

    chat: ChatFormat
    config: Settings
    policy: str
    round: int
    seed: int

    def request(self, asked: Asked) -> GenerateRequest:
        return GenerateRequest(
            prompt_ids=asked.prompt_ids,
            max_tokens=self.config.max_tokens,
            num_candidates=self.config.num_candidates,
            temperature=asked.steering.temperature,
            top_p=asked.steering.top_p,
            seed=asked.steering.seed,
            stop_token_ids=self.chat.stop_token_ids,
        )

    def rows(self, asked: Asked, completions: Sequence[Completion]) -> Iterator[CandidateRow]:
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
        return [candidate_id(prompt.id, round=self.round, k=k) for k in range(self.config.num_candidates)]


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format

    check_room(config, policy=inputs.policy.path)
    sampler = _Sampler(load_format(inputs.policy.path), config, inputs.policy.digest, ctx.round, ctx.seed)
    prompts = list(load_jsonl(inputs.prompts.path, PromptRow))
    check_ids(prompts, where=str(inputs.prompts.path))
    drawn = draw(prompts, num_prompts=config.num_prompts, seed=ctx.seed)
    everyone = [ask(prompt, chat=sampler.chat, config=config, round=ctx.round, seed=ctx.seed) for prompt in drawn]
    asked, dropped = _that_fit(everyone, config)
    if not asked:
        first = f" (the first: {dropped[0].id}: {dropped[0].reason})" if dropped else ""
        raise DataError(
            f"{inputs.prompts.path}: none of {len(drawn)} prompts leaves room for a completion of {config.max_tokens} "
            f"tokens within {config.max_model_len}{first}: raise engine.max_model_len or lower sample.max_tokens"
        )
    candidates = ctx.dir / "candidates.jsonl"
    with ctx.activity("sampling"):
        rows = _sample(sampler, asked, inputs.policy.path, ctx, into=candidates)
    if sampler.chat.asks_no_reasoning:
        _say_unasked_reasoning(rows, ctx)
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


def ask(prompt: PromptRow, *, chat: ChatFormat, config: SampleConfig, round: int, seed: int) -> Asked:
    """A prompt steered and in the policy's tokens; `seed` is the stage's.

    Raises:
        ModelError: the chat template refuses the dialog; names the prompt.
    """
    steering = steer(prompt, config=config, round=round, seed=seed)
    try:
        return Asked(prompt, steering, chat.prompt_ids(steering.messages))
    except ModelError as error:
        steered = "" if steering.system_prompt is None else ", with a system prompt of sample.system_prompts"
        raise ModelError(f"prompt {prompt.id} ({_place(prompt)}){steered}: {error}") from error


def check_ids(prompts: Sequence[PromptRow], *, where: str) -> None:
    """Raises DataError where two prompts have one id: their candidates could not be told apart."""
    first: dict[str, PromptRow] = {}
    for prompt in prompts:
        other = first.setdefault(prompt.id, prompt)
        if other is not prompt:
            raise DataError(
                f"{where}: two prompts have the id {prompt.id!r} ({_place(other)}; {_place(prompt)}): give each its own"
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


def _that_fit(asked: Sequence[Asked], config: Settings) -> tuple[list[Asked], list[DroppedRow]]:
    """Those that leave room for the longest completion, and the others with their lengths."""
    room = config.max_model_len - config.max_tokens
    dropped = []
    for one in asked:
        if len(one.prompt_ids) > room:
            steered = "" if one.steering.system_prompt is None else " (the system prompt among them)"
            reason = (
                f"{len(one.prompt_ids)} prompt tokens{steered} and {config.max_tokens} for the completion exceed "
                f"{config.max_model_len}"
            )
            dropped.append(DroppedRow(id=one.prompt.id, stage="sample", rule="length", reason=reason))
    return [one for one in asked if len(one.prompt_ids) <= room], dropped


def _sample(
    sampler: _Sampler, asked: Sequence[Asked], policy: Path, ctx: StageContext, *, into: Path
) -> list[CandidateRow]:
    """All candidates, in the order of the prompts; what a crash left finished is taken over."""
    rows = _finished(sampler, asked, into)
    size = sampler.config.shard_prompts
    parts = [asked[start : start + size] for start in range(0, len(asked), size)]
    shards = [ctx.dir / f"shard-{number:05d}.jsonl" for number in range(len(parts))]
    if rows is None:
        rows = []
        with ctx.progress.task("sampling", total=len(asked), unit="prompts") as advance:
            for part, shard in zip(parts, shards, strict=True):
                done = _finished(sampler, part, shard)
                if done is None:
                    done = _sample_shard(sampler, part, policy, ctx.engine)
                    _write_whole(shard, (row.model_dump_json().encode() + b"\n" for row in done))
                rows += done
                advance(len(part))
        _write_whole(into, (shard.read_bytes() for shard in shards))
    for shard in shards:
        shard.unlink(missing_ok=True)
    return rows


def _sample_shard(sampler: _Sampler, part: Sequence[Asked], policy: Path, engine: Engine) -> list[CandidateRow]:
    engine.load_weights(policy)
    generated = engine.generate([sampler.request(one) for one in part])
    return [row for one, completions in zip(part, generated, strict=True) for row in sampler.rows(one, completions)]


def _finished(sampler: _Sampler, asked: Sequence[Asked], file: Path) -> list[CandidateRow] | None:
    """The rows of a file that holds the candidates of these prompts, all of them and nothing else; else None.

    A power cut can leave a file without its bytes, and a hand a file of other prompts: both are sampled again.
    """
    if not file.is_file():
        return None
    try:
        rows = list(load_jsonl(file, CandidateRow))
    except DataError:
        return None
    wanted = [row_id for one in asked for row_id in sampler.row_ids(one.prompt)]
    return rows if [row.id for row in rows] == wanted else None


def _write_whole(path: Path, content: Iterable[bytes]) -> None:
    """Aside, sync, rename: at any moment the file is whole or not there."""
    aside = path.with_suffix(".tmp")
    with aside.open("wb") as file:
        file.writelines(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


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


def _say_unasked_reasoning(rows: Sequence[CandidateRow], ctx: StageContext) -> None:
    if num := sum(holds_reasoning(row.completion) for row in rows):
        ctx.progress.say(
            f"  {num:,} of {len(rows):,} completions hold reasoning, though none was asked for (chat_template_kwargs): "
            "it is scored and trained as part of the answer"
        )


def _place(prompt: PromptRow) -> str:
    line = "" if prompt.source.line is None else f", line {prompt.source.line}"
    return f"{prompt.source.file}{line}"


STAGE = Stage("sample", Inputs, Outputs, settings, run)
