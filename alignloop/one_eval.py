"""Benchmarks of one checkpoint, outside any run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alignloop.config.engine import EngineConfig
from alignloop.config.evaluation import EvaluateConfig
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.engines.open import open_engine
from alignloop.errors import ModelError
from alignloop.preflight.weights import check_causal
from alignloop.progress import Progress

if TYPE_CHECKING:
    from alignloop.evaluation.report import EvalReport

LONGEST = 4096
"""Prompt and answer together, where the model has room for more."""
NOT_SHOWN = ("type/",)


def evaluate_alone(
    checkpoint: Path,
    *,
    tasks: Sequence[str],
    include_path: str | None,
    limit: int | None,
    engine_name: Literal["vllm", "transformers"] | None,
    log_file: Path,
    progress: Progress,
) -> EvalReport:
    """Run `tasks` on `checkpoint`, in float32 on whatever device the engine finds.

    Args:
        include_path: folder of lm-eval task files; `quickstart`: the bundled ones.
        engine_name: None: vLLM where it is installed.
        log_file: gets what the engine prints.

    Raises:
        UserError: the checkpoint holds no model, or a task is unknown.
    """
    from alignloop.evaluation.evaluate import evaluate

    if not checkpoint.is_dir():
        raise ModelError(f"{checkpoint}: no such folder; give a Hugging Face model folder, for example <run>/final")
    model = text_config(checkpoint)
    check_causal(checkpoint, model)
    max_model_len = min(LONGEST, longest_sequence(model) or LONGEST)
    named = {} if engine_name is None else {"name": engine_name}
    config = EngineConfig.model_validate({"dtype": "float32", "max_model_len": max_model_len, **named})
    with open_engine(config, log_file=log_file, say=progress.say) as engine:
        return evaluate(
            engine,
            checkpoint=checkpoint,
            tasks=list(tasks),
            include_path=include_path,
            limit=limit,
            max_gen_tokens=min(EvaluateConfig().max_gen_tokens, config.max_model_len // 2),
            seed=0,
            max_model_len=config.max_model_len,
            progress=progress,
        )


def eval_text(report: EvalReport) -> str:
    """`task/metric  value +- error  n` lines; instruction types are left to the JSON file."""
    shown = [key for key in report.metrics if not any(part in key for part in NOT_SHOWN)]
    shown.sort(key=lambda key: key.partition("/")[0])
    width = max(map(len, shown), default=0)
    lines = []
    for key in shown:
        error = f" +- {report.stderr[key]:.4f}" if key in report.stderr else ""
        lines.append(f"{key:<{width}}  {report.metrics[key]:>9.4f}{error:<11}  n={report.counts.get(key, 0)}")
    return "\n".join(lines)
