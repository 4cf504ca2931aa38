"""Before round 1, for a base without chat behaviour: fine-tune on what people chose or edited."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.training import SftConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.records import Message, PreferenceRow, SftRow
from alignloop.stage import Stage, StageContext
from alignloop.stages.training import Outputs, fine_tune


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    preferences: Artifact
    heldout: Artifact | None = None
    """Preferences never trained on, as for `train_sft`."""


def run(config: SftConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    rows = [preferred(row) for row in load_jsonl(inputs.preferences.path, PreferenceRow)]
    return fine_tune(config, inputs.start, rows, heldout_targets(inputs.heldout), ctx)


def preferred(row: PreferenceRow) -> SftRow:
    """The dialog with the completion people liked best: edited, else chosen."""
    best = row.ranked[0]
    return SftRow(
        id=row.id,
        messages=[*row.messages, Message(role="assistant", content=best.text)],
        origin="preference",
        source=row.source,
        completion_ids=best.token_ids,
        finish_reason=best.finish_reason,
        meta=row.meta,
    )


def heldout_targets(heldout: Artifact | None) -> list[SftRow]:
    """What people liked best of held-out preferences; nothing where none are given."""
    return [] if heldout is None else [preferred(row) for row in load_jsonl(heldout.path, PreferenceRow)]


STAGE = Stage("bootstrap", Inputs, Outputs, run)
