"""DPO's pairs: the latest preferences, and the best of the round's scored candidates against others (4.1.4).

preferences --sources, strengths, at most so many--> pairs --+
                                                             +--clean, without benchmarks, on_policy_share--> pairs
candidates --sampling.pairs: pairing, limits-------> pairs --+

Prompts, and the rows of files, are kept free of benchmark questions where they come in; what is looked at here is what
the policy has written since: pairs of candidates, and those that were annotated.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignloop.artifacts import Artifact, derive_seed
from alignloop.config.pruning import CleanConfig, KeepOutConfig
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import PairsConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError
from alignloop.pruning.clean import CleanRow, clean_by
from alignloop.pruning.decontaminate import benchmark_files, left_out_line, without_benchmarks
from alignloop.records import CandidateRow, DroppedRow, PairRow, PreferenceRow, Source, by_prompt, pair_id
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.pairs import (
    DroppedPair,
    OnPolicyPair,
    PairLimits,
    PairsResult,
    ScoredCandidates,
    gap_text,
    mean_gap,
    not_widest,
    of_share,
    width,
)
from alignloop.sampling.pairs import build_pairs as pair_up
from alignloop.stages.incoming import keep_out_of
from alignloop.stages.select import num_failed, reward_of
from alignloop.stages.train_reward import of_strengths


@dataclass(frozen=True)
class Inputs:
    scored: Artifact
    preferences: tuple[Artifact, ...]
    """Batches of the data window, oldest first."""
    benchmarks: tuple[Artifact, ...] = ()
    """Local data of the benchmarks that are kept out."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    pairs: Artifact
    dropped: Artifact
    """Preferences and pairs by their ids; a prompt's first pair, and a prompt that gives none, by the prompt's."""


class Settings(PairsConfig):
    cleaning: CleanConfig | None = None
    """`prune.clean`, with `clean`."""
    keep_out: KeepOutConfig | None = None
    """What the policy may not have written into a pair; None: `prune.decontaminate` is off."""


def settings(recipe: Recipe) -> Settings:
    pairs = recipe.pairs
    return Settings(**dict(pairs), cleaning=recipe.prune.clean if pairs.clean else None, keep_out=keep_out_of(recipe))


def inputs(recipe: Recipe, scored: Artifact, preferences: tuple[Artifact, ...]) -> Inputs:
    keep_out = keep_out_of(recipe)
    benchmarks = () if keep_out is None else benchmark_files(keep_out.tasks, keep_out.include_path)
    return Inputs(scored, preferences, benchmarks)


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    rows = list({row.id: row for batch in inputs.preferences for row in load_jsonl(batch.path, PreferenceRow)}.values())
    pairs, dropped = _of_preferences(rows, config, seed=ctx.seed)
    num_prompts, metrics, names = 0, dict[str, float](), dict[str, str]()
    num_in = len(rows)
    if "on_policy" in config.sources:
        candidates = by_prompt(list(load_jsonl(inputs.scored.path, CandidateRow)))
        num_prompts = len(candidates)
        paired = pair_candidates(candidates, config, seed=ctx.seed)
        num_in += len(paired.pairs) + len(paired.dropped)
        own = [_pair_row(pair, candidates[pair.prompt_id]) for pair in paired.pairs]
        names = {row.id: pair.prompt_id for row, pair in zip(own, paired.pairs, strict=True) if not pair.place}
        pairs += own
        dropped += [_dropped_pair(drop, candidates[drop.prompt_id]) for drop in paired.dropped]
        metrics = {name: value for name, value in paired.metrics.items() if not name.startswith("num_")}
    pairs, left_out = _pruned(pairs, config, ctx)
    dropped += [row.model_copy(update={"id": names.get(row.id, row.id)}) for row in left_out]
    own = [row for row in pairs if row.origin == "on_policy"]
    if "mean_gap" in metrics:
        metrics["mean_gap"] = mean_gap([row.reward_gap for row in own])
    by_rule = Counter(row.rule for row in dropped)
    if not pairs:
        _explain_none(config, ctx, dropped, by_rule, num_rows=len(rows), num_prompts=num_prompts)
    return Outputs(
        pairs=ctx.write_rows("pairs.jsonl", pairs),
        dropped=ctx.write_rows("dropped.jsonl", dropped),
        counts={
            "in": num_in,
            "kept": len(pairs),
            "dropped": len(dropped),
            **{f"dropped_by_{rule}": num for rule, num in by_rule.items()},
            "preference_pairs": len(pairs) - len(own),
            "on_policy_pairs": len(own),
        },
        metrics=metrics,
    )


