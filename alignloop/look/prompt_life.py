"""The life of a prompt and its candidates: sampled, scored, picked, pruned, paired, compared, trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignloop.chat.reasoning import has_answer
from alignloop.look.preference_life import batches_of
from alignloop.look.steps import (
    CandidateLine,
    Life,
    Step,
    dialog_text,
    dropped_step,
    pair_steps,
    prune_steps,
    reward_steps,
    step_of,
    twins_of,
)
from alignloop.records import (
    CandidateRow,
    PairRow,
    PreferenceRow,
    PromptRow,
    SelectedRow,
    VerdictRow,
    candidates_of,
    split_annotation_id,
    split_candidate_id,
    split_pair_id,
)
from alignloop.run_dir.reader import RunReader


def prompt_life(prompt_id: str, run: RunReader) -> Life:
    """What became of a prompt in every round that sampled for it."""
    row, steps = _read(prompt_id, run)
    lines: list[CandidateLine] = []
    not_drawn = []
    bests: dict[int, SelectedRow] = {}
    for number in (number for number in run.rounds if number):
        rows, compared = _candidates(run, number, prompt_id), _compared_steps(run, number, prompt_id)
        if not rows:
            dropped = dropped_step(run, number, "sample", prompt_id)
            if not dropped and run.stage(number, "sample") is not None:
                not_drawn.append(number)
            steps += [*dropped, *compared]
            continue
        best = _selected(run, number, prompt_id)
        steps += [*compared, *_sampled(run, number, rows), *_best_steps(run, number, best)]
        lines += _marked(run, number, rows, best)
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


def candidate_life(candidate_id: str, run: RunReader) -> Life:
    """What became of one candidate, among the K of its prompt."""
    number, row = run.where("sample", "candidates", CandidateRow, candidate_id)
    rows = _candidates(run, number, row.prompt_id)
    row = next(scored for scored in rows if scored.id == candidate_id)
    prompt, steps = _read(row.prompt_id, run)
    best = _selected(run, number, row.prompt_id)
    steps = [step for step in steps if step.verdict != "read"]
    steps += [*_sampled(run, number, rows), *_rank_steps(run, number, rows, row, best)]
    if best is not None and best.id == candidate_id:
        steps += prune_steps(run, number, candidate_id)
    steps += _pair_steps(run, number, row)
    steps += _compared_steps(run, number + 1, row.prompt_id, candidate=candidate_id)
    lines = [replace(line, asked=line.id == candidate_id) for line in _marked(run, number, rows, best)]
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


def pair_life(pair_id: str, run: RunReader) -> Life:
    """A pair of two candidates: what they are, and whether DPO trained on it."""
    number, row = run.where("build_pairs", "pairs", PairRow, pair_id)
    compared = split_pair_id(pair_id)
    prompt_id = split_candidate_id(compared[0])[0]
    rows = _candidates(run, number, prompt_id) if prompt_id else []
    facts = {"prompt": prompt_id if rows else "", "strength": row.strength or "not said", "reward gap": row.reward_gap}
    steps: list[Step] = []
    lines: list[CandidateLine] = []
    if rows:
        facts |= _policy_facts(rows[0], run)
        steps = _sampled(run, number, rows)
        lines = _marked(run, number, rows, _selected(run, number, prompt_id))
    return Life(
        row.id,
        "pair",
        facts,
        tuple(row.messages),
        {"chosen": row.chosen, "rejected": row.rejected},
        tuple(replace(line, asked=line.id in compared) for line in lines),
        (*steps, *pair_steps(run, number, row.id, role="the pair")),
    )


def _read(prompt_id: str, run: RunReader) -> tuple[PromptRow | None, list[Step]]:
    for number in run.rounds:
        for stage in ("ingest", "collect"):
            if row := run.row(number, stage, "prompts", PromptRow, prompt_id):
                return row, step_of(run, number, stage, "read", "to sample for")
    return None, dropped_step(run, 0, "ingest", prompt_id, output="dropped_prompts")


def _candidates(run: RunReader, number: int, prompt_id: str) -> list[CandidateRow]:
    """A prompt's candidates of a round: with rewards where they are scored."""
    stage = "score" if run.files(number, "score", "candidates") else "sample"
    rows = run.rows(number, stage, "candidates", CandidateRow, mark=prompt_id)
    return [row for row in rows if row.prompt_id == prompt_id]


