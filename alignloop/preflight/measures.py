"""What `measure` needs, before anything is trained: held-out rows that fit, and a judge that compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.config import Recipe
from alignloop.errors import ModelError, UserError
from alignloop.judging.prompt_file import PairwisePrompt, load_prompt
from alignloop.preflight.findings import Findings
from alignloop.preflight.judge import check_judge_answers
from alignloop.records import PreferenceRow
from alignloop.run_dir.reader import all_published
from alignloop.stages.measure_answers import heldout_of

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat


def check_measures(
    recipe: Recipe,
    *,
    heldout: Sequence[PreferenceRow],
    chat: ChatFormat | None,
    run_dir: Path | None,
    base_folder: Path | None,
    findings: Findings,
) -> None:
    """Say what will not be measured, and why.

    Args:
        run_dir: of the run; a judge whose answers are all published there is not called again.
        chat: of the base; None where its tokenizer is not on this machine.
    """
    if not recipe.measure.enabled:
        return
    _check_heldout(recipe, heldout, chat, findings)
    if recipe.judge is not None and recipe.measure.judge and heldout:
        _check_judge(recipe, run_dir=run_dir, base_folder=base_folder, findings=findings)


def _check_heldout(
    recipe: Recipe, heldout: Sequence[PreferenceRow], chat: ChatFormat | None, findings: Findings
) -> None:
    if not heldout:
        findings.notes.append(
            "measure: no preference row is held out, so rewards, win rates and the divergence from the base are not "
            "measured (data.heldout_fraction)"
        )
        return
    if chat is None:
        return
    try:
        found = heldout_of(heldout, chat=chat, config=recipe.measure_stage)
    except ModelError:
        return  # a template that refuses a dialog is told where the training rows are looked at
    if found.dropped:
        some = "none" if not found.prompts else f"only {len(found.rows):,}"
        findings.notes.append(
            f"measure: {some} of {len(heldout):,} held-out rows fits engine.max_model_len "
            f"({recipe.engine.max_model_len}); the first that does not: {found.dropped[0].id}: "
            f"{found.dropped[0].reason} - the others are not measured (measure.max_tokens, engine.max_model_len)"
        )


def _check_judge(recipe: Recipe, *, run_dir: Path | None, base_folder: Path | None, findings: Findings) -> None:
    """The judge is asked in every round; where `collect` or `prune` asks it, it has been looked at for them."""
    assert recipe.judge is not None, "there is a judge"
    by_collect = recipe.collect.annotator == "judge" and recipe.collect.num_annotations > 0
    if by_collect and recipe.rounds > 1:
        return
    with findings.collecting():
        if not isinstance(load_prompt(recipe.judge.prompt), PairwisePrompt):
            raise UserError(
                f"judge.prompt: {recipe.judge.prompt} compares no two, and measure.judge asks the judge to: name a "
                "pairwise prompt, or set measure.judge: false"
            )
    if not recipe.prune.judging_prompts and not all_published(run_dir, range(1, recipe.rounds + 1), stage="measure"):
        check_judge_answers(recipe, recipe.judge, base_folder=base_folder, findings=findings)
