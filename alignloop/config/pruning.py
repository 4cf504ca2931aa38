"""Data pruning (4.2.3)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from alignloop.config.base import (
    Fraction,
    NonEmptyText,
    NonNegativeFloat,
    Origins,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)
from alignloop.records import ROW_ORIGINS

PAPER_TOPICS = (
    "general knowledge",
    "code",
    "multilingual",
    "exam-like",
    "reasoning and tools",
    "long context",
)
"""Table 7's parts of the SFT mix."""


class BalancedPattern(Section):
    """A pattern of completions that may not grow beyond a share of the rows."""

    name: NonEmptyText
    """Stands in the reasons of what is dropped."""
    regex: NonEmptyText
    """Python's syntax, searched in the completion; begin it with `^` for openings, with `(?i)` to ignore case."""
    max_share: Fraction
    """At most this share of the rows that are left may match; the excess is dropped, lowest reward first."""

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class CleanConfig(Section):
    """Rule-based cleaning (4.2.3, data cleaning)."""

    enabled: bool = True
    max_apology_share: Fraction = 0.05
    """At most this share of rows opens with an apology; the excess is dropped, lowest reward first."""
    balance: tuple[BalancedPattern, ...] = ()
    """More patterns that are balanced as apologies are."""
    max_exclamations_per_100_words: NonNegativeFloat = 10.0
    max_emojis_per_100_words: NonNegativeFloat = 10.0
    max_repeated_ngram_share: Fraction = 0.5
    """Drop where repeats of 4-word sequences make up more than this share of all of them."""
    drop_truncated: bool = True
    language_mismatch: Literal["off", "script", "detect"] = "script"
    """Drop completions in another language than their prompt's. `script`: where their scripts differ (Chinese to
    English); `detect`: also within a script (French to English), by langdetect, which takes milliseconds a row.
    Short texts, code, and prompts that name a language or ask for a translation are never dropped."""


class TopicConfig(Section):
    """Topic classification (4.2.3): a label a row, coarse and fine. Drops nothing; `mix` and code's quality go
    by it."""

    by: Literal["off", "column", "judge", "classifier"] = "off"
    """`column`: the rows' own; `judge`: the recipe's judge; `classifier`: a small model, fine-tuned on `labelled`."""
    column: NonEmptyText = "topic"
    """With `by: column`: the column (of `meta`) that holds it."""
    fine_column: NonEmptyText = "fine_topic"
    labels: tuple[NonEmptyText, ...] = PAPER_TOPICS
    """Coarse topics a judge chooses among. A classifier's are those of its rows."""
    prompt: NonEmptyText = "topic"
    """A bundled judging prompt's name, or a file of yours, of `kind: texts`."""
    model: str | None = None
    """Of the classifier: a Hugging Face folder. With `labelled` it is what is fine-tuned; without, a sequence
    classifier that knows its labels already."""
    labelled: str | None = None
    """JSON lines of `topic`, `fine_topic` where there is one, and `prompt` (or `text`, or `messages`), from which the
    classifier learns."""
    heldout_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the labelled rows on which its accuracy is measured; never trained on."""
    min_accuracy: Fraction = 0.0
    """The stage stops where the held-out accuracy, of coarse topics, is lower."""
    epochs: PositiveFloat = 3.0
    learning_rate: PositiveFloat = 1e-4
    batch_rows: PositiveInt = 16
    max_length: PositiveInt = 256
    """Tokens of a text that the classifier sees: its beginning."""

    @model_validator(mode="after")
    def _complete(self) -> TopicConfig:
        if self.by == "classifier" and self.model is None:
            raise ValueError("by is classifier, but `model` names none: give a small model's folder")
        if self.by == "judge" and len(set(self.labels)) < 2:
            raise ValueError("labels: a judge needs two topics or more to choose among")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels: one stands there twice")
        return self


class QualityConfig(Section):
    """Quality scoring (4.2.3): the top quartile by reward, or the judge's maximum."""

    enabled: bool = True
    by: Literal["reward", "judge", "either"] = "reward"
    """`reward`: the top fraction; `judge`: rows that get the maximum; `either`: both, and either one keeps a row
    (the paper)."""
    top_fraction: Fraction = 0.25
    """Share of rows kept, by raw reward over the whole round, never by prompt."""
    general_prompt: NonEmptyText = "quality_general"
    """Judging prompt for rows that are not code: three points."""
    code_prompt: NonEmptyText = "quality_code"
    """Judging prompt for code: two points."""
    code_topics: tuple[str, ...] = ("code", "coding", "programming")
    """Rows of these topics are code, and so are rows with a fenced block."""
    judge_human_rows: bool = False
    """Whether chosen/edited completions of people go before the judge, too; otherwise they pass."""


