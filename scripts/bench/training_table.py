"""Measurements -> ratios, checks, the table and the JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from scripts.bench.training_cases import Case, Measurement, Setting
from scripts.bench.training_tokens import TokenCounts

HEADER = (
    "| case | model | alignloop, examples/s | {other}, examples/s | ratio (each pair) | tokens: by length, counted "
    "| bar | memory, MiB | ratio |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
MEMORY_BAR = 1.0


@dataclass
class Result:
    """A case at one model size: its pairs, in the order they were measured.

    Attributes:
        tokens: what the rows' lengths say.
        ours_setting, theirs_setting: what each side chose.
    """

    case: Case
    size: str
    tokens: TokenCounts
    ours_setting: Setting
    theirs_setting: Setting
    pairs: list[tuple[Measurement, Measurement]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Of the JSON object: the smallest model's is plain."""
        return self.case.name if self.size == "3m" else f"{self.case.name}_{self.size}"

    @property
    def ratios(self) -> list[float]:
        """Examples per second, ours over theirs, pair by pair."""
        return [ours.examples_per_second / theirs.examples_per_second for ours, theirs in self.pairs]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def tokens_ratio(self) -> float:
        """Positions that went through the model, theirs over ours: padding included."""
        ours, theirs = self.pairs[0]
        return theirs.tokens / ours.tokens

    @property
    def memory(self) -> tuple[float, float]:
        """Median peaks above the level before, ours and theirs, in MiB."""
        return (
            median(ours.memory_mib for ours, _ in self.pairs),
            median(theirs.memory_mib for _, theirs in self.pairs),
        )

    @property
    def memory_ratio(self) -> float | None:
        """Theirs over ours; None where memory cannot be read."""
        ours, theirs = self.memory
        return theirs / ours if ours and theirs else None

    @property
    def difference(self) -> float:
        """How far the two sides are from the same work: see `Case.tolerance`."""
        ours, theirs = self.pairs[0]
        if self.case.kind == "score":
            return _reward_difference(ours, theirs)
        assert ours.first_loss is not None
        assert theirs.first_loss is not None
        return abs(ours.first_loss - theirs.first_loss) / abs(theirs.first_loss)

    def problem(self) -> str | None:
        """Why the two sides did not do the same work, or None."""
        what = "rewards" if self.case.kind == "score" else "losses of the first step"
        if self.difference <= self.case.tolerance:
            return None
        return f"{self.key}: the two sides' {what} differ by {self.difference:.1e}, more than {self.case.tolerance:g}"

    def line(self) -> str:
        """One line for the screen."""
        ours, theirs = self.memory
        rates = [median(pair[side].examples_per_second for pair in self.pairs) for side in (0, 1)]
        return (
            f"{self.key}: {self.ratio:.2f}x ({self._each()}), bar {self.case.bar:g}x {self._verdict()}; "
            f"tokens {self.tokens.ratio:.2f}x by length, {self.tokens_ratio:.2f}x counted; "
            f"{rates[0]:,.2f} against {rates[1]:,.2f} examples/s; memory {ours:,.0f} against {theirs:,.0f} MiB; "
            f"settings {self.ours_setting.label} | {self.theirs_setting.label}; "
            f"{'rewards' if self.case.kind == 'score' else 'first loss'} equal to {self.difference:.0e}"
        )

    def row(self) -> str:
        """One row of the Markdown table."""
        memory = self.memory_ratio
        rates = [median(pair[side].examples_per_second for pair in self.pairs) for side in (0, 1)]
        cells = (
            f"`{self.case.name}`",
            self.size.upper(),
            f"{rates[0]:,.2f} ({self.ours_setting.label})",
            f"{rates[1]:,.2f} ({self.theirs_setting.label})",
            f"**{self.ratio:.2f}x** ({self._each()})",
            f"{self.tokens.ratio:.2f}x, {self.tokens_ratio:.2f}x",
            f"{self.case.bar:g}x {self._verdict()}",
            f"{self.memory[0]:,.0f} / {self.memory[1]:,.0f}",
            "-" if memory is None else f"{memory:.2f}x {_verdict(memory, MEMORY_BAR)}",
        )
        return f"| {' | '.join(cells)} |"

    def _each(self) -> str:
        return " ".join(f"{ratio:.2f}" for ratio in self.ratios)

    def _verdict(self) -> str:
        return _verdict(self.ratio, self.case.bar)


def to_json(results: Sequence[Result]) -> dict[str, float]:
    """Flat: `<case>` the ratio, `<case>_memory` the ratio of peaks; other sizes with a suffix."""
    values: dict[str, float] = {}
    for result in results:
        values[result.key] = round(result.ratio, 4)
        if result.memory_ratio is not None:
            suffix = result.key.removeprefix(result.case.name)
            values[f"{result.case.name}_memory{suffix}"] = round(result.memory_ratio, 4)
    return values


def to_markdown(results: Sequence[Result], *, heading: str) -> str:
    """`heading`, then a table for training and one for scoring."""
    parts = [heading]
    for kinds, other in ((("reward", "dpo", "sft"), "TRL"), (("score",), "separate rows")):
        rows = [result.row() for result in results if result.case.kind in kinds]
        if rows:
            parts.append("\n".join([HEADER[0].format(other=other), HEADER[1], *rows]))
    return "\n\n".join(parts) + "\n"


def _verdict(value: float, bar: float) -> str:
    return "met" if value >= bar else "missed"


def _reward_difference(ours: Measurement, theirs: Measurement) -> float:
    """Largest difference of a reward, as a share of the largest reward."""
    pairs = [
        (a, b)
        for ours_row, theirs_row in zip(ours.rewards, theirs.rewards, strict=True)
        for a, b in zip(ours_row, theirs_row, strict=True)
    ]
    return max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)
