"""A plan as lines of text: one round in full, the others in a line each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from alignloop.plan.settings import NAME_WIDTH, setting_lines
from alignloop.plan.walk import Plan, PlannedStage
from alignloop.preflight.lines import bytes_in_words, in_words, note_lines, opening_lines

TRAINING = ("train_reward", "train_sft", "train_dpo", "bootstrap")


def plan_text(plan: Plan) -> str:
    """Recipe, stages with rows and tokens, where each model starts, disk."""
    lines = opening_lines(plan.checked, recipe=plan.recipe, run_dir=plan.run_dir)
    lines += [*note_lines(plan.checked.left_out), "", *_rounds(plan), "", *setting_lines(plan), "", _disk(plan)]
    return "\n".join(lines)


def _rounds(plan: Plan) -> list[str]:
    lines = [f"{'stage':<22}{'state':<11}{'rows':>9}{'tokens':>9}"]
    in_full: set[bool] = set()
    for number, members in groupby(plan.stages, key=lambda stage: stage.round):
        stages = list(members)
        published = all(stage.state == "published" for stage in stages)
        known = any(stage.state in ("drift", "begun", "published", "waits") for stage in stages)
        # Round 0 and the first round still to do are shown stage by stage; the rest is alike.
        if published or (number > 0 and True in in_full and not known):
            lines.append(_in_one_line(number, stages, published=published))
            continue
        if number > 0:
            in_full.add(True)
        lines.append(f"round {number}")
        lines += [line for stage in stages for line in _stage_lines(stage)]
    return lines


def _in_one_line(number: int, stages: Sequence[PlannedStage], *, published: bool) -> str:
    if published:
        seconds = sum(stage.seconds or 0.0 for stage in stages)
        return f"round {number:<16}published  all {len(stages)} stages ({seconds:.0f} s)"
    tokens = {
        "sample": [s.expected.tokens for s in stages if _name(s) in ("sample", "score")],
        "train": [s.expected.tokens for s in stages if _name(s) in TRAINING],
    }
    told = [f"{what} {in_words(sum(t or 0 for t in found))}" for what, found in tokens.items() if any(found)]
    return f"round {number:<16}to do      {len(stages)} stages{', tokens: ' if told else ''}{', '.join(told)}"


def _stage_lines(stage: PlannedStage) -> list[str]:
    rows = "" if stage.expected.rows is None else f"{stage.expected.rows:,}"
    tokens = "" if stage.expected.tokens is None else in_words(stage.expected.tokens)
    line = f"  {stage.name:<20}{stage.state:<11}{rows:>9}{tokens:>9}".rstrip()
    return [line, *(f"      {change}" for change in stage.changes)]


def _disk(plan: Plan) -> str:
    needed = bytes_in_words(plan.checked.disk_bytes)
    return f"{'disk':<{NAME_WIDTH}}about {needed} needed, {bytes_in_words(plan.free_bytes)} free at {plan.run_dir}"


def _name(stage: PlannedStage) -> str:
    return stage.name.partition("_")[2]