def _selected(run: RunReader, number: int, prompt_id: str) -> SelectedRow | None:
    rows = run.rows(number, "select", "selected", SelectedRow, mark=prompt_id)
    return next((row for row in rows if row.prompt_id == prompt_id), None)


def _pair(run: RunReader, number: int, prompt_id: str) -> PairRow | None:
    """The pair of two of a prompt's candidates of a round."""
    start = candidates_of(prompt_id, round=number)
    rows = run.rows(number, "build_pairs", "pairs", PairRow, mark=start)
    return next((row for row in rows if row.id.startswith(start)), None)


def _reward(row: CandidateRow) -> float | None:
    return row.reward if row.total_reward is None else row.total_reward


def _policy_path(run: RunReader, number: int) -> str | None:
    """The checkpoint that sampled in a round."""
    stage = run.stage(number, "sample")
    policy = {} if stage is None else stage.manifest.inputs.get("policy") or {}
    return policy.get("path")


def _policy_facts(row: CandidateRow, run: RunReader) -> dict[str, Any]:
    return {"round": row.round, "policy": row.policy, "checkpoint": _policy_path(run, row.round) or ""}


def _candidate_facts(row: CandidateRow, prompt: PromptRow | None, run: RunReader) -> dict[str, Any]:
    facts: dict[str, Any] = {"prompt": row.prompt_id}
    if prompt is not None:
        facts["source"] = str(prompt.source)
    facts |= _policy_facts(row, run)
    steering = {"temperature": row.temperature, "top_p": row.top_p, "system_prompt": row.system_prompt}
    facts |= {name: value for name, value in steering.items() if value is not None}
    facts["finish_reason"] = row.finish_reason
    if row.reward is not None:
        facts["reward"] = row.reward
    facts |= {f"reward {name}": value for name, value in row.extra_rewards.items()}
    if row.extra_rewards and row.total_reward is not None:
        facts["total reward"] = row.total_reward
    return facts


def _sampled(run: RunReader, number: int, rows: list[CandidateRow]) -> list[Step]:
    checkpoint = _policy_path(run, number) or "?"
    cut = sum(row.finish_reason == "length" for row in rows)
    ends = f", {cut} cut off" if cut else ""
    facts = {"policy": rows[0].policy, "checkpoint": checkpoint, "candidates": len(rows), "cut_off": cut}
    return step_of(run, number, "sample", "sampled", f"{len(rows)} candidates{ends}; policy {checkpoint}", facts)


def _best_steps(run: RunReader, number: int, best: SelectedRow | None) -> list[Step]:
    """What a round made of a prompt's best candidate, and of its pair."""
    if best is None:
        return []
    pair = _pair(run, number, best.prompt_id)
    return [
        *step_of(run, number, "select", "best", f"{best.id}: {_best_text(best)}", _best_facts(best)),
        *prune_steps(run, number, best.id),
        *pair_steps(run, number, best.prompt_id, role="the pair", pair=pair),
    ]


def _best_text(best: SelectedRow) -> str:
    rewards = f"reward {best.reward:.4g}, a random one's {best.random_reward:.4g}"
    return f"{rewards}; {best.pass_rate:.0%} of {len(best.rewards)} pass"


def _best_facts(best: SelectedRow) -> dict[str, Any]:
    return {
        "best": best.id,
        **best.model_dump(include={"reward", "random_reward", "pass_rate"}),
        "rewards": best.rewards,
    }


