"""What packing alone should give: tokens that go through the model on each side, from the lengths of the rows.

A prompt of P tokens with completions C_1 ... C_n: packed P + sum C_i (less one, and a copy of the prompt's last token
for each), as rows of their own sum (P + C_i). TRL's `RewardTrainer` takes ranked completions apart into pairs, so that
each of n is read n - 1 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from scripts.bench.training_cases import Case

HEADER = (
    "| case | rows of | prompt | completions | packed | separate rows | other side | other side / packed "
    "| separate rows / packed |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass(frozen=True)
class TokenCounts:
    """Tokens a group, on average.

    Attributes:
        prompt, completions: P, and the sum of C.
        packed: what alignloop reads.
        separate: every completion once, behind a prompt of its own.
        other: what the other side of the case reads, without padding.
    """

    prompt: float
    completions: float
    packed: float
    separate: float
    other: float

    @property
    def ratio(self) -> float:
        """What the case's ratio would be if time went by tokens alone."""
        return self.other / self.packed

    def row(self, name: str, size: str) -> str:
        """One row of the Markdown table."""
        counts = (self.prompt, self.completions, self.packed, self.separate, self.other)
        ratios = (self.ratio, self.separate / self.packed)
        cells = (
            f"`{name}`",
            size.upper(),
            *(f"{count:,.0f}" for count in counts),
            *(f"{ratio:.2f}x" for ratio in ratios),
        )
        return f"| {' | '.join(cells)} |"


def token_counts(case: Case, groups: Sequence[PromptGroup]) -> TokenCounts:
    """Means over the groups of a measurement."""
    count = len(groups)
    prompt = sum(len(group.prompt_ids) for group in groups) / count
    completions = sum(len(c.token_ids) for group in groups for c in group.completions) / count
    separate = sum(len(group.completions) * len(group.prompt_ids) for group in groups) / count + completions
    times_read = max(1, len(groups[0].completions) - 1) if case.kind == "reward" else 1
    packed = sum(packed_num_tokens(group) for group in groups) / count
    return TokenCounts(prompt, completions, packed, separate, times_read * separate)