class DifficultyConfig(Section):
    """Difficulty: what every candidate solves teaches little, what none solves may be noise."""

    enabled: bool = True
    by: Literal["pass_rate", "judge", "intentions"] = "pass_rate"
    """`pass_rate` among the K candidates, which needs no judge: of those that a verifier passes, where `select.pass_by`
    names one, else by their reward; `judge`: its three points; `intentions`: how many distinct ones a judge lists
    (InsTag)."""
    min_pass_rate: Fraction = 0.0
    max_pass_rate: Fraction = 1.0
    """Rows outside [min, max] are dropped."""
    prompt: NonEmptyText = "difficulty"
    """Judging prompt with `by: judge`."""
    min_points: PositiveInt = 1
    max_points: PositiveInt = 3
    intentions_prompt: NonEmptyText = "intentions"
    """Judging prompt with `by: intentions`."""
    min_intentions: Annotated[int, Field(ge=0)] = 0
    max_intentions: Annotated[int, Field(ge=-1)] = -1
    """-1: no limit."""

    @model_validator(mode="after")
    def _windows(self) -> DifficultyConfig:
        for low, high in (("min_pass_rate", "max_pass_rate"), ("min_points", "max_points")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} ({getattr(self, low)}) is above {high} ({getattr(self, high)})")
        if 0 <= self.max_intentions < self.min_intentions:
            raise ValueError(f"min_intentions ({self.min_intentions}) is above max_intentions ({self.max_intentions})")
        return self


class NearDuplicatesConfig(Section):
    """Prompts that say the same in (nearly) the same words: the best of their rows is kept."""

    enabled: bool = False
    """Off in the loop, where a sampled and a chosen completion of one prompt may both teach; on in `data prune`."""
    of: Literal["auto", "prompt", "row"] = "auto"
    """What is compared: prompts, or prompts with their completions. `auto`: prompts, but whole rows of preferences,
    for several comparisons of one prompt's completions all teach."""
    jaccard: Share | None = 0.8
    """Share of 5-word sequences (5 characters in scripts without spaces) in common from which two prompts are near
    (MinHash); None: only equal prompts, but for case and white space."""
    num_perm: PositiveInt = 128
    """Hashes a prompt."""


class SemanticDedupConfig(Section):
    """Semantic deduplication (4.2.3; SemDeDup)."""

    enabled: bool = True
    embedder: NonEmptyText = "policy"
    """`policy`: mean-pooled last hidden states of the policy that sampled. Else a sentence-transformers model's folder
    or id."""
    threshold: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.95
    """Drop a row whose cosine to an earlier row of its cluster reaches this. Not given in the paper."""
    rows_per_cluster: PositiveInt = 256
    """Sets the number of k-means clusters. Not given in the paper."""
    compare_to: Literal["seen", "kept"] = "seen"
    """Earlier rows of a cluster to compare with: all `seen` (the paper) or only those `kept`."""
    nearest_clusters: PositiveInt = 1
    """A row is compared within this many clusters nearest to it. 1, the paper's rule, misses near rows on either side
    of a border; 2 finds most of them in twice the time."""

    @model_validator(mode="after")
    def _borders(self) -> SemanticDedupConfig:
        if self.nearest_clusters > 1 and self.compare_to == "kept":
            raise ValueError(
                f"nearest_clusters is {self.nearest_clusters} with compare_to `kept`: what is kept in one cluster "
                "would depend on the others - set compare_to: seen, or nearest_clusters: 1"
            )
        return self


