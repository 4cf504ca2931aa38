"""A run against others: what it gained on each, question by question, and what both spent.

rounds that both have, and the best of each --samples of both--> differences with 95 % intervals
                                                                 --> a section of the page, a few lines of text, JSON
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError, UserError
from alignloop.evaluation.comparing import Difference, Measured, ProtocolMismatch, compare, measured_task
from alignloop.evaluation.report import EvalSample, read_report
from alignloop.report.benchmarks import headline_keys, interval_figure, verdict
from alignloop.report.content import COUNT, Cell, PageSection
from alignloop.report.facts import RoundRecord, RunRecord, read_run, round_label
from alignloop.report.rounds import in_points
from alignloop.report.work import trained_tokens
from alignloop.terminal import WIDTH, wrapped

PAIRED = (
    "Differences in points on the same questions, with 95 % intervals paired by question. They say how "
    "sure the questions make it: what other seeds would give is another question."
)
Runs = Mapping[str, RunRecord]
"""By names that tell them apart."""


class Spent(NamedTuple):
    """What a run's rounds had: tokens of rows that went through the model to train it, annotated pairs, wall seconds
    of published stages, those taken over from another run with what they took there."""

    sft_tokens: int
    dpo_tokens: int
    annotations: int
    seconds: float

    @classmethod
    def of(cls, rounds: Sequence[RoundRecord]) -> Spent:
        stages = [stage for entry in rounds for stage in entry.stages]
        return cls(
            sft_tokens=sum(trained_tokens(stage) for stage in stages if stage.name == "train_sft"),
            dpo_tokens=sum(trained_tokens(stage) for stage in stages if stage.name == "train_dpo"),
            annotations=sum(stage.manifest.counts.get("annotated", 0) for stage in stages if stage.name == "collect"),
            seconds=sum(sum(entry.seconds.values()) for entry in rounds),
        )

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(map(COUNT.cell, self))


SPENT = ("SFT tokens", "DPO tokens", "annotations", "seconds")


@dataclass(frozen=True)
class RoundPair:
    """A round of the run beside one of the other: the same number, or the best of each."""

    round: int
    other_round: int
    is_best: bool
    differences: tuple[Difference, ...]
    """One a headline figure that both have: the run's minus the other's."""

    @property
    def label(self) -> str:
        if not self.is_best:
            return "base" if self.round == 0 else f"round {self.round}"
        if self.round == self.other_round:
            return f"round {self.round}, best of both"
        return f"best rounds {self.round} and {self.other_round}"


@dataclass(frozen=True)
class Paired:
    """A run against another: all rounds that both have finished, then the best of each; what could not be compared."""

    run: str
    other: str
    pairs: tuple[RoundPair, ...]
    refused: tuple[str, ...]

    def of_key(self, key: str) -> list[tuple[RoundPair, Difference]]:
        return [(pair, found) for pair in self.pairs for found in pair.differences if found.key == key]

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(found.key for pair in self.pairs for found in pair.differences))


@dataclass(frozen=True)
class Comparison:
    """Two runs or more, and the first against each of the others."""

    runs: Runs
    pairs: tuple[Paired, ...]

    def section(self) -> PageSection:
        """A figure a headline figure and other run, its numbers under it."""
        figures = [
            interval_figure(
                f"{key}: {paired.run} minus {paired.other}",
                [(_short(pair), found) for pair, found in paired.of_key(key)],
            )
            for paired in self.pairs
            for key in paired.keys
        ]
        return PageSection(
            "paired",
            "Run against run",
            f"{self.pairs[0].run} against the others"
            if len(self.pairs) > 1
            else f"{self.pairs[0].run} against {self.pairs[0].other}",
            note=PAIRED,
            figures=tuple(filter(None, figures)),
            warnings=tuple(line for paired in self.pairs for line in paired.refused),
        )

    def text(self) -> str:
        """The best rounds' differences and those of the last round that both have, and what the runs spent."""
        lines: list[str] = []
        for paired in self.pairs:
            lines += wrapped(f"{paired.run} minus {paired.other}: points, with 95 % intervals paired by question")
            for key in paired.keys:
                lines.append(f"  {key}")
                lines += [_line(pair, found) for pair, found in _ends(paired, key)]
            lines += [line for refused in paired.refused for part in refused.split("\n") for line in wrapped(part)]
            if not paired.keys and not paired.refused:
                lines.append("  no round of both has a benchmark in common")
            lines.append("")
        return "\n".join([*lines, *_spent_lines(self.runs)])

    def json(self) -> str:
        """What the text says, of all rounds."""
        of_runs = {
            name: {
                "run_dir": str(run.dir),
                "rounds": run.num_done,
                "best_round": None if run.best is None else run.best.number,
                **Spent.of(run.rounds)._asdict(),
            }
            for name, run in self.runs.items()
        }
        compared = [
            {
                "run": paired.run,
                "other": paired.other,
                "rounds": [
                    {**asdict(pair), "differences": [found.model_dump() for found in pair.differences]}
                    for pair in paired.pairs
                ],
                "refused": list(paired.refused),
            }
            for paired in self.pairs
        ]
        return json.dumps({"runs": of_runs, "compared": compared}, indent=1, ensure_ascii=False) + "\n"


