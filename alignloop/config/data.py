"""The user's data, and a round's annotations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from alignloop.config.base import ANNOTATOR_NAME, Fraction, NonEmptyText, NonNegativeFloat, PositiveInt, Section

FormName = Literal[
    "sharegpt",
    "ranked",
    "scored",
    "ultrafeedback",
    "trl_conversational",
    "trl_implicit",
    "hh_transcript",
    "canonical",
    "alpaca",
    "text_pair",
    "best_first",
]
"""The forms of preference files that `data/forms.py` reads; docs/data.md has a row of each."""

ColumnName = Literal[
    "prompt",
    "messages",
    "conversations",
    "instruction",
    "input",
    "system",
    "history",
    "chosen",
    "rejected",
    "edited",
    "completion",
    "output",
    "completions",
    "responses",
    "ranking",
    "ranks",
    "scores",
    "score",
    "strength",
    "annotator",
    "id",
]
"""The columns that `data/columns.py` takes under another name."""
AnnotatedPairing = Literal["best_random", "random"]
ChooseBy = Literal["chance", "spread"]
NumPolicies = Annotated[int, Field(ge=2)]


class DataConfig(Section):
    """How the user's files are read."""

    heldout_fraction: Fraction = 0.05
    """Share of preference rows never trained on: the reward model's held-out accuracy comes from them."""
    max_heldout: PositiveInt = 512
    """At most this many held-out rows."""
    max_bad_fraction: Fraction = 0.01
    """The run stops where more than this share of input rows cannot be read."""
    form: FormName | None = None
    """How the preference files are written; None: as most of their first rows are. `alignloop data check` shows it."""
    columns: dict[ColumnName, NonEmptyText] = Field(default_factory=dict)
    """Columns of the preference files by name, where they have others than the form's: `{prompt: question, chosen:
    answer_a.text}`. A path leads into an object (`answer_a.text`) or a list (`answers[0]`)."""
    dialogs: Literal["last_turn", "every_turn"] = "last_turn"
    """Of a dialog with several turns, in files of prompts and of dialogs to fine-tune on: its last turn, or one example
    for each. A preference compares last turns: it is one example either way."""
    max_characters: PositiveInt = 1_000_000
    """Rows with more characters of text, prompt and completions together, cannot be read: more is a mistake."""
    batches: Literal["split", "files", "all"] = "split"
    """`split`: each round gets its own share of the preferences, in order, as batches came in the paper.
    `files`: each file is one round's batch, the first round's the first; a file that appears later is taken by the
    next round that begins. `all`: every round sees all of them."""
    split_rounds: PositiveInt = 6
    """With `split`: into how many batches; later rounds see the last batch again. A number of its own, so
    that going on with more rounds does not change the rounds already run."""

    @property
    def reading(self) -> dict[str, Any]:
        """How preference files are read, as `read_preferences` takes it."""
        return {"form": self.form, "columns": dict(self.columns), **self.reading_prompts}

    @property
    def reading_prompts(self) -> dict[str, Any]:
        """How files of prompts are read, as `read_prompts` takes it: their form is their own."""
        return {
            "max_bad_fraction": self.max_bad_fraction,
            "dialogs": self.dialogs,
            "max_characters": self.max_characters,
        }


