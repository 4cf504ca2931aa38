"""Every row on disk, as pydantic models. `data_schemas/*.schema.json` are exported from here.

The flow of a round, in rows:

    PreferenceRow --collect--> PreferenceRow (this round's batch)  +  PromptRow  +  VerdictRow (a judge's)
    PromptRow --sample--> CandidateRow (K a prompt) --score--> CandidateRow with `reward`
    CandidateRow --select--> SelectedRow --prune--> SftRow | DroppedRow
    PreferenceRow + CandidateRow --build_pairs--> PairRow

Column names follow TRL where it has one (`prompt`, `chosen`, `rejected`, `completion`, `messages`);
`edited` and `strength` are ours (The Llama 3 Herd of Models, section 4.2.1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Role = Literal["tools", "system", "user", "assistant", "tool"]
"""`tools`: the tools there are, a JSON list of their descriptions, before all other turns; `tool`: what one says. An
assistant's text that calls some ends with its calls (`<tool_calls>`); docs/data.md has the form."""
Strength = Literal["significantly_better", "better", "slightly_better", "marginally_better"]
STRENGTHS: tuple[Strength, ...] = ("significantly_better", "better", "slightly_better", "marginally_better")

NonEmptyText = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[int], Field(min_length=1)]
FinishReason = Literal["stop", "length"]
ComparedBy = Literal["people", "judge", "simulated", "function"]
RowOrigin = Literal["file", "annotated", "on_policy"]
"""Where what trains comes from: the user's files of preferences, a round's annotations, or its candidates by reward."""
ROW_ORIGINS: tuple[RowOrigin, ...] = ("file", "annotated", "on_policy")


FailedGates = Annotated[list[str], Field(exclude_if=lambda gates: not gates)]
"""Functions of `score.reward_functions` whose `gate` a completion fails; not written where there is none."""


MemberRewards = Annotated[list[float], Field(exclude_if=lambda rewards: not rewards)]
"""Raw rewards by each member of `score.ensemble`, in the order of `reward.variants`; not written where one model
scores."""


def candidate_id(prompt_id: str, *, round: int, k: int) -> str:
    """`<prompt id>/<round>/<k>`."""
    return f"{candidates_of(prompt_id, round=round)}{k}"


def candidates_of(prompt_id: str, *, round: int) -> str:
    """What the ids of a prompt's candidates of a round begin with, and those of the pairs of them."""
    return f"{prompt_id}/{round}/"


def split_candidate_id(row_id: str) -> tuple[str, str]:
    """A candidate's prompt id and its `k`."""
    start, _, k = row_id.rpartition("/")
    return start.rpartition("/")[0], k


def pair_id(chosen_id: str, rejected_k: int) -> str:
    """`<chosen candidate's id>><k of the rejected one>`: two candidates of one prompt."""
    return f"{chosen_id}>{rejected_k}"


def split_pair_id(row_id: str) -> tuple[str, str]:
    """The ids of the two candidates of a pair: chosen, rejected."""
    chosen, _, k = row_id.rpartition(">")
    return chosen, f"{chosen.rpartition('/')[0]}/{k}"


def question_id(first_id: str, second_id: str) -> str:
    """`<first candidate's id>-<k of the second>`: what people are asked to compare."""
    return f"{first_id}-{split_candidate_id(second_id)[1]}"


def verdict_id(first_id: str, second_id: str) -> str:
    """The id of a judge's comparison of two candidates, as they are shown."""
    return f"{first_id}/{second_id}"


def annotation_id(chosen_id: str, rejected_id: str) -> str:
    """The id of a preference that an annotator made of two candidates."""
    return f"annotated/{chosen_id}/{rejected_id}"


def demonstration_id(row_id: str) -> str:
    """The id of a demonstration: its file's own, apart from those of preferences and prompts."""
    return f"demonstration/{row_id}"


