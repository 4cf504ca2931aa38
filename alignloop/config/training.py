"""The three training stages, averaging, and how training uses the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from alignloop.config.base import (
    Fraction,
    NonEmptyText,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Scheduled,
    Section,
    Share,
)
from alignloop.config.pruning import MixConfig
from alignloop.records import Strength

StartFrom = Literal["previous", "base"]
Layout = Literal["packed", "separate"]
Reference = Literal["sft", "base", "previous", "ema"]
ObjectiveName = Literal["reward", "sft", "dpo", "rloo"]
"""What a stage trains by; its section of the recipe and of `averaging` has the same name."""
DpoLoss = Literal["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "apo_zero", "apo_down", "simpo"]
"""What a pair costs (docs/losses.md); the names are TRL's."""
DEFAULT_BETA: Mapping[DpoLoss, float] = {
    "sigmoid": 0.1,
    "sigmoid_norm": 5.0,
    "ipo": 0.1,
    "hinge": 0.1,
    "robust": 0.1,
    "apo_zero": 0.1,
    "apo_down": 0.1,
    "simpo": 2.0,
}
"""Sources stand under `DpoConfig.beta`."""
DpoMargin = Literal["none", "strength", "reward"]
LOSSES_WITH_MARGIN: tuple[DpoLoss, ...] = ("sigmoid", "sigmoid_norm", "simpo")
LossShare = Annotated[float, Field(ge=0.0, lt=0.5)]


class LoraConfig(Section):
    """Low-rank adapters (PEFT) instead of all weights: saved with each checkpoint, merged for the next stage.

    Rows of tokens that the base was never trained on (added with a chat template, or empty) train beside them."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    """The adapter's product is scaled by alpha / rank."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the layers that get one, or all linear layers but the output head."""
    quantize: Literal["none", "nf4"] = "none"
    """`nf4`: the frozen weights in 4 bits (QLoRA; bitsandbytes, needs a GPU)."""


class Variant(Section):
    """One training of a stage with some fields changed: the paper averages models of several data mixes and
    hyper-parameters (4.1.5). What is not given is the stage's own."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Mixed into the stage's seed: order of the rows, a new reward head, the rows drawn."""
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the stage's rows, drawn with the variant's seed."""
    learning_rate: PositiveFloat | None = None
    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    batch_groups: PositiveInt | None = None
    warmup_fraction: Fraction | None = None
    weight_decay: NonNegativeFloat | None = None


class DpoVariant(Variant):
    """A variant of DPO. All have the stage's loss and kind of margin."""

    beta: PositiveFloat | None = None
    gamma: NonNegativeFloat | None = None
    label_smoothing: LossShare | None = None
    margin_scale: PositiveFloat | None = None
    nll_coefficient: NonNegativeFloat | None = None


class AverageConfig(Section):
    """Which checkpoints of a training stage are averaged, and how (4.1.5)."""

    weights: tuple[NonNegativeFloat, ...] | None = None
    """One a checkpoint that is averaged, oldest first, one variant after another; scaled to sum to one. None:
    uniform. Not given in the paper."""
    choose: PositiveInt | None = None
    """Average only this many, the best on the held-out rows by `metric`; None: all."""
    metric: Literal["loss", "accuracy"] = "loss"
    """What `choose` goes by: the stage's loss on held-out rows (lowest), or how often the better completion wins
    (highest; not for SFT)."""


class AveragingConfig(Section):
    """Model averaging after each of the training stages (4.1.5)."""

    reward: AverageConfig = AverageConfig()
    sft: AverageConfig = AverageConfig()
    dpo: AverageConfig = AverageConfig()
    rloo: AverageConfig = AverageConfig()


