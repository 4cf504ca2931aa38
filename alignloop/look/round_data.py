"""What a round's data comes to, in numbers: read from what the round has published so far."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from alignloop.records import CandidateRow, DroppedRow, Message, PairRow, PreferenceRow, SelectedRow, SftRow, Source
from alignloop.run_dir.reader import RunReader

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
ROUND_STAGES = ("collect", "train_reward", "sample", "score", "select", "prune", "train_sft", "build_pairs",
                "train_dpo", "evaluate", "measure")  # fmt: skip
RLOO_STAGES = (*(name for name in ROUND_STAGES if name not in ("build_pairs", "train_dpo")), "train_rloo")
"""With `policy.by: rloo`."""
NUMBERS = "other numbers"
CUT_OFF = "candidates cut off (share)"
Groups = dict[str, dict[str, float]]
"""Group -> name -> value."""


@dataclass(frozen=True)
class RoundData:
    """A round's data.

    Attributes:
        missing: stages of a whole round that are not published.
        counts: rows.
        shares: of the group's rows, in [0, 1].
        quantiles: `50%` and so on; no group where there are no rows.
        numbers: one group.
        rows: name -> ids or digests of rows, to compare with another round's.
    """

    missing: tuple[str, ...]
    counts: Groups = field(default_factory=dict)
    shares: Groups = field(default_factory=dict)
    quantiles: Groups = field(default_factory=dict)
    numbers: Groups = field(default_factory=lambda: {NUMBERS: {}})
    rows: dict[str, frozenset[str]] = field(default_factory=dict)


def round_data(run: RunReader, number: int) -> RoundData:
    """Read a round; what it has not published yet is left out."""
    by = (run.recipe.get("policy") or {}).get("by", "dpo")
    wanted = RLOO_STAGES if by == "rloo" else ROUND_STAGES
    data = RoundData(tuple(name for name in wanted if run.stage(number, name) is None))
    _stages(data, run, number)
    _preferences(data, list(run.rows(number, "collect", "preferences", PreferenceRow)))
    _candidates(data, run.rows(number, "sample", "candidates", CandidateRow))
    _selected(data, list(run.rows(number, "select", "selected", SelectedRow)))
    _sft(data, list(run.rows(number, "prune", "rows", SftRow)))
    _pairs(data, list(run.rows(number, "build_pairs", "pairs", PairRow)))
    return data


def _stages(data: RoundData, run: RunReader, number: int) -> None:
    """Counts, and drops by rule: stages that drop the same way in two rounds keep their names."""
    rows, drops = data.counts.setdefault("rows by stage", {}), data.counts.setdefault("drops by reason", {})
    for stage in run.stages[number]:
        if stage.name != "average":
            rows |= {f"{stage.dir.name} {name}": value for name, value in stage.manifest.counts.items()}
        rules = Counter(row.rule for row in run.rows(number, stage.name, "dropped", DroppedRow))
        drops |= {f"{stage.name} {rule}": count for rule, count in rules.items()}


def _preferences(data: RoundData, rows: Sequence[PreferenceRow]) -> None:
    if rows:
        data.rows["preferences"] = frozenset(row.id for row in rows)
        data.shares["preferences by strength"] = _shares(row.strength or "not said" for row in rows)
        data.shares["preferences by annotator"] = _shares(row.annotator for row in rows)
        data.numbers[NUMBERS]["preferences edited"] = sum(row.edited is not None for row in rows)


def _candidates(data: RoundData, rows: Iterable[CandidateRow]) -> None:
    topics: dict[str, str] = {}
    lengths: list[float] = []
    num_cut = 0
    for row in rows:  # K a prompt, with their token ids: too many to keep
        topics.setdefault(row.prompt_id, str(row.meta.get("topic", "")))
        lengths.append(len(row.completion_ids))
        num_cut += row.finish_reason == "length"
    if lengths:
        data.rows["prompts"] = frozenset(topics)
        data.quantiles["candidate length (tokens)"] = _quantiles(lengths)
        data.numbers[NUMBERS][CUT_OFF] = num_cut / len(lengths)
        _add_topics(data, "prompts by topic", topics.values())


def _selected(data: RoundData, rows: Sequence[SelectedRow]) -> None:
    if rows:
        for name, values in (
            ("best-of-K reward", [row.reward for row in rows]),
            ("best over random (reward)", [row.reward - row.random_reward for row in rows]),
            ("best-of-K length (words)", [len(row.completion.split()) for row in rows]),
            ("pass rate", [row.pass_rate for row in rows if row.pass_rate is not None]),
        ):
            if values:
                data.quantiles[name] = _quantiles(values)


def _sft(data: RoundData, rows: Sequence[SftRow]) -> None:
    if rows:
        data.rows["SFT rows"] = frozenset(_digest(row.messages) for row in rows)
        data.shares["SFT rows by origin"] = _shares(row.origin for row in rows)
        data.shares["SFT rows by source"] = _shares(_source_name(row.source, row.origin) for row in rows)
        lengths = [len(row.messages[-1].content.split()) for row in rows]
        data.quantiles["SFT target length (words)"] = _quantiles(lengths)
        # The topic that pruning found, else the one that the row brought along.
        _add_topics(data, "SFT rows by topic", [str(row.topic or row.meta.get("topic") or "") for row in rows])


def _source_name(source: Source, origin: str) -> str:
    # Rounds name their own rows after themselves: two rounds' would never be the same source.
    if source.is_round:
        return "sampled" if origin == "best_of_k" else "annotated in the run"
    return source.file.rpartition("/")[2]


def _pairs(data: RoundData, rows: Sequence[PairRow]) -> None:
    if rows:
        data.rows["DPO pairs"] = frozenset(_digest(row.messages, row.chosen, row.rejected) for row in rows)
        data.shares["DPO pairs by origin"] = _shares(row.origin for row in rows)
        data.shares["DPO pairs by strength"] = _shares(row.strength or "not said" for row in rows)
        data.quantiles["pair reward gap"] = _quantiles([row.reward_gap for row in rows if row.reward_gap is not None])
        longer = [len(row.chosen.split()) - len(row.rejected.split()) for row in rows]
        data.quantiles["chosen minus rejected (words)"] = _quantiles(longer)


def _add_topics(data: RoundData, group: str, topics: Iterable[str]) -> None:
    if any(topics):
        data.shares[group] = _shares(topic or "none" for topic in topics)


def _shares(names: Iterable[str]) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.items()}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """Values at `QUANTILES`, linear between neighbours; empty for none."""
    found = np.quantile(values, QUANTILES).tolist() if values else []
    return {f"{quantile:.0%}": value for quantile, value in zip(QUANTILES, found, strict=False)}


def _digest(messages: Sequence[Message], *texts: str) -> str:
    """A short hash of a dialog and texts: two rows with the same are the same row."""
    parts = [f"{message.role}\x1e{message.content}" for message in messages]
    return hashlib.sha256("\x1f".join([*parts, *texts]).encode()).hexdigest()[:16]
