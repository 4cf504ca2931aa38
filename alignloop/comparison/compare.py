"""Two sides compared on the prompts they have in common.

Pairing ─► rewards of all candidates, of the best of K ─► summary, tests, histogram ─► Comparison
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from alignloop.comparison.result import Comparison, Completions, Difference, Histogram, Rewards, SideFacts
from alignloop.comparison.sides import Pairing, Side, common_num_candidates, num_candidates_text, pair_up
from alignloop.comparison.verdict import verdict
from alignloop.errors import DataError
from alignloop.records import CandidateRow
from alignloop.sampling.best_of_k import pick_best
from alignloop.sampling.reward_statistics import bin_edges, bin_shares, ks_test, paired_difference, summary, swap_test
from alignloop.stages.select import endings, reward_of

NUM_BINS = 16


def compare(a: Side, b: Side, *, seed: int = 0) -> Comparison:
    """Compare two sides on the prompts they have in common.

    Args:
        seed: of the exchanges of the swap test.

    Raises:
        DataError: no common prompt, or rewards of different reward models.
    """
    if a.reward_model and b.reward_model and a.reward_model != b.reward_model:
        raise DataError(
            f"{a.name} and {b.name} were scored by different reward models ({a.reward_model[:19]}... and "
            f"{b.reward_model[:19]}...): their rewards are of different scales. Score both with one: alignloop score"
        )
    if a.reward_functions is not None and b.reward_functions is not None and a.reward_functions != b.reward_functions:
        raise DataError(
            f"{a.name} and {b.name} were scored with different reward functions ({_functions(a)}; {_functions(b)}): "
            "score both with the same"
        )
    paired = pair_up(a, b)
    equal = common_num_candidates(paired)
    all_a, all_b = ([[reward_of(row) for row in rows] for rows in side] for side in (paired.a, paired.b))
    everything = _rewards(all_a, all_b, seed=seed)
    best = _rewards([_best(rows) for rows in equal.a], [_best(rows) for rows in equal.b], seed=seed)
    same = all_a == all_b
    best_of = num_candidates_text(equal.a)
    return Comparison(
        a=_facts(a, paired.a),
        b=_facts(b, paired.b),
        num_common=len(paired.a),
        only_in_a=paired.only_in_a,
        only_in_b=paired.only_in_b,
        best_of=best_of,
        all=everything,
        best=best,
        same_rewards=same,
        differing_settings=differing_settings(a.settings, b.settings) if a.settings and b.settings else {},
        verdict=verdict(everything, best, num_prompts=len(paired.a), best_of=best_of, same_rewards=same),
        notes=_notes(a, b, paired, best_of=best_of),
    )


def differing_settings(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """`section.field` -> (A's value, B's value), where they differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*a, *b}):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differing_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            found[f"{prefix}{key}"] = (old, new)
    return found


def _best(rows: Sequence[CandidateRow]) -> list[float]:
    truncated, empty = endings(rows)
    rewards = [reward_of(row) for row in rows]
    return [rewards[pick_best(rewards, truncated=truncated, empty=empty)]]


def _functions(side: Side) -> str:
    return ", ".join(f"{name}={weight:g}" for name, weight in side.reward_functions or ()) or "none"


def _rewards(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, seed: int) -> Rewards:
    """Args: a, b: N prompts of some rewards each."""
    flat_a, flat_b = list(chain(*a)), list(chain(*b))
    paired = paired_difference([sum(p) / len(p) for p in a], [sum(p) / len(p) for p in b])
    ks, ks_pvalue = ks_test(flat_a, flat_b)
    swap_pvalue, num_swaps = swap_test(a, b, seed=seed)
    edges = bin_edges([*flat_a, *flat_b], num_bins=NUM_BINS)
    return Rewards(
        a=summary(flat_a),
        b=summary(flat_b),
        difference=Difference(
            mean=paired.mean,
            stderr=paired.stderr,
            mean_pvalue=paired.pvalue,
            ks=ks,
            ks_pvalue=ks_pvalue,
            swap_pvalue=swap_pvalue,
            num_swaps=num_swaps,
        ),
        histogram=Histogram(edges=edges, a=bin_shares(flat_a, edges), b=bin_shares(flat_b, edges)),
    )


def _facts(side: Side, prompts: Sequence[Sequence[CandidateRow]]) -> SideFacts:
    return SideFacts(
        name=side.name,
        file=str(side.file),
        num_prompts=len(side.rows),
        num_candidates=num_candidates_text(prompts),
        settings=side.settings,
        reward_model=side.reward_model,
        completions=_completions(prompts),
    )


def _completions(prompts: Sequence[Sequence[CandidateRow]]) -> Completions:
    rows = list(chain(*prompts))
    truncated, empty = endings(rows)
    tokens = np.asarray([len(row.completion_ids) for row in rows], dtype=np.float64)
    distinct = [len({row.completion for row in prompt}) / len(prompt) for prompt in prompts]
    return Completions(
        truncated=sum(truncated) / len(rows),
        mean_tokens=float(tokens.mean()),
        p95_tokens=float(np.quantile(tokens, 0.95)),
        mean_characters=sum(len(row.completion) for row in rows) / len(rows),
        empty=sum(empty) / len(rows),
        distinct=sum(distinct) / len(prompts),
    )


def _notes(a: Side, b: Side, pairing: Pairing, *, best_of: str) -> list[str]:
    notes = [f"{letter}: {note}" for letter, side in (("A", a), ("B", b)) for note in side.notes]
    if pairing.only_in_a or pairing.only_in_b:
        notes.append(f"not compared: {pairing.only_in_a} prompts only in A, {pairing.only_in_b} only in B")
    if list(map(len, pairing.a)) != list(map(len, pairing.b)):
        counts_a, counts_b = num_candidates_text(pairing.a), num_candidates_text(pairing.b)
        notes.append(
            f"A has {counts_a} candidates a prompt and B {counts_b}: the best is taken of the first {best_of} in both"
        )
    if not (a.reward_model and b.reward_model):
        unknown = " and ".join(name for name, side in (("A", a), ("B", b)) if not side.reward_model)
        notes.append(f"which reward model scored {unknown} is not known: rewards of two models cannot be compared")
    return notes