class DecontaminateConfig(Section):
    """Rows that hold a question of the run's own benchmarks are dropped: preferences and prompts when they come in,
    SFT rows once more, for what the policy has written, and so, by words, DPO's pairs."""

    enabled: bool = True
    ngram: PositiveInt = 3
    """Words a sequence (characters in scripts without spaces). A question of fewer than 12 words is compared whole."""
    min_share: Share = 0.7
    """Drop a row that has this share of a question's sequences, wherever they stand in it. Lower values drop prompts
    that only share a template's instruction with a benchmark."""
    embedding_threshold: Annotated[float, Field(gt=0.0, le=1.0)] | Literal["auto"] | None = "auto"
    """In `prune`: drop a row whose prompt's cosine to a question reaches this, by `semantic_dedup.embedder`. `auto`:
    0.9 with a sentence-transformers model, 0.99 with the policy's states, which lie closer together. None: only words
    are compared."""


class KeepOutConfig(Section):
    """What rows that come in may not hold: `ingest` and `collect` are fingerprinted by it."""

    tasks: tuple[NonEmptyText, ...]
    """Benchmarks, as in `evaluate.tasks`."""
    include_path: str | None = None
    ngram: PositiveInt
    min_share: Share


class MixConfig(Section):
    """The mix of topics or sources (4.2.2, table 7): by share, or by epochs."""

    by: Literal["topic", "fine_topic", "source"] = "topic"
    """`source`: the name of the file a row comes from; `sampled` and `annotated` for those the loop made."""
    shares: dict[str, Share] = Field(default_factory=dict)
    """Of the rows that are kept: the largest total that keeps all shares is drawn. Where they add up to less than 1,
    the rest is for all other rows; where they add up to 1, other rows are dropped."""
    epochs: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """How often rows occur: 2 repeats each (ids `~2`), 0.5 draws half, 0 drops all. Others occur once."""

    @model_validator(mode="after")
    def _one_way(self) -> MixConfig:
        if self.shares and self.epochs:
            raise ValueError("shares and epochs both are set: give one of the two")
        if sum(self.shares.values()) > 1.0 + 1e-9:
            raise ValueError(f"shares add up to {sum(self.shares.values()):g}: they may reach 1 at most")
        return self

    @property
    def wanted(self) -> bool:
        """Whether it says anything."""
        return bool(self.shares or self.epochs)


class PruneConfig(Section):
    """Data pruning, in this order; every drop has a reason. Its result is the round's SFT data."""

    sources: Origins = ROW_ORIGINS
    """What a round's SFT rows come from: chosen/edited completions of the user's files (`file`) and of the round's
    annotations (`annotated`), and the best of K (`on_policy`). For ablations; with none SFT publishes what it began
    from."""
    human_rows: Annotated[int, Field(ge=-1)] = -1
    """How many of the round's chosen/edited completions join the best-of-K rows; -1: all. What people wrote, or chose
    at a strength of `reward.strengths`, is cleaned, but carries no reward and passes the steps that go by one. What a
    judge or the simulated annotator picked, or people hardly preferred, is scored by the round's reward model and
    passes them like any other row."""
    clean: CleanConfig = CleanConfig()
    topic: TopicConfig = TopicConfig()
    quality: QualityConfig = QualityConfig()
    difficulty: DifficultyConfig = DifficultyConfig()
    near_duplicates: NearDuplicatesConfig = NearDuplicatesConfig()
    semantic_dedup: SemanticDedupConfig = SemanticDedupConfig()
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    mix: MixConfig = MixConfig()

    @property
    def judging_prompts(self) -> tuple[str, ...]:
        """The judging prompts that its steps ask by; empty: no judge is needed."""
        quality, difficulty = self.quality, self.difficulty
        names = (self.topic.prompt,) if self.topic.by == "judge" else ()
        if quality.enabled and quality.by != "reward":
            names = (*names, quality.general_prompt, quality.code_prompt)
        if difficulty.enabled and difficulty.by == "judge":
            names = (*names, difficulty.prompt)
        if difficulty.enabled and difficulty.by == "intentions":
            names = (*names, difficulty.intentions_prompt)
        return names

    @model_validator(mode="after")
    def _topics_for_the_mix(self) -> PruneConfig:
        if self.mix.wanted and self.mix.by != "source" and self.topic.by == "off":
            raise ValueError(
                f"mix goes by {self.mix.by}, but topic.by is off and no row would have one: set topic.by to column, "
                "judge or classifier"
            )
        return self