class TrainingConfig(Section):
    """How training uses the machine. What is trained does not depend on it, but for rounding."""

    num_processes: PositiveInt = 1
    """Processes a training stage runs on, one a GPU; `batch_groups` is over all of them."""
    accelerate: Annotated[str, Field(min_length=1)] = "ddp"
    """`ddp`, `fsdp2` (full shard), or an accelerate configuration file of yours."""
    layout: Layout = "packed"
    """`packed`: rows share their prompt, wherever that is exact on the model. `separate`: a row a completion, whatever
    the model: for ablations, and the way out where packed rows are in doubt. It changes last digits, and so counts."""
    trackers: tuple[str, ...] = ()
    """Beside TensorBoard, which every run writes where it is installed: `wandb`, `mlflow`, `trackio` (one run with all
    rounds), or any other tracker that transformers knows (one run a stage)."""


class OptimizerConfig(Section):
    """What the three training stages share."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate. The paper: 1e-5 for SFT and DPO (4.1.3, 4.1.4); not given for the reward model."""
    epochs: PositiveInt = 1
    """Passes over the stage's rows."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps even within an epoch."""
    batch_groups: PositiveInt = 64
    """Prompt groups per optimiser step at most, over all processes: the steps of an epoch share its groups out evenly,
    so that none is left with a few. Not given in the paper."""
    warmup_fraction: Fraction = 0.05
    """Share of steps with a rising learning rate; cosine to `final_lr_fraction` afterwards."""
    final_lr_fraction: Fraction = 0.1
    """Learning rate at the last step, as a share of the peak."""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this global norm."""
    row_tokens: PositiveInt | None = None
    """Tokens a packed row holds; None: as many as the longest group needs (see `packing`)."""
    rows_per_microbatch: PositiveInt = 8
    """Packed rows per forward pass; gradients accumulate up to `batch_groups`."""
    max_length: PositiveInt = 2048
    """Longest prompt + completion in tokens; a longer group is dropped and counted, never cut."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the forward pass; weights and optimiser state stay float32 unless the model does not fit."""
    gradient_checkpointing: bool = False
    num_checkpoints: PositiveInt = 1
    """Checkpoints kept from the last part of the stage, evenly spaced, the end included: `average` takes their mean
    (4.1.5)."""
    average_span: Fraction = 0.25
    """The last part of the stage from which they are taken."""
    save_every_steps: PositiveInt = 200
    """Resume points inside the stage."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; `{}` takes the defaults. Wants a learning rate about ten times as high."""
    variants: tuple[Variant, ...] = ()
    """The stage is trained once for each of these, and all their checkpoints are averaged (of the reward model see
    `score.ensemble`); empty: once, as it is."""


class RewardConfig(OptimizerConfig, Scheduled):
    """Reward modelling (4.1.2): edited > chosen > rejected; the paper has no margin term. Round 1 always trains one; in
    a round without, the last one scores."""

    start_from: StartFrom = "previous"
    """`previous`: the last round's reward model, and in round 1 the base; `base` (the paper's choice): the base in
    every round, with a new head. The base is the `base` stage's checkpoint, never what a bootstrap made of it."""
    strengths: tuple[Strength, ...] = ("significantly_better", "better")
    """Rows of these strengths train (the paper's two). Rows without a strength always do."""
    isolate: bool = True
    """True: completions of a prompt do not see each other (exact). False: prompt and shuffled completions are one plain
    row, positions counted on, in which later ones see earlier ones: the paper's (4.1.2). `max_length` is then the whole
    row's."""
    margin: NonNegativeFloat = 0.0
    """By how much the reward of a `significantly_better` chosen completion is to exceed the rejected one's; two thirds
    of it for `better`, one third for `slightly_better`, else none, nor for an edited completion. 0 is the paper's
    (4.1.2). For ablations: Llama 2 (2307.09288, table 27) has 1 (small) and 3 (large)."""
    use_edited: bool = True
    """False, for ablations: edited completions are left out, and chosen and rejected alone are ranked."""
    center_rewards: NonNegativeFloat = 0.0
    """Weight of an auxiliary loss, the squared sum of the two rewards of a pair: like the ranking loss a mean over
    the pairs of a group, then over groups. It pulls rewards towards mean zero, where ranking alone leaves their level
    open, so that those of several variants or rounds can be set side by side (Eisenstein et al., arXiv 2312.09244;
    TRL's `center_rewards_coefficient`, for which it recommends 0.01). 0: none, as in the paper."""


