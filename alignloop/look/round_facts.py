"""What a round's data comes to, in numbers: read from what the round has published so far."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from alignloop.records import (
    CandidateRow,
    DroppedRow,
    Message,
    PairRow,
    PreferenceRow,
    SelectedRow,
    SftRow,
)
from alignloop.run_dir.reader import RunReader

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class RoundFacts:
    """A round's data.

    Attributes:
        missing: stages of a whole round that are not published.
        counts: `stage: in|kept|dropped` -> rows.
        shares: group -> name -> share of the group's rows, in [0, 1].
        quantiles: name -> values at `QUANTILES`; empty where there are no rows.
        rows: name -> ids or digests of rows, to be held against another round's.
    """

    round: int
    missing: tuple[str, ...]
    counts: dict[str, float] = field(default_factory=dict)
    drops: dict[str, float] = field(default_factory=dict)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    quantiles: dict[str, tuple[float, ...]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    rows: dict[str, frozenset[str]] = field(default_factory=dict)


ROUND_STAGES = ("collect", "train_reward", "sample", "score", "select", "prune", "train_sft", "build_pairs",
                "train_dpo", "evaluate", "measure")  # fmt: skip


def facts_of(run: RunReader, number: int) -> RoundFacts:
    """Read a round; what it has not published yet is left out."""
    facts = RoundFacts(number, tuple(name for name in ROUND_STAGES if run.stage(number, name) is None))
    _count(facts, run)
    _count_drops(facts, run)
    _preferences(facts, run)
    _candidates(facts, run)
    _selected(facts, run)
    _sft(facts, run)
    _pairs(facts, run)
    return facts


def _count(facts: RoundFacts, run: RunReader) -> None:
    for stage in run.stages[facts.round]:
        if stage.name == "average":
            continue
        for name, value in stage.manifest.counts.items():
            facts.counts[f"{stage.dir.name} {name}"] = value


def _count_drops(facts: RoundFacts, run: RunReader) -> None:
    """Of every stage that publishes what it dropped; those that drop the same way in two rounds keep their names."""
    for stage in run.stages[facts.round]:
        rules = Counter(row.rule for row in run.rows(facts.round, stage.name, "dropped", DroppedRow))
        for rule, count in rules.items():
            facts.drops[f"{stage.name} {rule}"] = count


def _preferences(facts: RoundFacts, run: RunReader) -> None:
    rows = list(run.rows(facts.round, "collect", "preferences", PreferenceRow))
    if not rows:
        return
    facts.rows["preferences"] = frozenset(row.id for row in rows)
    facts.shares["preferences by strength"] = shares(row.strength or "not said" for row in rows)
    facts.shares["preferences by annotator"] = shares(row.annotator for row in rows)
    facts.numbers["preferences edited"] = sum(row.edited is not None for row in rows)


def _candidates(facts: RoundFacts, run: RunReader) -> None:
    prompts: set[str] = set()
    topics: dict[str, str] = {}
    lengths: list[float] = []
    cut = 0
    for row in run.rows(facts.round, "sample", "candidates", CandidateRow):
        prompts.add(row.prompt_id)
        topics.setdefault(row.prompt_id, str(row.meta.get("topic", "")))
        lengths.append(len(row.completion_ids))
        cut += row.finish_reason == "length"
    if not lengths:
        return
    facts.rows["prompts"] = frozenset(prompts)
    facts.quantiles["candidate length (tokens)"] = quantiles(lengths)
    facts.numbers["candidates cut off (share)"] = cut / len(lengths)
    if any(topics.values()):
        facts.shares["prompts by topic"] = shares(topic or "none" for topic in topics.values())


def _selected(facts: RoundFacts, run: RunReader) -> None:
    rows = list(run.rows(facts.round, "select", "selected", SelectedRow))
    if not rows:
        return
    facts.quantiles["best-of-K reward"] = quantiles([row.reward for row in rows])
    facts.quantiles["best over random (reward)"] = quantiles([row.reward - row.random_reward for row in rows])
    facts.quantiles["best-of-K length (words)"] = quantiles([len(row.completion.split()) for row in rows])
    facts.quantiles["pass rate"] = quantiles([row.pass_rate for row in rows])


def _sft(facts: RoundFacts, run: RunReader) -> None:
    rows = list(run.rows(facts.round, "prune", "rows", SftRow))
    if not rows:
        return
    facts.rows["SFT rows"] = frozenset(digest(row.messages) for row in rows)
    facts.shares["SFT rows by origin"] = shares(row.origin for row in rows)
    facts.shares["SFT rows by source"] = shares(_source(row) for row in rows)
    facts.quantiles["SFT target length (words)"] = quantiles([len(row.messages[-1].content.split()) for row in rows])
    topics = [topic_of(row) for row in rows]
    if any(topics):
        facts.shares["SFT rows by topic"] = shares(topic or "none" for topic in topics)


def topic_of(row: SftRow) -> str:
    """The topic that pruning found, else the one that the row brought along."""
    return str(getattr(row, "topic", None) or row.meta.get("topic") or "")


def _source(row: SftRow) -> str:
    # Rounds name their own rows after themselves: two rounds' would never be the same source.
    if row.source.line is None and row.source.file.startswith("round-"):
        return "sampled" if row.origin == "best_of_k" else "annotated in the run"
    return row.source.file.rpartition("/")[2]


def _pairs(facts: RoundFacts, run: RunReader) -> None:
    rows = list(run.rows(facts.round, "build_pairs", "pairs", PairRow))
    if not rows:
        return
    facts.rows["DPO pairs"] = frozenset(digest(row.messages, row.chosen, row.rejected) for row in rows)
    facts.shares["DPO pairs by origin"] = shares(row.origin for row in rows)
    facts.shares["DPO pairs by strength"] = shares(row.strength or "not said" for row in rows)
    facts.quantiles["pair reward gap"] = quantiles([row.reward_gap for row in rows if row.reward_gap is not None])
    longer = [len(row.chosen.split()) - len(row.rejected.split()) for row in rows]
    facts.quantiles["chosen minus rejected (words)"] = quantiles(longer)


def shares(names: Iterable[str]) -> dict[str, float]:
    """Name -> share of the names."""
    counts = Counter(names)
    total = counts.total()
    return {name: count / total for name, count in counts.items()}


def quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """Values at `QUANTILES`, linear between neighbours; empty for none."""
    ordered = sorted(values)
    if not ordered:
        return ()
    found = []
    for quantile in QUANTILES:
        at = quantile * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        found.append(ordered[low] + (ordered[high] - ordered[low]) * (at - low))
    return tuple(found)


def digest(messages: Sequence[Message], *texts: str) -> str:
    """A short hash of a dialog and texts: two rows with the same are the same row."""
    parts = [f"{message.role}\x1e{message.content}" for message in messages]
    return hashlib.sha256("\x1f".join([*parts, *texts]).encode()).hexdigest()[:16]
