"""Benchmarks."""

from __future__ import annotations

from alignloop.config.base import PositiveInt, Section


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