class PolicyTraining(OptimizerConfig):
    """What SFT and DPO share beside that."""

    train_tokens: PositiveInt | None = None
    """Train until so many tokens have gone through the model, in place of `epochs`: pass after pass, each in an order
    of its own, to the end of the step that reaches them. `max_steps` still ends it. For ablations at equal compute,
    where one arm has fewer rows than another; prompts count once, padding does not."""


class Demonstrations(Section):
    """An entry of `sft.data`."""

    file: NonEmptyText
    """A file, or a pattern (`demonstrations/*.jsonl`)."""
    share: Share | None = None
    """Of the round's SFT rows: of the entry's rows and all others the side that has too many gives way, drawn with the
    round's seed. None: all its rows train beside all others."""
    epochs: PositiveFloat | None = None
    """How often its rows occur in a round: 2 repeats each (ids `~2`), 0.5 draws half. None: once."""


def mix_of(entries: Sequence[Demonstrations]) -> MixConfig:
    """The shares or epochs of the entries, by their `file`."""
    shares = {entry.file: entry.share for entry in entries if entry.share is not None}
    epochs = {entry.file: entry.epochs for entry in entries if entry.epochs is not None}
    return MixConfig(by="source", shares=shares, epochs=epochs)


def _as_entries(value: Any) -> Any:
    """A file name stands for an entry that says no more."""
    listed = [value] if isinstance(value, str | dict) else value
    if not isinstance(listed, list | tuple):
        return value
    return tuple({"file": one} if isinstance(one, str) else one for one in listed)


class SftConfig(PolicyTraining, Scheduled):
    """Supervised fine-tuning (4.1.3): cross-entropy on target tokens, prompt masked. A round without it selects and
    prunes nothing, and its DPO goes on from the last policy that passed the gate."""

    start_from: StartFrom = "previous"
    """`previous`: the policy of the last round that passed the gate, and before there is one the base; `base` (the
    paper's choice): the base in every round. The base is that of `reward.start_from`: a bootstrap's model only samples.
    """
    train_on: Literal["last_assistant", "all_assistant"] = "last_assistant"
    data: Annotated[
        tuple[Demonstrations, ...],
        BeforeValidator(_as_entries, json_schema_input_type=str | Demonstrations | tuple[str | Demonstrations, ...]),
    ] = ()
    """Demonstrations: files of dialogs that people wrote, in any form to fine-tune on, one or a list, each a name or an
    entry with `file`, `share` and `epochs` (docs/data.md). They train beside the best of K and the chosen/edited rows,
    pruned like people's: without a reward. The paper's SFT data have such rows beside rejection samples (4.2.2)."""
    data_window: PositiveInt | None = None
    """Demonstrations come in over the rounds, in shares as preferences do with `data.batches: split`, and those of the
    last this many rounds train. None: every round trains on all of them."""
    min_steps: PositiveInt | None = None
    """`plan`, and `run` before it begins, warn of rounds whose rows give fewer optimiser steps. It changes nothing of
    what is trained. The paper: 8,500 to 9,000 steps (4.1.3)."""

    @model_validator(mode="after")
    def _within_the_limit(self) -> SftConfig:
        if self.min_steps is not None and self.max_steps is not None and self.max_steps < self.min_steps:
            raise ValueError(f"max_steps ({self.max_steps}) is under min_steps ({self.min_steps})")
        return self

    @model_validator(mode="after")
    def _demonstrations(self) -> SftConfig:
        shares = [entry.share for entry in self.data if entry.share is not None]
        if shares and any(entry.epochs is not None for entry in self.data):
            raise ValueError("sft.data has share and epochs: give one of the two, in all entries")
        if sum(shares) > 1.0 + 1e-9:
            raise ValueError(f"sft.data: the shares add up to {sum(shares):g}: they may reach 1 at most")
        names = [entry.file for entry in self.data]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"sft.data names {twice} twice: say in one entry how often it occurs (epochs: 2)")
        if self.data_window is not None and not self.data:
            raise ValueError("sft.data_window is for demonstrations, and sft.data names none - leave it out")
        return self


