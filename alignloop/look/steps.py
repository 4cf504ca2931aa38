"""What a round's published files tell of a row: sampled, picked, pruned, paired, compared, trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from alignloop.look.life import CandidateLine, Outcome, Step, TwinPair
from alignloop.records import (
    CandidateRow,
    DroppedRow,
    Message,
    PairRow,
    PreferenceRow,
    Row,
    SelectedRow,
    SftRow,
    VerdictRow,
    candidates_of,
    split_annotation_id,
    split_pair_id,
)
from alignloop.run_dir.reader import RunReader

R = TypeVar("R", bound=Row)
PRUNED_FACTS = ("quality_score", "difficulty_score", "topic", "cluster", "judge", "tags")
"""Columns of an SFT row that pruning fills, where it does."""


@dataclass(frozen=True)
class RoundTrace:
    """One round of a run. Its steps are lists: empty where the round has not published the stage."""

    run: RunReader
    number: int

    def row(self, stage: str, output: str, model: type[R], row_id: str) -> R | None:
        return self.run.row(self.number, stage, output, model, row_id)

    def has(self, stage: str) -> bool:
        return self.run.stage(self.number, stage) is not None

    def step(self, stage: str, verdict: Outcome, text: str, facts: Mapping[str, Any] | None = None) -> list[Step]:
        found = self.run.stage(self.number, stage)
        return [] if found is None else [Step(self.number, found.dir.name, verdict, text, facts or {})]

    def dropped(
        self,
        stage: str,
        row_id: str,
        *,
        output: str = "dropped",
        verdict: Outcome = "dropped",
        with_reason: bool = False,
    ) -> list[Step]:
        """The step of a row that a stage left out; empty where it did not. `with_reason` puts reason and twin among the
        facts."""
        drop = self.row(stage, output, DroppedRow, row_id)
        if drop is None:
            return []
        facts: dict[str, Any] = {"rule": drop.rule}
        if with_reason:
            facts["reason"] = drop.reason
            facts |= {} if drop.twin is None else {"twin": drop.twin, "cosine": drop.cosine}
        return self.step(stage, verdict, f"by {drop.rule}: {drop.reason}", facts)

    def trained(self, stage: str, row_id: str, *, role: str) -> list[Step]:
        """The step of a row that a training stage was to train on."""
        drop = self.row(stage, "dropped", DroppedRow, row_id)
        if drop is not None:
            return self.step(stage, "not trained", drop.reason, {"role": role, "rule": drop.rule})
        return self.step(stage, "trained", f"as {role}", {"role": role})

    def ranked(self, row_id: str, batches: Sequence[int]) -> list[Step]:
        """`train_reward`, which sees the preferences to date; only the named strengths train."""
        seen = any(batch <= self.number for batch in batches)
        return self.trained("train_reward", row_id, role="a ranking") if seen else []

    def pruned(self, row_id: str) -> list[Step]:
        """`prune` and, where the row is kept, `train_sft`; none where the row was not put to it."""
        row = self.row("prune", "rows", SftRow, row_id)
        if row is None:
            return self.dropped("prune", row_id, with_reason=True)
        # A run may leave any step of pruning out: its column is empty then.
        values = {name: getattr(row, name) for name in PRUNED_FACTS}
        facts = {name: value for name, value in values.items() if value not in (None, [], {}, ())}
        known = ", ".join(f"{name} {_short(value)}" for name, value in facts.items())
        kept = self.step("prune", "kept", f"for SFT{': ' + known if known else ''}", facts)
        return [*kept, *self.trained("train_sft", row_id, role="SFT target")]

    def paired(self, row_id: str, *, role: str, pair: PairRow | None = None) -> list[Step]:
        """`build_pairs` and, where there is a pair, `train_dpo`. `row_id` is a preference's, or a prompt's; `pair` the
        row's, where it has another id than the row; `role` what the row is in it."""
        pair = pair or self.row("build_pairs", "pairs", PairRow, row_id)
        if pair is None:
            return self.dropped("build_pairs", row_id, verdict="no pair", with_reason=True)
        gap = "" if pair.reward_gap is None else f", reward gap {pair.reward_gap:.4g}"
        facts: dict[str, Any] = {
            "pair": pair.id,
            "strength": pair.strength,
            "reward_gap": pair.reward_gap,
            "role": role,
        }
        text = f"{pair.strength or 'strength not said'}{gap}"
        paired = self.step("build_pairs", "pair", text, facts | {"origin": pair.origin})
        return [*paired, *self.trained("train_dpo", pair.id, role=role)]

    def candidates(self, prompt_id: str) -> list[CandidateRow]:
        """A prompt's: with rewards where they are scored."""
        stage = "score" if self.run.files(self.number, "score", "candidates") else "sample"
        rows = self.run.rows(self.number, stage, "candidates", CandidateRow, mark=prompt_id)
        return [row for row in rows if row.prompt_id == prompt_id]

    def best(self, prompt_id: str) -> SelectedRow | None:
        rows = self.run.rows(self.number, "select", "selected", SelectedRow, mark=prompt_id)
        return next((row for row in rows if row.prompt_id == prompt_id), None)

    def pairs_of(self, prompt_id: str) -> list[PairRow]:
        """The pairs of a prompt's candidates."""
        start = candidates_of(prompt_id, round=self.number)
        rows = self.run.rows(self.number, "build_pairs", "pairs", PairRow, mark=start)
        return [row for row in rows if row.id.startswith(start)]

    def policy_path(self, digest: str) -> str:
        """The checkpoint of this digest that sampled; empty where it is not known."""
        stage = self.run.stage(self.number, "sample")
        inputs = {} if stage is None else stage.manifest.inputs
        models = [inputs.get("policy") or {}, *(inputs.get("other_policies") or ())]
        return next((str(model.get("path") or "") for model in models if model.get("digest") == digest), "")

    def policy_facts(self, row: CandidateRow) -> dict[str, Any]:
        return {"round": row.round, "policy": row.policy, "checkpoint": self.policy_path(row.policy)}

    def answered(self, row: CandidateRow) -> list[Step]:
        """`sample` of a candidate of another model than the policy."""
        text = f"to be annotated alone (collect.policies), by {self.policy_path(row.policy) or '?'}"
        return self.step("sample", "sampled", text, {"policy": row.policy})

    def sampled(self, rows: Sequence[CandidateRow]) -> list[Step]:
        checkpoint = self.policy_path(rows[0].policy) or "?"
        cut = sum(row.finish_reason == "length" for row in rows)
        ends = f", {cut} cut off" if cut else ""
        facts = {"policy": rows[0].policy, "checkpoint": checkpoint, "candidates": len(rows), "cut_off": cut}
        return self.step("sample", "sampled", f"{len(rows)} candidates{ends}; policy {checkpoint}", facts)

    @property
    def picks_at_random(self) -> bool:
        """Whether `select.pick` is `random`."""
        stage = self.run.stage(self.number, "select")
        return stage is not None and stage.manifest.config.get("pick") == "random"

    def picked(self, best: SelectedRow, *, name: str = "") -> list[Step]:
        """`select` of a prompt's best candidate, or of the one picked at random."""
        if self.picks_at_random:
            text = f"{name}at random, reward {best.reward:.4g}; {_passing(best)}"
            return self.step("select", "picked", text, {"picked": best.id, "rewards": best.rewards})
        rewards = f"reward {best.reward:.4g}, a random one's {best.random_reward:.4g}"
        text = f"{name}{rewards}; {_passing(best)}"
        facts = best.model_dump(include={"reward", "random_reward", "pass_rate"})
        return self.step("select", "best", text, {"best": best.id, **facts, "rewards": best.rewards})

    def lines(self, rows: Sequence[CandidateRow], best: SelectedRow | None) -> list[CandidateLine]:
        pairs = [split_pair_id(pair.id) for pair in self.pairs_of(rows[0].prompt_id)]
        mark = "picked" if self.picks_at_random else "best"
        taken = {
            mark: [] if best is None else [best.id],
            "chosen": [chosen for chosen, _ in pairs],
            "rejected": [rejected for _, rejected in pairs],
        }
        return [
            CandidateLine(
                self.number,
                row.id,
                reward_of(row),
                row.finish_reason,
                row.completion,
                mark=", ".join(mark for mark, ids in taken.items() if row.id in ids),
            )
            for row in rows
        ]

    def compared(self, prompt_id: str, *, candidate: str = "") -> list[Step]:
        """What annotators make in this round of a prompt's candidates of the round before, and what trains on it."""
        start = candidates_of(prompt_id, round=self.number - 1)
        steps = []
        for verdict in self.run.rows(self.number, "collect", "verdicts", VerdictRow, mark=candidate or start):
            is_of = candidate in (verdict.first, verdict.second) if candidate else verdict.first.startswith(start)
            if is_of and verdict.winner in ("tie", "unreadable"):
                text = f"by {verdict.judge}: {verdict.winner} of {verdict.first} and {verdict.second}"
                steps += self.step("collect", "compared", text, {"verdict": verdict.id})
        for row in self.run.rows(self.number, "collect", "preferences", PreferenceRow, mark=start):
            if compared := _comparison_text(row, start, candidate):
                strength = f", {row.strength}" if row.strength else ""
                edited = ", and edited it" if row.edited else ""
                facts = {"preference": row.id, "strength": row.strength, "annotator": row.annotator}
                text = f"by {row.annotator}: {compared}{strength}{edited}"
                steps += [*self.step("collect", "compared", text, facts), *_of_annotation(self.run, row)]
        return steps


