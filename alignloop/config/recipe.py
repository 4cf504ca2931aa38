"""The typed recipe: what a YAML file may say, with the paper's values as defaults.

Torch-free and cheap to import. Section numbers refer to The Llama 3 Herd of Models (2024). What the
paper does not give is a named option here and its default says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, field_serializer, model_validator

from alignloop.config.base import FOLDER_NAME, VARIABLE_NAME, PositiveFloat, PositiveInt, Section
from alignloop.config.collect import CollectConfig
from alignloop.config.data import DataConfig
from alignloop.config.engine import EngineComputes, EngineConfig, JudgeConfig
from alignloop.config.evaluation import EvaluateConfig, GateConfig
from alignloop.config.measure import MeasureConfig
from alignloop.config.pruning import KeepOutConfig, PruneConfig
from alignloop.config.sampling import PairsConfig, SampleConfig, ScoreConfig, SelectConfig
from alignloop.config.training import AveragingConfig, DpoConfig, RewardConfig, SftConfig, TrainingConfig
from alignloop.records import Strength


class DpoStageConfig(DpoConfig):
    """What `train_dpo` is fingerprinted by."""

    heldout_strengths: tuple[Strength, ...]
    """Held-out pairs of these strengths are measured: those that train."""


class JudgeStageConfig(JudgeConfig):
    """A judge as its verdicts depend on it: not on where an endpoint is, its key, or how long and how often it is
    asked, so that none of these costs what is judged already."""

    api_key_variable: str = Field("OPENAI_API_KEY", exclude=True)
    max_retries: Annotated[int, Field(ge=0)] = Field(2, exclude=True)
    timeout_seconds: PositiveFloat = Field(120.0, exclude=True)
    concurrency: PositiveInt = Field(16, exclude=True)

    @field_serializer("endpoint")
    def _anywhere(self, endpoint: str | None) -> str | None:
        return None if endpoint is None else "(any)"


class BootstrapStageConfig(SftConfig):
    """What `bootstrap` is fingerprinted by: it trains as SFT does, on the first round's batch."""

    batches: Literal["split", "files", "all"]
    split_rounds: PositiveInt


class IngestStageConfig(DataConfig):
    """What `ingest` is fingerprinted by."""

    keep_out: KeepOutConfig | None = None
    """None: `prune.decontaminate` is off."""


class CollectStageConfig(CollectConfig):
    """What `collect` is fingerprinted by."""

    judge: JudgeStageConfig | None
    judge_engine: EngineComputes | None = None
    """Where the judge runs on the run's engine."""
    min_annotated: PositiveInt | None = Field(None, exclude=True)
    batches: Literal["split", "files", "all"]
    split_rounds: PositiveInt
    reading: DataConfig | None = None
    """How a round's own file is read, with `batches: files`."""
    keep_out: KeepOutConfig | None = None
    """What rows of a round's own file may not hold; None: `prune.decontaminate` is off."""
    prompts_grow: bool = False
    """Whether a round's own file brings prompts to sample for, too: where the recipe names no file of prompts."""


class SampleStageConfig(SampleConfig, EngineComputes):
    """What `sample` is fingerprinted by."""


class PruneStageConfig(PruneConfig):
    """What `prune` is fingerprinted by."""

    judge: JudgeStageConfig | None = None
    """None where no step asks one."""
    judge_engine: EngineComputes | None = None
    """Where the judge runs on the run's engine."""
    tasks: tuple[str, ...] = ()
    """Benchmarks whose questions no row may hold; empty where `decontaminate` is off."""
    include_path: str | None = None
    strengths: tuple[Strength, ...]
    """What people chose at these strengths is people's; those that train the reward model."""

    @property
    def embedder_model(self) -> str | None:
        """The model that embeds rows, where that is not the policy and anything is embedded."""
        by_embedding = self.decontaminate.enabled and self.decontaminate.embedding_threshold is not None
        used = self.semantic_dedup.enabled or by_embedding
        return self.semantic_dedup.embedder if used and self.semantic_dedup.embedder != "policy" else None


class ScoreStageConfig(ScoreConfig):
    """What `score` is fingerprinted by."""

    sources: dict[str, str]
    """Digest of the source of each reward function, by `module:function`."""
    strengths: tuple[Strength, ...]
    """Preferences that people chose at these strengths need no reward; those that train the reward model."""


class EvaluateStageConfig(EvaluateConfig, EngineComputes):
    """What `evaluate` is fingerprinted by."""


class MeasureStageConfig(MeasureConfig, EngineComputes):
    """What `measure` is fingerprinted by."""

    max_tokens: PositiveInt
    strengths: tuple[Strength, ...]
    """Held-out preferences of these strengths tell the reward model's accuracy: those that it trains on."""
    dtype: Literal["float32", "bfloat16"]
    """In which rewards and logprobs are computed."""
    rows_per_microbatch: PositiveInt = Field(16, exclude=True)
    judged_by: JudgeStageConfig | None = None
    """None where no judge is asked."""
    judge_engine: EngineComputes | None = None
    """Where the judge runs on the run's engine."""


def _computing(engine: EngineConfig) -> dict[str, Any]:
    return {
        "max_model_len": engine.max_model_len,
        "engine_dtype": engine.dtype,
        "quantization": engine.quantization,
    }


TemplateValue = bool | int | FiniteFloat | str