def _of_preferences(
    rows: Sequence[PreferenceRow], config: Settings, *, seed: int
) -> tuple[list[PairRow], list[DroppedRow]]:
    wanted = [row for row in rows if row.origin in config.sources]
    named = of_strengths(wanted, config.strengths)
    kept = named
    if 0 <= config.max_preference_pairs < len(named):
        kept = random.Random(seed).sample(named, config.max_preference_pairs)
    different = [row for row in kept if row.best.strip() != row.rejected.strip()]
    undrawn = "not among those drawn (pairs.max_preference_pairs)"
    dropped = _left_out(rows, wanted, rule="sources", reason="pairs.sources does not name {origin}")
    dropped += _left_out(wanted, named, rule="strength", reason="strength {strength}")
    dropped += _left_out(named, kept, rule="max_preference_pairs", reason=undrawn)
    dropped += _left_out(kept, different, rule="same_text", reason="edited and rejected are the same text")
    return [preference_pair(row) for row in different], dropped


def _pruned(pairs: Sequence[PairRow], config: Settings, ctx: StageContext) -> tuple[list[PairRow], list[DroppedRow]]:
    """What is left of the pairs, cleaned, without benchmarks and in the shares of the recipe, and what is not."""
    left, dropped = _cleaned(pairs, config.cleaning)
    written = [row for row in left if row.source.is_round]
    clean, held = without_benchmarks(written, config.keep_out, stage=STAGE.name)
    if held:
        ctx.progress.say(f"  {left_out_line(held, num_in=len(written), what='pairs of the policy')}")
    free = {row.id for row in clean}
    left = [row for row in left if not row.source.is_round or row.id in free]
    left, beyond = _shared(left, config.on_policy_share, ctx)
    return left, [*dropped, *held, *beyond]


def _cleaned(pairs: Sequence[PairRow], config: CleanConfig | None) -> tuple[list[PairRow], list[DroppedRow]]:
    """By the rules of SFT's rows, each pair by its chosen completion and, for balancing, its reward gap."""
    if config is None:
        return list(pairs), []
    verdict = clean_by(
        [
            CleanRow(row.id, row.chosen, row.chosen_finish_reason == "length", row.reward_gap, _last_question(row))
            for row in pairs
        ],
        config,
    )
    dropped = [row.model_copy(update={"stage": STAGE.name}) for row in verdict.dropped]
    return [pairs[index] for index in verdict.kept], dropped


def _last_question(row: PairRow) -> str:
    return next((message.content for message in reversed(row.messages) if message.role == "user"), "")


