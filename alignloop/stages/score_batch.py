"""What of a round's preferences the reward model scores beside the candidates: those that are not people's.

A batch's best completions become SFT rows. People's need no reward; what a judge or the simulated annotator picked, and
what people hardly preferred, passes quality and deduplication by the same reward model as what was sampled now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignloop.config.recipe import ScoreStageConfig
from alignloop.pruning.items import is_peoples
from alignloop.records import CandidateRow, PreferenceRow
from alignloop.stages.bootstrap import preferred

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat
    from alignloop.packing.groups import PromptGroup


@dataclass(frozen=True)
class Target:
    """A preference's best completion, to be scored.

    Attributes:
        preference: its id.
        row: as reward functions see it.
    """

    preference: str
    row: CandidateRow
    group: PromptGroup


def targets_to_score(
    batch: Sequence[PreferenceRow], config: ScoreStageConfig, chat: ChatFormat, *, room: int | None
) -> list[Target]:
    """What of a batch is not people's and has room in the reward model.

    Args:
        room: longest sequence of the reward model, in tokens; None: not known.
    """
    from alignloop.packing.build import sft_groups

    rows = [row for row in batch if not is_peoples(row, strengths=config.strengths)]
    groups = sft_groups([preferred(row) for row in rows], chat, train_on="last_assistant")
    return [
        Target(row.id, _as_candidate(row, group), group)
        for row, group in zip(rows, groups, strict=True)
        if room is None or len(group.prompt_ids) + len(group.completions[0].token_ids) <= room
    ]


def _as_candidate(row: PreferenceRow, group: PromptGroup) -> CandidateRow:
    best = row.ranked[0]
    return CandidateRow(
        id=f"preference {row.id}",
        prompt_id=f"preference {row.id}",
        messages=row.messages,
        completion=best.text,
        completion_ids=list(group.completions[0].token_ids),
        finish_reason=best.finish_reason or "stop",
        round=0,
        policy="",
        meta=row.meta,
    )