def split_annotation_id(row_id: str) -> tuple[str, str]:
    """The ids of the two candidates of such a preference: chosen, rejected. Empty where it is no such preference."""
    kind, *parts = row_id.split("/")
    if kind != "annotated" or len(parts) % 2:
        return "", ""
    # Both are of one prompt: their ids have as many parts.
    half = len(parts) // 2
    return "/".join(parts[:half]), "/".join(parts[half:])


@dataclass(frozen=True)
class CompletionText:
    """A completion that trains.

    Attributes:
        token_ids: as sampled, by the tokenizer of the run, the stop token included where there was one; None where the
            text is tokenised: somebody wrote it, or it comes from a file of the user's.
        finish_reason: `length`: it was cut at its token limit, so that nothing may learn to stop there; None: unknown.
    """

    text: str
    token_ids: list[int] | None = None
    finish_reason: FinishReason | None = None


class Row(BaseModel):
    """Base of all rows: immutable; unknown columns are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Message(Row):
    """One turn of a dialog."""

    role: Role
    content: str


def round_name(number: int) -> str:
    """`round-03`: a round's folder, and the source of the rows that it makes."""
    return f"round-{number:02d}"


class Source(Row):
    """Where a row comes from: enough to find it again."""

    file: str
    """File name as given by the user, or `round-NN` for rows the loop made."""
    line: int | None = None
    """1-based line (JSONL) or element (JSON array)."""

    @classmethod
    def of_round(cls, number: int) -> Source:
        return cls(file=round_name(number))

    @property
    def is_round(self) -> bool:
        """Whether the loop made the row."""
        return self.line is None and self.file.startswith("round-")

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}, line {self.line}"


class PreferenceRow(Row):
    """An annotated comparison: edited > chosen > rejected."""

    id: str
    messages: list[Message] = Field(min_length=1)
    """The dialog up to the completion; the last message is the user's."""
    chosen: NonEmptyText
    rejected: NonEmptyText
    edited: NonEmptyText | None = None
    """An improvement of `chosen`, ranked above it: a person's, or, of a round's annotations, the judge's."""
    strength: Strength | None = None
    """How much better `chosen` is than `rejected`; None where the source does not say."""
    source: Source
    annotator: str = "human"
    """Who compared the two: `human` or a person's name, `simulated`, a judge's name, a function's `module:function`."""
    compared_by: ComparedBy = "people"
    """What the annotator is: what a judge, a function or the simulated annotator picked is not people's choice."""
    chosen_ids: TokenIds | None = None
    """Token ids of `chosen` as sampled, where it is a candidate of the run; None: the text is tokenised. Never taken
    from a user's file, whose ids may be another tokenizer's."""
    chosen_finish_reason: FinishReason | None = None
    """`length`: `chosen` was cut at its token limit, and teaches no end of turn."""
    rejected_ids: TokenIds | None = None
    rejected_finish_reason: FinishReason | None = None
    chosen_reward: float | None = None
    """Total reward of the best completion: by the reward model of the round that sampled it, and, as `score` hands a
    batch on, by the round's own; None for what people wrote or clearly chose."""
    chosen_failed_gates: FailedGates = []
    """Of the best completion, where it has such a reward."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Free columns of the source (topic, constraints, ...); carried along, never read by training."""

    @model_validator(mode="after")
    def _compared(self) -> PreferenceRow:
        if self.messages[-1].role not in ("user", "tool"):
            raise ValueError(
                f"the last message before the completions must be the user's, not {self.messages[-1].role}'s"
            )
        if self.chosen.strip() == self.rejected.strip():
            raise ValueError("chosen and rejected are the same text: nothing to learn from the row")
        return self

    @property
    def origin(self) -> RowOrigin:
        """Whether a round of the run had it annotated, or it comes from a file of the user's."""
        return "annotated" if self.source.is_round else "file"

    @property
    def best(self) -> str:
        """The completion people like best: `edited` if there is one, else `chosen`."""
        return self.edited if self.edited is not None else self.chosen

    @property
    def ranked(self) -> list[CompletionText]:
        """Two or three completions, best first."""
        edited = [] if self.edited is None else [CompletionText(self.edited)]
        return [*edited, *_compared_texts(self)]


