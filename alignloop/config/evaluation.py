"""Benchmarks, the gate they decide, and what they do not show."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from alignloop.config.base import TRUTH_NAME, NonNegativeFloat, PositiveInt, Scheduled, Section


class BenchmarkConfig(Section):
    """Which benchmarks, and how they are asked."""

    tasks: tuple[str, ...] = ("ifeval", "mmlu")
    """lm-eval task names; `ifeval=FILE.jsonl` (or `ifeval_NAME=`, a name of its own), `mmlu=FOLDER` and
    `mmlu_generative=FOLDER` read local data in its published form. With `include_path` set, its task files come
    first."""
    include_path: str | None = None
    """A folder of lm-eval task YAML files; `quickstart` is the bundled one."""
    limit: PositiveInt | None = None
    """Questions a task, for a quick look; None: all."""
    max_gen_tokens: PositiveInt = 1280
    """Longest generated answer, reasoning included (lm-eval's own limit for IFEval)."""
    strip_reasoning: bool = False
    """Whether what a model thinks (`<think>...</think>` before its answer) is taken off before answers are judged; one
    that was cut while it thought has none. As in lm-eval the whole text is judged by default, and a line says where
    that holds reasoning."""


class EvaluateConfig(BenchmarkConfig, Scheduled):
    """Benchmarks round over round; the base and the last round always have them. The best round is one of those that
    do."""

    test_tasks: tuple[str, ...] = ()
    """Named as `tasks`, and asked alike: tasks that are reported and choose nothing. The best round's figures on
    `tasks`, by which it was chosen, flatter it."""
    test_rounds: Literal["ends", "all"] = "ends"
    """Which rounds the test tasks are asked of: the base, the last and the best; or every one, at its end."""

    @property
    def all_tasks(self) -> tuple[str, ...]:
        return (*self.tasks, *self.test_tasks)


class GateConfig(Section):
    """What a round's policy must hold to be used: sampled from, built on by the next round, published at the end."""

    metrics: tuple[str, ...] = ()
    """`task/metric` names, of which more is better; empty: the recipe's `best_metric`."""
    max_regression: NonNegativeFloat | None = None
    """How far below the best round so far (the base included) a metric may lie: 0.02 is two points of an accuracy. A
    round does not pass whose whole interval, paired by question, lies further below. None: every round passes."""


class MeasureConfig(Scheduled):
    """Measures on held-out preferences, round over round (docs/measures.md); the base and the last round always have
    them."""

    enabled: bool = True
    num_prompts: PositiveInt = 64
    """Held-out prompts that are answered, the same in every round; fewer where fewer are held out."""
    num_candidates: PositiveInt = 4
    """Completions sampled for each beside the greedy one: the best of them, a random one, and the divergence from the
    base come from these."""
    max_tokens: PositiveInt | None = None
    """Longest answer; None: `sample.max_tokens`."""
    judge: bool = True
    """Whether the recipe's judge, where it has one, compares the answers with those of the last round and the base."""
    truth: Annotated[str, Field(pattern=TRUTH_NAME)] | None = None
    """What knows which answers are right, where something does: a `module:function`, called as a reward function is
    (1 or more: right; None: it does not apply), or `checkers`, by which the quickstart's annotator judges. Candidates
    and training rows are measured by it; nothing that trains sees it."""
