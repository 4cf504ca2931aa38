"""What an evaluation leaves on disk: figures, the protocol they were measured by, and one row a question.

Torch-free, so that stages and the report read it cheaply.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignloop.errors import DataError
from alignloop.records import Message


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskProtocol(_Model):
    """How one lm-eval task was asked. Figures of two rounds compare only where their protocols are equal."""

    task: str
    version: str
    """lm-eval's version of the task."""
    output_type: str
    num_fewshot: int
    num_samples: int
    """Questions asked."""
    num_available: int
    """Questions the benchmark has."""
    generation: dict[str, Any] = Field(default_factory=dict)
    """lm-eval's generation arguments with the token limit that held (`max_gen_toks`) and the stop strings (`until`);
    empty for log-likelihood."""
    chat_template_digest: str
    data_digest: str
    """SHA-256 over the questions asked, in order, with their answers or constraints."""
    prompt_digest: str
    """SHA-256 over the messages sent, in order: few-shot examples and instructions included."""
    rendered_digest: str | None = None
    """SHA-256 over the prompts' token ids, in order: what the template makes of the messages, dates and all that it
    writes by itself included; None: not recorded."""


class Protocol(_Model):
    """How a whole evaluation was run."""

    lm_eval_version: str
    seed: int
    max_model_len: int
    """Longest prompt + completion, in tokens."""
    tasks: dict[str, TaskProtocol]
    groups: dict[str, list[str]] = Field(default_factory=dict)
    """Name -> the tasks its figures are means of."""
    engine_dtype: str | None = None
    """What the engine computed in; None: not recorded."""
    quantization: str | None = None
    stop_token_ids: list[int] | None = None
    """What ends an answer, beside a task's stop strings; None: not recorded."""
    system_turn: bool | None = None
    """Whether the template has a system turn for a task's description; false: it stands before the first user turn.
    None: not recorded."""
    strip_reasoning: bool | None = None
    """Whether reasoning was taken off the answers before they were judged; None: not recorded."""
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None
    """What the chat template is rendered with beside the messages; None: not recorded."""

    @property
    def digest(self) -> str:
        return sha256_of(self.model_dump(mode="json"))


def standing_alone(names: Iterable[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Of the tasks and groups that report figures those that are in no other group that does, in order; `groups` as in
    a protocol."""
    found = list(dict.fromkeys(names))
    reporting = {name: set(groups[name]) for name in found if name in groups}

    def is_part(name: str) -> bool:
        own = reporting.get(name, {name})
        return any(own < leaves or (name not in reporting and own <= leaves) for leaves in reporting.values())

    return [name for name in found if not is_part(name)]


class EvalReport(_Model):
    """Figures of one checkpoint.

    Keys are `task/metric` with lm-eval's names (`ifeval/prompt_level_strict_acc`, `mmlu/acc`, `mmlu_anatomy/acc`;
    `task/metric,filter` where a task has named filters). Beside them `ifeval/mean` is the mean of the four
    accuracies, `ifeval/type/<instruction id>` the strict accuracy of one instruction type, every task that generates
    has `stop_rate` (answers that ended by themselves) and `mean_tokens`, and a group's metric is followed by its mean
    over tasks: `mmlu/acc` is over questions, `mmlu/acc_macro` over subjects.
    """

    metrics: dict[str, float]
    stderr: dict[str, float]
    """Standard errors under the same keys, clustered by prompt (`evaluation.standard_error`); a key is missing where
    there is none: a single question, or a figure that is not a mean."""
    counts: dict[str, int]
    """What a figure counts, under the same keys: questions, or instructions for `inst_level_*` and `type/*`."""
    protocol: Protocol


class EvalSample(_Model):
    """One question, its answer and the verdicts."""

    task: str
    index: int
    """Place in the benchmark, from 0."""
    filter: str = "none"
    messages: list[Message]
    """The dialog sent, few-shot turns included."""
    prompt: str
    """The last user message."""
    response: str | None = None
    """What was generated and judged; None for log-likelihood."""
    reasoning: str | None = None
    """What was taken off it before (`evaluate.strip_reasoning`); None: nothing."""
    finish_reason: Literal["stop", "length"] | None = None
    num_tokens: int | None = None
    options: list[str] = Field(default_factory=list)
    """The texts whose log-likelihoods were compared."""
    option_logprobs: list[float] = Field(default_factory=list)
    """Sum of the logprobs of each option's tokens, in nats."""
    target: str | int | None = None
    """The right option, where options were compared."""
    instruction_ids: list[str] = Field(default_factory=list)
    verdicts: dict[str, float | list[bool]]
    """Metric -> value of this question; for IFEval's `inst_level_*` one verdict an instruction."""


def sha256_of(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_report(path: Path) -> EvalReport:
    """A published `report.json`; DataError where it is not one."""
    try:
        return EvalReport.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(f"{path}: not an evaluation's report: {error}") from error
