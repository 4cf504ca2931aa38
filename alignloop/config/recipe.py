"""The typed recipe: what a YAML file may say, with the paper's values as defaults.

Torch-free and cheap to import. Section numbers refer to The Llama 3 Herd of Models (2024). What the
paper does not give is a named option here and its default says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

from alignloop.records import Strength

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
FOLDER_NAME = r"^[^/\\.][^/\\]*$"
StartFrom = Literal["previous", "base"]
NonEmptyText = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all recipe sections: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(Section):
    """How the user's files are read."""

    heldout_fraction: Fraction = 0.05
    """Share of preference rows never trained on: the reward model's held-out accuracy comes from them."""
    max_heldout: PositiveInt = 512
    """At most this many held-out rows."""
    max_bad_fraction: Fraction = 0.01
    """The run stops where more than this share of input rows cannot be read."""
    batches: Literal["split", "all"] = "split"
    """`split`: each round gets its own share of the preferences, in order (the paper's weekly batches).
    `all`: every round sees all of them."""
    split_rounds: PositiveInt = 6
    """With `split`: into how many batches; later rounds see the last batch again. A number of its own, so
    that going on with more rounds does not change the rounds already run."""


class CollectConfig(Section):
    """A round's preferences: its batch of the user's file and new annotations (4.2.1)."""

    annotator: Literal["none", "simulated", "judge"] = "none"
    """Who annotates pairs the last policy sampled: nobody, the quickstart's simulated annotator (IFEval
    checkers on training prompts only), or the recipe's `judge`."""
    num_annotations: Annotated[int, Field(ge=0)] = 0
    """At most this many new annotated pairs a round."""


class LoraConfig(Section):
    """Low-rank adapters (PEFT) instead of all weights: saved with each checkpoint, merged for the next stage."""

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
    """A variant of DPO."""

    beta: PositiveFloat | None = None
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
    """Model averaging after each of the three training stages (4.1.5)."""

    reward: AverageConfig = AverageConfig()
    sft: AverageConfig = AverageConfig()
    dpo: AverageConfig = AverageConfig()


class TrainingConfig(Section):
    """How training uses the machine. What is trained does not depend on it, but for rounding."""

    num_processes: PositiveInt = 1
    """Processes a training stage runs on, one a GPU; `batch_groups` is over all of them."""
    accelerate: Annotated[str, Field(min_length=1)] = "ddp"
    """`ddp`, `fsdp2` (full shard), or an accelerate configuration file of yours."""
    trackers: tuple[str, ...] = ()
    """`tensorboard`, or any other tracker that transformers knows. Off by default."""


class OptimizerConfig(Section):
    """What the three training stages share."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate. The paper: 1e-5 for SFT and DPO (4.1.3, 4.1.4); not given for the reward model."""
    epochs: PositiveInt = 1
    """Passes over the stage's rows."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps even within an epoch."""
    batch_groups: PositiveInt = 64
    """Prompt groups per optimiser step, over all processes. Not given in the paper."""
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
    """The stage is trained once for each of these, and all their checkpoints are averaged; empty: once, as it is."""


class RewardConfig(OptimizerConfig):
    """Reward modelling (4.1.2): no margin term; edited > chosen > rejected."""

    start_from: StartFrom = "previous"
    """`previous`: the last round's reward model; `base` is the paper's choice."""
    strengths: tuple[Strength, ...] = ("significantly_better", "better")
    """Rows of these strengths train (the paper's two). Rows without a strength always do."""
    isolate: bool = True
    """True: completions of a prompt do not see each other (exact). False: later ones see earlier ones, as in the
    paper."""


class SftConfig(OptimizerConfig):
    """Supervised fine-tuning (4.1.3): cross-entropy on target tokens, prompt masked."""

    start_from: StartFrom = "previous"
    train_on: Literal["last_assistant", "all_assistant"] = "last_assistant"


