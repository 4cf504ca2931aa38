"""Rejection sampling: candidates, their rewards, the best of them, and pairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from alignloop.config.base import (
    FUNCTION_NAME,
    PASS_NAME,
    POLICY_NAME,
    Fraction,
    NonEmptyText,
    NonNegativeFloat,
    NonNegativeInt,
    Origins,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)
from alignloop.records import ROW_ORIGINS, Strength

Pick = Literal["best", "random"]
Pairing = Literal["best_worst", "best_random", "gap", "best_mean_minus_2_sigma"]
Ensemble = Literal["average_weights", "mean", "mean_minus_spread", "least"]
"""What becomes of several reward models (docs/reward_ensembles.md)."""
SPREAD_PENALTY = 1.0
"""Where `score.spread_penalty` is left out."""


class SystemPrompt(Section):
    """A system prompt that steers what is sampled in some rounds and topics (4.2.2)."""

    text: NonEmptyText
    first_round: PositiveInt = 1
    last_round: PositiveInt | None = None
    """None: in all rounds from `first_round` on."""
    topics: tuple[str, ...] = ()
    """Values of the prompts' `topic` column it is for; empty: all prompts."""

    @model_validator(mode="after")
    def _rounds(self) -> SystemPrompt:
        if self.last_round is not None and self.last_round < self.first_round:
            raise ValueError(f"last_round ({self.last_round}) is before first_round ({self.first_round})")
        return self


class SampleConfig(Section):
    """Rejection sampling (4.2.2)."""

    num_candidates: PositiveInt = 10
    """K: completions a prompt. The paper: 10 to 30."""
    num_prompts: Annotated[int, Field(ge=-1)] = -1
    """Prompts a round, drawn with the round's seed; -1: all."""
    temperature: PositiveFloat | tuple[PositiveFloat, PositiveFloat] = 1.0
    """Not given in the paper for English. [low, high]: each prompt draws its own, evenly, with its seed."""
    top_p: Share | tuple[Share, Share] = 1.0
    """[low, high]: each prompt draws its own, evenly, with its seed."""
    system_prompts: tuple[SystemPrompt, ...] = ()
    """The first that fits a prompt's round and topic is put before it, unless it has a system message of its own."""
    train_on_system_prompt: bool = False
    """Whether training sees the system prompt that steered a completion. By default it does not, and the policy
    learns to answer so unasked."""
    max_tokens: PositiveInt = 1024
    """Longest completion."""
    shard_prompts: PositiveInt = 64
    """Prompts a shard: what a crash costs at most."""
    policy: Annotated[str, Field(pattern=POLICY_NAME)] = "best"
    """What samples from round 2 on. `best`: the best policy so far by the recipe's `best_metric`; `previous`: the last
    round's. For ablations: `base`: what samples in round 1; `round-N`: round N's policy in all rounds after it, and
    before that the last round's."""

    @property
    def policy_round(self) -> int | None:
        """N of `policy: round-N`; None of any other."""
        name, _, number = self.policy.partition("-")
        return int(number) if name == "round" else None

    @model_validator(mode="after")
    def _ranges(self) -> SampleConfig:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name}: the range {list(value)} begins above its end - write [low, high]")
        return self


class RewardFunction(Section):
    """A reward beside the reward model's: added to it with a weight, or a gate before it (docs/rewards.md)."""

    function: Annotated[str, Field(pattern=FUNCTION_NAME)]
    """`module:function`, called as TRL's GRPO trainer calls one: `function(prompts, completions, **columns)` on
    lists of message lists, returns a list of floats, None where it does not apply. `alignloop.rewards` has some, and
    TRL's go by their names (`trl.rewards:accuracy_reward`)."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """What its value counts in the total; 0 records it alone, and is what a gate has where none is said."""
    gate: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """A candidate whose value is under this fails, and is not picked while another passes: the reward model decides
    among those that pass. Where none passes, the prompt trains neither SFT nor an on-policy pair. None: no gate."""

    @model_validator(mode="before")
    @classmethod
    def _gates_weigh_nothing(cls, value: Any) -> Any:
        is_gate = isinstance(value, dict) and value.get("gate") is not None
        return {"weight": 0.0, **value} if is_gate else value


class ScoreConfig(Section):
    """Reward of every candidate."""

    rows_per_microbatch: PositiveInt = 16
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    reward_functions: tuple[RewardFunction, ...] = ()
    """Each one's value is recorded; their weighted sum and the reward model's raw reward make the total that
    selection and pairs go by, after the gates."""
    length_penalty: NonNegativeFloat = 0.0
    """Subtracted from that total for every 100 tokens of the completion, the stop token counted: what picks among long
    answers by their length is held back. Not in the paper; 0: none."""
    ensemble: Ensemble = "average_weights"
    """What becomes of `reward.variants`. `average_weights`: one model, the mean of their weights (4.1.5; WARM, arXiv
    2401.12187, more robust to flipped labels than a mean of rewards, at the cost of one model). The others keep each
    variant's last checkpoint, and a candidate's reward is, of the rewards by all of them, the `mean`; the mean less
    `spread_penalty` times their spread (`mean_minus_spread`); or the `least` (Coste et al., 2310.02743; Eisenstein et
    al., 2312.09244)."""
    spread_penalty: NonNegativeFloat | None = None
    """With `ensemble: mean_minus_spread`: how much the spread counts, which is the standard deviation of the members'
    rewards (their squared deviations divided by their number). None: 1, with which two members give the least of the
    two. 2310.02743 takes the variance in place of it, which hangs on the rewards' scale."""

    @property
    def has_ensemble(self) -> bool:
        """Whether several reward models score."""
        return self.ensemble != "average_weights"

    @property
    def penalty(self) -> float:
        """What `mean_minus_spread` takes the spread times."""
        return SPREAD_PENALTY if self.spread_penalty is None else self.spread_penalty

    @model_validator(mode="after")
    def _penalty_of_a_spread(self) -> ScoreConfig:
        if self.spread_penalty is not None and self.ensemble != "mean_minus_spread":
            raise ValueError(
                f"spread_penalty ({self.spread_penalty:g}) is read with ensemble: mean_minus_spread alone, and "
                f"ensemble is {self.ensemble}: leave it out"
            )
        return self


