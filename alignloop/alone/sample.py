"""Rejection sampling without the loop: K candidates for each prompt of a file, their rewards, the best of each prompt.

PROMPTS --read--> prompt rows --the sample stage--> candidates, dropped
CANDIDATES --read--> candidate rows, in the reward model's tokens --the score stage--> scored --select--> best
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.alone.model import chat_of, policy_folder, require_kwargs, reward_model_folders
from alignloop.alone.out_file import (
    ROUND,
    OneStage,
    check_out,
    dropped_lines,
    manifest_of,
    put,
    there_text,
    unreadable,
    work_dir,
)
from alignloop.artifacts import Artifact
from alignloop.chat.sampled import ids_read_as
from alignloop.config import Recipe, load_recipe
from alignloop.config.bundled import resolve_file
from alignloop.config.sampling import RewardFunction, SampleConfig, SystemPrompt
from alignloop.data.candidates import ReadCandidates, read_candidates
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.readers import read_prompts
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.errors import DataError, UserError
from alignloop.progress import Progress, QuietProgress
from alignloop.records import CandidateRow, DroppedRow, PromptRow, RejectedRow
from alignloop.sampling.reward_functions import require_columns
from alignloop.sampling.reward_statistics import summary
from alignloop.stages import sample, score, select
from alignloop.stages.reward_models import check_members
from alignloop.stages.sampler import ask

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

NO_RECIPE = {"preferences": ["quickstart"]}
"""All defaults; a recipe must name preferences, which neither command looks at."""
UNKNOWN_ROOM = 4096
"""Tokens, where a checkpoint does not say how long its sequences may be."""
ROOM_STEP = 64
"""The engine's length is a multiple of this, so that one more prompt does not change the configuration."""


@dataclass(frozen=True)
class Sampling:
    policy: Path
    recipe: Recipe
    prompts: Sequence[PromptRow]
    rejected: Sequence[RejectedRow]

    def stage(self, work: Path) -> OneStage[Any, sample.Inputs, sample.Outputs]:
        """The stage that samples them; writes the prompts to a file in `work`."""
        dump_jsonl(work / "prompts.jsonl", self.prompts)
        inputs = sample.Inputs(Artifact.of(self.policy), Artifact.of(work / "prompts.jsonl"))
        return OneStage(sample.STAGE, self.recipe, inputs, self.recipe.engine)


def sample_file(
    checkpoint: str,
    prompts: str,
    *,
    out: Path,
    config: str | None,
    overrides: Sequence[str],
    system_prompt: str | None,
    progress: Progress,
) -> str:
    """Sample candidates for every prompt of a file; returns a report of a few lines.

    Whatever can be wrong with checkpoint, prompts and settings is found before the engine starts.

    Args:
        checkpoint: a Hugging Face folder, or `quickstart` for the bundled base.
        prompts: any file of prompts or preferences that the project reads, or `quickstart`.
        config: a recipe whose `sample`, `engine`, `data` and `seed` are used; None: the defaults.
        system_prompt: for prompts that have none of their own.

    Raises:
        UserError: bad input; nothing has been sampled.
        EngineError: the engine died too often; what was sampled is kept for the next call.
    """
    out = check_out(out)
    sampling = sampling_of(policy_folder(checkpoint), prompts, config, overrides, system_prompt=system_prompt)
    with work_dir(out) as work:
        stage, bad = sampling.stage(work), unreadable(sampling.rejected)
        was_there = stage.make(out, work, progress, output="candidates", dropped=bad)
    return _sampled_text(out, sampling.recipe.sample, was_there=was_there)


