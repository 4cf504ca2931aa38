"""What `alignloop eval` does: a checkpoint's benchmarks, or verdicts on responses that exist already."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from alignloop.errors import UserError
from alignloop.terminal import say


def check_files(*, json_file: Path | None, samples: Path | None) -> None:
    """Raise a UserError where one of them cannot be written: known before hours of work, not after them."""
    for option, path in (("--json", json_file), ("--samples", samples)):
        if path is not None:
            _check_file(option, path)
    if samples is not None and json_file is not None and samples.resolve() == json_file.resolve():
        raise UserError(f"--json and --samples {samples}: the report would replace the answers; name two files")


def _check_file(option: str, path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{option} {path}: no file can be written there; name one in a folder that exists")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{option} {path}: no file can be written there ({error.strerror}); name another") from error


def measure(
    checkpoint: Path,
    *,
    tasks: str | None,
    include_path: str | None,
    limit: int | None,
    config: str | None,
    chat_template: str | None,
    engine: Literal["vllm", "transformers"] | None,
    json_file: Path | None,
    samples: Path | None,
    strip_reasoning: bool | None,
) -> None:
    """Print a checkpoint's figures, and write the files that were asked for."""
    from alignloop.alone.evaluate import eval_text, evaluate_alone
    from alignloop.artifacts import write_text
    from alignloop.engines.log import temporary_log
    from alignloop.progress import for_terminal

    with temporary_log() as log_file:
        report = evaluate_alone(
            checkpoint,
            tasks=None if tasks is None else [name for name in tasks.split(",") if name],
            include_path=include_path,
            limit=limit,
            config=config,
            chat_template=chat_template,
            engine_name=engine,
            samples_file=samples,
            strip_reasoning=strip_reasoning,
            log_file=log_file,
            progress=for_terminal(),
        )
    say(eval_text(report))
    if json_file is not None:
        write_text(json_file, report.model_dump_json(indent=1) + "\n")


def score(
    responses: Path | None,
    *,
    benchmark: str | None,
    json_file: Path | None,
    strip_reasoning: bool,
    model_options: Mapping[str, object],
) -> None:
    """Print the verdicts' figures, and write them with the verdicts to `json_file`.

    Args:
        model_options: what only a model needs, by name: none may be given.
    """
    from alignloop.artifacts import write_text
    from alignloop.evaluation.responses import responses_text, score_file

    if responses is None or benchmark is None:
        lacking = "--responses FILE" if responses is None else "--benchmark ifeval=DATA.jsonl"
        raise UserError(f"eval: {lacking} is missing: responses are scored against the prompts that they answer")
    if given := [name for name, value in model_options.items() if value is not None]:
        raise UserError(f"eval: {', '.join(given)} and --responses: existing responses are scored without a model")
    scored = score_file(responses, benchmark=benchmark, strip_reasoning=strip_reasoning)
    say(responses_text(scored))
    if json_file is not None:
        write_text(json_file, json.dumps(scored.as_json(), indent=1, ensure_ascii=False) + "\n")
