"""Rejection sampling's second half without the loop: the reward of each candidate, and the best of each prompt.

CANDIDATES --read--> candidate rows, in the reward model's tokens --the score stage--> scored --select--> best
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.alone.dropped_file import Dropped, put_dropped, read_dropped, unreadable
from alignloop.alone.out_file import check_out, is_made, manifest_of, put, work_dir
from alignloop.alone.sample import NO_RECIPE, ROUND, chat_of, model_folder
from alignloop.artifacts import Artifact
from alignloop.chat.sampled import ids_read_as
from alignloop.comparison.statistics import summary
from alignloop.config import Recipe, load_recipe
from alignloop.config.engine import EngineConfig
from alignloop.config.sampling import RewardFunction
from alignloop.data.candidates import ReadCandidates, TextPrompt, read_candidates
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.engines.base import Engine
from alignloop.engines.checkpoint import longest_sequence, tensor_shapes, text_config
from alignloop.engines.open import open_engine
from alignloop.errors import DataError, ModelError, UserError
from alignloop.loop.house import House
from alignloop.progress import Progress, QuietProgress
from alignloop.records import CandidateRow, DroppedRow
from alignloop.stages import score, select

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class Scored:
    """What came of it.

    Attributes:
        rewards: total rewards of all candidates, in file order.
        mean_random: mean reward of a random candidate of each prompt, drawn among those the best is picked from.
        mean_best: mean reward of the best of each prompt.
        extra_rewards: mean of each reward function, over the candidates it applies to.
        dropped: candidates without room, and rows that cannot be read.
    """

    out: Path
    best: Path | None
    num_prompts: int
    rewards: tuple[float, ...]
    extra_rewards: dict[str, float]
    mean_random: float
    mean_best: float
    dropped: Dropped
    was_there: bool


def score_alone(
    reward_model: str,
    candidates: Path,
    *,
    out: Path,
    best: Path | None,
    config: str | None,
    overrides: Sequence[str],
    functions: Sequence[str],
    progress: Progress,
) -> Scored:
    """Score every candidate of a file and find the best of each prompt.

    Args:
        reward_model: a sequence classifier with one label, as the loop's `train_reward` saves it.
        candidates: what `alignloop sample` wrote, or rows of the user's own with `candidates`.
        best: gets one row a prompt, the best candidate; None: not wanted.
        config: a recipe whose `score`, `select`, `data` and `seed` are taken; None: the defaults.
        functions: `module:function=weight` rewards added to the model's; they stand in place of the recipe's.

    Raises:
        UserError: bad input, found before the reward model is loaded where it can be.
    """
    out = check_out(out)
    best = None if best is None else check_out(best, option="--best")
    if best is not None and best.absolute() == out.absolute():
        raise UserError(f"--best {best}: is --out, too; give each file a name of its own")
    if best is not None and manifest_of(best).absolute() == manifest_of(out).absolute():
        raise UserError(f"--best {best}: has the name of --out but for its ending, and so has its manifest; rename it")
    folder = reward_model_folder(reward_model)
    recipe = scoring_recipe(config, overrides, functions=functions)
    score.unique(recipe.score.reward_functions)
    read = read_candidates(candidates.expanduser(), max_bad_fraction=recipe.data.max_bad_fraction)
    rows, dropped = fitting_rows(
        read, chat=chat_of(folder), room=longest_sequence(text_config(folder)), say=progress.say
    )
    if not rows:
        raise DataError(f"{candidates}: none of its candidates can be scored, the first because: {dropped[0].reason}")
    with work_dir(out) as work:
        dump_jsonl(work / "unscored.jsonl", rows)
        inputs = score.Inputs(Artifact.of(work / "unscored.jsonl"), Artifact.of(folder))
        there = is_made(out, "score", recipe.score_stage, inputs, run_seed=recipe.seed)
        if not there and best is not None and best.exists():
            raise UserError(f"--best {best}: exists already; name another file, or remove it")
        if not there:
            scored = run_scoring(work / "score", recipe, inputs, progress=progress).candidates
            put_dropped(out, dropped)
            put(scored.path, out)
        chosen = select.Inputs(Artifact.of(out))
        wanted = best is not None and not is_made(best, "select", recipe.select, chosen, run_seed=recipe.seed)
        selected = _select(work / "select", recipe, chosen)
        if best is not None and wanted:
            put(selected.selected.path, best)
    return _scored(out, best, selected, was_there=there)


def run_scoring(work: Path, recipe: Recipe, inputs: score.Inputs, *, progress: Progress) -> score.Outputs:
    """The score stage as round 1 of a run in `work`; no engine is started."""
    with _no_engine(work) as engine:
        return (
            House(work, recipe.seed, engine, progress, rebuild=True)
            .round(ROUND)
            .run(score.STAGE, recipe.score_stage, inputs)
        )


def reward_model_folder(reward_model: str) -> Path:
    """The folder of a reward model, by its config and the names of its weights.

    Raises:
        ModelError: it is another kind of model.
    """
    folder = model_folder(reward_model)
    names = [str(name) for name in text_config(folder).get("architectures") or []]
    if not any(name.endswith(CLASSIFIER) for name in names):
        found = f"a {names[0]}" if names else "a model of unnamed architecture"
        raise ModelError(
            f"{folder} is {found}, no reward model: give a sequence classifier with one label, for example the "
            "checkpoint that `alignloop stage train_reward` or a run's train_reward stage publishes"
        )
    heads = [shape for name, shape in tensor_shapes(folder).items() if name == "score.weight"]
    if not heads or heads[0][0] != 1:
        found = f"{heads[0][0]} labels" if heads else "no `score.weight`"
        raise ModelError(f"{folder} has {found}: a reward model has a score head with one label")
    return folder


def scoring_recipe(config: str | None, overrides: Sequence[str], *, functions: Sequence[str]) -> Recipe:
    """The recipe that scores, with the reward functions given as `module:function=weight`.

    Raises:
        RecipeError: the recipe is wrong.
        UserError: a reward function is not written so.
    """
    recipe = load_recipe(NO_RECIPE if config is None else config, overrides=[*overrides, "preferences=quickstart"])
    if not functions:
        return recipe
    own = tuple(_reward_function(text) for text in functions)
    return recipe.model_copy(update={"score": recipe.score.model_copy(update={"reward_functions": own})})


def fitting_rows(
    read: ReadCandidates, *, chat: ChatFormat, room: int | None, say: Callable[[str], None]
) -> tuple[list[CandidateRow], list[DroppedRow]]:
    """Candidate rows in the reward model's own tokens, and what was dropped.

    Rows of another tokenizer's ids are tokenised anew from their texts.

    Args:
        room: longest sequence of the reward model, in tokens; None: not known.
    """
    rows = list(read.own)
    if not all(ids_read_as(row.completion_ids, row.completion, chat) for row in rows):
        say("  candidates are of another tokenizer than the reward model: tokenised anew from their texts")
        rows = [row.model_copy(update={"completion_ids": _ids(row, chat)}) for row in rows]
    rows += [row for prompt in read.texts for row in _text_rows(prompt, chat)]
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


def scored_text(result: Scored) -> str:
    """What was made, in a few lines."""
    spread = summary(result.rewards)
    there = ", there already and made from the same things" if result.was_there else ""
    lines = [
        f"{len(result.rewards):,} candidates of {result.num_prompts:,} prompts  {result.out}{there}",
        f"  reward of a random pick  {result.mean_random:>9.4f}",
        f"  reward of the best       {result.mean_best:>9.4f}  ({result.mean_best - result.mean_random:+.4f})",
        f"  all candidates: mean {spread.mean:.4f}"
        + ("" if spread.std is None else f", standard deviation {spread.std:.4f}"),
        "  " + "  ".join(f"{float(name):.0%} {value:.3f}" for name, value in spread.quantiles.items()),
        *(f"  {name}: mean {value:.4f}" for name, value in result.extra_rewards.items()),
    ]
    if result.best is not None:
        lines.append(f"the best of each prompt  {result.best}")
    return "\n".join([*lines, *result.dropped.lines()])


def _select(work: Path, recipe: Recipe, inputs: select.Inputs) -> select.Outputs:
    with _no_engine(work) as engine:
        house = House(work, recipe.seed, engine, QuietProgress(), rebuild=True)
        return house.round(ROUND).run(select.STAGE, recipe.select, inputs)


def _no_engine(work: Path) -> Engine:
    """What stages that use none are given: it never starts."""
    return open_engine(EngineConfig(name="transformers"), log_file=work / "engine.log")


def _reward_function(text: str) -> RewardFunction:
    name, equals, weight = text.partition("=")
    try:
        return RewardFunction.model_validate({"function": name, "weight": float(weight) if equals else 1.0})
    except ValueError as error:
        raise UserError(
            f"--reward-function {text}: expected module:function or module:function=weight, for example "
            "rewards:politeness=0.5"
        ) from error


def _text_rows(prompt: TextPrompt, chat: ChatFormat) -> Iterator[CandidateRow]:
    for k, candidate in enumerate(prompt.candidates):
        row = CandidateRow(
            id=f"{prompt.id}/0/{k}",
            prompt_id=prompt.id,
            messages=list(prompt.messages),
            completion=candidate.text,
            completion_ids=[],
            finish_reason="length" if candidate.meta.get("finish_reason") == "length" else "stop",
            round=0,
            policy="",
            meta={**prompt.meta, **candidate.meta},
        )
        yield row.model_copy(update={"completion_ids": _ids(row, chat)})


def _ids(row: CandidateRow, chat: ChatFormat) -> list[int]:
    """A completion's ids as if sampled: its content, and the stop token where it was not cut."""
    content = chat.content_ids(row.completion)
    return list(content) if row.finish_reason == "length" else [*content, chat.stop_token_ids[0]]


def _scored(out: Path, best: Path | None, selected: select.Outputs, *, was_there: bool) -> Scored:
    rows = list(load_jsonl(out, CandidateRow))
    extra: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.extra_rewards.items():
            extra.setdefault(name, []).append(value)
    return Scored(
        out=out,
        best=best,
        num_prompts=len({row.prompt_id for row in rows}),
        rewards=tuple(select.reward_of(row) for row in rows),
        extra_rewards={name: sum(values) / len(values) for name, values in extra.items()},
        mean_random=selected.metrics["mean_reward_random"],
        mean_best=selected.metrics["mean_reward_best"],
        dropped=read_dropped(out),
        was_there=was_there,
    )