def sampling_of(
    policy: Path, prompts: str, config: str | None, overrides: Sequence[str], *, system_prompt: str | None = None
) -> Sampling:
    """The prompts, and the recipe with an engine length that fits them.

    Prompts too long for the checkpoint are left to the stage, which drops them with a reason. A UserError where recipe,
    prompts or chat template are wrong, or do not fit the checkpoint.
    """
    recipe, is_room_set = _sampling_recipe(config, overrides, checkpoint=policy)
    if system_prompt is not None:
        if not system_prompt.strip():
            raise UserError("--system-prompt: is empty; leave the option out to sample without one")
        recipe = _with(recipe, "sample", system_prompts=(SystemPrompt(text=system_prompt),))
    read = read_prompts([resolve_file(prompts, kind="prompts")], max_bad_fraction=recipe.data.max_bad_fraction)
    chat = chat_of(policy)
    require_kwargs(recipe.chat_template_kwargs, known=chat.template_kwargs, folder=policy)
    if not is_room_set:  # room that nobody uses costs memory
        asked = (ask(row, chat=chat, config=recipe.sample, round=ROUND, seed=0) for row in read.rows)
        wanted = max(len(one.prompt_ids) for one in asked) + recipe.sample.max_tokens
        room = min(recipe.engine.max_model_len, -(-wanted // ROOM_STEP) * ROOM_STEP)
        recipe = _with(recipe, "engine", max_model_len=room)
    return Sampling(policy, recipe, read.rows, read.rejected)


def _sampling_recipe(config: str | None, overrides: Sequence[str], *, checkpoint: Path) -> tuple[Recipe, bool]:
    """The recipe, with lengths that fit the checkpoint where none are set; whether it sets the longest sequence.

    A UserError where it is wrong in itself, or asks for more tokens than the checkpoint allows.
    """
    engine = _recipe(config, overrides, "sample.max_tokens=1").engine
    limit = engine.max_model_len if "max_model_len" in engine.model_fields_set else None
    # Under such a length any `max_tokens` is right.
    asked = _recipe(config, overrides, "engine.max_model_len=1000000000").sample
    positions = longest_sequence(text_config(checkpoint))
    if limit is not None and positions is not None and limit > positions:
        raise UserError(f"engine.max_model_len ({limit}): {checkpoint} has room for {positions} tokens only: lower it")
    room = limit or positions or UNKNOWN_ROOM
    max_tokens = asked.max_tokens if "max_tokens" in asked.model_fields_set else min(asked.max_tokens, room // 2)
    if max_tokens >= room:
        whose = f"{checkpoint} has room for" if limit is None else "engine.max_model_len is"
        raise UserError(
            f"a completion of up to {max_tokens} tokens (--max-tokens) leaves no room for a prompt: {whose} {room} "
            "tokens, prompt and completion together; lower it"
        )
    lengths = (f"engine.max_model_len={room}", f"sample.max_tokens={max_tokens}")
    return _recipe(config, overrides, *lengths), limit is not None


def _recipe(config: str | None, overrides: Sequence[str], *more: str) -> Recipe:
    """A recipe, for which the sections that these commands look at are enough."""
    return load_recipe(NO_RECIPE if config is None else config, overrides=[*overrides, "preferences=quickstart", *more])


def _with(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def _sampled_text(out: Path, config: SampleConfig, *, was_there: bool) -> str:
    rows = list(load_jsonl(out, CandidateRow))
    truncated = sum(row.finish_reason == "length" for row in rows) / len(rows)
    mean_tokens = sum(len(row.completion_ids) for row in rows) / len(rows)
    lines = [
        f"{len(rows):,} candidates of {len({row.prompt_id for row in rows}):,} prompts  {out}{there_text(was_there)}",
        f"  K = {config.num_candidates}, {_drawn(config, 'temperature')}, {_drawn(config, 'top_p')}",
        f"  {1 - truncated:.1%} finished, {truncated:.1%} cut at {config.max_tokens} tokens; "
        f"{mean_tokens:,.0f} tokens each on average",
    ]
    if truncated > 0.2:
        lines.append("  many were cut: the best of K is then picked among few; raise --max-tokens")
    return "\n".join([*lines, *dropped_lines(out)])


def _drawn(config: SampleConfig, name: str) -> str:
    """`temperature 0.7 to 1`, `top_p 1`."""
    value = getattr(config, name)
    return f"{name} {value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else f"{name} {value:g}"


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
    """Score every candidate of a file and find the best of each prompt; returns a report of a few lines.

    Args:
        reward_model: a sequence classifier with one label, as the loop's `train_reward` saves it; for `score.ensemble`
            several, with a comma between.
        candidates: what `alignloop sample` wrote, or the user's rows with `candidates`.
        best: gets one row a prompt, the best candidate; None: not wanted.
        config: a recipe whose `score`, `select`, `data` and `seed` are used; None: the defaults.
        functions: `module:function=weight` rewards added to the model's, in place of the recipe's.

    Raises:
        UserError: bad input, found before the reward model is loaded where possible.
    """
    out, best = _checked(out, best)
    folders = reward_model_folders(reward_model)
    recipe = _recipe(config, overrides)
    check_members(recipe.score, num_models=len(folders))
    if functions:
        recipe = _with(recipe, "score", reward_functions=tuple(map(_reward_function, functions)))
    score.unique(recipe.score.reward_functions)
    read = read_candidates(candidates.expanduser(), max_bad_fraction=recipe.data.max_bad_fraction)
    rows, dropped = fitting_rows(
        read, chat=chat_of(folders[0]), room=longest_sequence(text_config(folders[0])), say=progress.say
    )
    if not rows:
        raise DataError(f"{candidates}: none of its candidates can be scored, the first because: {dropped[0].reason}")
    for entry in recipe.score.reward_functions:
        require_columns(entry.function, [row.meta for row in rows])
    with work_dir(out) as work:
        dump_jsonl(work / "unscored.jsonl", rows)
        scoring = scoring_of(recipe, Artifact.of(work / "unscored.jsonl"), folders)
        if best is not None and best.exists() and not scoring.is_made(out):
            raise UserError(f"--best {best}: exists already; name another file, or remove it")
        was_there = scoring.make(out, work / "score", progress, output="candidates", dropped=dropped)
        selecting = OneStage(select.STAGE, recipe, select.Inputs(Artifact.of(out)))
        is_wanted = best is not None and not selecting.is_made(best)
        selected = selecting.run(work / "select", QuietProgress())
        if best is not None and is_wanted:
            put(selected.selected.path, best)
    return _scored_text(out, best, selected, was_there=was_there)


def scoring_of(
    recipe: Recipe, candidates: Artifact, reward_models: Sequence[Path]
) -> OneStage[Any, score.Inputs, score.Outputs]:
    """By one reward model, or the members of an ensemble."""
    models = tuple(Artifact.of(folder) for folder in reward_models)
    return OneStage(score.STAGE, recipe, score.Inputs(candidates, models if len(models) > 1 else models[0]))


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
    """Candidate rows in the reward model's tokens, none longer than `room`, and what was dropped.

    Rows with another tokenizer's ids are tokenised anew from their texts. `room` is in tokens; None: unknown.
    """
    rows = list(read.rows)
    if not read.has_ids or not all(ids_read_as(row.completion_ids, row.completion, chat) for row in rows):
        if read.has_ids:
            say("  candidates are of another tokenizer than the reward model: tokenised anew from their texts")
        rows = [_tokenised(row, chat) for row in rows]
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


def _tokenised(row: CandidateRow, chat: ChatFormat) -> CandidateRow:
    """Completion ids as if sampled: its content, and the stop token where it was not cut."""
    stop = [] if row.finish_reason == "length" else [chat.stop_token_ids[0]]
    return row.model_copy(update={"completion_ids": [*chat.content_ids(row.completion), *stop]})


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
