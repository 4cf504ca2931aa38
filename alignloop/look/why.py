"""A row's life: every step a run's files tell of it, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignloop.chat.reasoning import has_answer
from alignloop.look.find import find
from alignloop.look.life import CandidateLine, Life, Step, TwinPair
from alignloop.look.steps import RoundTrace, batches_of, dialog_text, reward_of, twins_of
from alignloop.records import (
    CandidateRow,
    PairRow,
    PreferenceRow,
    PromptRow,
    RejectedRow,
    SelectedRow,
    SftRow,
    Source,
    VerdictRow,
    annotation_id,
    split_candidate_id,
    split_pair_id,
)
from alignloop.run_dir.layout import stage_folder
from alignloop.run_dir.reader import RunReader

HELDOUT_TEXT = "the reward model's accuracy is measured on it; nothing trains on it"


def lives_of(row_id: str, run_dir: Path) -> list[Life]:
    """The life of the row that `row_id` names; several where one id or one line stands for several rows.

    `row_id` is the id of a prompt, candidate, preference, demonstration, pair or verdict, or the beginning of one that
    no other has; or FILE:LINE of an input file. UserError: no such row, or several begin so; no run lies in `run_dir`.
    """
    run = RunReader(run_dir)
    of_kind = {
        "prompt": _prompt_life,
        "candidate": _candidate_life,
        "pair": _pair_life,
        "preference": _preference_life,
        "demonstration": _demonstration_life,
        "verdict": _verdict_life,
    }
    return [
        _rejected_life(found.id, found.rejected) if found.rejected else of_kind[found.kind](found.id, run)
        for found in find(row_id, run)
    ]


def _rejected_life(row_id: str, row: RejectedRow) -> Life:
    where = f"field {row.field}: " if row.field else ""
    facts = {"field": row.field, "reason": row.reason}
    step = Step(0, stage_folder(1, "ingest"), "rejected", f"{where}{row.reason}", facts)
    source = str(Source(file=row.file, line=row.line))
    texts = {"as found": row.text} if row.text else {}
    return Life(row_id, "rejected row", {"source": source}, texts=texts, steps=(step,))


def _prompt_life(prompt_id: str, run: RunReader) -> Life:
    row, steps = _read_prompt(prompt_id, run)
    lines: list[CandidateLine] = []
    twins: list[TwinPair] = []
    not_drawn: list[str] = []
    for number in (number for number in run.rounds if number):
        trace = RoundTrace(run, number)
        rows, in_round = trace.candidates(prompt_id), trace.compared(prompt_id)
        if not rows:
            dropped = trace.dropped("sample", prompt_id)
            if not dropped and trace.has("sample"):
                not_drawn.append(str(number))
            steps += [*dropped, *in_round]
            continue
        best = trace.best(prompt_id)
        in_round += trace.sampled(rows)
        lines += trace.lines(rows, best)
        if best is not None:
            in_round += [*trace.picked(best, name=f"{best.id}: "), *trace.pruned(best.id)]
            twins += twins_of(run, in_round, row_id=best.id, text=dialog_text(best.messages, best.completion))
        pairs = trace.pairs_of(prompt_id)
        for pair in pairs:
            in_round += trace.paired(prompt_id, role="the pair", pair=pair)
        in_round += [] if pairs else trace.paired(prompt_id, role="the pair")
        steps += in_round
    facts: dict[str, Any] = {} if row is None else {"source": str(row.source)}
    if row is not None and row.meta.get("topic"):
        facts["topic"] = row.meta["topic"]
    if not_drawn:
        facts["not drawn"] = f"in round{'s' if len(not_drawn) > 1 else ''} {', '.join(not_drawn)}"
    messages = () if row is None else tuple(row.messages)
    return Life(prompt_id, "prompt", facts, messages, {}, tuple(lines), tuple(steps), tuple(twins))


def _read_prompt(prompt_id: str, run: RunReader) -> tuple[PromptRow | None, list[Step]]:
    for number in run.rounds:
        trace = RoundTrace(run, number)
        for stage in ("ingest", "collect"):
            if row := trace.row(stage, "prompts", PromptRow, prompt_id):
                return row, trace.step(stage, "read", "to sample for")
    return None, RoundTrace(run, 0).dropped("ingest", prompt_id, output="dropped_prompts")


def _pair_life(pair_id: str, run: RunReader) -> Life:
    number, row = run.where("build_pairs", "pairs", PairRow, pair_id)
    trace = RoundTrace(run, number)
    compared = split_pair_id(pair_id)
    prompt_id = split_candidate_id(compared[0])[0]
    rows = trace.candidates(prompt_id) if prompt_id else []
    facts = {"prompt": prompt_id if rows else "", "strength": row.strength or "not said", "reward gap": row.reward_gap}
    steps: list[Step] = []
    lines: list[CandidateLine] = []
    if rows:
        facts |= trace.policy_facts(rows[0])
        steps = trace.sampled(rows)
        lines = trace.lines(rows, trace.best(prompt_id))
    return Life(
        row.id,
        "pair",
        facts,
        tuple(row.messages),
        {"chosen": row.chosen, "rejected": row.rejected},
        tuple(replace(line, asked=line.id in compared) for line in lines),
        (*steps, *trace.paired(row.id, role="the pair")),
    )


def _candidate_life(candidate_id: str, run: RunReader) -> Life:
    if other := _of_another_model(candidate_id, run):
        return other
    number, row = run.where("sample", "candidates", CandidateRow, candidate_id)
    trace = RoundTrace(run, number)
    rows = trace.candidates(row.prompt_id)
    row = next(scored for scored in rows if scored.id == candidate_id)
    prompt, read = _read_prompt(row.prompt_id, run)
    best = trace.best(row.prompt_id)
    steps = [step for step in read if step.verdict != "read"]
    steps += [*trace.sampled(rows), *_rank_steps(trace, rows, row, best)]
    if best is not None and best.id == candidate_id:
        steps += trace.pruned(candidate_id)
    steps += _pair_steps(trace, row)
    steps += RoundTrace(run, number + 1).compared(row.prompt_id, candidate=candidate_id)
    return Life(
        candidate_id,
        "candidate",
        _candidate_facts(row, prompt, trace),
        tuple(row.messages),
        {"completion": row.completion},
        tuple(replace(line, asked=line.id == candidate_id) for line in trace.lines(rows, best)),
        tuple(steps),
        twins_of(run, steps, row_id=candidate_id, text=dialog_text(row.messages, row.completion)),
    )


def _of_another_model(candidate_id: str, run: RunReader) -> Life | None:
    """A candidate that was sampled to be annotated beside the policy's; None where it is one of those."""
    for number in run.rounds:
        trace = RoundTrace(run, number)
        row = trace.row("sample", "other_candidates", CandidateRow, candidate_id)
        if row is not None:
            prompt, _ = _read_prompt(row.prompt_id, run)
            compared = RoundTrace(run, number + 1).compared(row.prompt_id, candidate=candidate_id)
            return Life(
                candidate_id,
                "candidate",
                _candidate_facts(row, prompt, trace),
                tuple(row.messages),
                {"completion": row.completion},
                steps=(*trace.answered(row), *compared),
            )
    return None