class CollectConfig(Section):
    """A round's preferences: its batch of the user's file and new annotations (4.2.1)."""

    annotator: Annotated[str, Field(pattern=ANNOTATOR_NAME)] = "none"
    """Who annotates pairs the last policy sampled: nobody, the quickstart's `simulated` annotator (IFEval
    checkers on training prompts only), the recipe's `judge`, a reward function (`module:function`, such as
    `alignloop.rewards:math_equal`), by whose values the two are compared, or people (`human`): the round then writes
    the pairs to `<run>/annotations/`, stops, and goes on when their answers lie there."""
    strength_gaps: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] | None = None
    """With a function: the least gaps between the two values of a `significantly_better`, a `better` and a
    `slightly_better` preference; a narrower one is `marginally_better`, equal values are a tie. None: [0.75, 0.5,
    0.25], ours: the quarters of values from 0 to 1."""
    num_annotations: Annotated[int, Field(ge=0)] = 0
    """At most this many new annotated pairs a round."""
    pairing: AnnotatedPairing = "best_random"
    """Which two finished candidates of a prompt are compared: the reward model's best and a random other, or, for
    ablations, two random ones that differ."""
    pairs_per_prompt: PositiveInt = 1
    """Pairs of a prompt's candidates that are compared at most, none in two of them. The first is as `pairing` says,
    the others are random ones that differ. The paper: two answers a prompt (4.2.1)."""
    choose_by: ChooseBy = "chance"
    """Which prompts' pairs are compared, where there are more than `num_annotations`: `chance` draws them; `spread`
    takes those first whose reward gap the members of `score.ensemble` agree on least (its standard deviation over
    them): there an answer teaches them most (query by committee; on language models Dwaracherla et al., arXiv
    2402.00396). Not in the paper."""
    min_annotated: PositiveInt | None = None
    """With `human`: the round goes on when so many of its pairs are answered; None: when all are. What is left
    unanswered is counted, and trains nothing."""
    policies: NumPolicies | tuple[NonEmptyText, ...] | None = None
    """The two answers that are compared are of two of several models (4.2.1). A number, at least 2: the policy that
    samples, the variants of its round's DPO (`dpo.variants`), and the last rounds' policies that passed the gate, as
    many as there are so far. A list: the policy and these checkpoints (folders of models with the base's tokenizer and
    chat template). Each but the policy writes `pairs_per_prompt` of the K candidates, which are compared and train
    nothing else. None: both are of the policy."""
    edits: NonEmptyText | None = None
    """The judge improves the answer that it chose, by its own reason, in a second request: `edit`, the bundled judging
    prompt, or a file of yours. The edited text ranks above the chosen one (4.2.1), as those of people do, who write
    them unasked. None: the judge writes none."""

    @property
    def num_policies(self) -> int:
        """How many models answer, where there are so many."""
        if isinstance(self.policies, int):
            return self.policies
        return 1 if self.policies is None else 1 + len(self.policies)

    @property
    def by_function(self) -> bool:
        """Whether the annotator is a reward function of the recipe's."""
        return ":" in self.annotator

    @model_validator(mode="after")
    def _asks_people_for_something(self) -> CollectConfig:
        if self.annotator == "human" and not self.num_annotations:
            raise ValueError(
                "collect.annotator is human, but collect.num_annotations is 0: nobody would be asked anything - say "
                "how many pairs a round people are to compare"
            )
        if self.strength_gaps is not None and not self.by_function:
            raise ValueError(
                f"collect.strength_gaps are for a function; collect.annotator is {self.annotator} - leave them out"
            )
        if list(self.strength_gaps or ()) != sorted(self.strength_gaps or (), reverse=True):
            raise ValueError(
                f"collect.strength_gaps: {list(self.strength_gaps or ())} grow - write the widest gap first"
            )
        if self.choose_by != "chance" and self.annotator == "none":
            raise ValueError(
                f"collect.choose_by ({self.choose_by}) says which pairs are annotated, and collect.annotator is none - "
                "leave it out"
            )
        if self.choose_by == "spread" and self.policies is not None:
            raise ValueError(
                "collect.choose_by is spread, and collect.policies takes answers of other models, which no reward "
                "model scores: leave one of the two out"
            )
        if self.policies is not None and self.annotator == "none":
            raise ValueError(
                "collect.policies says whose answers are compared, and collect.annotator is none, who compares none: "
                "name an annotator, or leave policies out"
            )
        if self.policies == ():
            raise ValueError("collect.policies is an empty list: name a checkpoint, say how many, or leave it out")
        if self.edits is not None and self.annotator != "judge":
            why = {"human": "people may always write one", "none": "nobody compares anything"}.get(
                self.annotator, "it compares, and writes nothing"
            )
            raise ValueError(
                f"collect.edits is for a judge, and collect.annotator is {self.annotator}: {why} - leave edits out"
            )
        if self.min_annotated is not None and self.annotator != "human":
            raise ValueError(
                f"collect.min_annotated is for people; collect.annotator is {self.annotator} - leave it out"
            )
        return self