class DpoConfig(OptimizerConfig):
    """Direct preference optimisation with masked formatting tokens and an NLL term (4.1.4)."""

    beta: PositiveFloat = 0.1
    nll_coefficient: NonNegativeFloat = 0.2
    nll_reduction: Literal["token_mean", "sequence_mean", "sum"] = "token_mean"
    """Not given in the paper."""
    variants: tuple[DpoVariant, ...] = ()
    """As for the other stages; beta and nll_coefficient may differ too."""
    mask_formatting_tokens: bool = True
    """Leave header and termination tokens out of the DPO sums, in both completions."""


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
    policy: Literal["best", "previous"] = "best"
    """`best`: the round's starting policy is the best so far by the recipe's `best_metric`."""

    @model_validator(mode="after")
    def _ranges(self) -> SampleConfig:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name}: the range {list(value)} begins above its end - write [low, high]")
        return self


class RewardFunction(Section):
    """A reward of your own beside the reward model's, added to it with a weight."""

    function: Annotated[str, Field(pattern=r"^[\w.]+:[A-Za-z_]\w*$")]
    """`module:function`, called as TRL's GRPO trainer calls one: `function(prompts, completions, **columns)` on
    lists of message lists, returns a list of floats, None where it does not apply."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class ScoreConfig(Section):
    """Reward of every candidate."""

    rows_per_microbatch: PositiveInt = 16
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    reward_functions: tuple[RewardFunction, ...] = ()
    """Each one's value is recorded; their weighted sum and the reward model's raw reward make the total that
    selection and pairs go by."""


class SelectConfig(Section):
    """Best of K by reward."""

    pass_quantile: Fraction = 0.5
    """A candidate passes where its reward reaches this quantile of all the round's rewards; a prompt's pass
    rate is the share of its K candidates that do."""


class CleanConfig(Section):
    """Rule-based cleaning (4.2.3, data cleaning)."""

    enabled: bool = True
    max_apology_share: Fraction = 0.05
    """At most this share of rows opens with an apology; the excess is dropped, lowest reward first."""
    max_exclamations_per_100_words: NonNegativeFloat = 10.0
    max_emojis_per_100_words: NonNegativeFloat = 10.0
    max_repeated_ngram_share: Fraction = 0.5
    """Drop where repeats of 4-word sequences make up more than this share of all of them."""
    drop_truncated: bool = True


class QualityConfig(Section):
    """Quality scoring (4.2.3): keep the top quartile by reward."""

    enabled: bool = True
    top_fraction: Fraction = 0.25
    """Share of rows kept, by reward over the whole round."""


class DifficultyConfig(Section):
    """Difficulty by pass rate: prompts every candidate solves teach little, those none solves are noise."""

    enabled: bool = True
    min_pass_rate: Fraction = 0.0
    max_pass_rate: Fraction = 1.0
    """Rows outside [min, max] are dropped."""


class SemanticDedupConfig(Section):
    """Semantic deduplication (4.2.3; SemDeDup)."""

    enabled: bool = True
    embedder: Literal["policy"] = "policy"
    """`policy`: mean-pooled last hidden states of the policy that sampled."""
    threshold: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.95
    """Drop a row whose cosine to an earlier row of its cluster reaches this. Not given in the paper."""
    rows_per_cluster: PositiveInt = 256
    """Sets the number of k-means clusters. Not given in the paper."""
    compare_to: Literal["seen", "kept"] = "seen"
    """Earlier rows of a cluster to compare with: all `seen` (the paper) or only those `kept`."""


class PruneConfig(Section):
    """Data pruning, in this order; every drop has a reason. Its result is the round's SFT data."""

    human_rows: Annotated[int, Field(ge=-1)] = -1
    """How many of the round's chosen/edited completions join the best-of-K rows; -1: all. They are cleaned,
    but carry no reward and so pass the reward-based steps."""
    clean: CleanConfig = CleanConfig()
    quality: QualityConfig = QualityConfig()
    difficulty: DifficultyConfig = DifficultyConfig()
    semantic_dedup: SemanticDedupConfig = SemanticDedupConfig()