def _default_by(other: str, values: Mapping[Any, float], *, otherwise: float | None = None) -> Any:
    """A default that hangs on another field: what `values` has for its value."""

    def default(validated: dict[str, Any]) -> float | None:
        return values.get(validated[other], otherwise)

    return Field(default_factory=default)


class DpoConfig(PolicyTraining):
    """Direct preference optimisation with masked formatting tokens and an NLL term (4.1.4), and losses that took its
    place elsewhere. docs/losses.md has their formulas."""

    loss: DpoLoss = "sigmoid"
    """`sigmoid`: the paper's. `sigmoid_norm`: log ratios a token (Tulu 3, arXiv 2411.15124). `ipo`: a squared distance
    to a wanted log ratio a token (2310.12036). `hinge`: nothing beyond a wanted log ratio (SLiC-HF, 2305.10425).
    `robust`: unbiased where a known share of preferences is flipped (2403.00409). `apo_zero`: raises chosen and lowers
    rejected, each by itself; `apo_down`: lowers both, rejected more (2408.06266). `simpo`: logprobs a token, without a
    reference model (2405.14734)."""
    beta: PositiveFloat = _default_by("loss", DEFAULT_BETA)
    """How much a nat of log ratio counts: higher keeps closer to the reference. Left out, by loss: `sigmoid` 0.1 (the
    paper); `sigmoid_norm` 5 (Tulu 3); `ipo` 0.1 (its tau), `hinge` 0.1, `robust` 0.1 (TRL's default); `apo_zero` and
    `apo_down` 0.1 (2408.06266, section 5.2); `simpo` 2 (its authors' for Llama 3 base models)."""
    gamma: NonNegativeFloat | None = _default_by("loss", {"simpo": 1.0})
    """`simpo` alone: by how much the chosen completion's reward is to exceed the rejected one's (TRL's `simpo_gamma`).
    Left out: 1, half of its beta (the authors' for Llama 3 base models)."""
    label_smoothing: LossShare | None = _default_by("loss", {"robust": 0.1})
    """`robust` alone: the share of preferences taken to be flipped, under one half; TRL has it by the same name. Left
    out: 0.1 (2403.00409, section 6). 0 is `sigmoid`."""
    margin: DpoMargin = "none"
    """By how much more the chosen completion must win where it is clearly better: DPO with an offset (Amini et al.,
    2402.10571), for `sigmoid`, `sigmoid_norm` and `simpo`. `strength`: by the pair's strength, in shares as for
    `reward.margin`. `reward`: by its reward gap, which pairs of the round's candidates have; people's have none. A pair
    of which nothing is known has no margin, and training says how many there are."""
    margin_scale: PositiveFloat | None = _default_by("margin", {"strength": 1.0, "reward": 1.0})
    """`strength`: the margin of `significantly_better`. `reward`: what a reward gap of 1 makes. In units of beta times
    the log ratio. Left out: 1 (2402.10571 has 1, or 0.5 for sentiment, on the logarithm of the gap)."""
    nll_coefficient: NonNegativeFloat = _default_by("loss", {"apo_down": 0.0}, otherwise=0.2)
    """Weight of the NLL of chosen completions. Left out: 0.2 (4.1.4), and 0 with `apo_down`, which lowers what the term
    raises."""
    nll_reduction: Literal["token_mean", "sequence_mean", "sum"] = "token_mean"
    """`token_mean`: over the tokens of all chosen completions; `sequence_mean`: of each one's own mean a token, over
    completions (Pang et al., arXiv 2404.19733, equation 1, to whom the paper refers); `sum`: of each one's sum."""
    variants: tuple[DpoVariant, ...] = ()
    """As for the other stages; beta, gamma, label_smoothing, margin_scale and nll_coefficient may differ too."""
    reference: Reference = "sft"
    """`sft` (the paper's): the model that the round's DPO starts from; `base`: the base; `previous`: the last round's
    policy that passed the gate, which is the same as `sft` in a round without SFT; `ema`: the moving average of the
    policies so far, the base the first of them, for rounds so short that each one's own start is no anchor."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """Share of the old average in the new one, round by round, with `reference: ema`. Ours."""
    mask_formatting_tokens: bool = True
    """Leave header and termination tokens out of what the loss compares, in both completions: of sums and of counts."""
    carry_optimizer: bool = False
    """Go on with the optimizer's state (AdamW's moments) that the DPO of the last round that passed the gate ended
    with, in place of a new one: for rounds of a few steps (arXiv 2506.21495 trains on without a break). Rates still
    begin anew in each round. Without adapters and variants alone, whose parameters are other ones each time. Ours."""

    @property
    def has_reference(self) -> bool:
        return self.loss != "simpo"

    @property
    def is_per_token(self) -> bool:
        """Means over a completion's tokens are compared, not sums."""
        return self.loss in ("sigmoid_norm", "ipo", "simpo")

    @model_validator(mode="after")
    def _fits_the_loss(self) -> DpoConfig:
        if self.margin != "none" and self.loss not in LOSSES_WITH_MARGIN:
            raise ValueError(
                f"margin ({self.margin}) goes with loss {', '.join(LOSSES_WITH_MARGIN)}, not with {self.loss}, which "
                "has nothing to take it from: set margin: none, or another loss"
            )
        if unfit := list(self._unfit()):
            raise ValueError("; ".join(unfit))
        return self

    def _unfit(self) -> Iterator[str]:
        """What is given, here or in a variant, and not looked at or at odds with the loss."""
        owners = {
            "gamma": ("loss: simpo", f"loss is {self.loss}", self.loss == "simpo"),
            "label_smoothing": ("loss: robust", f"loss is {self.loss}", self.loss == "robust"),
            "margin_scale": ("margin: strength or reward", f"margin is {self.margin}", self.margin != "none"),
        }
        if self.carry_optimizer and (self.lora is not None or self.variants):
            found = "lora" if self.lora is not None else "variants"
            yield f"carry_optimizer: with {found} each round trains parameters of its own: leave one of the two out"
        if self.reference != "sft" and not self.has_reference:
            yield f"reference ({self.reference}) is read by losses that have one, and loss is {self.loss}: leave it out"
        sections: dict[str, DpoConfig | DpoVariant] = {"": self}
        sections |= {f"variants.{number}.": variant for number, variant in enumerate(self.variants)}
        for where, section in sections.items():
            for name, (owner, found, is_used) in owners.items():
                value = getattr(section, name)
                if value is not None and not is_used:
                    yield f"{where}{name} ({value:g}) is read with {owner} alone, and {found}: leave it out"
                if value is None and is_used and section is self:
                    yield f"{name} must be a number with {owner}: leave it out to have its default"
            if self.loss == "apo_down" and section.nll_coefficient:
                yield (
                    f"{where}nll_coefficient ({section.nll_coefficient:g}) raises the chosen completions, which loss: "
                    "apo_down is there to lower: set it to 0, or take apo_zero"
                )

    @model_serializer(mode="wrap")
    def _dumped(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """With `exclude_defaults` also without the defaults that hang on another field: pydantic keeps those, and
        another loss could then no longer bring its own."""
        values: dict[str, Any] = handler(self)
        if info.exclude_defaults:
            for name, field in DpoConfig.model_fields.items():
                factory: Callable[[dict[str, Any]], Any] | None = field.default_factory  # type: ignore[assignment]
                if factory is not None and name in values and values[name] == factory(self.__dict__):
                    del values[name]
        return values
