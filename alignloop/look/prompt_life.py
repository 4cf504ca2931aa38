"""The life of a prompt and its candidates: sampled, scored, picked, pruned, paired, compared, trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignloop.chat.reasoning import has_answer
from alignloop.look.life import CandidateLine, Life, Step, place
from alignloop.look.preference_life import reward_steps
from alignloop.look.pruning_steps import dialog_text, pair_steps, prune_steps, twins_of
from alignloop.records import CandidateRow, DroppedRow, PairRow, PreferenceRow, PromptRow, SelectedRow, VerdictRow
from alignloop.run_dir.reader import RunReader


def prompt_life(prompt_id: str, run: RunReader) -> Life:
    """What became of a prompt in every round that sampled for it."""
    row, steps = _read(prompt_id, run)
    lines: list[CandidateLine] = []
    not_drawn = []
    best_texts: dict[int, tuple[str, str]] = {}
    for number in (number for number in run.rounds if number):
        rows = _candidates(run, number, prompt_id)
        if not rows:
            steps += (dropped := _not_sampled(run, number, prompt_id))
            if not dropped and run.stage(number, "sample") is not None:
                not_drawn.append(number)
            steps += _compared_steps(run, number, prompt_id)
            continue
        steps += _compared_steps(run, number, prompt_id)
        found, best = _round_steps(run, number, rows)
        steps += found
        lines += _marked(run, number, rows, best)
        if best is not None:
            best_texts[number] = (best.id, dialog_text(best.messages[-1].content, best.completion))
    facts: dict[str, Any] = {} if row is None else {"source": place(row.source.file, row.source.line)}
    if row is not None and row.meta.get("topic"):
        facts["topic"] = row.meta["topic"]
    if not_drawn:
        facts["not drawn"] = f"in round{'s' if len(not_drawn) > 1 else ''} {', '.join(map(str, not_drawn))}"
    twins = [
        twin
        for number, (best_id, text) in best_texts.items()
        for twin in twins_of(run, [step for step in steps if step.round == number], row_id=best_id, text=text)
    ]
    messages = () if row is None else tuple(row.messages)
    return Life(prompt_id, "prompt", facts, messages, {}, tuple(lines), tuple(steps), tuple(twins))


def candidate_life(candidate_id: str, run: RunReader) -> Life:
    """What became of one candidate, among the K of its prompt."""
    number, rows = _of_candidate(candidate_id, run)
    row = next(row for row in rows if row.id == candidate_id)
    prompt, steps = _read(row.prompt_id, run)
    best = _selected(run, number, row.prompt_id)
    steps = [step for step in steps if step.verdict != "read"]
    steps += [_sampled(run, number, rows), *_place_among(run, number, rows, row, best)]
    if best is not None and best.id == candidate_id:
        steps += prune_steps(run, number, candidate_id)
    steps += _pair_of(run, number, row)
    steps += _compared_steps(run, number + 1, row.prompt_id, candidate=candidate_id)
    facts = _candidate_facts(row, prompt, run)
    lines = [replace(line, asked=line.id == candidate_id) for line in _marked(run, number, rows, best)]
    text = dialog_text(row.messages[-1].content, row.completion)
    twins = twins_of(run, steps, row_id=candidate_id, text=text)
    texts = {"completion": row.completion}
    return Life(candidate_id, "candidate", facts, tuple(row.messages), texts, tuple(lines), tuple(steps), twins)


def pair_life(pair_id: str, run: RunReader) -> Life:
    """A pair of two candidates: what they are, and whether DPO trained on it."""
    for number in run.rounds:
        for row in run.rows(number, "build_pairs", "pairs", PairRow, mark=pair_id):
            if row.id == pair_id:
                return _pair_life(row, number, run)
    raise AssertionError(f"{pair_id} was found, and is not there")


def _pair_life(row: PairRow, number: int, run: RunReader) -> Life:
    rows = _candidates(run, number, row.id.rpartition(">")[0].rpartition("/")[0].rpartition("/")[0])
    steps = [_sampled(run, number, rows)] if rows else []
    steps += pair_steps(run, number, row.id, role="the pair")
    chosen, _, rejected = row.id.rpartition(">")
    lines = [
        replace(line, asked=line.id in (chosen, f"{chosen.rpartition('/')[0]}/{rejected}"))
        for line in (_marked(run, number, rows, _selected(run, number, rows[0].prompt_id)) if rows else [])
    ]
    facts = {
        "prompt": rows[0].prompt_id if rows else "",
        "strength": row.strength or "not said",
        "reward gap": row.reward_gap,
        **(_policy_facts(rows[0], run) if rows else {}),
    }
    texts = {"chosen": row.chosen, "rejected": row.rejected}
    return Life(row.id, "pair", facts, tuple(row.messages), texts, tuple(lines), tuple(steps), ())


def _read(prompt_id: str, run: RunReader) -> tuple[PromptRow | None, list[Step]]:
    ingest = run.stage(0, "ingest")
    for number in run.rounds:
        for stage in ("ingest", "collect"):
            for row in run.rows(number, stage, "prompts", PromptRow, mark=prompt_id):
                if row.id == prompt_id:
                    found = run.stage(number, stage)
                    assert found is not None, "its rows were just read"
                    return row, [Step(number, found.dir.name, "read", "to sample for")]
    for drop in run.rows(0, "ingest", "dropped_prompts", DroppedRow, mark=prompt_id):
        if drop.id == prompt_id and ingest is not None:
            return None, [Step(0, ingest.dir.name, "dropped", f"by {drop.rule}: {drop.reason}", {"rule": drop.rule})]
    return None, []


def _candidates(run: RunReader, number: int, prompt_id: str) -> list[CandidateRow]:
    """A prompt's candidates of a round: with rewards where they are scored."""
    stage = "score" if run.files(number, "score", "candidates") else "sample"
    rows = run.rows(number, stage, "candidates", CandidateRow, mark=prompt_id)
    return [row for row in rows if row.prompt_id == prompt_id]