class PairsConfig(Section):
    """DPO's pairs: the latest human preferences and the best/worst of the scored candidates (4.1.4)."""

    strengths: tuple[Strength, ...] = ("significantly_better", "better")
    """Rows of these strengths train. Rows without a strength always do."""
    data_window: PositiveInt = 1
    """Human preference batches of the last this many rounds train (the paper: the latest)."""
    max_preference_pairs: Annotated[int, Field(ge=-1)] = -1
    """At most this many pairs from preferences, drawn with the round's seed; -1: all."""
    on_policy: bool = True
    """Whether pairs of the round's candidates join."""
    pairing: Literal["best_worst", "best_random", "gap"] = "best_worst"
    """The best candidate against the worst (the paper), a random other, or the one whose gap to the best comes
    nearest the `target_gap_quantile` of the round's widest gaps."""
    target_gap_quantile: Fraction = 0.5
    """With `pairing: gap`."""
    max_on_policy: Annotated[int, Field(ge=-1)] = -1
    """At most this many, widest gap first; -1: all."""
    min_gap_quantile: Fraction = 0.5
    """Pairs whose reward gap is under this quantile of the round's gaps are dropped."""
    min_gap: NonNegativeFloat = 0.0
    """Pairs whose reward gap is under this are dropped, too."""


class EvaluateConfig(Section):
    """Benchmarks round over round."""

    tasks: tuple[str, ...] = ("ifeval", "mmlu")
    """lm-eval task names. With `include_path` set, its task files come first."""
    include_path: str | None = None
    """A folder of lm-eval task YAML files; `quickstart` is the bundled one."""
    limit: PositiveInt | None = None
    """Questions a task, for a quick look; None: all."""
    max_gen_tokens: PositiveInt = 1280
    """Longest generated answer (lm-eval's own limit for IFEval)."""


class EngineConfig(Section):
    """The engine that samples, judges and evaluates."""

    name: Literal["vllm", "transformers"] = "vllm"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_model_len: PositiveInt = 4096
    """Longest prompt + completion, in tokens."""
    max_num_seqs: PositiveInt = 256
    kv_cache_gb: PositiveFloat = 1.0
    """KV cache size on CPU, where it is set explicitly; each engine's, with `data_parallel`."""
    gpu_memory_utilization: Fraction = 0.85
    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    data_parallel: PositiveInt = 1
    """Engines side by side on this machine, each with its share of the requests; what they sample does not depend
    on how many they are."""
    quantization: str | None = None
    """Passed to vLLM, for example `fp8`."""
    enforce_eager: bool = True
    """No compilation: starts faster. Set false for long runs on GPU."""
    canary_tolerance: PositiveFloat = 0.1
    """Largest mean difference of logprobs between the engine and a plain forward pass, in nats a token."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often a dead engine is started again in a run."""


class JudgeConfig(Section):
    """A model that compares completions: on the run's own engine, or behind an OpenAI-compatible endpoint."""

    model: NonEmptyText
    """A Hugging Face directory for the engine; with `endpoint` the name it is served under."""
    endpoint: str | None = None
    """Base URL, for example `http://localhost:8000/v1`. None: the run's own engine."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; unset is fine where none is asked for."""
    prompt: NonEmptyText = "pairwise"
    """A bundled judging prompt's name, or a file of yours."""
    both_orders: bool = True
    """Ask with the two completions in either order; where the answers contradict each other it is a tie."""
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 512
    """Longest answer."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """How often an answer that cannot be read is asked for again, and an endpoint that fails called again."""
    timeout_seconds: PositiveFloat = 120.0
    concurrency: PositiveInt = 16
    """Requests to the endpoint at a time."""


class DpoStageConfig(DpoConfig):
    """What `train_dpo` is fingerprinted by."""

    heldout_strengths: tuple[Strength, ...]
    """Held-out pairs of these strengths are measured: those that train."""


class EngineComputes(Section):
    """The part of the engine's config that results depend on; sizes and retries do not count."""

    engine: str
    max_model_len: PositiveInt
    engine_dtype: str
    quantization: str | None


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


