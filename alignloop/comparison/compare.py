"""Two scored files as the sides of a comparison, compared on the prompts they have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from alignloop.alone.out_file import read_beside
from alignloop.artifacts import fingerprint
from alignloop.comparison.result import (
    ComparedRewards,
    ComparedSide,
    Completions,
    Histogram,
    RewardDifference,
    SamplingComparison,
    verdict,
)
from alignloop.data.candidates import OWN_COLUMNS
from alignloop.data.jsonl import load_jsonl
from alignloop.data.rawfile import open_rows
from alignloop.data.reading import first_objects
from alignloop.errors import DataError
from alignloop.records import CandidateRow, by_prompt
from alignloop.sampling.best_of_k import pick_best
from alignloop.sampling.reward_statistics import (
    bin_edges,
    bin_shares,
    ks_test,
    paired_difference,
    summary,
    swap_test,
)
from alignloop.stages.select import endings, num_failed, reward_of

NUM_BINS = 16
Prompts = list[list[CandidateRow]]
"""The candidates of N prompts."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        rows: candidates of each prompt by prompt id, in file order.
        settings: of `engine` and `sample`, where they are known.
        reward_model: digest, or a hash of an ensemble's members and how they are combined; None where the file does not
            tell.
        reward_functions: those beside it, with weights and gates; None where the file does not tell.
    """

    name: str
    file: Path
    rows: dict[str, list[CandidateRow]]
    settings: dict[str, Any] = field(default_factory=dict)
    reward_model: str | None = None
    reward_functions: tuple[tuple[str, float, float | None], ...] | None = None
    notes: tuple[str, ...] = ()


def read_side(file: Path, *, name: str, settings: dict[str, Any] | None = None, notes: tuple[str, ...] = ()) -> Side:
    """A file of scored candidates; DataError where it holds something else, or no rewards."""
    if not any(row.keys() >= OWN_COLUMNS for row in first_objects(open_rows(file), columns={})):
        raise DataError(
            f"{file}: holds no scored candidates; `alignloop score REWARD_MODEL {file} --out ...` makes them"
        )
    rows = list(load_jsonl(file, CandidateRow))
    for row in rows:
        if row.reward is None and row.total_reward is None:
            raise DataError(
                f"{file}: candidate {row.id} has no reward: score the file first, `alignloop score REWARD_MODEL {file}`"
            )
    model, functions = _scored_by(file)
    return Side(name, file, by_prompt(rows), settings or {}, model, functions, notes)


def compare(a: Side, b: Side, *, seed: int = 0) -> SamplingComparison:
    """Compare two sides on the prompts they have in common; DataError where there are none, or rewards are of different
    reward models. `seed` is of the exchanges of the swap test."""
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
    of_a, of_b = _pair_up(a, b)
    # Each prompt with as many candidates in A as in B: the best of more is higher by itself. Candidates are drawn
    # alike, so the first are as good as any.
    counts = [min(len(x), len(y)) for x, y in zip(of_a, of_b, strict=True)]
    equal_a, equal_b = ([rows[:k] for rows, k in zip(side, counts, strict=True)] for side in (of_a, of_b))
    all_a, all_b = ([[reward_of(row) for row in rows] for rows in side] for side in (of_a, of_b))
    everything = _rewards(all_a, all_b, seed=seed)
    best = _rewards([_best(rows) for rows in equal_a], [_best(rows) for rows in equal_b], seed=seed)
    same = all_a == all_b
    best_of = _num_candidates(equal_a)
    return SamplingComparison(
        a=_side(a, of_a),
        b=_side(b, of_b),
        num_common=len(of_a),
        only_in_a=len(a.rows) - len(of_a),
        only_in_b=len(b.rows) - len(of_b),
        best_of=best_of,
        all=everything,
        best=best,
        same_rewards=same,
        differing_settings=_differing(a.settings, b.settings) if a.settings and b.settings else {},
        verdict=verdict(everything, best, num_prompts=len(of_a), best_of=best_of, same_rewards=same),
        notes=_notes(a, b, of_a, of_b, best_of=best_of),
    )


def _differing(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """`section.field` -> (A's value, B's value), where they differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*a, *b}):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differing(old, new, f"{prefix}{key}.")
        elif old != new:
            found[f"{prefix}{key}"] = (old, new)
    return found


def _best(rows: Sequence[CandidateRow]) -> list[float]:
    truncated, empty = endings(rows)
    rewards = [reward_of(row) for row in rows]
    return [rewards[pick_best(rewards, truncated=truncated, empty=empty, failed=num_failed(rows))]]


def _functions(side: Side) -> str:
    named = [
        f"{name}={weight:g}" + ("" if gate is None else f", gate {gate:g}")
        for name, weight, gate in side.reward_functions or ()
    ]
    return ", ".join(named) or "none"