def _of_candidate(candidate_id: str, run: RunReader) -> tuple[int, list[CandidateRow]]:
    for number in run.rounds:
        for row in run.rows(number, "sample", "candidates", CandidateRow, mark=candidate_id):
            if row.id == candidate_id:
                return number, _candidates(run, number, row.prompt_id)
    raise AssertionError(f"{candidate_id} was found, and is not there")


def _selected(run: RunReader, number: int, prompt_id: str) -> SelectedRow | None:
    rows = run.rows(number, "select", "selected", SelectedRow, mark=prompt_id)
    return next((row for row in rows if row.prompt_id == prompt_id), None)


def reward_of(row: CandidateRow) -> float | None:
    """What the candidate goes by; None before it is scored."""
    return row.reward if row.total_reward is None else row.total_reward


def _not_sampled(run: RunReader, number: int, prompt_id: str) -> list[Step]:
    stage = run.stage(number, "sample")
    drops = run.rows(number, "sample", "dropped", DroppedRow, mark=prompt_id)
    return [
        Step(number, stage.dir.name, "dropped", f"by {drop.rule}: {drop.reason}", {"rule": drop.rule})
        for drop in drops
        if drop.id == prompt_id and stage is not None
    ]


def _policy_facts(row: CandidateRow, run: RunReader) -> dict[str, Any]:
    """The checkpoint that sampled it, by digest and folder."""
    stage = run.stage(row.round, "sample")
    policy = {} if stage is None else stage.manifest.inputs.get("policy") or {}
    return {"round": row.round, "policy": row.policy, "checkpoint": policy.get("path", "")}