def _candidate_facts(row: CandidateRow, prompt: PromptRow | None, trace: RoundTrace) -> dict[str, Any]:
    facts: dict[str, Any] = {"prompt": row.prompt_id}
    if prompt is not None:
        facts["source"] = str(prompt.source)
    facts |= trace.policy_facts(row)
    steering = {"temperature": row.temperature, "top_p": row.top_p, "system_prompt": row.system_prompt}
    facts |= {name: value for name, value in steering.items() if value is not None}
    facts["finish_reason"] = row.finish_reason
    if row.reward is not None:
        facts["reward"] = row.reward
    if row.member_rewards:
        facts["rewards by member"] = ", ".join(f"{reward:.4g}" for reward in row.member_rewards)
        facts["their spread"] = row.reward_spread
    facts |= {f"reward {name}": value for name, value in row.extra_rewards.items()}
    if row.total_reward not in (None, row.reward):
        facts["total reward"] = row.total_reward
    if row.failed_gates:
        facts["fails the gate of"] = ", ".join(row.failed_gates)
    return facts


def _rank_steps(
    trace: RoundTrace, rows: Sequence[CandidateRow], row: CandidateRow, best: SelectedRow | None
) -> list[Step]:
    """Whether a candidate is its prompt's best, and if not, how far it is from it."""
    reward = reward_of(row)
    if best is None or reward is None:
        return []
    if best.id == row.id:
        return trace.picked(best)
    order = (-len(row.failed_gates), reward)
    rank = 1 + sum((-len(other.failed_gates), reward_of(other) or 0.0) > order for other in rows)
    if trace.picks_at_random:
        text = f"reward {reward:.4g} is number {rank} of {len(rows)}; picked at random is {best.id}"
        return trace.step("select", "not picked", text, {"picked": best.id, "rank": rank})
    why = ""
    if len(row.failed_gates) > len(best.failed_gates):
        why = f"; it fails the gate of {', '.join(row.failed_gates)}"
    elif reward >= best.reward:
        why = "; it was cut off, and does not win over a finished one" if row.finish_reason == "length" else ""
        why = why or ("; it has no text" if not has_answer(row.completion) else "; the first of equals wins")
    text = f"reward {reward:.4g} is number {rank} of {len(rows)}; the best, {best.id}, has {best.reward:.4g}{why}"
    return trace.step("select", "not best", text, {"best": best.id, "rank": rank})