def _rewards(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, seed: int) -> ComparedRewards:
    """`a` and `b` are N prompts of some rewards each."""
    flat_a, flat_b = list(chain(*a)), list(chain(*b))
    paired = paired_difference([sum(p) / len(p) for p in a], [sum(p) / len(p) for p in b])
    ks, ks_pvalue = ks_test(flat_a, flat_b)
    swap_pvalue, num_swaps = swap_test(a, b, seed=seed)
    edges = bin_edges([*flat_a, *flat_b], num_bins=NUM_BINS)
    return ComparedRewards(
        a=summary(flat_a),
        b=summary(flat_b),
        difference=RewardDifference(
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


def _side(side: Side, prompts: Prompts) -> ComparedSide:
    rows = list(chain(*prompts))
    truncated, empty = endings(rows)
    tokens = np.asarray([len(row.completion_ids) for row in rows], dtype=np.float64)
    distinct = [len({row.completion for row in prompt}) / len(prompt) for prompt in prompts]
    return ComparedSide(
        name=side.name,
        file=str(side.file),
        num_prompts=len(side.rows),
        num_candidates=_num_candidates(prompts),
        settings=side.settings,
        reward_model=side.reward_model,
        completions=Completions(
            truncated=sum(truncated) / len(rows),
            mean_tokens=float(tokens.mean()),
            p95_tokens=float(np.quantile(tokens, 0.95)),
            mean_characters=sum(len(row.completion) for row in rows) / len(rows),
            empty=sum(empty) / len(rows),
            distinct=sum(distinct) / len(prompts),
        ),
    )


def _notes(a: Side, b: Side, of_a: Prompts, of_b: Prompts, *, best_of: str) -> list[str]:
    notes = [f"{letter}: {note}" for letter, side in (("A", a), ("B", b)) for note in side.notes]
    only_a, only_b = len(a.rows) - len(of_a), len(b.rows) - len(of_b)
    if only_a or only_b:
        notes.append(f"not compared: {only_a} prompts only in A, {only_b} only in B")
    if list(map(len, of_a)) != list(map(len, of_b)):
        counts_a, counts_b = _num_candidates(of_a), _num_candidates(of_b)
        notes.append(
            f"A has {counts_a} candidates a prompt and B {counts_b}: the best is taken of the first {best_of} in both"
        )
    if not (a.reward_model and b.reward_model):
        unknown = " and ".join(name for name, side in (("A", a), ("B", b)) if not side.reward_model)
        notes.append(f"which reward model scored {unknown} is not known: rewards of two models cannot be compared")
    return notes


def _pair_up(a: Side, b: Side) -> tuple[Prompts, Prompts]:
    """A's and B's candidates of the prompts that both have, in one order: of the same dialog, or, where system prompts
    differ, of the same id and last turn. DataError where there are none."""
    partners: dict[str, str] = {}
    for key in (_dialog, _id_and_last_turn):
        left_a = {name: rows for name, rows in a.rows.items() if name not in partners}
        left_b = {name: rows for name, rows in b.rows.items() if name not in partners.values()}
        of_b = {kept: name for name, kept in _keyed(left_b, key).items()}
        partners |= {name: of_b[kept] for name, kept in _keyed(left_a, key).items() if kept in of_b}
    if not partners:
        raise DataError(
            f"{a.name} and {b.name} have no prompt in common ({len(a.rows)} and {len(b.rows)} prompts; the first ones: "
            f"{_start(a)!r} and {_start(b)!r}): sample both for the same prompts"
        )
    common = [name for name in a.rows if name in partners]
    return [a.rows[name] for name in common], [b.rows[partners[name]] for name in common]


def _num_candidates(prompts: Iterable[Sequence[CandidateRow]]) -> str:
    """`4`, or `4 to 8` where prompts have different numbers of candidates."""
    counts = [len(rows) for rows in prompts]
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _scored_by(file: Path) -> tuple[str | None, tuple[tuple[str, float, float | None], ...] | None]:
    """What the rewards are by, and the reward functions with weights and gates, by the manifest beside the file."""
    known = read_beside(file)
    if known is None or known.stage != "score":
        return None, None
    model = known.inputs.get("reward_model")
    functions = known.config.get("reward_functions") or []
    digest = model.get("digest") if isinstance(model, dict) else None
    if isinstance(model, list):
        how = [known.config.get(name) for name in ("ensemble", "spread_penalty")]
        digest = f"ensemble {fingerprint([[member['digest'] for member in model], *how])}"
    # Each function is named once, so that no two gates are compared.
    return digest, tuple(sorted((entry["function"], float(entry["weight"]), entry.get("gate")) for entry in functions))


def _keyed(
    prompts: dict[str, list[CandidateRow]], key: Callable[[str, CandidateRow], Hashable]
) -> dict[str, tuple[Hashable, int]]:
    """Prompt id -> its key; a key that comes twice is told apart by its number."""
    seen: Counter[Hashable] = Counter()
    keyed = {}
    for name, rows in prompts.items():
        value = key(name, rows[0])
        keyed[name] = (value, seen[value])
        seen[value] += 1
    return keyed


def _dialog(name: str, row: CandidateRow) -> Hashable:
    return tuple((message.role, message.content) for message in row.messages)


def _id_and_last_turn(name: str, row: CandidateRow) -> Hashable:
    return name, row.messages[-1].content


def _start(side: Side) -> str:
    text = next(iter(side.rows.values()))[0].messages[-1].content
    return text if len(text) <= 40 else text[:37] + "..."