def _candidate_facts(row: CandidateRow, prompt: PromptRow | None, run: RunReader) -> dict[str, Any]:
    facts: dict[str, Any] = {"prompt": row.prompt_id}
    if prompt is not None:
        facts["source"] = place(prompt.source.file, prompt.source.line)
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


def _sampled(run: RunReader, number: int, rows: list[CandidateRow]) -> Step:
    stage = run.stage(number, "sample")
    assert stage is not None, "its rows were just read"
    policy = stage.manifest.inputs.get("policy") or {}
    where = policy.get("path", "?")
    cut = sum(row.finish_reason == "length" for row in rows)
    ends = f", {cut} cut off" if cut else ""
    facts = {"policy": rows[0].policy, "checkpoint": where, "candidates": len(rows), "cut_off": cut}
    return Step(number, stage.dir.name, "sampled", f"{len(rows)} candidates{ends}; policy {where}", facts)


def _round_steps(run: RunReader, number: int, rows: list[CandidateRow]) -> tuple[list[Step], SelectedRow | None]:
    """What a round made of a prompt's candidates."""
    steps = [_sampled(run, number, rows)]
    best = _selected(run, number, rows[0].prompt_id)
    if best is None:
        return steps, None
    stage = run.stage(number, "select")
    assert stage is not None, "its row was just read"
    steps.append(Step(number, stage.dir.name, "best", f"{best.id}: {_best_text(best)}", _best_facts(best)))
    steps += prune_steps(run, number, best.id)
    steps += pair_steps(run, number, best.prompt_id, role="the pair", pair_id=f"{best.prompt_id}/{number}/")
    return steps, best


def _best_text(best: SelectedRow) -> str:
    return (
        f"reward {best.reward:.4g}, a random one's {best.random_reward:.4g}; {best.pass_rate:.0%} of "
        f"{len(best.rewards)} pass"
    )


def _best_facts(best: SelectedRow) -> dict[str, Any]:
    return {
        "best": best.id,
        "reward": best.reward,
        "random_reward": best.random_reward,
        "pass_rate": best.pass_rate,
        "rewards": best.rewards,
    }


def _place_among(
    run: RunReader, number: int, rows: list[CandidateRow], row: CandidateRow, best: SelectedRow | None
) -> list[Step]:
    """Whether a candidate is its prompt's best, and if not, how far it is from it."""
    stage, reward = run.stage(number, "select"), reward_of(row)
    if stage is None or best is None or reward is None:
        return []
    if best.id == row.id:
        return [Step(number, stage.dir.name, "best", _best_text(best), _best_facts(best))]
    rank = 1 + sum((reward_of(other) or 0.0) > reward for other in rows)
    why = ""
    if reward >= best.reward:
        why = "; it was cut off, and does not win over a finished one" if row.finish_reason == "length" else ""
        why = why or ("; it has no text" if not has_answer(row.completion) else "; the first of equals wins")
    text = f"reward {reward:.4g} is number {rank} of {len(rows)}; the best, {best.id}, has {best.reward:.4g}{why}"
    return [Step(number, stage.dir.name, "not best", text, {"best": best.id, "rank": rank})]


def _pair_of(run: RunReader, number: int, row: CandidateRow) -> list[Step]:
    """`build_pairs` and `train_dpo` for one candidate; the prompt's drop where there is no pair."""
    k = row.id.rpartition("/")[2]
    start = f"{row.prompt_id}/{number}/"
    for pair in run.rows(number, "build_pairs", "pairs", PairRow, mark=start):
        if pair.id.startswith(start):
            chosen, _, rejected = pair.id.removeprefix(start).partition(">")
            role = {chosen: "chosen", rejected: "rejected"}.get(k)
            if role is not None:
                return pair_steps(run, number, pair.id, role=role)
            stage = run.stage(number, "build_pairs")
            assert stage is not None, "its row was just read"
            return [Step(number, stage.dir.name, "no pair", f"the prompt's pair is {pair.id}", {"pair": pair.id})]
    return pair_steps(run, number, row.prompt_id, role="", pair_id=start)


