"""Responses that exist already, scored without a model: IFEval's verdicts on a file of prompts and responses.

responses.jsonl (prompt, response) + benchmark (IFEval's published form) --lm-eval's checkers--> ScoredResponses
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.chat.reasoning import holds_reasoning
from alignloop.config.bundled import benchmark_data
from alignloop.errors import DataError
from alignloop.evaluation.ifeval import (
    IfevalRow,
    estimates,
    numbered_values,
    preserved_random,
    read_ifeval,
    require_sentence_data,
    score_response,
)
from alignloop.evaluation.questions import judged_with_reasoning, without_reasoning
from alignloop.evaluation.standard_error import Estimate

MOST_NAMED = 5
"""Wrong lines that an error spells out."""
FORM = "JSON lines of `prompt` and `response`"


@dataclass(frozen=True)
class ScoredResponses:
    rows: tuple[IfevalRow, ...]
    """The benchmark's, in its order."""
    verdicts: tuple[Mapping[str, Any], ...]
    """lm-eval's for each: two booleans (`prompt_level_*`), two lists of one boolean an instruction."""
    figures: Mapping[str, tuple[Estimate, int]]
    """See `ifeval.estimates`."""
    strip_reasoning: bool
    num_holding_reasoning: int
    """Responses that were judged with reasoning."""

    def as_json(self) -> dict[str, Any]:
        """Flat: every figure by its name, its standard error as `<name>_stderr`, and under `prompts` the verdicts."""
        values: dict[str, Any] = {}
        for name, (figure, _) in self.figures.items():
            values[name] = figure.value
            if figure.stderr is not None:
                values[f"{name}_stderr"] = figure.stderr
        prompts = [
            {"key": row.key, "prompt": row.prompt, "instruction_id_list": row.instruction_id_list, **verdict}
            for row, verdict in zip(self.rows, self.verdicts, strict=True)
        ]
        return {**values, "num_prompts": len(prompts), "strip_reasoning": self.strip_reasoning, "prompts": prompts}

    def as_text(self) -> str:
        """A line a figure, and one where reasoning was judged, too; instruction types are left to the JSON."""
        lines = []
        for name, (figure, count) in self.figures.items():
            if not name.startswith("type/"):
                error = "" if figure.stderr is None else f" +- {figure.stderr:.4f}"
                lines.append(f"{name:<24}  {figure.value:>9.4f}{error:<11}  n={count}")
        if self.num_holding_reasoning:
            lines.append(judged_with_reasoning(self.num_holding_reasoning, len(self.rows), remedy="--strip-reasoning"))
        return "\n".join(lines)


def score_file(responses: Path, *, benchmark: str, strip_reasoning: bool = False) -> ScoredResponses:
    """Score every prompt of a benchmark by the responses of a file.

    Args:
        responses: JSON lines of `prompt` and `response`, in any order, one for each prompt.
        benchmark: `ifeval=DATA.jsonl`, or the name of a bundled one: `ifeval`.
        strip_reasoning: whether `<think>...</think>` is taken off first.

    Raises:
        DataError: no such file, a line in another form, or prompts that are missing, twice there, or of no benchmark.
    """
    data = _data_of(benchmark)
    rows = read_ifeval(data)
    # Before anything is scored, and once: with the remedy where nltk's data are missing.
    require_sentence_data((name for row in rows for name in row.instruction_id_list), where=str(data))
    given = _read_responses(responses, prompts=[row.prompt for row in rows], data=data)
    num_holding = 0 if strip_reasoning else sum(holds_reasoning(given[row.prompt]) for row in rows)
    if strip_reasoning:
        given = {prompt: without_reasoning(response)[1] for prompt, response in given.items()}
    # Where a prompt asks for a letter that is none ("#"), lm-eval's checker draws one: from the stream that lm-eval
    # seeds with 0 at its start, prompt by prompt in the benchmark's order.
    with preserved_random(0):
        verdicts = tuple(_score(row, given[row.prompt], responses) for row in rows)
    figures = estimates(verdicts, instruction_ids=[row.instruction_id_list for row in rows])
    return ScoredResponses(tuple(rows), verdicts, figures, strip_reasoning, num_holding)


def _data_of(benchmark: str) -> Path:
    local = benchmark_data(benchmark, bundled=True)
    if local is None or local.kind != "ifeval" or benchmark.endswith("="):
        raise DataError(
            f"--benchmark {benchmark}: responses are scored for ifeval=DATA.jsonl (IFEval's published form), or for "
            "ifeval, the bundled prompts; other benchmarks need a model: alignloop eval CHECKPOINT --tasks ..."
        )
    return local.path


def _read_responses(path: Path, *, prompts: Sequence[str], data: Path) -> dict[str, str]:
    """Prompt -> response, for every one of `prompts`, which are those of the file `data`. The DataError has every kind
    of mistake in the file, and the first lines of each."""
    known, stripped = set(prompts), {prompt.strip() for prompt in prompts}
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    for number, value in numbered_values(path, what=f"Responses are {FORM}", form=f"The file must be {FORM}"):
        prompt, response = _prompt_and_response(value, where=f"{path}, line {number}")
        if prompt not in known:
            near = "; it is there with other white space around it" if prompt.strip() in stripped else ""
            problems.append(f"line {number}: the prompt {_short(prompt)} is not one of {data}{near}")
        elif prompt in found:
            problems.append(
                f"line {number}: the prompt {_short(prompt)} has a response in line {lines[prompt]} already"
            )
        else:
            found[prompt], lines[prompt] = response, number
    if not found and not problems:
        raise DataError(f"{path}: the file has no responses; it must have {FORM}, one for each prompt of {data}.")
    if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]:
        shown = ", ".join(map(_short, missing[:MOST_NAMED])) + (", ..." if len(missing) > MOST_NAMED else "")
        problems.append(f"{len(missing)} of the {len(known)} prompts of {data} have no response: {shown}")
    if problems:
        raise DataError(f"{path}: the responses do not match the benchmark:" + _listed(problems))
    return found


def _prompt_and_response(row: Any, *, where: str) -> tuple[str, str]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}, not an object; the file must be {FORM}.")
    for field in ("prompt", "response"):
        if field not in row:
            has = ", ".join(map(str, row)) or "nothing"
            raise DataError(f"{where}: `{field}` is missing (it has {has}); the file must be {FORM}.")
        if not isinstance(row[field], str):
            raise DataError(f"{where}: `{field}` is {json.dumps(row[field])[:40]}, not a text.")
    return row["prompt"], row["response"]


def _score(row: IfevalRow, response: str, path: Path) -> dict[str, Any]:
    try:
        return score_response(row, response)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: lm-eval's checkers ({', '.join(row.instruction_id_list)}) fail on the response to prompt "
            f"{row.key}: {type(error).__name__}: {error}"
        ) from error


def _listed(problems: Sequence[str]) -> str:
    # The count of what is missing stands last and is always shown.
    shown = [*problems[:MOST_NAMED], *problems[-1:]] if len(problems) > MOST_NAMED + 1 else list(problems)
    more = f"\n  - ... and {len(problems) - len(shown)} lines more" if len(problems) > len(shown) else ""
    return "".join(f"\n  - {problem}" for problem in shown) + more


def _short(prompt: str) -> str:
    text = " ".join(prompt.split())
    return repr(text if len(text) <= 50 else text[:47] + "...")