class PromptRow(Row):
    """A prompt to sample completions for."""

    id: str
    messages: list[Message] = Field(min_length=1)
    source: Source
    meta: dict[str, Any] = Field(default_factory=dict)


class RejectedRow(Row):
    """A row of an input file that could not be read. Nothing is skipped in silence."""

    file: str
    line: int | None = None
    field: str | None = None
    value: str | None = None
    """The first 200 characters of what stands in `field`."""
    reason: str
    text: str = ""
    """The first 200 characters of the row as found."""


class CandidateRow(Row):
    """One of the K completions the policy sampled for a prompt."""

    id: str
    """`<prompt id>/<round>/<k>`."""
    prompt_id: str
    messages: list[Message] = Field(min_length=1)
    completion: str
    """Text without the end-of-turn token."""
    completion_ids: list[int]
    """Token ids as sampled, the stop token included where there was one."""
    finish_reason: FinishReason
    round: int
    policy: str
    """Digest of the checkpoint that sampled it."""
    reward: float | None = None
    """The reward model's raw reward, never normalised per prompt, or what `score.ensemble` makes of `member_rewards`;
    None before `score`."""
    member_rewards: MemberRewards = []
    reward_spread: float | None = Field(None, exclude_if=lambda spread: spread is None)
    """Standard deviation of `member_rewards`: how far the members of an ensemble are from agreeing on what the
    completion is worth; not written where one model scores."""
    extra_rewards: dict[str, float] = Field(default_factory=dict)
    """Value of each reward function of the recipe that applies, by `module:function`."""
    total_reward: float | None = None
    """`reward` and the weighted sum of `extra_rewards`, less `score.length_penalty`: what selection and pairs go by;
    None before `score`."""
    failed_gates: FailedGates = []
    """The fewer, the better, before any reward."""
    temperature: float | None = None
    top_p: float | None = None
    system_prompt: str | None = None
    """What steered the completion, where it is not part of `messages`."""
    meta: dict[str, Any] = Field(default_factory=dict)


def by_prompt(rows: Iterable[CandidateRow]) -> dict[str, list[CandidateRow]]:
    """The candidates of each prompt, prompts and candidates in the rows' order."""
    grouped: dict[str, list[CandidateRow]] = {}
    for row in rows:
        grouped.setdefault(row.prompt_id, []).append(row)
    return grouped


class SelectedRow(Row):
    """The best of K of a prompt, with what was known when it was picked."""

    id: str
    prompt_id: str
    messages: list[Message] = Field(min_length=1)
    completion: str
    completion_ids: TokenIds | None = None
    """The candidate's; None where nothing was sampled."""
    finish_reason: FinishReason
    reward: float
    random_reward: float
    """Reward of a candidate picked at random among those the best is picked from: the report's yardstick."""
    rewards: list[float]
    """Total rewards of all K candidates, in candidate order."""
    pass_rate: Annotated[float, Field(ge=0.0, le=1.0)] | None
    """Share of the K candidates whose reward reaches the threshold named in the manifest of `select`, or which pass by
    `select.pass_by`; None where that function does not apply."""
    round: int
    policy: str
    failed_gates: FailedGates = []
    """Of the completion: no candidate of the prompt passes them all, and the row does not train."""
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def picked(self) -> CompletionText:
        """The completion."""
        return CompletionText(self.completion, self.completion_ids, self.finish_reason)


Winner = Literal["first", "second", "tie", "unreadable"]


class VerdictRow(Row):
    """What a judge made of two candidates of a prompt, and every text it wrote about them."""

    id: str
    first: str
    """Candidate's id, as `second`."""
    second: str
    winner: Winner
    """`tie` also where it contradicts itself; `unreadable` where no answer could be read: neither is a preference."""
    strength: Strength | None = None
    """How much better the winner is; None where there is none, or nobody said."""
    reason: str
    """The judge's own words, or why there is no winner."""
    answers: list[str]
    """In the order asked; a retry's after what it repeats."""
    judge: str
    """Its name, as in the preferences' `annotator`."""
    edit_dropped: Annotated[str | None, Field(exclude_if=lambda reason: reason is None)] = None
    """Why the judge's edit of the winner is not used; not written where it is, or none was asked for."""
    edit_answers: Annotated[list[str], Field(exclude_if=lambda answers: not answers)] = []
    """What the judge wrote when it was asked to improve the winner, in order; not written where it was not."""