class BaseStageConfig(Section):
    """What the `base` stage does to a base."""

    chat_template_kwargs: dict[str, TemplateValue]


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
    rounds: Annotated[int, Field(ge=1, le=99)] = 6
    """At most 99: the run directory's `round-NN` folders stay in order."""
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
    dpo: DpoConfig = DpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    measure: MeasureConfig = MeasureConfig()
    averaging: AveragingConfig = AveragingConfig()
    training: TrainingConfig = TrainingConfig()
    engine: EngineConfig = EngineConfig()
    judge: JudgeConfig | None = None
    """Needed where `collect.annotator` is `judge`, and where a step of `prune` asks one; its `prompt` is collect's."""

    @property
    def base_stage(self) -> BaseStageConfig | None:
        """None where nothing is chosen."""
        return BaseStageConfig(chat_template_kwargs=self.chat_template_kwargs) if self.chat_template_kwargs else None

    @property
    def bootstrap_stage(self) -> BootstrapStageConfig:
        """`bootstrap` depends on how the data is batched, too."""
        return BootstrapStageConfig(**dict(self.sft), batches=self.data.batches, split_rounds=self.data.split_rounds)

    @property
    def keep_out(self) -> KeepOutConfig | None:
        """What no row that comes in may hold; None: `prune.decontaminate` is off."""
        config = self.prune.decontaminate
        if not config.enabled:
            return None
        return KeepOutConfig(
            tasks=self.evaluate.tasks,
            include_path=self.evaluate.include_path,
            ngram=config.ngram,
            min_share=config.min_share,
        )

    @property
    def ingest_stage(self) -> IngestStageConfig:
        """`ingest` depends on the benchmarks that are kept out, too."""
        return IngestStageConfig(**dict(self.data), keep_out=self.keep_out)

    @property
    def collect_stage(self) -> CollectStageConfig:
        """`collect` depends on how the data is batched, too."""
        judge = self.judge if self.collect.annotator == "judge" else None
        on_engine = judge is not None and judge.endpoint is None
        return CollectStageConfig(
            **dict(self.collect),
            judge=None if judge is None else JudgeStageConfig(**dict(judge)),
            judge_engine=EngineComputes(engine=self.engine.name, **_computing(self.engine)) if on_engine else None,
            batches=self.data.batches,
            split_rounds=self.data.split_rounds,
            reading=self.data if self.data.batches == "files" else None,
            keep_out=self.keep_out if self.data.batches == "files" else None,
            prompts_grow=self.data.batches == "files" and not self.prompts,
        )

    @property
    def prune_stage(self) -> PruneStageConfig:
        """`prune` depends on the judge that it asks, and on the benchmarks that it keeps out."""
        judge = self.judge if self.prune.judging_prompts else None
        if judge is not None:  # its steps have prompts of their own, and give points in one order
            judge = judge.model_copy(update={"prompt": JudgeConfig(model="-").prompt, "both_orders": True})
        on_engine = judge is not None and judge.endpoint is None
        compared = self.prune.decontaminate.enabled
        return PruneStageConfig(
            **dict(self.prune),
            judge=None if judge is None else JudgeStageConfig(**dict(judge)),
            judge_engine=EngineComputes(engine=self.engine.name, **_computing(self.engine)) if on_engine else None,
            tasks=self.evaluate.tasks if compared else (),
            include_path=self.evaluate.include_path if compared else None,
            strengths=self.reward.strengths,
        )

    @property
    def sample_stage(self) -> SampleStageConfig:
        """`sample` depends on what the engine can hold and how it computes."""
        return SampleStageConfig(**dict(self.sample), engine=self.engine.name, **_computing(self.engine))

    @property
    def score_stage(self) -> ScoreStageConfig:
        """`score` depends on what its reward functions do.

        Raises:
            UserError: one cannot be loaded.
        """
        from alignloop.sampling.reward_functions import load

        names = [entry.function for entry in self.score.reward_functions]
        sources = {name: load(name).digest for name in names}
        return ScoreStageConfig(**dict(self.score), sources=sources, strengths=self.reward.strengths)

    @property
    def dpo_stage(self) -> DpoStageConfig:
        """`train_dpo` measures on held-out pairs of the strengths that `pairs` trains on."""
        return DpoStageConfig(**dict(self.dpo), heldout_strengths=self.pairs.strengths)

    @property
    def evaluate_stage(self) -> EvaluateStageConfig:
        """`evaluate` depends on what the engine can hold and how it computes."""
        return EvaluateStageConfig(**dict(self.evaluate), engine=self.engine.name, **_computing(self.engine))

    @property
    def measure_stage(self) -> MeasureStageConfig:
        """`measure` depends on how answers are sampled, scored and judged."""
        given = {name: value for name, value in self.measure if name != "max_tokens"}
        judge = self.judge if self.measure.enabled and self.measure.judge else None
        on_engine = judge is not None and judge.endpoint is None
        return MeasureStageConfig(
            **given,
            max_tokens=self.measure.max_tokens or self.sample.max_tokens,
            strengths=self.reward.strengths,
            dtype=self.score.dtype,
            rows_per_microbatch=self.score.rows_per_microbatch,
            judged_by=None if judge is None else JudgeStageConfig(**dict(judge)),
            judge_engine=EngineComputes(engine=self.engine.name, **_computing(self.engine)) if on_engine else None,
            engine=self.engine.name,
            **_computing(self.engine),
        )

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
        if self.averaging.sft.metric == "accuracy":
            raise ValueError("averaging.sft.metric: SFT compares nothing, so it has no accuracy - use loss")
        if not self.preferences:
            raise ValueError("preferences: no file given - name your preference JSONL (`quickstart`: the bundled one)")
        return self
