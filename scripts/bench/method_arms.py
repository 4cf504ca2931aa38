"""The laboratory's arms: what is taken out of the loop or put in its place, by the recipe's own keys, and the claims of
the method that they try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LOOP = "loop"


@dataclass(frozen=True)
class Arm:
    """A run.

    Attributes:
        settings: `a.b=value`, beside the quickstart's.
        kind: of `alignloop control`: at the annotations and training tokens of the run that it controls.
        rounds: where they are not the laboratory's.
        of: the arm that it controls, whose settings it has, too.
    """

    name: str
    settings: tuple[str, ...] = ()
    kind: str | None = None
    rounds: int | None = None
    of: str = LOOP


@dataclass(frozen=True)
class Claim:
    """What section 4 (or this project) says helps, and the arms that say how much.

    Attributes:
        arms: each against the reference, which should be ahead.
        measures: of rounds.jsonl, shown beside the benchmark.
    """

    name: str
    sentence: str
    arms: tuple[str, ...]
    reference: str = LOOP
    measures: tuple[str, ...] = ()


def _mask_and_nll() -> Sequence[Arm]:
    """2 x 2 at three learning rates."""
    rates = {"1x": "5e-5", "3x": "1.5e-4", "10x": "5e-4"}
    return [
        Arm(
            f"mask-{mask}-nll-{nll}-{times}",
            (
                f"dpo.mask_formatting_tokens={'true' if mask == 'on' else 'false'}",
                f"dpo.nll_coefficient={'0.2' if nll == 'on' else '0.0'}",
                f"dpo.learning_rate={rate}",
            ),
        )
        for times, rate in rates.items()
        for mask in ("on", "off")
        for nll in ("on", "off")
        if (mask, nll, times) != ("on", "on", "1x")
    ]


_FEW = ("collect.num_annotations=64",)
_LOSSES = ("sigmoid_norm", "ipo", "hinge", "robust", "apo_zero", "apo_down", "simpo")
_VERIFIER = "alignloop.rewards:instructions_followed"


def _candidates(k: int) -> Arm:
    """K at as many samples and comparisons; of one candidate there is nothing to compare."""
    settings = [f"sample.num_candidates={k}", f"sample.num_prompts={1920 // k}"]
    return Arm(f"k-{k}", (*settings, f"collect.pairs_per_prompt={max(1, k // 2)}"))


def _variants(name: str, *settings: str) -> Arm:
    """Three trainings of the reward model a round, by seed and rate: 2 x and half the quickstart's."""
    rates = "[{seed: 1}, {seed: 2, learning_rate: 5e-4}, {seed: 3, learning_rate: 2e-3}]"
    return Arm(name, (f"reward.variants={rates}", *settings))


