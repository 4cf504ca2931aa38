"""A row on its way through the steps, whatever kind it is of, and what comes out of it.

SelectedRow | PreferenceRow | SftRow --item_of_*--> Item --steps add what they find--> as_sft, as_preference
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from alignloop.records import CompletionText, Message, PreferenceRow, SelectedRow, SftRow, Source, Strength

LEAST_DIFFICULTY = 1e-3
"""In priorities: what every candidate solves would otherwise be worth nothing at all."""


@dataclass(frozen=True)
class Item:
    """A dialog with its completion, and what is known of it.

    Attributes:
        row: what it was made of; what comes out is made of it, too.
        messages: up to the completion.
        from_people: see `is_peoples`; such a row carries no reward and passes the steps that go by one.
        as_target: a preference of a round, whose best completion becomes an SFT row.
        judge: points by judging prompt.
        best_rating: points of the quality judge over the most it gives.
        tags: intentions; None where no judge was asked or its answer cannot be read.
        difficulty_score: higher is harder, on the scale of the step that set it.
        priority_difficulty: the same in (0, 1]; None where nothing is known.
    """

    id: str
    row: SftRow | PreferenceRow | SelectedRow
    messages: tuple[Message, ...]
    completion: str
    truncated: bool = False
    reward: float | None = None
    pass_rate: float | None = None
    from_people: bool = False
    as_target: bool = False
    topic: str | None = None
    fine_topic: str | None = None
    judge: dict[str, int] = field(default_factory=dict)
    best_rating: float | None = None
    tags: tuple[str, ...] | None = None
    difficulty_score: float | None = None
    priority_difficulty: float | None = None
    cluster: int | None = None

    @cached_property
    def prompt(self) -> str:
        """What the user says, all turns: near-duplicates and decontamination go by it."""
        return "\n\n".join(message.content for message in self.messages if message.role == "user")

    @property
    def last_question(self) -> str:
        """The user's last turn."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def completions(self) -> list[str]:
        """Its own, and of a preference those that it was preferred to."""
        return [best.text for best in self.row.ranked] if isinstance(self.row, PreferenceRow) else [self.completion]

    @property
    def text(self) -> str:
        """All that tells it from other rows: prompt, completion, and of a preference what was rejected."""
        rejected = (self.row.rejected,) if isinstance(self.row, PreferenceRow) else ()
        return "\n\n".join((self.prompt, self.completion, *rejected))

    @property
    def dialog(self) -> list[Message]:
        """With the completion."""
        return [*self.messages, Message(role="assistant", content=self.completion)]

    @property
    def source(self) -> Source:
        if isinstance(self.row, SelectedRow):
            return Source.of_round(self.row.round)
        return self.row.source

    @property
    def quality_score(self) -> float | None:
        """The reward; without one, what an earlier score or the judge says."""
        return self.best_rating if self.reward is None else self.reward

    def with_pass_rate(self, pass_rate: float) -> Item:
        """The item with what its prompt's pass rate says of difficulty."""
        difficulty = 1.0 - pass_rate
        return replace(
            self,
            pass_rate=pass_rate,
            difficulty_score=difficulty,
            priority_difficulty=max(difficulty, LEAST_DIFFICULTY),
        )


def item_of_selected(row: SelectedRow) -> Item:
    """The best of K of a prompt; an empty completion is cleaning's to drop, with a reason."""
    return replace(_item(row, row.picked), reward=row.reward).with_pass_rate(row.pass_rate)


def item_of_preference(row: PreferenceRow) -> Item:
    """A preference by what was liked best of it: edited, else chosen."""
    return _item(row, row.ranked[0])


def item_of_target(row: PreferenceRow, *, strengths: Sequence[Strength], pass_rate: float | None = None) -> Item:
    """A preference of a round's batch on its way to SFT: people's, or by its reward like what the policy sampled.

    Args:
        strengths: those that train the reward model.
        pass_rate: of its prompt's candidates, where the round has sampled for it.
    """
    item = replace(item_of_preference(row), as_target=True)
    if is_peoples(row, strengths=strengths):
        return replace(item, from_people=True)
    item = replace(item, reward=row.chosen_reward)
    return item if pass_rate is None else item.with_pass_rate(pass_rate)


def is_peoples(row: PreferenceRow, *, strengths: Sequence[Strength]) -> bool:
    """Whether people wrote its best completion, or chose it at one of the `strengths` (or named no strength).

    What a judge or the simulated annotator picked is a candidate of the policy like any other, and what people hardly
    preferred may be no better than what they rejected.
    """
    chosen = row.compared_by == "people" and (row.strength is None or row.strength in strengths)
    return chosen or row.edited is not None


def item_of_sft(row: SftRow, *, reward: float | None = None) -> Item:
    """A dialog with its target; what an earlier pruning found is taken up."""
    return Item(
        id=row.id,
        row=row,
        messages=tuple(row.messages[:-1]),
        completion=row.messages[-1].content,
        truncated=row.finish_reason == "length",
        reward=reward,
        topic=row.topic,
        fine_topic=row.fine_topic,
        judge=dict(row.judge),
        tags=tuple(row.tags) or None,
        difficulty_score=row.difficulty_score,
    )


def _item(row: SelectedRow | PreferenceRow, best: CompletionText) -> Item:
    truncated = best.finish_reason == "length"
    return Item(id=row.id, row=row, messages=tuple(row.messages), completion=best.text, truncated=truncated)


def as_sft(item: Item) -> SftRow:
    """The row to train on, with its lineage."""
    row = item.row
    if isinstance(row, SftRow):
        return row.model_copy(update={**_found(item), "id": item.id})
    lineage: dict[str, Any] = {"origin": "preference"}
    if isinstance(row, SelectedRow):
        names = ("prompt_id", "round", "policy", "rewards")
        lineage = {"origin": "best_of_k", **{name: getattr(row, name) for name in names}}
    best = row.picked if isinstance(row, SelectedRow) else row.ranked[0]
    if item.completion == best.text:  # how it was sampled holds for no other text
        lineage |= {"completion_ids": best.token_ids, "finish_reason": best.finish_reason}
    return SftRow(id=item.id, messages=item.dialog, source=item.source, meta=row.meta, **lineage, **_found(item))


PRUNING = "pruning"
"""Column of a preference row's `meta` that holds what the steps found."""


def as_preference(item: Item) -> PreferenceRow:
    """The preference row; what the steps found stands in its `meta`, for preferences have no columns for it."""
    assert isinstance(item.row, PreferenceRow), "only preferences become preferences"
    known = {name: value for name, value in _found(item).items() if value not in (None, {}, [])}
    meta = {**item.row.meta, PRUNING: known} if known else item.row.meta
    return item.row.model_copy(update={"id": item.id, "meta": meta})


def _found(item: Item) -> dict[str, Any]:
    """What the steps found, by column."""
    return {
        "topic": item.topic,
        "fine_topic": item.fine_topic,
        "quality_score": item.quality_score,
        "difficulty_score": item.difficulty_score,
        "judge": item.judge,
        "tags": list(item.tags or ()),
        "cluster": item.cluster,
    }
