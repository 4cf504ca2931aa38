"""What `measure` needs, before anything is trained: held-out rows that fit, and a judge that compares."""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.errors import ModelError, UserError
from alignloop.judging.prompt_file import PairwisePrompt, load_prompt
from alignloop.records import PreferenceRow
from alignloop.stages import measure
from alignloop.stages.asking import check_judge
from alignloop.stages.facts import Facts
from alignloop.stages.measure.answers import heldout_of
from alignloop.stages.training.check import can_train


def check(facts: Facts) -> None:
    """Say what will not be measured, and why."""
    recipe, chat = facts.recipe, facts.base.chat
    if not recipe.measure.enabled:
        return
    heldout = [row for row in facts.rows.heldout if chat is None or can_train(row, chat)]
    _check_heldout(facts, heldout)
    if recipe.judge is not None and recipe.measure.judge and heldout:
        _check_judge(facts)


def _check_heldout(facts: Facts, heldout: Sequence[PreferenceRow]) -> None:
    recipe, chat, findings = facts.recipe, facts.base.chat, facts.findings
    if not heldout:
        findings.notes.append(
            "measure: no preference row is held out, so rewards, win rates and the divergence from the base are not "
            "measured (data.heldout_fraction)"
        )
        return
    if chat is None:
        return
    try:
        found = heldout_of(heldout, chat=chat, config=measure.settings(recipe))
    except ModelError:
        return  # a template that refuses a dialog is told where the training rows are looked at
    if found.dropped:
        some = "none" if not found.prompts else f"only {len(found.rows):,}"
        findings.notes.append(
            f"measure: {some} of {len(heldout):,} held-out rows fits engine.max_model_len "
            f"({recipe.engine.max_model_len}); the first that does not: {found.dropped[0].id}: "
            f"{found.dropped[0].reason} - the others are not measured (measure.max_tokens, engine.max_model_len)"
        )


def _check_judge(facts: Facts) -> None:
    """The judge is asked in every round; where `collect` or `prune` asks it, it has been looked at for them."""
    recipe = facts.recipe
    assert recipe.judge is not None, "there is a judge"
    by_collect = recipe.collect.annotator == "judge" and recipe.collect.num_annotations > 0
    if by_collect and recipe.rounds > 1:
        return
    with facts.findings.collecting():
        if not isinstance(load_prompt(recipe.judge.prompt), PairwisePrompt):
            raise UserError(
                f"judge.prompt: {recipe.judge.prompt} compares no two, and measure.judge asks the judge to: name a "
                "pairwise prompt, or set measure.judge: false"
            )
    if not recipe.prune.judging_prompts and not facts.is_published(measure.STAGE.name):
        check_judge(facts, recipe.judge)