_CENTERED = "reward.center_rewards=0.01"
_ALL: Sequence[Arm] = (
    Arm(LOOP),
    Arm("offline", kind="offline"),
    Arm("random-pick", kind="random-pick"),
    Arm("few-annotations", _FEW),
    Arm("few-annotations-random-pick", _FEW, kind="random-pick", of="few-annotations"),
    Arm("sft-only", kind="sft-only"),
    Arm("dpo-only", kind="dpo-only"),
    Arm("no-annotation", kind="no-annotation"),
    Arm("no-pruning", kind="no-pruning"),
    Arm(
        "oracle-pick",
        ('score.reward_functions=[{function: "alignloop.quickstart.annotator:demands_met", weight: 100.0}]',),
    ),
    *_mask_and_nll(),
    Arm("margin", ("reward.margin=1.0",)),
    Arm("two-way", ("reward.use_edited=false",)),
    *(_candidates(k) for k in (1, 4, 30)),
    Arm("off-policy", ("sample.policy=base",)),
    Arm("no-on-policy-pairs", ("pairs.sources=[file,annotated]",)),
    Arm("on-policy-pairs-only", ("pairs.sources=[on_policy]",)),
    Arm("best-random-pairs", ("pairs.pairing=best_random",)),
    Arm("gap-pairs", ("pairs.pairing=gap",)),
    Arm("averaging", tuple(f"{stage}.num_checkpoints=3" for stage in ("reward", "sft", "dpo"))),
    Arm("start-from-base", ("sft.start_from=base", "reward.start_from=base")),
    Arm(
        "all-strengths",
        tuple(
            f"{stage}.strengths=[significantly_better,better,slightly_better,marginally_better]"
            for stage in ("reward", "pairs")
        ),
    ),
    Arm("not-isolated", ("reward.isolate=false",)),
    Arm("no-quality", ("prune.quality.enabled=false",)),
    Arm("top-quartile", ("prune.quality.top_fraction=0.25",)),
    Arm("no-difficulty", ("prune.difficulty.enabled=false",)),
    Arm("no-dedup", ("prune.semantic_dedup.enabled=false",)),
    Arm("one-round", ("sample.num_prompts=1152", "data.split_rounds=1", "reward.max_steps=1000"), rounds=1),
    Arm(
        "three-rounds",
        (
            *("sample.num_prompts=384", "data.split_rounds=3", "reward.max_steps=435"),
            "collect.num_annotations=640",  # the first round has none: nothing has been sampled yet
        ),
        rounds=3,
    ),
    Arm(
        "semi-online",  # recipes/semi_online.yaml
        (
            *("data.split_rounds=6", "collect.num_annotations=26", "sample.num_prompts=20", "sample.policy=previous"),
            *("reward.every=6", "sft.at=[1]", "pairs.sources=[annotated,on_policy]", "dpo.reference=ema"),
            *("evaluate.every=10", "measure.every=10"),
        ),
        rounds=60,
    ),
    Arm(
        "rloo",  # recipes/rloo.yaml
        (
            *("policy.by=rloo", "sample.num_prompts=96", "rloo.num_candidates=8", "rloo.batch_groups=6"),
            *("rloo.num_minibatches=2", "rloo.max_steps=20", "rloo.learning_rate=5e-5", "rloo.max_length=320"),
            "rloo.dtype=float32",
        ),
    ),
    *(Arm(f"loss-{loss}", (f"dpo.loss={loss}",)) for loss in _LOSSES),
    Arm("all-gaps", ("pairs.min_gap_quantile=0.0",)),
    Arm(
        "rip",
        (
            *("pairs.min_gap_quantile=0.0", "pairs.max_gap_quantile=0.5"),
            *("pairs.min_rejected_reward_quantile=0.5", "pairs.min_rejected_length_quantile=0.5"),
        ),
    ),
    Arm("two-sigma-pairs", ("pairs.pairing=best_mean_minus_2_sigma",)),
    Arm("two-pairs", ("pairs.pairs_per_prompt=2",)),
    Arm("length-penalty", ("score.length_penalty=0.2",)),
    _variants("ensemble", _CENTERED, "score.ensemble=mean_minus_spread"),
    _variants("ensemble-mean", _CENTERED, "score.ensemble=mean"),
    _variants("ensemble-least", _CENTERED, "score.ensemble=least"),
    _variants("averaged-variants", _CENTERED),
    _variants("ensemble-asks", _CENTERED, "score.ensemble=mean_minus_spread", "collect.choose_by=spread"),
    Arm("center-rewards", (_CENTERED,)),
    # Five pairs a prompt are five answers of the other model: the policy has five of the ten candidates.
    Arm("two-models", ("collect.policies=2",)),
    Arm("verifier-gate", (f"score.reward_functions=[{{function: '{_VERIFIER}', gate: 1.0}}]",)),
)
ARMS: Mapping[str, Arm] = {arm.name: arm for arm in _ALL}

