"""A row of any kind on its way through the steps, and the row that is made of it at the end.

SelectedRow | PreferenceRow | SftRow --item_of_*--> Item --steps add what they find--> as_sft, as_preference
FILE of the user's, in any form --read_rows--> items, with the rewards and pass rates of its columns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from alignloop.data.forms import FORMS
from alignloop.data.problems import is_number
from alignloop.data.readers import read_preferences, read_sft
from alignloop.data.reading import Reading
from alignloop.data.rows import Options
from alignloop.errors import DataError
from alignloop.records import (
    CompletionText,
    Message,
    PreferenceRow,
    RejectedRow,
    SelectedRow,
    SftRow,
    Source,
    Strength,
)

LEAST_DIFFICULTY = 1e-3
"""Floor for priorities: what every candidate solves would otherwise be worth nothing."""
PRUNING = "pruning"
"""Column of a preference row's `meta` for what the steps found."""
REWARDS = ("total_reward", "reward", "score_chosen", "quality_score")
"""Columns of a file that may hold a row's reward; the first that a row has counts."""
FileKind = Literal["sft", "preferences"]


@dataclass(frozen=True)
class Item:
    """A dialog with its completion, and what is known of it.

    Attributes:
        row: what it was made of, and the row at the end, too.
        messages: without the completion.
        from_people: see `is_peoples`; such a row has no reward and passes the steps that go by one.
        as_target: a preference of a round, whose best completion becomes an SFT row.
        demonstration: the entry of `sft.data` that it comes from.
        judge: points by judging prompt.
        best_rating: points of the quality judge over its maximum.
        failed_gates: functions whose gate the completion fails; such a row is never kept.
        tags: intentions; None where no judge was asked or its answer cannot be read.
        difficulty_score: higher is harder, on the scale of the step that set it.
        priority_difficulty: the same in (0, 1]; None where unknown.
    """

    id: str
    row: SftRow | PreferenceRow | SelectedRow
    messages: tuple[Message, ...]
    completion: str
    truncated: bool = False
    reward: float | None = None
    pass_rate: float | None = None
    failed_gates: tuple[str, ...] = ()
    from_people: bool = False
    as_target: bool = False
    demonstration: str | None = None
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
        """All user turns: what near-duplicates and decontamination go by."""
        return "\n\n".join(message.content for message in self.messages if message.role == "user")

    @property
    def last_question(self) -> str:
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def completions(self) -> list[str]:
        """Of a preference the best completion and those it was preferred to, else the one."""
        return [best.text for best in self.row.ranked] if isinstance(self.row, PreferenceRow) else [self.completion]

    @property
    def text(self) -> str:
        """Prompt, completion, and what a preference rejected: all that tells it from other rows."""
        rejected = (self.row.rejected,) if isinstance(self.row, PreferenceRow) else ()
        return "\n\n".join((self.prompt, self.completion, *rejected))

    @property
    def dialog(self) -> list[Message]:
        return [*self.messages, Message(role="assistant", content=self.completion)]

    @property
    def source(self) -> Source:
        return Source.of_round(self.row.round) if isinstance(self.row, SelectedRow) else self.row.source

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return self.source.file + (f", line {self.source.line}" if self.source.line else "")

    @property
    def quality_score(self) -> float | None:
        """The reward; without one, what the judge says."""
        return self.best_rating if self.reward is None else self.reward

    def with_pass_rate(self, pass_rate: float) -> Item:
        hard = 1.0 - pass_rate
        return replace(
            self, pass_rate=pass_rate, difficulty_score=hard, priority_difficulty=max(hard, LEAST_DIFFICULTY)
        )


def item_of_selected(row: SelectedRow) -> Item:
    """The best of K; an empty completion is left to cleaning, which drops it with a reason."""
    item = replace(_item(row, row.picked), reward=row.reward, failed_gates=tuple(row.failed_gates))
    return item if row.pass_rate is None else item.with_pass_rate(row.pass_rate)


def item_of_preference(row: PreferenceRow) -> Item:
    """A preference with its best completion: edited, else chosen."""
    return _item(row, row.ranked[0])


def _item(row: SelectedRow | PreferenceRow, best: CompletionText) -> Item:
    truncated = best.finish_reason == "length"
    return Item(id=row.id, row=row, messages=tuple(row.messages), completion=best.text, truncated=truncated)