class CollectStageConfig(CollectConfig):
    """What `collect` is fingerprinted by."""

    judge: JudgeStageConfig | None
    judge_engine: EngineComputes | None = None
    """Where the judge runs on the run's engine."""
    batches: Literal["split", "all"]
    split_rounds: PositiveInt


class SampleStageConfig(SampleConfig, EngineComputes):
    """What `sample` is fingerprinted by."""


class ScoreStageConfig(ScoreConfig):
    """What `score` is fingerprinted by."""

    sources: dict[str, str]
    """Digest of the source of each reward function, by `module:function`."""


class EvaluateStageConfig(EvaluateConfig, EngineComputes):
    """What `evaluate` is fingerprinted by."""


def _computing(engine: EngineConfig) -> dict[str, Any]:
    return {
        "max_model_len": engine.max_model_len,
        "engine_dtype": engine.dtype,
        "quantization": engine.quantization,
    }


class Recipe(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=FOLDER_NAME)] = "run"
    """Of the run's folder under `runs/`: without a slash, not beginning with a dot."""
    base: Annotated[str, Field(min_length=1)] = "quickstart"
    """Hugging Face directory or hub id of the base model; `quickstart` is the bundled one."""
    chat_template: str | None = None
    """`llama3`, `chatml` or a Jinja file: given to a base that has no chat template of its own."""
    preferences: tuple[str, ...] = ()
    """Preference files, in order; one or a list. `quickstart`: the bundled ones."""
    prompts: tuple[str, ...] = ()
    """Files of prompts to sample for, one or a list; empty: the prompts of the preferences. `quickstart`: the
    bundled ones."""
    rounds: Annotated[int, Field(ge=1, le=99)] = 6
    """At most 99: the run directory's `round-NN` folders stay in order."""
    seed: Annotated[int, Field(ge=0)] = 0
    best_metric: str = "ifeval/mean"
    """`task/metric` by which the best policy is known."""
    bootstrap: Literal["auto", "always", "never"] = "auto"
    """Fine-tune on chosen/edited completions before round 1: `auto` where the base brought no chat template."""
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
    averaging: AveragingConfig = AveragingConfig()
    training: TrainingConfig = TrainingConfig()
    engine: EngineConfig = EngineConfig()
    judge: JudgeConfig | None = None
    """Needed where `collect.annotator` is `judge`."""

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
        from alignloop.selection.reward_functions import load

        names = [entry.function for entry in self.score.reward_functions]
        return ScoreStageConfig(**dict(self.score), sources={name: load(name).digest for name in names})

    @property
    def dpo_stage(self) -> DpoStageConfig:
        """`train_dpo` measures on held-out pairs of the strengths that `pairs` trains on."""
        return DpoStageConfig(**dict(self.dpo), heldout_strengths=self.pairs.strengths)

    @property
    def evaluate_stage(self) -> EvaluateStageConfig:
        """`evaluate` depends on what the engine can hold and how it computes."""
        return EvaluateStageConfig(**dict(self.evaluate), engine=self.engine.name, **_computing(self.engine))

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.sample.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"sample.max_tokens ({self.sample.max_tokens}) leaves no room for a prompt within "
                f"engine.max_model_len ({self.engine.max_model_len}): lower the first or raise the second"
            )
        if self.collect.annotator == "judge" and self.judge is None:
            raise ValueError("collect.annotator is judge, but there is no `judge` section: name its model there")
        if self.averaging.sft.metric == "accuracy":
            raise ValueError("averaging.sft.metric: SFT compares nothing, so it has no accuracy - use loss")
        if not self.preferences:
            raise ValueError("preferences: no file given - name your preference JSONL (`quickstart`: the bundled one)")
        return self