TRUTHS = ("truth/random", "truth/pick", "truth/oracle", "truth/pair_accuracy")
"""Shares of right candidates, and of pairs told apart, in the last round."""
TAILS = ("end_of_turn_logprob/chosen", "tail_repetition_rate", "abrupt_end_rate", "chosen_logprob/policy")
CLAIMS: Sequence[Claim] = (
    Claim(
        "loop",
        "At equal annotations and training tokens the loop is ahead of training on what the base says",
        ("offline",),
    ),
    Claim(
        "pick",
        "The reward model's pick helps; beside it what the truth would pick",
        ("random-pick", "oracle-pick"),
        measures=TRUTHS,
    ),
    Claim(
        "pick-where-few",
        "The reward model's pick is worth more where a quarter of the pairs is annotated",
        ("few-annotations-random-pick",),
        reference="few-annotations",
        measures=TRUTHS,
    ),
    Claim("stages", "SFT on the best of K and DPO both help (4.1.3, 4.1.4)", ("sft-only", "dpo-only")),
    Claim("annotation", "New annotations of what the policy says help (4.2.1)", ("no-annotation",)),
    Claim(
        "two-models",
        "The two answers that are compared should be of two models (4.2.1), at as many samples and comparisons: those "
        "of the other model are candidates that best of K goes without",
        (LOOP,),
        reference="two-models",
        measures=TRUTHS,
    ),
    Claim(
        "mask-and-nll",
        "Masking formatting tokens keeps tails whole, the NLL term keeps chosen probable (4.1.4)",
        tuple(arm.name for arm in _mask_and_nll()),
        measures=TAILS,
    ),
    Claim("margin", "The margin term is better left out (4.1.2)", ("margin",)),
    Claim("three-way", "A third, edited response helps the reward model (4.1.2)", ("two-way",)),
    Claim(
        "candidates",
        "K of 10 to 30 is worth it, at equal samples and comparisons (4.2.2); of one candidate nothing is compared",
        ("k-1", "k-4", "k-30"),
    ),
    Claim(
        "on-policy",
        "What trains should come from the latest policy (4.1.4)",
        ("off-policy", "no-on-policy-pairs", "on-policy-pairs-only"),
    ),
    Claim(
        "pairing",
        "Best against worst, one pair a prompt, the narrower half of the gaps dropped (ours)",
        ("best-random-pairs", "gap-pairs", "two-sigma-pairs", "two-pairs", "all-gaps", "rip"),
    ),
    Claim(
        "losses", "The paper's loss does as well as what others put in its place", tuple(f"loss-{n}" for n in _LOSSES)
    ),
    Claim("length", "A penalty on length is not needed", ("length-penalty",)),
    Claim(
        "verifiers",
        "Where answers can be checked a verifier is worth more than the reward model, alone or before it",
        (LOOP,),
        reference="oracle-pick",
    ),
    Claim(
        "gates", "A verifier decides, and the reward model among those that pass", (LOOP,), reference="verifier-gate"
    ),
    Claim(
        "ensemble",
        "The mean of three reward models less their spread picks better than one, than their mean or least, and than "
        "the average of their weights",
        (LOOP, "averaged-variants", "ensemble-mean", "ensemble-least"),
        reference="ensemble",
        measures=TRUTHS,
    ),
    Claim(
        "ensemble-asks",
        "Annotations are worth more where the members of an ensemble disagree",
        ("ensemble",),
        reference="ensemble-asks",
        measures=TRUTHS,
    ),
    Claim("center", "Holding the level of rewards costs nothing", (LOOP,), reference="center-rewards"),
    Claim(
        "semi-online",
        "Sixty short rounds do better than six, at as many samples, annotations and rows of the file",
        (LOOP,),
        reference="semi-online",
    ),
    Claim(
        "rloo",
        "RLOO does better than pairs and DPO, at as many samples and annotations; half of them it samples as it trains",
        (LOOP,),
        reference="rloo",
    ),
    Claim("averaging", "Averaging checkpoints helps (4.1.5)", (LOOP,), reference="averaging"),
    Claim("start-from", "Going on from the last checkpoint (ours; the paper starts SFT anew)", ("start-from-base",)),
    Claim("strengths", "Rows that are hardly better are left out (4.1.2, 4.1.4)", ("all-strengths",)),
    Claim("isolate", "Responses of a prompt do not see each other (ours)", ("not-isolated",)),
    Claim(
        "pruning",
        "Pruning by quality, difficulty and semantic duplicates helps (4.2.3)",
        ("no-pruning", "no-quality", "top-quartile", "no-difficulty", "no-dedup"),
    ),
    Claim(
        "rounds",
        "Six rounds are better than fewer larger ones, at as many samples (4.1.6); one round has no annotations",
        ("one-round", "three-rounds"),
    ),
)