def _shared(pairs: Sequence[PairRow], share: float | None, ctx: StageContext) -> tuple[list[PairRow], list[DroppedRow]]:
    """The pairs of which `share` are on-policy, and the others."""
    own = [row for row in pairs if row.origin == "on_policy"]
    others = [row for row in pairs if row.origin != "on_policy"]
    if share is None:
        return list(pairs), []
    if not own or not others:
        which = "pairs of preferences" if others else "on-policy pairs"
        ctx.progress.say(f"  pairs.on_policy_share: the round has {which} alone, and all of them train")
        return list(pairs), []
    num_own, num_others = of_share(len(own), len(others), share=share)
    narrow = not_widest([width(row.reward_gap) for row in own], most=num_own)
    drawn = random.Random(derive_seed(ctx.seed, "on_policy_share")).sample(others, num_others)
    kept = {row.id for row in drawn}
    reasons = {
        own[n].id: f"{gap_text(own[n].reward_gap)} is not among the {num_own} widest that keep the share"
        for n in narrow
    }
    reasons |= {row.id: "not among those drawn to keep the share" for row in others if row.id not in kept}
    dropped = [
        DroppedRow(id=row_id, stage=STAGE.name, rule="on_policy_share", reason=f"{reason} (pairs.on_policy_share)")
        for row_id, reason in reasons.items()
    ]
    return [row for row in pairs if row.id not in reasons], dropped


def _explain_none(
    config: Settings,
    ctx: StageContext,
    dropped: Sequence[DroppedRow],
    by_rule: Mapping[str, int],
    *,
    num_rows: int,
    num_prompts: int,
) -> None:
    """Raises DataError where there were rows of the named sources or prompts; else says that there were none."""
    if num_prompts or any(rule != "sources" for rule in by_rule):
        counts = ", ".join(f"{rule} {num:,}" for rule, num in by_rule.items())
        first = f"; the first: {dropped[0].id}: {dropped[0].reason}" if dropped else ""
        raise DataError(
            f"no pair for DPO: {num_rows} preferences and {num_prompts} prompts gave none; dropped by {counts}{first}. "
            "Loosen `pairs`"
        )
    ctx.progress.say(f"  no pair for DPO: pairs.sources is [{', '.join(config.sources)}], and the round has none")


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
    """Pairs of each prompt's candidates, where the limits keep them."""
    return pair_up(
        [
            ScoredCandidates(
                prompt_id,
                tuple(row.completion for row in rows),
                tuple(reward_of(row) for row in rows),
                tuple(row.finish_reason == "length" for row in rows),
                tuple(len(row.completion_ids) for row in rows),
                seed=derive_seed(seed, prompt_id),
                failed=tuple(num_failed(rows)),
            )
            for prompt_id, rows in candidates.items()
        ],
        limits=limits_of(config),
        pairing=config.pairing,
        target_gap_quantile=config.target_gap_quantile,
        pairs_per_prompt=config.pairs_per_prompt,
        max_pairs=config.max_on_policy,
    )


def limits_of(config: PairsConfig) -> PairLimits:
    return PairLimits(
        min_gap=config.min_gap,
        min_gap_quantile=config.min_gap_quantile,
        max_gap=math.inf if config.max_gap is None else config.max_gap,
        max_gap_quantile=config.max_gap_quantile,
        min_rejected_reward=-math.inf if config.min_rejected_reward is None else config.min_rejected_reward,
        min_rejected_reward_quantile=config.min_rejected_reward_quantile,
        min_rejected_length=config.min_rejected_length,
        min_rejected_length_quantile=config.min_rejected_length_quantile,
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


def _dropped_pair(drop: DroppedPair, rows: Sequence[CandidateRow]) -> DroppedRow:
    pair = drop.pair
    row_id = drop.prompt_id if pair is None or not pair.place else pair_id(rows[pair.chosen].id, pair.rejected)
    return DroppedRow(id=row_id, stage=STAGE.name, rule=drop.rule, reason=drop.reason)


def _left_out(
    before: Sequence[PreferenceRow], after: Sequence[PreferenceRow], *, rule: str, reason: str
) -> list[DroppedRow]:
    """Rows that stand in `before` alone; `reason` may name the row's `{strength}` and `{origin}`."""
    kept = {row.id for row in after}
    return [
        DroppedRow(
            id=row.id, stage=STAGE.name, rule=rule, reason=reason.format(strength=row.strength, origin=row.origin)
        )
        for row in before
        if row.id not in kept
    ]


STAGE = Stage("build_pairs", Inputs, Outputs, settings, run)