def _rank_steps(
    run: RunReader, number: int, rows: list[CandidateRow], row: CandidateRow, best: SelectedRow | None
) -> list[Step]:
    """Whether a candidate is its prompt's best, and if not, how far it is from it."""
    reward = _reward(row)
    if best is None or reward is None:
        return []
    if best.id == row.id:
        return step_of(run, number, "select", "best", _best_text(best), _best_facts(best))
    rank = 1 + sum((_reward(other) or 0.0) > reward for other in rows)
    why = ""
    if reward >= best.reward:
        why = "; it was cut off, and does not win over a finished one" if row.finish_reason == "length" else ""
        why = why or ("; it has no text" if not has_answer(row.completion) else "; the first of equals wins")
    text = f"reward {reward:.4g} is number {rank} of {len(rows)}; the best, {best.id}, has {best.reward:.4g}{why}"
    return step_of(run, number, "select", "not best", text, {"best": best.id, "rank": rank})


def _pair_steps(run: RunReader, number: int, row: CandidateRow) -> list[Step]:
    """`build_pairs` and `train_dpo` for one candidate; the prompt's drop where there is no pair."""
    pair = _pair(run, number, row.prompt_id)
    if pair is None:
        return pair_steps(run, number, row.prompt_id, role="")
    role = dict(zip(split_pair_id(pair.id), ("chosen", "rejected"), strict=True)).get(row.id)
    if role is not None:
        return pair_steps(run, number, pair.id, role=role, pair=pair)
    return step_of(run, number, "build_pairs", "no pair", f"the prompt's pair is {pair.id}", {"pair": pair.id})


def _marked(run: RunReader, number: int, rows: list[CandidateRow], best: SelectedRow | None) -> list[CandidateLine]:
    pair = _pair(run, number, rows[0].prompt_id)
    chosen, rejected = ("", "") if pair is None else split_pair_id(pair.id)
    taken = {"best": "" if best is None else best.id, "chosen": chosen, "rejected": rejected}
    return [
        CandidateLine(
            number,
            row.id,
            _reward(row),
            row.finish_reason,
            row.completion,
            mark=", ".join(mark for mark, row_id in taken.items() if row_id == row.id),
        )
        for row in rows
    ]


def _compared_steps(run: RunReader, number: int, prompt_id: str, *, candidate: str = "") -> list[Step]:
    """What annotators said in round `number` of candidates of the round before, and what trained on it."""
    start = candidates_of(prompt_id, round=number - 1)
    steps = []
    for verdict in run.rows(number, "collect", "verdicts", VerdictRow, mark=candidate or start):
        is_of = candidate in (verdict.first, verdict.second) if candidate else verdict.first.startswith(start)
        if is_of and verdict.winner in ("tie", "unreadable"):
            text = f"by {verdict.judge}: {verdict.winner} of {verdict.first} and {verdict.second}"
            steps += step_of(run, number, "collect", "compared", text, {"verdict": verdict.id})
    for row in run.rows(number, "collect", "preferences", PreferenceRow, mark=start):
        if compared := _comparison_text(row, start, candidate):
            strength = f", {row.strength}" if row.strength else ""
            edited = ", and edited it" if row.edited else ""
            facts = {"preference": row.id, "strength": row.strength, "annotator": row.annotator}
            text = f"by {row.annotator}: {compared}{strength}{edited}"
            steps += [*step_of(run, number, "collect", "compared", text, facts), *_of_annotation(run, row)]
    return steps


def _comparison_text(row: PreferenceRow, start: str, candidate: str) -> str:
    """In words, what an annotation says; empty where it is of other candidates."""
    chosen, rejected = split_annotation_id(row.id)
    if not chosen.startswith(start):
        return ""
    if candidate == chosen:
        return f"chosen over {rejected}"
    if candidate == rejected:
        return f"rejected for {chosen}"
    return "" if candidate else f"{chosen} chosen over {rejected}"


def _of_annotation(run: RunReader, row: PreferenceRow) -> list[Step]:
    """Where an annotated preference trained: reward models from its round on, SFT and DPO in it."""
    batches = batches_of(row.id, run)
    steps = [step for number in run.rounds for step in reward_steps(run, number, row.id, batches)]
    for number in batches:
        steps += [*prune_steps(run, number, row.id), *pair_steps(run, number, row.id, role="the pair")]
    by_it = [
        replace(step, text=f"{step.text}, by that comparison", facts={**step.facts, "row": row.id}) for step in steps
    ]
    return sorted(by_it, key=lambda step: (step.round, step.stage))