def item_of_target(row: PreferenceRow, *, strengths: Sequence[Strength], pass_rate: float | None = None) -> Item:
    """A preference of a round's batch on its way to SFT: people's, or by its reward like what the policy sampled.

    `strengths` are those that train the reward model; `pass_rate` is that of the prompt's candidates, if there are any.
    """
    item = replace(item_of_preference(row), as_target=True)
    if is_peoples(row, strengths=strengths):
        return replace(item, from_people=True)
    item = replace(item, reward=row.chosen_reward, failed_gates=tuple(row.chosen_failed_gates))
    return item if pass_rate is None else item.with_pass_rate(pass_rate)


def is_peoples(row: PreferenceRow, *, strengths: Sequence[Strength]) -> bool:
    """Whether people wrote its best completion, or chose it at one of the `strengths` (or named no strength).

    What a judge, a function or the simulated annotator picked is a candidate of the policy like any other, and what
    people hardly preferred may be no better than what they rejected. What a round's judge wrote itself is not theirs.
    """
    chosen = row.compared_by == "people" and (row.strength is None or row.strength in strengths)
    by_judge = row.compared_by == "judge" and row.origin == "annotated"
    return chosen or (row.edited is not None and not by_judge)


def item_of_sft(row: SftRow, *, reward: float | None = None) -> Item:
    """A dialog with its target, and what an earlier pruning found."""
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


def item_of_demonstration(row: SftRow, *, entry: str) -> Item:
    """People's, of an entry of `sft.data`: nothing has a reward for it."""
    return replace(item_of_sft(row), from_people=True, demonstration=entry)


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


def as_preference(item: Item) -> PreferenceRow:
    """The preference row; what the steps found goes to its `meta`, as preferences have no columns for it."""
    assert isinstance(item.row, PreferenceRow), "only preferences become preferences"
    known = {name: value for name, value in _found(item).items() if value not in (None, {}, [])}
    meta = {**item.row.meta, PRUNING: known} if known else item.row.meta
    return item.row.model_copy(update={"id": item.id, "meta": meta})


def _found(item: Item) -> dict[str, Any]:
    names = ("topic", "fine_topic", "quality_score", "difficulty_score", "judge", "tags", "cluster")
    return {**{name: getattr(item, name) for name in names}, "tags": list(item.tags or ())}


@dataclass(frozen=True)
class FileRows:
    kind: FileKind
    form: str
    items: list[Item]
    rejected: list[RejectedRow]


def kind_of_rows(file: str, *, form: str | None = None, options: Options | None = None) -> tuple[FileKind, str]:
    """Whether a file holds preferences or dialogs, and the form of its rows; a DataError without file or known form."""
    found = Reading[SftRow](file, "sft", form=form, options=options).form.name
    return ("preferences" if found in {known.name for known in FORMS} else "sft"), found


def read_rows(
    file: str, *, max_bad_fraction: float, form: str | None = None, options: Options | None = None
) -> FileRows:
    """Read a file to prune; errors as for `kind_of_rows`.

    Also a DataError where too many rows cannot be read, or a reward or pass rate is no number.
    """
    kind, name = kind_of_rows(file, form=form, options=options)
    how: dict[str, Any] = {"max_bad_fraction": max_bad_fraction, "form": form, **vars(options or Options())}
    if kind == "preferences":
        preferences = read_preferences([file], **how)
        items = [_with_columns(_with_topics(item_of_preference(row))) for row in preferences.rows]
        return FileRows(kind, name, items, preferences.rejected)
    dialogs = read_sft([file], **how)
    items = [_with_columns(item_of_sft(row, reward=row.quality_score)) for row in dialogs.rows]
    return FileRows(kind, name, items, dialogs.rejected)


def _with_topics(item: Item) -> Item:
    found = item.row.meta.get(PRUNING)
    if not isinstance(found, dict):
        return item
    return replace(item, **{name: found[name] for name in ("topic", "fine_topic") if isinstance(found.get(name), str)})


def _with_columns(item: Item) -> Item:
    reward = _number(item, REWARDS) if item.reward is None else item.reward
    return replace(item, reward=reward, pass_rate=_number(item, ("pass_rate",)))


def _number(item: Item, columns: Sequence[str]) -> float | None:
    """The first of the columns that the row has; a DataError where it holds no number."""
    name = next((name for name in columns if item.row.meta.get(name) is not None), None)
    if name is None:
        return None
    value = item.row.meta[name]
    if not is_number(value):
        raise DataError(f"{item.where}, field {name}: {value!r}: a finite number is wanted, or leave it out")
    return float(value)
