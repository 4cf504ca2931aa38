"""Rejection sampling's second half without the loop: the reward of each candidate, and the best of each prompt.

CANDIDATES --read--> candidate rows, in the reward model's tokens --the score stage--> scored --select--> best
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.alone.model import chat_of, reward_model_folder
from alignloop.alone.out_file import (
    OneStage,
    check_out,
    dropped_lines,
    manifest_of,
    put,
    put_dropped,
    there_text,
    unreadable,
    work_dir,
)
from alignloop.alone.sample import NO_RECIPE
from alignloop.artifacts import Artifact
from alignloop.chat.sampled import ids_read_as
from alignloop.config import Recipe, load_recipe
from alignloop.config.sampling import RewardFunction
from alignloop.data.candidates import ReadCandidates, read_candidates
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.errors import DataError, UserError
from alignloop.progress import Progress, QuietProgress
from alignloop.records import CandidateRow, DroppedRow
from alignloop.sampling.reward_statistics import summary
from alignloop.stages import score, select

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat


def score_file(
    reward_model: str,
    candidates: Path,
    *,
    out: Path,
    best: Path | None,
    config: str | None,
    overrides: Sequence[str],
    functions: Sequence[str],
    progress: Progress,
) -> str:
    """Score every candidate of a file and find the best of each prompt; returns what was made, in a few lines.

    Args:
        reward_model: a sequence classifier with one label, as the loop's `train_reward` saves it.
        candidates: what `alignloop sample` wrote, or rows of the user's own with `candidates`.
        best: gets one row a prompt, the best candidate; None: not wanted.
        config: a recipe whose `score`, `select`, `data` and `seed` are taken; None: the defaults.
        functions: `module:function=weight` rewards added to the model's; they stand in place of the recipe's.

    Raises:
        UserError: bad input, found before the reward model is loaded where it can be.
    """
    out, best = _checked(out, best)
    folder = reward_model_folder(reward_model)
    recipe = _recipe(config, overrides, functions=functions)
    score.unique(recipe.score.reward_functions)
    read = read_candidates(candidates.expanduser(), max_bad_fraction=recipe.data.max_bad_fraction)
    rows, dropped = fitting_rows(
        read, chat=chat_of(folder), room=longest_sequence(text_config(folder)), say=progress.say
    )
    if not rows:
        raise DataError(f"{candidates}: none of its candidates can be scored, the first because: {dropped[0].reason}")
    with work_dir(out) as work:
        dump_jsonl(work / "unscored.jsonl", rows)
        scoring = scoring_of(recipe, Artifact.of(work / "unscored.jsonl"), folder)
        was_there = scoring.is_made(out)
        if not was_there and best is not None and best.exists():
            raise UserError(f"--best {best}: exists already; name another file, or remove it")
        if not was_there:
            scored = scoring.run(work / "score", progress)
            put_dropped(out, dropped)
            put(scored.candidates.path, out)
        selecting = OneStage(select.STAGE, recipe, select.Inputs(Artifact.of(out)))
        is_wanted = best is not None and not selecting.is_made(best)
        selected = selecting.run(work / "select", QuietProgress())
        if best is not None and is_wanted:
            put(selected.selected.path, best)
    return _scored_text(out, best, selected, was_there=was_there)


def scoring_of(recipe: Recipe, candidates: Artifact, reward_model: Path) -> OneStage[Any, score.Inputs, score.Outputs]:
    inputs = score.Inputs(candidates, Artifact.of(reward_model))
    return OneStage(score.STAGE, recipe, inputs)


def _checked(out: Path, best: Path | None) -> tuple[Path, Path | None]:
    out = check_out(out)
    if best is None:
        return out, None
    best = check_out(best, option="--best")
    if best.absolute() == out.absolute():
        raise UserError(f"--best {best}: is --out, too; give each file a name of its own")
    if manifest_of(best).absolute() == manifest_of(out).absolute():
        raise UserError(f"--best {best}: has the name of --out but for its ending, and so has its manifest; rename it")
    return out, best


def _recipe(config: str | None, overrides: Sequence[str], *, functions: Sequence[str]) -> Recipe:
    recipe = load_recipe(NO_RECIPE if config is None else config, overrides=[*overrides, "preferences=quickstart"])
    if not functions:
        return recipe
    own = tuple(_reward_function(text) for text in functions)
    return recipe.model_copy(update={"score": recipe.score.model_copy(update={"reward_functions": own})})


def _reward_function(text: str) -> RewardFunction:
    name, equals, weight = text.partition("=")
    try:
        return RewardFunction.model_validate({"function": name, "weight": float(weight) if equals else 1.0})
    except ValueError as error:
        raise UserError(
            f"--reward-function {text}: expected module:function or module:function=weight, for example "
            "rewards:politeness=0.5"
        ) from error


def fitting_rows(
    read: ReadCandidates, *, chat: ChatFormat, room: int | None, say: Callable[[str], None]
) -> tuple[list[CandidateRow], list[DroppedRow]]:
    """Candidate rows in the reward model's own tokens, and what was dropped.

    Rows of another tokenizer's ids are tokenised anew from their texts.

    Args:
        room: longest sequence of the reward model, in tokens; None: not known.
    """
    rows = list(read.rows)
    if not read.has_ids or not all(ids_read_as(row.completion_ids, row.completion, chat) for row in rows):
        if read.has_ids:
            say("  candidates are of another tokenizer than the reward model: tokenised anew from their texts")
        rows = [row.model_copy(update={"completion_ids": _ids(row, chat)}) for row in rows]
    dropped = unreadable(read.rejected)
    kept, prompt_id, prompt_length = [], None, 0
    for row in rows:
        if row.prompt_id != prompt_id:
            prompt_id, prompt_length = row.prompt_id, len(chat.prompt_ids(row.messages))
        length = prompt_length + len(chat.sampled_completion(row.completion_ids).token_ids)
        if room is None or length <= room:
            kept.append(row)
        else:
            reason = f"{length} tokens of prompt and completion exceed the {room} of the reward model"
            dropped.append(DroppedRow(id=row.id, stage="score", rule="length", reason=reason))
    return kept, dropped


def _ids(row: CandidateRow, chat: ChatFormat) -> list[int]:
    """A completion's ids as if sampled: its content, and the stop token where it was not cut."""
    content = chat.content_ids(row.completion)
    return list(content) if row.finish_reason == "length" else [*content, chat.stop_token_ids[0]]


def _scored_text(out: Path, best: Path | None, selected: select.Outputs, *, was_there: bool) -> str:
    rows = list(load_jsonl(out, CandidateRow))
    spread = summary([select.reward_of(row) for row in rows])
    extra: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.extra_rewards.items():
            extra.setdefault(name, []).append(value)
    of_random, of_best = selected.metrics["mean_reward_random"], selected.metrics["mean_reward_best"]
    num_prompts = len({row.prompt_id for row in rows})
    lines = [
        f"{len(rows):,} candidates of {num_prompts:,} prompts  {out}{there_text(was_there)}",
        f"  reward of a random pick  {of_random:>9.4f}",
        f"  reward of the best       {of_best:>9.4f}  ({of_best - of_random:+.4f})",
        f"  all candidates: mean {spread.mean:.4f}"
        + ("" if spread.std is None else f", standard deviation {spread.std:.4f}"),
        "  " + "  ".join(f"{float(name):.0%} {value:.3f}" for name, value in spread.quantiles.items()),
        *(f"  {name}: mean {sum(values) / len(values):.4f}" for name, values in extra.items()),
    ]
    if best is not None:
        lines.append(f"the best of each prompt  {best}")
    return "\n".join([*lines, *dropped_lines(out)])