def compare_runs(run_dirs: Sequence[Path]) -> Comparison:
    """Read runs and compare the first with the others; raises RunDirError where one is none, UserError where one is
    named twice."""
    resolved = [folder.resolve() for folder in run_dirs]
    twice = next((folder for folder in resolved if resolved.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: named twice; a run is compared with others")
    runs = [read_run(folder) for folder in run_dirs]
    named = dict(zip(_run_names(runs), runs, strict=True))
    (name, run), *others = named.items()
    return Comparison(named, tuple(_paired(name, run, other_name, other) for other_name, other in others))


def _run_names(runs: Sequence[RunRecord]) -> list[str]:
    """Folder names; with as many folders above as tell two runs apart."""
    paths = [PurePath(run.dir.resolve()) for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _paired(name: str, run: RunRecord, other_name: str, other: RunRecord) -> Paired:
    keys = list(dict.fromkeys([*headline_keys(run.finished), *headline_keys(other.finished)]))
    theirs = {entry.number: entry for entry in other.finished}
    rounds = [(entry, theirs[entry.number], False) for entry in run.finished if entry.number in theirs]
    if run.best is not None and other.best is not None:
        rounds.append((run.best, other.best, True))
    pairs: list[RoundPair] = []
    refused: list[str] = []
    for ours, their, is_best in rounds:
        found, problems = _differences((name, ours), (other_name, their), keys)
        pairs.append(RoundPair(ours.number, their.number, is_best, tuple(found)))
        refused += problems
    return Paired(name, other_name, tuple(pair for pair in pairs if pair.differences), tuple(dict.fromkeys(refused)))


def _differences(
    ours: tuple[str, RoundRecord], theirs: tuple[str, RoundRecord], keys: Sequence[str]
) -> tuple[list[Difference], list[str]]:
    """Of two rounds, and why some were not compared."""
    wanted = [key for key in keys if key in ours[1].metrics and key in theirs[1].metrics]
    try:
        after, before = (_measured(*each, wanted) for each in (ours, theirs))
    except DataError as error:
        return [], [str(error).splitlines()[0]]
    found, refused = [], []
    for key in wanted:
        if key in after and key in before:
            try:
                found += [one for one in compare(before[key], after[key]) if one.key == key]
            except ProtocolMismatch as error:
                refused.append(f"{key.partition('/')[0]}: {error}")
    return found, refused


def _measured(name: str, entry: RoundRecord, keys: Sequence[str]) -> dict[str, Measured]:
    """By headline figure, the task it stands for, as its samples were answered."""
    found: dict[str, Measured] = {}
    for stage in entry.stages:
        for report_file, samples_file in zip(stage.files("report"), stage.files("samples"), strict=False):
            report, samples = read_report(report_file), list(load_jsonl(samples_file, EvalSample))
            of_round = f"{name}, {'the base' if entry.number == 0 else f'round {entry.number}'}"
            for key in (key for key in keys if key in report.metrics):
                found[key] = measured_task(report, samples, task=key.partition("/")[0], name=of_round)
    return found


def _short(pair: RoundPair) -> str:
    """On the chart's axis; of two best rounds the run's first."""
    best = f"best: {pair.round}" if pair.round == pair.other_round else f"best: {pair.round}, {pair.other_round}"
    return best if pair.is_best else round_label(pair.round)


def _ends(paired: Paired, key: str) -> list[tuple[RoundPair, Difference]]:
    """Of the best rounds, and of the last one that both have, where that is another."""
    found = paired.of_key(key)
    best = [one for one in found if one[0].is_best]
    last = [one for one in found if not one[0].is_best and one[0].round > 0][-1:]
    rounds = [(pair.round, pair.other_round) for pair, _ in best]
    return best + [(pair, one) for pair, one in last if (pair.round, pair.other_round) not in rounds]


def _line(pair: RoundPair, found: Difference) -> str:
    values = f"{100 * found.after:6.1f} {100 * found.before:6.1f}"
    return f"    {pair.label:<22}{values}  {in_points(found):<23} {verdict(found)}".rstrip()


def _spent_lines(runs: Runs) -> Iterator[str]:
    rows = {name: [cell.text for cell in Spent.of(run.rounds).cells] for name, run in runs.items()}
    widths = [max(len(head), *(len(row[i]) for row in rows.values())) for i, head in enumerate(SPENT)]
    left = WIDTH - sum(widths) - 2 * len(widths)
    yield " " * left + "".join(f"  {head:>{width}}" for head, width in zip(SPENT, widths, strict=True))
    for name, row in rows.items():
        short = name if len(name) <= left else f"…{name[1 - left :]}"
        yield f"{short:<{left}}" + "".join(f"  {text:>{width}}" for text, width in zip(row, widths, strict=True))
