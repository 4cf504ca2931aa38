"""The life of a prompt, and of a pair of its candidates: sampled, picked, pruned, paired, compared, trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignloop.look.candidates import (
    best_facts,
    best_in,
    best_text,
    candidate_lines,
    candidates_in,
    pair_in,
    policy_facts,
    read_prompt,
    sampled_step,
)
from alignloop.look.comparison_steps import compared_steps
from alignloop.look.life import CandidateLine, Life, Step
from alignloop.look.steps import dialog_text, dropped_step, pair_steps, prune_steps, step_of, twins_of
from alignloop.records import (
    PairRow,
    SelectedRow,
    split_candidate_id,
    split_pair_id,
)
from alignloop.run_dir.reader import RunReader


def prompt_life(prompt_id: str, run: RunReader) -> Life:
    """What became of a prompt in every round that sampled for it."""
    row, steps = read_prompt(prompt_id, run)
    lines: list[CandidateLine] = []
    not_drawn = []
    bests: dict[int, SelectedRow] = {}
    for number in (number for number in run.rounds if number):
        rows, compared = candidates_in(run, number, prompt_id), compared_steps(run, number, prompt_id)
        if not rows:
            dropped = dropped_step(run, number, "sample", prompt_id)
            if not dropped and run.stage(number, "sample") is not None:
                not_drawn.append(number)
            steps += [*dropped, *compared]
            continue
        best = best_in(run, number, prompt_id)
        steps += [*compared, *sampled_step(run, number, rows), *_best_steps(run, number, best)]
        lines += candidate_lines(run, number, rows, best)
        if best is not None:
            bests[number] = best
    facts: dict[str, Any] = {} if row is None else {"source": str(row.source)}
    if row is not None and row.meta.get("topic"):
        facts["topic"] = row.meta["topic"]
    if not_drawn:
        facts["not drawn"] = f"in round{'s' if len(not_drawn) > 1 else ''} {', '.join(map(str, not_drawn))}"
    twins = [
        twin
        for number, best in bests.items()
        for twin in twins_of(
            run,
            [step for step in steps if step.round == number],
            row_id=best.id,
            text=dialog_text(best.messages, best.completion),
        )
    ]
    messages = () if row is None else tuple(row.messages)
    return Life(prompt_id, "prompt", facts, messages, {}, tuple(lines), tuple(steps), tuple(twins))


def pair_life(pair_id: str, run: RunReader) -> Life:
    """A pair of two candidates: what they are, and whether DPO trained on it."""
    number, row = run.where("build_pairs", "pairs", PairRow, pair_id)
    compared = split_pair_id(pair_id)
    prompt_id = split_candidate_id(compared[0])[0]
    rows = candidates_in(run, number, prompt_id) if prompt_id else []
    facts = {"prompt": prompt_id if rows else "", "strength": row.strength or "not said", "reward gap": row.reward_gap}
    steps: list[Step] = []
    lines: list[CandidateLine] = []
    if rows:
        facts |= policy_facts(rows[0], run)
        steps = sampled_step(run, number, rows)
        lines = candidate_lines(run, number, rows, best_in(run, number, prompt_id))
    return Life(
        row.id,
        "pair",
        facts,
        tuple(row.messages),
        {"chosen": row.chosen, "rejected": row.rejected},
        tuple(replace(line, asked=line.id in compared) for line in lines),
        (*steps, *pair_steps(run, number, row.id, role="the pair")),
    )


def _best_steps(run: RunReader, number: int, best: SelectedRow | None) -> list[Step]:
    """What a round made of a prompt's best candidate, and of its pair."""
    if best is None:
        return []
    pair = pair_in(run, number, best.prompt_id)
    return [
        *step_of(run, number, "select", "best", f"{best.id}: {best_text(best)}", best_facts(best)),
        *prune_steps(run, number, best.id),
        *pair_steps(run, number, best.prompt_id, role="the pair", pair=pair),
    ]
