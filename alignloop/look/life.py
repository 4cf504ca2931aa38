"""What a row's life is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alignloop.records import Message

Kind = Literal["prompt", "candidate", "preference", "pair", "verdict", "rejected row"]
Outcome = Literal[
    "read", "rejected", "held out", "dropped", "sampled", "scored", "best", "not best", "kept", "not drawn", "in batch",
    "compared", "pair", "no pair", "trained", "not trained",
]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What a stage made of the row.

    Attributes:
        stage: its folder's name, for example `07_prune`.
        text: one sentence, for people.
        facts: the same for programs.
    """

    round: int
    stage: str
    verdict: Outcome
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CandidateLine:
    """One of a prompt's K candidates.

    Attributes:
        mark: `best`, `chosen`, `rejected`: what it was taken for; several with commas.
        asked: whether it is the row that the person asked for.
    """

    round: int
    id: str
    reward: float | None
    finish_reason: str
    completion: str
    mark: str = ""
    asked: bool = False


@dataclass(frozen=True)
class TwinPair:
    """A row that was dropped for its likeness to another, and that other.

    Attributes:
        twin_text: empty where the run's files do not hold it.
    """

    round: int
    stage: str
    id: str
    text: str
    twin: str
    twin_text: str
    cosine: float | None
    reason: str


@dataclass(frozen=True)
class Life:
    """A row and what became of it.

    Attributes:
        facts: label -> what is known of the row itself.
        texts: label -> text, in the order to read them.
    """

    id: str
    kind: Kind
    facts: dict[str, Any]
    messages: tuple[Message, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    candidates: tuple[CandidateLine, ...] = ()
    steps: tuple[Step, ...] = ()
    twins: tuple[TwinPair, ...] = ()

    @property
    def trained(self) -> tuple[str, ...]:
        """Where it trained, and as what."""
        return tuple(
            f"round {step.round} {step.stage}{' as ' + step.facts['role'] if 'role' in step.facts else ''}"
            for step in self.steps
            if step.verdict == "trained"
        )