class ToAnnotateRow(Row):
    """Two candidates of a prompt that people are asked to compare; which one the reward model likes is not told.

    `first` and `second` are their answers alone, without the reasoning before them.
    """

    id: str
    """`<prompt id>/<round>/<k>-<k>`: the pair's, which its answer repeats."""
    messages: list[Message] = Field(min_length=1)
    """The dialog up to the completion."""
    first: NonEmptyText
    second: NonEmptyText


Choice = Literal["first", "second", "tie"]


class AnnotatedRow(Row):
    """A person's answer to a `ToAnnotateRow`."""

    id: str
    choice: Choice | None = None
    """None: not answered yet."""
    strength: Strength | None = None
    """How much better the chosen one is; a tie has none."""
    edited: NonEmptyText | None = None
    """An improvement of the chosen answer, ranked above it and trained behind its reasoning; a tie has none."""
    annotator: str = "human"
    """Who said so, where several do."""
    messages: list[Message] | None = None
    """As asked, where an annotator's tool hands the question back: it must be the same. So `first` and `second`."""
    first: str | None = None
    second: str | None = None
    meta: dict[str, Any] = Field(default_factory=dict)
    """Free columns (a comment, a time); carried along into the preference's `meta.annotation`."""


class SftRow(Row):
    """A dialog to fine-tune on; the last assistant message is the target."""

    id: str
    messages: list[Message] = Field(min_length=2)
    origin: Literal["best_of_k", "preference", "demonstration", "given"]
    """The best of K candidates; what people chose or edited; a demonstration of `sft.data`; or a row of a file that was
    pruned by itself."""
    quality_score: float | None = None
    """The reward; without one, the judge's points."""
    difficulty_score: float | None = None
    """Higher is harder: 1 - pass rate, the judge's points, or the number of intentions."""
    source: Source
    completion_ids: TokenIds | None = None
    """Token ids of the target as sampled, where it is a candidate of the run; None: the text is tokenised."""
    finish_reason: FinishReason | None = None
    """`length`: the target was cut at its token limit, and teaches no end of turn."""
    prompt_id: str | None = None
    """Of the prompt it was sampled for."""
    round: int | None = None
    """The round it was sampled in; None where people wrote it."""
    policy: str | None = None
    """Digest of the checkpoint that sampled it."""
    rewards: list[float] = Field(default_factory=list)
    """Total rewards of all K candidates of its prompt, in candidate order."""
    topic: str | None = None
    fine_topic: str | None = None
    judge: dict[str, int] = Field(default_factory=dict)
    """Points by judging prompt."""
    tags: list[str] = Field(default_factory=list)
    """Intentions of its prompt, as a judge lists them."""
    cluster: int | None = None
    """Of semantic deduplication."""
    meta: dict[str, Any] = Field(default_factory=dict)

    @field_validator("judge", mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """A table has a column for each prompt, empty where it was not asked."""
        return {name: points for name, points in value.items() if points is not None} if type(value) is dict else value

    @field_validator("meta", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """A table holds free columns as JSON text."""
        try:
            return json.loads(value) if type(value) is str else value
        except (ValueError, RecursionError):
            return value

    @model_validator(mode="after")
    def _ends_with_target(self) -> SftRow:
        if self.messages[-1].role != "assistant" or not self.messages[-1].content.strip():
            raise ValueError("the last message must be a non-empty assistant message: it is the target")
        return self

    @property
    def target(self) -> CompletionText:
        """The last message."""
        return CompletionText(self.messages[-1].content, self.completion_ids, self.finish_reason)


class DroppedRow(Row):
    """A row that a selection step dropped, and why."""

    id: str
    stage: str
    rule: str
    """The step that dropped it: `clean`, `quality`, `difficulty`, `near_duplicates`, `semantic_dedup`,
    `decontaminate`, `mix`, `length`, ..."""
    reason: str
    twin: str | None = None
    """The row it lost to, where there is one (near duplicates), or the benchmark's question it holds."""
    cosine: float | None = None
    """To the twin, where embeddings were compared."""
    source: Source | None = None
    """Where it comes from, of rows that are dropped when they come in: they stand in no other file."""


class PairRow(Row):
    """A pair for DPO."""

    id: str
    messages: list[Message] = Field(min_length=1)
    chosen: NonEmptyText
    rejected: NonEmptyText
    strength: Strength | None = None
    origin: Literal["on_policy", "preference"]
    reward_gap: float | None = None
    """Of an on-policy pair, by total reward; None where a gate tells the two apart."""
    source: Source
    chosen_ids: TokenIds | None = None
    """As in a preference row; so the three that follow."""
    chosen_finish_reason: FinishReason | None = None
    rejected_ids: TokenIds | None = None
    rejected_finish_reason: FinishReason | None = None
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _differ(self) -> PairRow:
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same text")
        return self

    @property
    def ranked(self) -> list[CompletionText]:
        """Chosen, then rejected."""
        return _compared_texts(self)


def _compared_texts(row: PreferenceRow | PairRow) -> list[CompletionText]:
    return [
        CompletionText(row.chosen, row.chosen_ids, row.chosen_finish_reason),
        CompletionText(row.rejected, row.rejected_ids, row.rejected_finish_reason),
    ]


class MeasuredRow(Row):
    """A held-out prompt as a round's model answers it, greedily: the same prompts in every round."""

    id: str
    """The held-out preference's, the same in every round."""
    messages: list[Message] = Field(min_length=1)
    completion: str
    """Text without the end-of-turn token."""
    completion_ids: list[int]
    """Token ids as generated, the stop token included where there was one."""
    finish_reason: FinishReason
    chosen: NonEmptyText
    """What the preference has as the better completion, to read beside it; nothing learns from it."""
    round: int
    policy: str
    """Digest of the checkpoint that answers."""
    reward: float | None = None
    """By the round's reward model: comparable within the round; None of the base, which has none."""
    first_reward: float | None = None
    """By the first round's reward model: comparable with other rounds'."""


class RoundRow(Row):
    """One line of `rounds.jsonl`: a round's outcome; round 0 is the base."""

    round: int
    policy: str
    """Checkpoint directory, relative to the run directory."""
    metrics: dict[str, float]
    """`task/metric` -> value, names as in lm-eval."""
    stderr: dict[str, float]
    """Standard errors under the same keys."""
    reward_model: dict[str, float]
    """Held-out preference accuracy and mean rewards of a random and of the best candidate."""
    rows: dict[str, int]
    """Rows kept and dropped by stage."""
    seconds: dict[str, float]
    """Wall seconds by activity."""
    measures: dict[str, float] = Field(default_factory=dict)
    """What the benchmarks do not show, as `measure` publishes it; a standard error is `<figure>_stderr`."""
    flags: list[str] = Field(default_factory=list)
    """What is to be looked at, in sentences: rewards and win rates that say the opposite of a benchmark."""
    gated: str | None = None
    """Why the round's policy is not used, where it fell past the recipe's gate."""


ROW_MODELS: dict[str, type[Row]] = {
    "preference": PreferenceRow,
    "prompt": PromptRow,
    "rejected_row": RejectedRow,
    "candidate": CandidateRow,
    "selected": SelectedRow,
    "verdict": VerdictRow,
    "to_annotate": ToAnnotateRow,
    "annotated": AnnotatedRow,
    "sft": SftRow,
    "dropped": DroppedRow,
    "pair": PairRow,
    "measured": MeasuredRow,
    "round": RoundRow,
}
"""Schema name -> model: what `scripts/export_schemas.py` writes."""