def _pair_steps(trace: RoundTrace, row: CandidateRow) -> list[Step]:
    """`build_pairs` and `train_dpo` for one candidate; the prompt's drop where there is no pair."""
    pairs = trace.pairs_of(row.prompt_id)
    if not pairs:
        return trace.paired(row.prompt_id, role="")
    for pair in pairs:
        role = dict(zip(split_pair_id(pair.id), ("chosen", "rejected"), strict=True)).get(row.id)
        if role is not None:
            return trace.paired(pair.id, role=role, pair=pair)
    ids = [pair.id for pair in pairs]
    of_prompt = f"pair is {ids[0]}" if len(ids) == 1 else f"pairs are {', '.join(ids)}"
    return trace.step("build_pairs", "no pair", f"the prompt's {of_prompt}", {"pair": ids[0]})


def _preference_life(row_id: str, run: RunReader) -> Life:
    """What a run made of a row of the user's, or of one that an annotator made."""
    row, steps = _read_preference(row_id, run)
    batches = batches_of(row_id, run)
    for number in run.rounds:
        trace = RoundTrace(run, number)
        if number and trace.has("collect"):
            steps += _round_steps(trace, row_id, row, batches)
    if row is None:
        return Life(row_id, "preference", {}, steps=tuple(steps), twins=twins_of(run, steps, row_id=row_id, text=""))
    facts = {"source": str(row.source), "annotator": row.annotator, "strength": row.strength or "not said"}
    if row.meta.get("topic"):
        facts["topic"] = row.meta["topic"]
    texts = {"edited": row.edited or "", "chosen": row.chosen, "rejected": row.rejected}
    return Life(
        row_id,
        "preference",
        facts,
        tuple(row.messages),
        {name: text for name, text in texts.items() if text},
        steps=tuple(steps),
        twins=twins_of(run, steps, row_id=row_id, text=dialog_text(row.messages, row.best)),
    )


def _read_preference(row_id: str, run: RunReader) -> tuple[PreferenceRow | None, list[Step]]:
    """The row, and what reading made of it: to train on, held out, or left to its round's file."""
    base = RoundTrace(run, 0)
    if row := base.row("ingest", "preferences", PreferenceRow, row_id):
        read = base.step("ingest", "read", "to train on")
        return row, [*read, *base.trained("bootstrap", row_id, role="SFT target")]
    if row := base.row("ingest", "heldout", PreferenceRow, row_id):
        return row, base.step("ingest", "held out", HELDOUT_TEXT)
    collected = (run.row(number, "collect", "preferences", PreferenceRow, row_id) for number in run.rounds)
    row = next((row for row in collected if row is not None), None)
    return row, base.dropped("ingest", row_id) if row is None else []


