"""Rejection sampling's first half without the loop: K candidates for each prompt of a file, from one checkpoint.

PROMPTS --read--> prompt rows --the sample stage--> candidates, dropped
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.alone.model import chat_of, policy_folder, require_kwargs
from alignloop.alone.out_file import (
    ROUND,
    OneStage,
    check_out,
    dropped_lines,
    put,
    put_dropped,
    there_text,
    unreadable,
    work_dir,
)
from alignloop.artifacts import Artifact
from alignloop.config import Recipe, load_recipe
from alignloop.config.bundled import resolve_file
from alignloop.config.sampling import SampleConfig, SystemPrompt
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.readers import read_prompts
from alignloop.engines.checkpoint import longest_sequence, text_config
from alignloop.errors import UserError
from alignloop.progress import Progress
from alignloop.records import CandidateRow, DroppedRow, PromptRow, RejectedRow
from alignloop.stages import sample

NO_RECIPE = {"preferences": ["quickstart"]}
"""All defaults; a recipe must name preferences, which sampling does not look at."""
UNKNOWN_ROOM = 4096
"""Where a checkpoint does not say how long its sequences may be."""
ROOM_STEP = 64
"""The engine's room is a multiple of this, so that a prompt more does not make another configuration of it."""


@dataclass(frozen=True)
class Sampling:
    """A checkpoint, a recipe and prompts that fit together.

    Attributes:
        rejected: lines of the prompts' file that cannot be read.
    """

    policy: Path
    recipe: Recipe
    prompts: Sequence[PromptRow]
    rejected: Sequence[RejectedRow]

    def stage(self, work: Path) -> OneStage[Any, sample.Inputs, sample.Outputs]:
        """What samples them, the prompts as a file in `work`."""
        dump_jsonl(work / "prompts.jsonl", self.prompts)
        inputs = sample.Inputs(Artifact.of(self.policy), Artifact.of(work / "prompts.jsonl"))
        recipe = self.recipe
        return OneStage(sample.STAGE, recipe, inputs, recipe.engine)


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
    """Sample candidates for every prompt of a file; returns what was made, in a few lines.

    Everything that can be wrong with checkpoint, prompts and settings is found before the engine starts.

    Args:
        checkpoint: a Hugging Face folder, or `quickstart` for the bundled base.
        prompts: any file of prompts or preferences that the project reads, or `quickstart`.
        config: a recipe whose `sample`, `engine`, `data` and `seed` are taken; None: the defaults.
        system_prompt: put before every prompt that has none of its own.

    Raises:
        UserError: bad input; nothing has been sampled.
        EngineError: the engine died too often; what was sampled is kept for the next call.
    """
    out = check_out(out)
    sampling = sampling_of(policy_folder(checkpoint), prompts, config, overrides, system_prompt=system_prompt)
    with work_dir(out) as work:
        stage = sampling.stage(work)
        was_there = stage.is_made(out)
        if not was_there:
            outputs = stage.run(work, progress)
            put_dropped(out, [*unreadable(sampling.rejected), *load_jsonl(outputs.dropped.path, DroppedRow)])
            put(outputs.candidates.path, out)
    return _sampled_text(out, sampling.recipe.sample, was_there=was_there)


def sampling_of(
    policy: Path, prompts: str, config: str | None, overrides: Sequence[str], *, system_prompt: str | None = None
) -> Sampling:
    """What is sampled: the prompts read, and the recipe with as much room in the engine as they need.

    Prompts that the checkpoint has no room for are left to the stage, which drops them with a reason.

    Raises:
        UserError: recipe, prompts or chat template are wrong, or do not fit the checkpoint.
    """
    recipe, is_room_set = _recipe(config, overrides, checkpoint=policy)
    if system_prompt is not None:
        recipe = _with_system_prompt(recipe, system_prompt)
    read = read_prompts([resolve_file(prompts, kind="prompts")], max_bad_fraction=recipe.data.max_bad_fraction)
    chat = chat_of(policy)
    require_kwargs(recipe.chat_template_kwargs, known=chat.template_kwargs, folder=policy)
    if not is_room_set:  # room that nobody uses costs memory
        asked = (sample.ask(row, chat=chat, config=recipe.sample, round=ROUND, seed=0) for row in read.rows)
        wanted = max(len(one.prompt_ids) for one in asked) + recipe.sample.max_tokens
        room = min(recipe.engine.max_model_len, -(-wanted // ROOM_STEP) * ROOM_STEP)
        recipe = _with(recipe, "engine", max_model_len=room)
    return Sampling(policy, recipe, read.rows, read.rejected)


def _recipe(config: str | None, overrides: Sequence[str], *, checkpoint: Path) -> tuple[Recipe, bool]:
    """The recipe, with lengths that fit the checkpoint where nobody gave any; whether it says how long sequences are.

    Raises:
        UserError: it is wrong in itself, or asks for more tokens than the checkpoint has room for.
    """

    def load(*more: str) -> Recipe:
        # A recipe of `engine` and `sample` alone is complete here.
        source = NO_RECIPE if config is None else config
        return load_recipe(source, overrides=[*overrides, "preferences=quickstart", *more])

    engine = load("sample.max_tokens=1").engine
    limit = engine.max_model_len if "max_model_len" in engine.model_fields_set else None
    asked = load("engine.max_model_len=1000000000").sample  # under which any `max_tokens` is right
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
    return load(f"engine.max_model_len={room}", f"sample.max_tokens={max_tokens}"), limit is not None


def _with_system_prompt(recipe: Recipe, text: str) -> Recipe:
    """The recipe with one system prompt for all prompts in place of its own."""
    if not text.strip():
        raise UserError("--system-prompt: is empty; leave the option out to sample without one")
    return _with(recipe, "sample", system_prompts=(SystemPrompt(text=text),))


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