def _marked(run: RunReader, number: int, rows: list[CandidateRow], best: SelectedRow | None) -> list[CandidateLine]:
    marks: dict[str, list[str]] = {}
    if best is not None:
        marks.setdefault(best.id, []).append("best")
    start = f"{rows[0].prompt_id}/{number}/"
    for pair in run.rows(number, "build_pairs", "pairs", PairRow, mark=start):
        if pair.id.startswith(start):
            chosen, _, rejected = pair.id.partition(">")
            marks.setdefault(chosen, []).append("chosen")
            marks.setdefault(start + rejected, []).append("rejected")
    return [
        CandidateLine(
            number, row.id, reward_of(row), row.finish_reason, row.completion, ", ".join(marks.get(row.id, []))
        )
        for row in rows
    ]


def _compared_steps(run: RunReader, number: int, prompt_id: str, *, candidate: str = "") -> list[Step]:
    """What annotators said in round `number` of candidates of the round before, and what trained on it."""
    stage = run.stage(number, "collect")
    if stage is None:
        return []
    mark = candidate or f"{prompt_id}/{number - 1}/"
    steps = []
    for verdict in run.rows(number, "collect", "verdicts", VerdictRow, mark=mark):
        of_candidate = candidate in (verdict.first, verdict.second)
        if (of_candidate if candidate else verdict.first.startswith(mark)) and verdict.winner in ("tie", "unreadable"):
            text = f"by {verdict.judge}: {verdict.winner} of {verdict.first} and {verdict.second}"
            steps.append(Step(number, stage.dir.name, "compared", text, {"verdict": verdict.id}))
    for row in run.rows(number, "collect", "preferences", PreferenceRow, mark=f"annotated/{prompt_id}/"):
        said = _said_of(row, prompt_id, number - 1, candidate)
        if said:
            strength = f", {row.strength}" if row.strength else ""
            edited = ", and edited it" if row.edited else ""
            facts = {"preference": row.id, "strength": row.strength, "annotator": row.annotator}
            text = f"by {row.annotator}: {said}{strength}{edited}"
            steps.append(Step(number, stage.dir.name, "compared", text, facts))
            steps += _of_annotation(run, row)
    return steps


def _said_of(row: PreferenceRow, prompt_id: str, number: int, candidate: str) -> str:
    """In words, what an annotation says; empty where it is of other candidates."""
    start = f"annotated/{prompt_id}/{number}/"
    chosen, _, rejected = row.id.removeprefix(start).partition(f"/{prompt_id}/{number}/")
    if not row.id.startswith(start) or not rejected:
        return ""
    one, other = f"{prompt_id}/{number}/{chosen}", f"{prompt_id}/{number}/{rejected}"
    if candidate == one:
        return f"chosen over {other}"
    if candidate == other:
        return f"rejected for {one}"
    return "" if candidate else f"{one} chosen over {other}"


def _of_annotation(run: RunReader, row: PreferenceRow) -> list[Step]:
    """Where an annotated preference trained: reward models from its round on, SFT and DPO in it."""
    steps: list[Step] = []
    batches = [
        number
        for number in run.rounds
        if any(other.id == row.id for other in run.rows(number, "collect", "preferences", PreferenceRow, mark=row.id))
    ]
    for number in run.rounds:
        steps += _through(row, reward_steps(run, number, row, batches))
    for number in batches:
        steps += _through(row, prune_steps(run, number, row.id))
        steps += _through(row, pair_steps(run, number, row.id, role="the pair"))
    return sorted(steps, key=lambda step: (step.round, step.stage))


def _through(row: PreferenceRow, steps: list[Step]) -> list[Step]:
    """Steps of an annotation, told of a candidate that it compares."""
    return [
        replace(step, text=f"{step.text}, by that comparison", facts={**step.facts, "row": row.id}) for step in steps
    ]