def _round_steps(trace: RoundTrace, row_id: str, row: PreferenceRow | None, batches: Sequence[int]) -> list[Step]:
    if row is None:
        return trace.dropped("collect", row_id)
    in_batch = trace.number in batches
    if not in_batch:
        steps = trace.dropped("collect", row_id)
    elif row.source.is_round:
        steps = trace.step("collect", "compared", f"compared by {row.annotator}")
    else:
        steps = trace.step("collect", "in batch", "in the round's batch")
    steps += trace.ranked(row_id, batches)
    if in_batch:
        steps += trace.pruned(row_id) or _not_drawn(trace)
    # The rounds whose batches this round's pairs come from.
    stage = trace.run.stage(trace.number, "build_pairs")
    width = 1 if stage is None else len(stage.manifest.inputs.get("preferences") or [1])
    if any(trace.number - width < batch <= trace.number for batch in batches):
        steps += trace.paired(row_id, role="the pair")
    return steps


def _not_drawn(trace: RoundTrace) -> list[Step]:
    stage = trace.run.stage(trace.number, "prune")
    wanted = None if stage is None else stage.manifest.config.get("human_rows")
    text = f"for SFT: prune.human_rows draws {wanted} of the batch" if wanted is not None else "for SFT"
    return trace.step("prune", "not drawn", text)


def _demonstration_life(row_id: str, run: RunReader) -> Life:
    """What a run made of a row of `sft.data`; rounds that drew another share of them say nothing."""
    base = RoundTrace(run, 0)
    row = base.row("ingest", "demonstrations", SftRow, row_id)
    if row is None:
        steps = base.dropped("ingest", row_id, output="dropped_demonstrations", with_reason=True)
        return Life(row_id, "demonstration", {}, steps=tuple(steps))
    steps = base.step("ingest", "read", "to fine-tune on")
    for number in run.rounds:
        steps += RoundTrace(run, number).pruned(row_id) if number else []
    facts: dict[str, Any] = {"source": str(row.source)}
    if row.meta.get("topic"):
        facts["topic"] = row.meta["topic"]
    asked, target = row.messages[:-1], row.target.text
    twins = twins_of(run, steps, row_id=row_id, text=dialog_text(asked, target))
    return Life(row_id, "demonstration", facts, tuple(asked), {"target": target}, steps=tuple(steps), twins=twins)


def _verdict_life(row_id: str, run: RunReader) -> Life:
    number, row = run.where("collect", "verdicts", VerdictRow, row_id)
    votes = f", {len(row.answers)} answers" if row.answers else ""
    outcome = f"by {row.judge}: {row.winner}{votes}"
    steps = RoundTrace(run, number).step("collect", "compared", outcome, {"winner": row.winner})
    facts: dict[str, Any] = {"judge": row.judge, "winner": row.winner, "first": row.first, "second": row.second}
    if row.edit_dropped:
        facts["edit dropped"] = row.edit_dropped
    texts = {"reason": row.reason, **{f"answer {at}": text for at, text in enumerate(row.answers, start=1)}}
    texts |= {f"edit {at}": text for at, text in enumerate(row.edit_answers, start=1)}
    made = Life("", "preference", {})
    if row.winner in ("first", "second"):
        chosen, rejected = (row.first, row.second) if row.winner == "first" else (row.second, row.first)
        facts["preference"] = annotation_id(chosen, rejected)
        made = _preference_life(facts["preference"], run)
    texts = {name: text for name, text in {**made.texts, **texts}.items() if text}
    return Life(row.id, "verdict", facts, made.messages, texts, steps=(*steps, *made.steps[1:]))