class SelectConfig(Section):
    """Best of K by reward."""

    pick: Pick = "best"
    """`random`, for ablations: one of the candidates that the best is picked from, drawn with the prompt's seed. Its
    reward is recorded, and decides nothing."""
    pass_quantile: Fraction = 0.5
    """A candidate passes where its reward reaches this quantile of all the round's rewards, and it fails no gate; a
    prompt's pass rate is the share of its K candidates that do."""
    pass_by: Annotated[str, Field(pattern=PASS_NAME)] = "reward"
    """What a candidate passes by: its `reward`, as `pass_quantile` says, or a verifier: one of `score.reward_functions`
    (`weight: 0` records it alone), whose value must reach `pass_value`. `prune.difficulty` goes by the pass rate."""
    pass_value: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """With a function: a candidate passes where its value reaches this."""


class PairsConfig(Section):
    """DPO's pairs: the latest human preferences (4.1.4) and, ours, pairs of the scored candidates."""

    sources: Origins = ROW_ORIGINS
    """What pairs are made of: the preferences of the user's files (`file`), those that the rounds had annotated
    (`annotated`), and, ours, the round's candidates by their reward (`on_policy`). The paper's are people's alone:
    [file, annotated]. With none there is no pair, and DPO publishes what it began from."""
    strengths: tuple[Strength, ...] = ("significantly_better", "better")
    """Rows of these strengths train. Rows without a strength always do."""
    data_window: PositiveInt = 1
    """Human preference batches of the last this many rounds train (the paper: the latest)."""
    max_preference_pairs: Annotated[int, Field(ge=-1)] = -1
    """At most this many pairs from preferences, drawn with the round's seed; -1: all."""
    pairing: Pairing = "best_worst"
    """The best candidate by reward against the worst, a random other, the one whose gap to the best comes nearest the
    `target_gap_quantile` of the round's widest gaps, or the one whose reward comes nearest the mean - 2 standard
    deviations of the prompt's finished candidates with text (arXiv 2502.16825; made for many candidates, of few it is
    mostly the worst)."""
    target_gap_quantile: Fraction = 0.5
    """With `pairing: gap`."""
    pairs_per_prompt: PositiveInt = 1
    """Pairs of a prompt's candidates at most. After the first the pairing goes on with what is left: the second best
    against the second worst, and so on. No text stands in two of them."""
    max_on_policy: Annotated[int, Field(ge=-1)] = -1
    """At most this many, widest gap first; -1: all."""
    on_policy_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of all pairs that are on-policy, the others being of preferences. The side that has too many gives way:
    on-policy pairs by narrowest gap, pairs of preferences by the round's seed. In a round that has pairs of one side
    alone the share gives way. None: all pairs train."""
    min_gap_quantile: Fraction = 0.5
    """Pairs whose reward gap is under this quantile of the round's gaps are dropped."""
    min_gap: NonNegativeFloat = 0.0
    """Pairs whose reward gap is under this are dropped, too."""
    max_gap_quantile: Fraction = 1.0
    """Pairs whose reward gap is over this quantile of the round's gaps are dropped. It and the four that follow are
    RIP's limits (arXiv 2501.18578), on-policy pairs' alone: a wide gap, and a rejected completion of a low reward or
    a few words, tell of a poor prompt. RIP drops no narrow gaps: set `min_gap_quantile: 0` with it. 1: none is."""
    max_gap: PositiveFloat | None = None
    """Pairs whose reward gap is over this are dropped, too."""
    min_rejected_reward_quantile: Fraction = 0.0
    """Pairs whose rejected completion's total reward is under this quantile of the round's rejected are dropped."""
    min_rejected_reward: float | None = None
    """Those under this, too; it is on the scale of the round's reward model."""
    min_rejected_length_quantile: Fraction = 0.0
    """Pairs whose rejected completion has fewer tokens than this quantile of the round's rejected are dropped."""
    min_rejected_length: NonNegativeInt = 0
    """Those of fewer tokens than this, too, the stop token counted."""
    clean: bool = False
    """Whether pairs go through the rules of `prune.clean`, as SFT rows do: a pair whose chosen completion breaks one is
    dropped; of the excess of an over-used pattern the narrowest gaps go first, pairs of preferences last. What is
    rejected may break any."""

    @model_validator(mode="after")
    def _gaps(self) -> PairsConfig:
        if self.max_gap_quantile < 1.0 and self.max_gap_quantile <= self.min_gap_quantile:
            raise ValueError(
                f"max_gap_quantile ({self.max_gap_quantile}) is not above min_gap_quantile ({self.min_gap_quantile}), "
                "so no pair would be left: lower min_gap_quantile (RIP: 0) or raise the first"
            )
        if self.max_gap is not None and self.max_gap < self.min_gap:
            raise ValueError(f"max_gap ({self.max_gap}) is under min_gap ({self.min_gap}): no pair would be left")
        if self.on_policy_share is not None and not {"on_policy"} < set(self.sources):
            raise ValueError(
                f"on_policy_share is {self.on_policy_share}, but sources is [{', '.join(self.sources)}]: a share wants "
                "on_policy and one of file and annotated"
            )
        return self
