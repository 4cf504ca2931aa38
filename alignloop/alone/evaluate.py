"""Benchmarks of one checkpoint, outside any run: by a run's protocol, a recipe's, or the default one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignloop.alone.model import require_kwargs
from alignloop.chat.load import template_kwargs_of
from alignloop.chat.template_defaults import Value
from alignloop.config import Recipe, load_recipe
from alignloop.config.bundled import bundled_benchmarks
from alignloop.config.engine import EngineConfig
from alignloop.config.evaluation import EvaluateConfig
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.engines.open import open_engine, temporary_folder, temporary_log
from alignloop.errors import ModelError
from alignloop.look.setting import recipe_of
from alignloop.progress import Progress
from alignloop.run_dir.layout import RESOLVED
from alignloop.stages.base_files import check_causal

if TYPE_CHECKING:
    from alignloop.evaluation.report import EvalReport

LONGEST = 4096
"""Prompt and answer together, in tokens, if the model allows as many."""
NOT_SHOWN = ("type/",)


def find_protocol(
    checkpoint: Path,
    asked: Mapping[str, Any],
    *,
    config: str | None = None,
    engine_name: Literal["vllm", "transformers"] | None = None,
) -> tuple[Recipe, str | None]:
    """The recipe a checkpoint is measured by, and where that comes from (None: the defaults).

    `config` is a recipe, as `alignloop run` takes it, or a run directory. Without one, a run's recipe counts where the
    checkpoint lies in its directory and the tasks are the run's own, so that the figures compare with its rounds; else
    the defaults: float32, up to 4,096 tokens, lm-eval's own tasks, or where none is named the bundled ones.

    `asked` are fields of `evaluate` that replace the recipe's; `include_path` is a folder of lm-eval task files,
    `quickstart` for the bundled ones, or empty for lm-eval's own alone. A UserError where there is no such recipe.
    """
    asked = {name: value or None if name == "include_path" else value for name, value in asked.items()}
    recipe, origin = _recipe_for(checkpoint, asked, config=config)
    if recipe is None:
        room = min(LONGEST, longest_sequence(text_config(checkpoint)) or LONGEST)
        evaluate = EvaluateConfig(
            # Named tasks mean lm-eval's, as in a recipe; with nothing named there are questions on every machine.
            include_path=None if "tasks" in asked else "quickstart",
            max_gen_tokens=max(1, min(EvaluateConfig().max_gen_tokens, room // 2)),
        )
        engine = EngineConfig(dtype="float32", max_model_len=room)
        recipe = Recipe(preferences=("quickstart",)).model_copy(update={"evaluate": evaluate, "engine": engine})
    named = {} if engine_name is None else {"name": engine_name}
    sections = {
        "evaluate": recipe.evaluate.model_copy(update=asked),
        "engine": recipe.engine.model_copy(update=named),
    }
    return recipe.model_copy(update=sections), origin


def evaluate_alone(
    checkpoint: Path,
    asked: Mapping[str, Any],
    *,
    engine_name: Literal["vllm", "transformers"] | None,
    config: str | None,
    chat_template: str | None,
    samples_file: Path | None,
    progress: Progress,
) -> EvalReport:
    """Run benchmarks on `checkpoint`, on whatever device the engine finds.

    Args:
        asked, config: see `find_protocol`.
        engine_name: None: vLLM where it is installed.
        chat_template: `llama3`, `chatml`, a template that TRL bundles or a Jinja file, in place of the checkpoint's.
        samples_file: gets one JSON line a question.

    Raises:
        UserError: the checkpoint has no model, or no template; a task is unknown, or its questions do not fit.
    """
    from alignloop.evaluation.evaluate import evaluate

    if not checkpoint.is_dir():
        raise ModelError(f"{checkpoint}: no such folder; give a Hugging Face model folder, for example <run>/final")
    check_causal(checkpoint, text_config(checkpoint))
    recipe, origin = find_protocol(checkpoint, asked, config=config, engine_name=engine_name)
    wanted = recipe.evaluate
    toys = [name for name in wanted.tasks if name in bundled_benchmarks()]
    if origin is not None:
        progress.say(f"measured as {origin}")
    elif wanted.include_path == "quickstart" and toys:
        progress.say(
            f"{', '.join(toys)}: the bundled questions about the quickstart's world; lm-eval's own with --tasks "
            f"{','.join(toys)}, local data with --tasks ifeval=FILE.jsonl,mmlu=FOLDER"
        )
    with (
        temporary_log() as log_file,
        _with_template(checkpoint, chat_template, recipe.chat_template_kwargs) as served,
        open_engine(recipe.engine, log_file=log_file, say=progress.say) as engine,
    ):
        return evaluate(
            engine,
            checkpoint=served,
            tasks=list(wanted.tasks),
            include_path=wanted.include_path,
            limit=wanted.limit,
            max_gen_tokens=wanted.max_gen_tokens,
            seed=0,
            max_model_len=recipe.engine.max_model_len,
            dtype=recipe.engine.dtype,
            quantization=recipe.engine.quantization,
            strip_reasoning=wanted.strip_reasoning,
            samples_file=samples_file,
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


def _recipe_for(checkpoint: Path, asked: Mapping[str, Any], *, config: str | None) -> tuple[Recipe | None, str | None]:
    if config is not None:
        if (Path(config) / RESOLVED).is_file():
            return recipe_of(Path(config)), f"the run {config} does"
        return load_recipe(config), f"the recipe {config} says"
    run_dir = next((folder for folder in checkpoint.resolve().parents if (folder / RESOLVED).is_file()), None)
    if run_dir is None:
        return None, None
    recipe = recipe_of(run_dir)
    is_own = set(asked.get("tasks", ())) <= set(recipe.evaluate.all_tasks)
    is_there = asked.get("include_path", recipe.evaluate.include_path) == recipe.evaluate.include_path
    return (recipe, f"its run {run_dir} does") if is_own and is_there else (None, None)


@contextmanager
def _with_template(checkpoint: Path, chat_template: str | None, template_kwargs: Mapping[str, Value]) -> Iterator[Path]:
    """The checkpoint, or a temporary copy of it with another template."""
    if chat_template is None:
        require_kwargs(template_kwargs, known=template_kwargs_of(checkpoint), folder=checkpoint)
        yield checkpoint
        return
    from alignloop.training.start import prepare_base

    with temporary_folder() as folder:
        prepare_base(
            str(checkpoint),
            chat_template=chat_template,
            template_kwargs=template_kwargs,
            out_dir=folder / "checkpoint",
        )
        yield folder / "checkpoint"
