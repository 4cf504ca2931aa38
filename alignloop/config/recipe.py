"""The typed recipe: what a YAML file may say, with the paper's values as defaults.

Torch-free and cheap to import. Section numbers refer to The Llama 3 Herd of Models (2024). What the
paper does not give is a named option here and its default says so.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from alignloop.config.base import FOLDER_NAME, VARIABLE_NAME, Section
from alignloop.config.data import CollectConfig, DataConfig
from alignloop.config.engine import EngineConfig, JudgeConfig
from alignloop.config.evaluation import EvaluateConfig, GateConfig, MeasureConfig
from alignloop.config.pruning import PruneConfig
from alignloop.config.rloo import PolicyConfig, RlooConfig
from alignloop.config.sampling import PairsConfig, SampleConfig, ScoreConfig, SelectConfig
from alignloop.config.training import (
    AveragingConfig,
    DpoConfig,
    ObjectiveName,
    OptimizerConfig,
    RewardConfig,
    SftConfig,
    TrainingConfig,
    mix_of,
)

TemplateValue = bool | int | FiniteFloat | str


class Recipe(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=FOLDER_NAME)] = "run"
    """Of the run's folder under `runs/`: without a slash, not beginning with a dot."""
    base: Annotated[str, Field(min_length=1)] = "quickstart"
    """Hugging Face directory or hub id of the base model; `quickstart` is the bundled one."""
    chat_template: str | None = None
    """`llama3`, `chatml`, a template that TRL bundles (docs/templates.md) or a Jinja file: given to the base, in place
    of its own where it has one."""
    chat_template_kwargs: dict[Annotated[str, Field(pattern=VARIABLE_NAME)], TemplateValue] = Field(
        default_factory=dict
    )
    """What the chat template is given beside the messages, in training, sampling and evaluation alike, and in the
    published model: `{enable_thinking: true}`. Empty: as the template is, without a thinking block before answers."""
    preferences: tuple[str, ...] = ()
    """Preference files, in order; one or a list, `*` and `?` allowed (`preferences/round-*.jsonl`). `quickstart`:
    the bundled ones."""
    prompts: tuple[str, ...] = ()
    """Files of prompts to sample for, one or a list; empty: the prompts of the preferences. `quickstart`: the
    bundled ones."""
    rounds: Annotated[int, Field(ge=1, le=9999)] = 6
    """The paper: six. More than a few dozen are semi-online: few prompts each, and `every` on what need not be in all
    of them."""
    seed: Annotated[int, Field(ge=0)] = 0
    best_metric: str = "ifeval/mean"
    """`task/metric` by which the best policy is known."""
    bootstrap: Literal["auto", "always", "never"] = "auto"
    """Fine-tune on the first batch's chosen/edited completions before round 1: `auto` where the base brought no chat
    template. The model that comes of it only samples round 1's candidates."""
    data: DataConfig = DataConfig()
    collect: CollectConfig = CollectConfig()
    reward: RewardConfig = RewardConfig()
    sample: SampleConfig = SampleConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    prune: PruneConfig = PruneConfig()
    sft: SftConfig = SftConfig()
    pairs: PairsConfig = PairsConfig()
    policy: PolicyConfig = PolicyConfig()
    dpo: DpoConfig = DpoConfig()
    rloo: RlooConfig = RlooConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    measure: MeasureConfig = MeasureConfig()
    averaging: AveragingConfig = AveragingConfig()
    training: TrainingConfig = TrainingConfig()
    engine: EngineConfig = EngineConfig()
    judge: JudgeConfig | None = None
    """Needed where `collect.annotator` is `judge`, and where a step of `prune` asks one; its `prompt` is collect's."""

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.sample.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"sample.max_tokens ({self.sample.max_tokens}) leaves no room for a prompt within "
                f"engine.max_model_len ({self.engine.max_model_len}): lower the first or raise the second"
            )
        if self.measure.max_tokens is not None and self.measure.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"measure.max_tokens ({self.measure.max_tokens}) leaves no room for a prompt within "
                f"engine.max_model_len ({self.engine.max_model_len}): lower the first or raise the second"
            )
        if self.collect.annotator == "judge" and self.judge is None:
            raise ValueError("collect.annotator is judge, but there is no `judge` section: name its model there")
        if self.prune.judging_prompts and self.judge is None:
            raise ValueError(
                "prune asks a judge (topic.by, quality.by or difficulty.by), but there is no `judge` section: name its "
                "model there"
            )
        self._check_rewards()
        self._check_models()
        self._check_schedules()
        self._check_demonstrations()
        if self.dpo.margin == "reward" and "on_policy" not in self.pairs.sources:
            raise ValueError(
                "dpo.margin: reward needs pairs with a reward gap, which pairs of candidates have, and pairs.sources "
                "does not name on_policy: add it, or set dpo.margin: strength or none"
            )
        if self.averaging.sft.metric == "accuracy":
            raise ValueError("averaging.sft.metric: SFT compares nothing, so it has no accuracy - use loss")
        if not self.preferences:
            raise ValueError("preferences: no file given - name your preference JSONL (`quickstart`: the bundled one)")
        return self

    def _check_rewards(self) -> None:
        """What goes by rewards has them."""
        scored = [entry.function for entry in self.score.reward_functions]
        if self.select.pass_by not in ("reward", *scored):
            raise ValueError(
                f"select.pass_by: {self.select.pass_by} is none of score.reward_functions "
                f"({', '.join(scored) or 'there are none'}): name it there (`weight: 0` records its values alone)"
            )
        if self.collect.choose_by == "spread" and not self.score.has_ensemble:
            raise ValueError(
                "collect.choose_by: spread goes by what the members of an ensemble make of a pair, and score.ensemble "
                "is average_weights, whose one model has no spread: set score.ensemble, or choose_by: chance"
            )
        rewarding = [entry for entry in self.score.reward_functions if entry.weight or entry.gate is not None]
        if self.policy.by == "rloo" and not self.rloo.reward_model and not rewarding:
            raise ValueError(
                "rloo.reward_model is false, and score.reward_functions has none with a weight or a gate: nothing "
                "would reward a completion - name a function, or leave reward_model out"
            )

    def _check_models(self) -> None:
        """Which models sample, and how much each."""
        if (fixed := self.sample.policy_round) is not None and fixed >= self.rounds:
            raise ValueError(
                f"sample.policy: {self.sample.policy} samples in the rounds after round {fixed}, and the run has "
                f"{self.rounds}: name an earlier round, or raise rounds"
            )
        others, each = self.collect.num_policies - 1, self.collect.pairs_per_prompt
        if others and self.sample.num_candidates <= others * each:
            raise ValueError(
                f"sample.num_candidates ({self.sample.num_candidates}): with collect.policies {others} other models "
                f"write {each} each (collect.pairs_per_prompt), which leaves the policy none: raise the first or lower "
                "one of the others"
            )

    def _check_schedules(self) -> None:
        """What is asked of every round, or must be in some."""
        if not all(self.evaluates(number) for number in range(1, self.rounds + 1)):
            if self.gate.max_regression is not None:
                raise ValueError(
                    "gate.max_regression asks for the benchmarks of every round, and evaluate has them in some: leave "
                    "evaluate.every and evaluate.at out, or the gate"
                )
            if self.sample.policy == "best":
                raise ValueError(
                    "sample.policy is best, and evaluate asks only some rounds: which policy is the best so far is not "
                    "known in the others - set sample.policy: previous"
                )
        has_rows = bool(self.prune.sources or self.sft.data)
        if has_rows and not any(self.sft.is_due(number) for number in range(1, self.rounds + 1)):
            raise ValueError(
                f"sft.every ({self.sft.every}) and sft.at ({list(self.sft.at)}) name no round of {self.rounds}: SFT "
                "would never train - name one, or set prune.sources: [] to go without SFT"
            )

    def _check_demonstrations(self) -> None:
        window = self.sft.data_window
        if window is not None and window > self.rounds:
            raise ValueError(
                f"sft.data_window: {window} rounds, and the run has {self.rounds}: lower it, or leave it out and every "
                "round trains on all demonstrations"
            )
        if mix_of(self.sft.data).wanted and self.prune.mix.wanted:
            raise ValueError(
                "sft.data has a share or epochs, and prune.mix mixes all SFT rows: give one of the two (prune.mix "
                "with `by: source` takes the names of demonstrations' files, too)"
            )

    @property
    def trainings(self) -> dict[ObjectiveName, OptimizerConfig]:
        """The training stages of a whole round, in order."""
        policy: dict[ObjectiveName, OptimizerConfig] = (
            {"dpo": self.dpo} if self.policy.by == "dpo" else {"rloo": self.rloo}
        )
        return {"reward": self.reward, "sft": self.sft, **policy}

    def trains_reward(self, number: int) -> bool:
        """Whether round `number` trains a reward model; the first does, as there is none to go on with."""
        return number == 1 or self.reward.is_due(number)

    def evaluates(self, number: int) -> bool:
        """Whether round `number` is asked the benchmarks; 0 is the base."""
        return number in (0, self.rounds) or self.evaluate.is_due(number)

    def measures(self, number: int) -> bool:
        """Whether round `number` is measured on held-out preferences; 0 is the base."""
        return number in (0, self.rounds) or self.measure.is_due(number)
