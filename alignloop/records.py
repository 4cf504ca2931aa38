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

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant"]
Strength = Literal["significantly_better", "better", "slightly_better", "marginally_better"]
STRENGTHS: tuple[Strength, ...] = ("significantly_better", "better", "slightly_better", "marginally_better")

NonEmptyText = Annotated[str, Field(min_length=1)]


class Row(BaseModel):
    """Base of all rows: immutable; unknown columns are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Message(Row):
    """One turn of a dialog."""

    role: Role
    content: str


class Source(Row):
    """Where a row comes from: enough to find it again."""

    file: str
    """File name as given by the user, or `round-NN` for rows the loop made."""
    line: int | None = None
    """1-based line (JSONL) or element (JSON array)."""


class PreferenceRow(Row):
    """An annotated comparison: edited > chosen > rejected."""

    id: str
    messages: list[Message] = Field(min_length=1)
    """The dialog up to the completion; the last message is the user's."""
    chosen: NonEmptyText
    rejected: NonEmptyText
    edited: NonEmptyText | None = None
    """A person's improvement of `chosen`; ranked above it."""
    strength: Strength | None = None
    """How much better `chosen` is than `rejected`; None where the source does not say."""
    source: Source
    annotator: str = "human"
    """Who compared the two: `human`, `simulated`, a judge's name."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Free columns of the source (topic, constraints, ...); carried along, never read by training."""

    @model_validator(mode="after")
    def _compared(self) -> PreferenceRow:
        if self.messages[-1].role != "user":
            raise ValueError(
                f"the last message before the completions must be the user's, not {self.messages[-1].role}'s"
            )
        if self.chosen.strip() == self.rejected.strip():
            raise ValueError("chosen and rejected are the same text: nothing to learn from the row")
        return self

    @property
    def best(self) -> str:
        """The completion people like best: `edited` if there is one, else `chosen`."""
        return self.edited if self.edited is not None else self.chosen


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
    reason: str
    text: str = ""
    """The first 200 characters of the row as found."""


FinishReason = Literal["stop", "length"]


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
    """The reward model's raw reward, never normalised per prompt; None before `score`."""
    extra_rewards: dict[str, float] = Field(default_factory=dict)
    """Value of each reward function of the recipe that applies, by `module:function`."""
    total_reward: float | None = None
    """`reward` and the weighted sum of `extra_rewards`: what selection and pairs go by; None before `score`."""
    temperature: float | None = None
    top_p: float | None = None
    system_prompt: str | None = None
    """What steered the completion, where it is not part of `messages`."""
    meta: dict[str, Any] = Field(default_factory=dict)


class SelectedRow(Row):
    """The best of K of a prompt, with what was known when it was picked."""

    id: str
    prompt_id: str
    messages: list[Message] = Field(min_length=1)
    completion: str
    finish_reason: FinishReason
    reward: float
    random_reward: float
    """Reward of a candidate picked at random among those the best is picked from: the report's yardstick."""
    rewards: list[float]
    """Total rewards of all K candidates, in candidate order."""
    pass_rate: float = Field(ge=0.0, le=1.0)
    """Share of the K candidates whose reward reaches the threshold named in the manifest of `select`."""
    round: int
    policy: str
    meta: dict[str, Any] = Field(default_factory=dict)


Winner = Literal["first", "second", "tie", "unreadable"]


class VerdictRow(Row):
    """What a judge made of two candidates of a prompt, and every text it wrote about them."""

    id: str
    first: str
    """Candidate's id, as `second`."""
    second: str
    winner: Winner
    """`tie` also where it contradicts itself; `unreadable` where no answer could be read: neither is a preference."""
    reason: str
    """The judge's own words, or why there is no winner."""
    answers: list[str]
    """In the order asked; a retry's after what it repeats."""
    judge: str
    """Its name, as in the preferences' `annotator`."""


class SftRow(Row):
    """A dialog to fine-tune on; the last assistant message is the target."""

    id: str
    messages: list[Message] = Field(min_length=2)
    origin: Literal["best_of_k", "preference"]
    quality_score: float | None = None
    difficulty_score: float | None = None
    source: Source
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ends_with_target(self) -> SftRow:
        if self.messages[-1].role != "assistant" or not self.messages[-1].content.strip():
            raise ValueError("the last message must be a non-empty assistant message: it is the target")
        return self


class DroppedRow(Row):
    """A row that a selection step dropped, and why."""

    id: str
    stage: str
    rule: str
    """The step that dropped it: `clean`, `quality`, `difficulty`, `semantic_dedup`, `length`, ..."""
    reason: str
    twin: str | None = None
    """The row it lost to, where there is one (near duplicates)."""


class PairRow(Row):
    """A pair for DPO."""

    id: str
    messages: list[Message] = Field(min_length=1)
    chosen: NonEmptyText
    rejected: NonEmptyText
    strength: Strength | None = None
    origin: Literal["on_policy", "preference"]
    reward_gap: float | None = None
    source: Source
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _differ(self) -> PairRow:
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same text")
        return self


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


ROW_MODELS: dict[str, type[Row]] = {
    "preference": PreferenceRow,
    "prompt": PromptRow,
    "rejected_row": RejectedRow,
    "candidate": CandidateRow,
    "selected": SelectedRow,
    "verdict": VerdictRow,
    "sft": SftRow,
    "dropped": DroppedRow,
    "pair": PairRow,
    "round": RoundRow,
}
"""Schema name -> model: what `scripts/export_schemas.py` writes."""
