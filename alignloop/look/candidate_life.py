"""The life of a candidate among the K of its prompt: sampled, scored, picked or not, paired, compared, trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignloop.chat.reasoning import has_answer
from alignloop.look.candidates import (
    best_facts,
    best_in,
    best_text,
    candidate_lines,
    candidates_in,
    pair_in,
    policy_facts,
    read_prompt,
    reward_of,
    sampled_step,
)
from alignloop.look.comparison_steps import compared_steps
from alignloop.look.life import Life, Step
from alignloop.look.steps import dialog_text, pair_steps, prune_steps, step_of, twins_of
from alignloop.records import (
    CandidateRow,
    PromptRow,
    SelectedRow,
    split_pair_id,
)
from alignloop.run_dir.reader import RunReader


def candidate_life(candidate_id: str, run: RunReader) -> Life:
    """What became of one candidate, among the K of its prompt."""
    number, row = run.where("sample", "candidates", CandidateRow, candidate_id)
    rows = candidates_in(run, number, row.prompt_id)
    row = next(scored for scored in rows if scored.id == candidate_id)
    prompt, steps = read_prompt(row.prompt_id, run)
    best = best_in(run, number, row.prompt_id)
    steps = [step for step in steps if step.verdict != "read"]
    steps += [*sampled_step(run, number, rows), *_rank_steps(run, number, rows, row, best)]
    if best is not None and best.id == candidate_id:
        steps += prune_steps(run, number, candidate_id)
    steps += _pair_steps(run, number, row)
    steps += compared_steps(run, number + 1, row.prompt_id, candidate=candidate_id)
    lines = [replace(line, asked=line.id == candidate_id) for line in candidate_lines(run, number, rows, best)]
    text = dialog_text(row.messages, row.completion)
    return Life(
        candidate_id,
        "candidate",
        _candidate_facts(row, prompt, run),
        tuple(row.messages),
        {"completion": row.completion},
        tuple(lines),
        tuple(steps),
        twins_of(run, steps, row_id=candidate_id, text=text),
    )


def _candidate_facts(row: CandidateRow, prompt: PromptRow | None, run: RunReader) -> dict[str, Any]:
    facts: dict[str, Any] = {"prompt": row.prompt_id}
    if prompt is not None:
        facts["source"] = str(prompt.source)
    facts |= policy_facts(row, run)
    steering = {"temperature": row.temperature, "top_p": row.top_p, "system_prompt": row.system_prompt}
    facts |= {name: value for name, value in steering.items() if value is not None}
    facts["finish_reason"] = row.finish_reason
    if row.reward is not None:
        facts["reward"] = row.reward
    facts |= {f"reward {name}": value for name, value in row.extra_rewards.items()}
    if row.extra_rewards and row.total_reward is not None:
        facts["total reward"] = row.total_reward
    return facts


def _rank_steps(
    run: RunReader, number: int, rows: list[CandidateRow], row: CandidateRow, best: SelectedRow | None
) -> list[Step]:
    """Whether a candidate is its prompt's best, and if not, how far it is from it."""
    reward = reward_of(row)
    if best is None or reward is None:
        return []
    if best.id == row.id:
        return step_of(run, number, "select", "best", best_text(best), best_facts(best))
    rank = 1 + sum((reward_of(other) or 0.0) > reward for other in rows)
    why = ""
    if reward >= best.reward:
        why = "; it was cut off, and does not win over a finished one" if row.finish_reason == "length" else ""
        why = why or ("; it has no text" if not has_answer(row.completion) else "; the first of equals wins")
    text = f"reward {reward:.4g} is number {rank} of {len(rows)}; the best, {best.id}, has {best.reward:.4g}{why}"
    return step_of(run, number, "select", "not best", text, {"best": best.id, "rank": rank})


def _pair_steps(run: RunReader, number: int, row: CandidateRow) -> list[Step]:
    """`build_pairs` and `train_dpo` for one candidate; the prompt's drop where there is no pair."""
    pair = pair_in(run, number, row.prompt_id)
    if pair is None:
        return pair_steps(run, number, row.prompt_id, role="")
    role = dict(zip(split_pair_id(pair.id), ("chosen", "rejected"), strict=True)).get(row.id)
    if role is not None:
        return pair_steps(run, number, pair.id, role=role, pair=pair)
    return step_of(run, number, "build_pairs", "no pair", f"the prompt's pair is {pair.id}", {"pair": pair.id})
