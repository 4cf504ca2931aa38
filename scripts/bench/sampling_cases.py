"""What the sampling benchmark measures: its cases with their bars, and how much a measurement does.

Imports nothing heavy: the page reads it before any engine starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from scripts.bench.training_cases import ModelSize

Size = Literal["5m", "300m"]
Model = Literal["5m", "300m", "base"]
"""`base`: the quickstart's, which is trained."""
EngineName = Literal["vllm", "transformers", "raw"]
"""alignloop's two, and vLLM alone."""
MODELS: dict[Size, ModelSize] = {"5m": ModelSize(256, 704, 6, 4), "300m": ModelSize(1024, 2816, 24, 16)}
"""Random Llamas of 5.3 and 310 million parameters with the quickstart's tokenizer of 2,048; heads of 64."""
ENGINE = {"dtype": "float32", "max_model_len": 512, "kv_cache_gb": 1.0}
"""`EngineConfig` of every engine but the quickstart's: float32 as there, the rest by default."""


@dataclass(frozen=True)
class Case:
    """One number to reach; its name is its key of the JSON object.

    Attributes:
        at_least: the bar is a least value, not a greatest.
        engines: opened before it, side by side, once for all cases.
        is_long: takes minutes however little it does, so that `--quick` leaves it out unless it is named.
    """

    name: str
    bar: float
    unit: Literal["x", " s", " MB"]
    at_least: bool
    engines: tuple[tuple[EngineName, Model], ...] = ()
    is_long: bool = False

    def verdict(self, value: float) -> str:
        reached = value >= self.bar if self.at_least else value <= self.bar
        return "met" if reached else "missed"


_OURS: tuple[EngineName, Model] = ("vllm", "5m")
_RAW: tuple[EngineName, Model] = ("raw", "5m")
_OTHER: tuple[EngineName, Model] = ("transformers", "5m")

CASES = {
    case.name: case
    for case in (
        Case("stage_vs_vllm", 0.95, "x", at_least=True, engines=(_OURS, _RAW)),
        Case("vllm_vs_transformers", 1.0, "x", at_least=True, engines=(_OURS, _OTHER)),
        Case("vllm_vs_transformers_mixed", 1.5, "x", at_least=True, engines=(("vllm", "base"), _OTHER)),
        Case("swap_seconds_5m", 2.0, " s", at_least=False, engines=(_OURS, _RAW)),
        Case("swap_memory_growth_mb", 20.0, " MB", at_least=False, engines=(_OURS,)),
        Case("swap_vs_read_300m", 3.0, "x", at_least=False, is_long=True),
        Case("warm_vs_cold", 2.0, "x", at_least=True, is_long=True),
    )
}


@dataclass(frozen=True)
class Generating:
    """Requests to the two engines: how many prompts, and how each is sampled from.

    Attributes:
        seeded: each request has its seed, as the sample stage gives it; the transformers engine then generates one
            prompt at a time, so that completions do not depend on their neighbours.
    """

    name: str
    num_prompts: int
    num_candidates: int
    seeded: bool
    greedy: bool = False

    @property
    def words(self) -> str:
        how = "greedy" if self.greedy else "seeded" if self.seeded else "not seeded"
        return f"{self.num_prompts} prompts, K = {self.num_candidates}, {how}"


ONE_LENGTH = (
    Generating("k16", 16, 16, seeded=True),
    Generating("k16_unseeded", 32, 16, seeded=False),
    Generating("k1", 32, 1, seeded=True),
    Generating("k1_unseeded", 256, 1, seeded=False),
    Generating("k1_greedy", 256, 1, seeded=False, greedy=True),
)
"""Prompts of `PROMPT_TOKENS` random tokens; completions as long as they come, up to the amount's `max_tokens`."""
MIXED = Generating("mixed", 128, 4, seeded=False)
PROMPT_TOKENS = 64
MIXED_MAX_TOKENS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Amount:
    """How much a run of the benchmark does.

    Attributes:
        num_prompts: of the sample stage.
        max_tokens: longest completion of every case but the mixed one.
        most_prompts: to the two engines; None: what the case says.
        num_swaps, num_large_swaps: timed, of the 5M and the 300M model.
        num_memory_swaps: between the first and the last reading of memory, after `num_settling`.
        overrides: of the quickstart's recipe.
    """

    pairs: int = 3
    num_prompts: int = 256
    max_tokens: int = 128
    most_prompts: int | None = None
    num_swaps: int = 20
    num_large_swaps: int = 7
    num_settling: int = 5
    num_memory_swaps: int = 50
    rounds: int = 6
    overrides: tuple[str, ...] = ()


FULL = Amount()
QUICK = Amount(
    pairs=1,
    num_prompts=8,
    max_tokens=16,
    most_prompts=4,
    num_swaps=4,
    num_large_swaps=2,
    num_settling=2,
    num_memory_swaps=6,
    rounds=1,
    overrides=(
        "collect.num_annotations=16",
        "reward.max_steps=4",
        "sample.num_prompts=32",
        "sample.num_candidates=4",
        "sample.max_tokens=48",
        "prune.human_rows=32",
        "sft.max_steps=4",
        "dpo.max_steps=4",
        "evaluate.limit=12",
    ),
)


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Attributes:
        case: whose bar it is held to.
        each: the value's parts, in the order they were measured: a ratio a pair, seconds a swap.
        ours, other: the two sides in words, or what was measured beside it.
        name: key of the JSON object; the case's own by default.
        extra: more of the JSON object.
        remarks: lines for the screen and under the table.
        problem: why it is no measurement, where it is none.
    """

    case: Case
    value: float
    each: tuple[float, ...]
    ours: str
    other: str
    name: str = ""
    extra: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def key(self) -> str:
        return self.name or self.case.name


def ratio_result(case: Case, pairs: list[tuple[float, float]], *, unit: str, name: str = "") -> Result:
    """Median of the pairs' ratios of rates, ours over the other's."""
    ratios = tuple(ours / other for ours, other in pairs)
    ours, other = (median(pair[side] for pair in pairs) for side in (0, 1))
    return Result(case, median(ratios), ratios, f"{ours:,.0f} {unit}", f"{other:,.0f} {unit}", name)