def _passing(best: SelectedRow) -> str:
    """How many of a prompt's candidates pass, and the gates that even the best one fails."""
    rate = "no pass rate" if best.pass_rate is None else f"{best.pass_rate:.0%} of {len(best.rewards)} pass"
    return rate + (f"; fails the gate of {', '.join(best.failed_gates)}" if best.failed_gates else "")


def batches_of(row_id: str, run: RunReader) -> list[int]:
    """The rounds in whose batch a preference is."""
    return [n for n in run.rounds if n and run.row(n, "collect", "preferences", PreferenceRow, row_id) is not None]


def reward_of(row: CandidateRow) -> float | None:
    return row.reward if row.total_reward is None else row.total_reward


def twins_of(run: RunReader, steps: Sequence[Step], *, row_id: str, text: str) -> tuple[TwinPair, ...]:
    """The near twins a row lost to, with the texts of both."""
    return tuple(
        TwinPair(
            step.round,
            step.stage,
            row_id,
            text,
            step.facts["twin"],
            _text_of(run, step.round, step.facts["twin"]),
            step.facts["cosine"],
            step.facts["reason"],
        )
        for step in steps
        if "twin" in step.facts
    )


def dialog_text(messages: Sequence[Message], completion: str) -> str:
    """A prompt's last turn and a completion, one under the other."""
    return f"{messages[-1].content.strip()}\n\n{completion.strip()}"


def _text_of(run: RunReader, number: int, row_id: str) -> str:
    """Prompt and completion of a row that was put to `prune`; empty where the run does not hold it."""
    selected = run.row(number, "select", "selected", SelectedRow, row_id)
    if selected is not None:
        return dialog_text(selected.messages, selected.completion)
    shown = run.row(0, "ingest", "demonstrations", SftRow, row_id)
    if shown is not None:
        return dialog_text(shown.messages[:-1], shown.target.text)
    earlier = (run.row(n, "collect", "preferences", PreferenceRow, row_id) for n in range(number, 0, -1))
    row = next((row for row in earlier if row is not None), None)
    return "" if row is None else dialog_text(row.messages, row.best)


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
    steps = [step for number in run.rounds for step in RoundTrace(run, number).ranked(row.id, batches)]
    for number in batches:
        trace = RoundTrace(run, number)
        steps += [*trace.pruned(row.id), *trace.paired(row.id, role="the pair")]
    by_it = [
        replace(step, text=f"{step.text}, by that comparison", facts={**step.facts, "row": row.id}) for step in steps
    ]
    return sorted(by_it, key=lambda step: (step.round, step.stage))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
