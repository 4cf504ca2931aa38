"""The verb that measures: `eval`, of a checkpoint or of responses that exist already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from alignloop.cli.options import EngineOption
from alignloop.errors import UserError
from alignloop.terminal import say

TasksOption = Annotated[str | None, typer.Option(metavar="NAMES", help="With commas; default: its run's or bundled.")]
IncludeOption = Annotated[
    str | None, typer.Option(metavar="quickstart|DIR", help="Looked through first; empty: lm-eval's.")
]
ProtocolOption = Annotated[
    str | None, typer.Option(metavar="RECIPE|RUN_DIR", help="Whose protocol holds; default: its run's.")
]
StripOption = Annotated[bool, typer.Option("--strip-reasoning", help="Judge what follows </think> alone.")]


def evaluate(
    checkpoint: Annotated[Path | None, typer.Argument(help="A Hugging Face model folder.")] = None,
    tasks: TasksOption = None,
    include_path: IncludeOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a task, for a quick look.")] = None,
    config: ProtocolOption = None,
    chat_template: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="In place of the model's own.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the whole report there.")] = None,
    samples: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all answers and verdicts there.")] = None,
    engine: EngineOption = None,
    responses: Annotated[Path | None, typer.Option(metavar="FILE", help="Score these, without a model.")] = None,
    benchmark: Annotated[str | None, typer.Option(metavar="ifeval=DATA", help="The prompts that they answer.")] = None,
    strip_reasoning: StripOption = False,
) -> None:
    """Run benchmarks on a checkpoint, or on responses.

    \b
    alignloop eval runs/quickstart/final
    alignloop eval my-model --tasks ifeval=input_data.jsonl,mmlu=mmlu/
    alignloop eval --responses mine.jsonl --benchmark ifeval=input_data.jsonl
    """
    from alignloop.alone.evaluate import eval_text, evaluate_alone
    from alignloop.artifacts import write_text
    from alignloop.progress import for_terminal

    _check_files(json_file=json_file, samples=samples)
    if responses is not None or benchmark is not None:
        of_models = {
            "CHECKPOINT": checkpoint,
            "--tasks": tasks,
            "--include-path": include_path,
            "--limit": limit,
            "--config": config,
            "--chat-template": chat_template,
            "--engine": engine,
            "--samples": samples,
        }
        text, report = _of_responses(responses, benchmark, strip_reasoning=strip_reasoning, of_models=of_models)
    elif checkpoint is None:
        raise UserError("eval: name a CHECKPOINT to measure, or --responses FILE --benchmark ifeval=DATA to score")
    else:
        asked = {
            "tasks": None if tasks is None else tuple(name for name in tasks.split(",") if name),
            "include_path": include_path,
            "limit": limit,
            "strip_reasoning": strip_reasoning or None,
        }
        measured = evaluate_alone(
            checkpoint,
            {name: value for name, value in asked.items() if value is not None},
            config=config,
            chat_template=chat_template,
            engine_name=engine,
            samples_file=samples,
            progress=for_terminal(),
        )
        text, report = eval_text(measured), measured.model_dump_json(indent=1)
    say(text)
    if json_file is not None:
        write_text(json_file, report + "\n")


def _check_files(*, json_file: Path | None, samples: Path | None) -> None:
    """Known before hours of work, not after them."""
    from alignloop.alone.out_file import check_writable

    check_writable(json_file, option="--json")
    check_writable(samples, option="--samples")
    if samples is not None and json_file is not None and samples.resolve() == json_file.resolve():
        raise UserError(f"--json and --samples {samples}: the report would replace the answers; name two files")


def _of_responses(
    responses: Path | None, benchmark: str | None, *, strip_reasoning: bool, of_models: Mapping[str, object]
) -> tuple[str, str]:
    """The verdicts' figures as text, and with the verdicts as JSON.

    Args:
        of_models: options that only a model needs: none may be given.
    """
    from alignloop.evaluation.responses import score_file

    if responses is None or benchmark is None:
        lacking = "--responses FILE" if responses is None else "--benchmark ifeval=DATA.jsonl"
        raise UserError(f"eval: {lacking} is missing: responses are scored against the prompts that they answer")
    if given := [name for name, value in of_models.items() if value is not None]:
        raise UserError(f"eval: {', '.join(given)} and --responses: existing responses are scored without a model")
    scored = score_file(responses, benchmark=benchmark, strip_reasoning=strip_reasoning)
    return scored.as_text(), json.dumps(scored.as_json(), indent=1, ensure_ascii=False)
