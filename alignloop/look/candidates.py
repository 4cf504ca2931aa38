"""A prompt, its candidates of a round and their best, as the run's files have them."""

from __future__ import annotations

from typing import Any

from alignloop.look.life import CandidateLine, Step
from alignloop.look.steps import dropped_step, step_of
from alignloop.records import (
    CandidateRow,
    PairRow,
    PromptRow,
    SelectedRow,
    candidates_of,
    split_pair_id,
)
from alignloop.run_dir.reader import RunReader


def read_prompt(prompt_id: str, run: RunReader) -> tuple[PromptRow | None, list[Step]]:
    for number in run.rounds:
        for stage in ("ingest", "collect"):
            if row := run.row(number, stage, "prompts", PromptRow, prompt_id):
                return row, step_of(run, number, stage, "read", "to sample for")
    return None, dropped_step(run, 0, "ingest", prompt_id, output="dropped_prompts")


def candidates_in(run: RunReader, number: int, prompt_id: str) -> list[CandidateRow]:
    """A prompt's candidates of a round: with rewards where they are scored."""
    stage = "score" if run.files(number, "score", "candidates") else "sample"
    rows = run.rows(number, stage, "candidates", CandidateRow, mark=prompt_id)
    return [row for row in rows if row.prompt_id == prompt_id]


def best_in(run: RunReader, number: int, prompt_id: str) -> SelectedRow | None:
    rows = run.rows(number, "select", "selected", SelectedRow, mark=prompt_id)
    return next((row for row in rows if row.prompt_id == prompt_id), None)


def pair_in(run: RunReader, number: int, prompt_id: str) -> PairRow | None:
    """The pair of two of a prompt's candidates of a round."""
    start = candidates_of(prompt_id, round=number)
    rows = run.rows(number, "build_pairs", "pairs", PairRow, mark=start)
    return next((row for row in rows if row.id.startswith(start)), None)


def reward_of(row: CandidateRow) -> float | None:
    return row.reward if row.total_reward is None else row.total_reward


def _policy_path(run: RunReader, number: int) -> str | None:
    """The checkpoint that sampled in a round."""
    stage = run.stage(number, "sample")
    policy = {} if stage is None else stage.manifest.inputs.get("policy") or {}
    return policy.get("path")


def policy_facts(row: CandidateRow, run: RunReader) -> dict[str, Any]:
    return {"round": row.round, "policy": row.policy, "checkpoint": _policy_path(run, row.round) or ""}


def sampled_step(run: RunReader, number: int, rows: list[CandidateRow]) -> list[Step]:
    checkpoint = _policy_path(run, number) or "?"
    cut = sum(row.finish_reason == "length" for row in rows)
    ends = f", {cut} cut off" if cut else ""
    facts = {"policy": rows[0].policy, "checkpoint": checkpoint, "candidates": len(rows), "cut_off": cut}
    return step_of(run, number, "sample", "sampled", f"{len(rows)} candidates{ends}; policy {checkpoint}", facts)


def best_text(best: SelectedRow) -> str:
    rewards = f"reward {best.reward:.4g}, a random one's {best.random_reward:.4g}"
    return f"{rewards}; {best.pass_rate:.0%} of {len(best.rewards)} pass"


def best_facts(best: SelectedRow) -> dict[str, Any]:
    return {
        "best": best.id,
        **best.model_dump(include={"reward", "random_reward", "pass_rate"}),
        "rewards": best.rewards,
    }


def candidate_lines(
    run: RunReader, number: int, rows: list[CandidateRow], best: SelectedRow | None
) -> list[CandidateLine]:
    pair = pair_in(run, number, rows[0].prompt_id)
    chosen, rejected = ("", "") if pair is None else split_pair_id(pair.id)
    taken = {"best": "" if best is None else best.id, "chosen": chosen, "rejected": rejected}
    return [
        CandidateLine(
            number,
            row.id,
            reward_of(row),
            row.finish_reason,
            row.completion,
            mark=", ".join(mark for mark, row_id in taken.items() if row_id == row.id),
        )
        for row in rows
    ]
