"""DPO's pairs: the latest preferences, and the best of the round's scored candidates against others (4.1.4)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.artifacts import Artifact, derive_seed
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import PairsConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError
from alignloop.records import CandidateRow, DroppedRow, PairRow, PreferenceRow, Source, by_prompt, pair_id
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.best_of_k import OnPolicyPair, PairsResult, ScoredCandidates
from alignloop.sampling.best_of_k import build_pairs as pair_up
from alignloop.stages.select import num_failed, reward_of
from alignloop.stages.train_reward import of_strengths


@dataclass(frozen=True)
class Inputs:
    scored: Artifact
    preferences: tuple[Artifact, ...]
    """Batches of the data window, oldest first."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    pairs: Artifact
    dropped: Artifact


def settings(recipe: Recipe) -> PairsConfig:
    return recipe.pairs


def run(config: PairsConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    rows = list({row.id: row for batch in inputs.preferences for row in load_jsonl(batch.path, PreferenceRow)}.values())
    wanted = [row for row in rows if row.origin in config.sources]
    named = of_strengths(wanted, config.strengths)
    kept = named
    if 0 <= config.max_preference_pairs < len(named):
        kept = random.Random(ctx.seed).sample(named, config.max_preference_pairs)
    different = [row for row in kept if row.best.strip() != row.rejected.strip()]
    pairs = [preference_pair(row) for row in different]
    undrawn = "not among those drawn (pairs.max_preference_pairs)"
    dropped = _left_out(rows, wanted, rule="sources", reason="pairs.sources does not name {origin}")
    dropped += _left_out(wanted, named, rule="strength", reason="strength {strength}")
    dropped += _left_out(named, kept, rule="max_preference_pairs", reason=undrawn)
    dropped += _left_out(kept, different, rule="same_text", reason="edited and rejected are the same text")
    num_prompts = 0
    metrics: dict[str, float] = {}
    if "on_policy" in config.sources:
        candidates = by_prompt(list(load_jsonl(inputs.scored.path, CandidateRow)))
        num_prompts = len(candidates)
        paired = pair_candidates(candidates, config, seed=ctx.seed)
        pairs += [_pair_row(pair, candidates[pair.prompt_id]) for pair in paired.pairs]
        dropped += paired.dropped
        metrics = {name: paired.metrics[name] for name in ("least_gap", "mean_gap") if name in paired.metrics}
    if not pairs:
        if wanted or num_prompts:
            first = f"; the first: {dropped[0].id}: {dropped[0].reason}" if dropped else ""
            raise DataError(
                f"no pair for DPO: {len(rows)} preferences and {num_prompts} prompts gave none{first}. Loosen `pairs`"
            )
        ctx.progress.say(f"  no pair for DPO: pairs.sources is [{', '.join(config.sources)}], and the round has none")
    return Outputs(
        pairs=ctx.write_rows("pairs.jsonl", pairs),
        dropped=ctx.write_rows("dropped.jsonl", dropped),
        counts={
            "in": len(rows) + num_prompts,
            "kept": len(pairs),
            "dropped": len(dropped),
            "preference_pairs": len(different),
            "on_policy_pairs": len(pairs) - len(different),
        },
        metrics=metrics,
    )


def preference_pair(row: PreferenceRow) -> PairRow:
    best = row.ranked[0]
    return PairRow(
        id=row.id,
        messages=row.messages,
        chosen=best.text,
        rejected=row.rejected,
        strength=row.strength,
        origin="preference",
        source=row.source,
        chosen_ids=best.token_ids,
        chosen_finish_reason=best.finish_reason,
        rejected_ids=row.rejected_ids,
        rejected_finish_reason=row.rejected_finish_reason,
        meta=row.meta,
    )


def pair_candidates(candidates: dict[str, list[CandidateRow]], config: PairsConfig, *, seed: int) -> PairsResult:
    """The best of each prompt's candidates against another, where the gap is wide enough."""
    return pair_up(
        [
            ScoredCandidates(
                prompt_id,
                tuple(row.completion for row in rows),
                tuple(reward_of(row) for row in rows),
                tuple(row.finish_reason == "length" for row in rows),
                seed=derive_seed(seed, prompt_id),
                failed=tuple(num_failed(rows)),
            )
            for prompt_id, rows in candidates.items()
        ],
        pairing=config.pairing,
        target_gap_quantile=config.target_gap_quantile,
        min_gap_quantile=config.min_gap_quantile,
        min_gap=config.min_gap,
        max_pairs=config.max_on_policy,
    )


def _pair_row(pair: OnPolicyPair, rows: list[CandidateRow]) -> PairRow:
    chosen, rejected = rows[pair.chosen], rows[pair.rejected]
    return PairRow(
        id=pair_id(chosen.id, pair.rejected),
        messages=chosen.messages,
        chosen=chosen.completion,
        rejected=rejected.completion,
        strength=pair.strength,
        origin="on_policy",
        reward_gap=pair.gap,
        source=Source.of_round(chosen.round),
        chosen_ids=chosen.completion_ids or None,
        chosen_finish_reason=chosen.finish_reason,
        rejected_ids=rejected.completion_ids or None,
        rejected_finish_reason=rejected.finish_reason,
        meta=chosen.meta,
    )


def _left_out(
    before: Sequence[PreferenceRow], after: Sequence[PreferenceRow], *, rule: str, reason: str
) -> list[DroppedRow]:
    """Rows that stand in `before` alone; `reason` may name the row's `{strength}` and `{origin}`."""
    kept = {row.id for row in after}
    return [
        DroppedRow(
            id=row.id, stage="build_pairs", rule=rule, reason=reason.format(strength=row.strength, origin=row.origin)
        )
        for row in before
        if row.id not in kept
    ]


STAGE = Stage("build_pairs", Inputs, Outputs, settings, run)
