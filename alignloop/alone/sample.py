"""Rejection sampling's first half without the loop: K candidates for each prompt of a file, from one checkpoint.

PROMPTS --read--> prompt rows --the sample stage--> candidates, dropped
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.alone.dropped_file import Dropped, put_dropped, read_dropped, unreadable
from alignloop.alone.out_file import check_out, is_made, put, work_dir
from alignloop.artifacts import Artifact
from alignloop.chat.template_defaults import Value, in_yaml
from alignloop.config import Recipe, load_recipe
from alignloop.config.bundled import resolve_base, resolve_file
from alignloop.config.engine import EngineConfig
from alignloop.config.sampling import SampleConfig, SystemPrompt
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.readers import read_prompts
from alignloop.engines.checkpoint import longest_sequence, text_config, weight_files
from alignloop.engines.log import LOG_FILE, log_named
from alignloop.engines.open import open_engine
from alignloop.errors import ModelError, UserError
from alignloop.loop.house import House
from alignloop.preflight.weights import check_causal
from alignloop.progress import Progress
from alignloop.records import CandidateRow, DroppedRow, PromptRow
from alignloop.stages import sample

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat

NO_RECIPE = {"preferences": ["quickstart"]}
"""All defaults; a recipe must name preferences, which sampling does not look at."""
UNKNOWN_ROOM = 4096
"""Where a checkpoint does not say how long its sequences may be."""
ROOM_STEP = 64
"""The engine's room is a multiple of this, so that a prompt more does not make another configuration of it."""
ROUND = 1
"""The round the stages take themselves to be in: the first that system prompts can be for."""


@dataclass(frozen=True)
class Sampled:
    """What came of it.

    Attributes:
        out: candidates, as the sample stage writes them.
        truncated: share of the candidates that reached the token limit.
        dropped: prompts without room, and lines that cannot be read.
        was_there: the file was there already, made from the same things.
    """

    out: Path
    recipe: Recipe
    num_prompts: int
    num_candidates: int
    truncated: float
    mean_tokens: float
    dropped: Dropped
    was_there: bool


def sample_alone(
    checkpoint: str,
    prompts: str,
    *,
    out: Path,
    config: str | None,
    overrides: Sequence[str],
    system_prompt: str | None,
    progress: Progress,
) -> Sampled:
    """Sample candidates for every prompt of a file.

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
    folder = policy_folder(checkpoint)
    recipe = with_system_prompt(sampling_recipe(config, overrides, checkpoint=folder), system_prompt)
    read = read_prompts([resolve_file(prompts, kind="prompts")], max_bad_fraction=recipe.data.max_bad_fraction)
    chat = chat_of(folder)
    require_kwargs(recipe.chat_template_kwargs, known=chat.template_kwargs, folder=folder)
    recipe = with_room(recipe, read.rows, chat=chat, given=names_room(config, overrides))
    with work_dir(out) as work:
        dump_jsonl(work / "prompts.jsonl", read.rows)
        inputs = sample.Inputs(Artifact.of(folder), Artifact.of(work / "prompts.jsonl"))
        there = is_made(out, "sample", recipe.sample_stage, inputs, run_seed=recipe.seed)
        if not there:
            outputs = run_sampling(work, recipe, inputs, progress=progress)
            put_dropped(out, [*unreadable(read.rejected), *load_jsonl(outputs.dropped.path, DroppedRow)])
            put(outputs.candidates.path, out)
    return _sampled(out, recipe, was_there=there)


def run_sampling(work: Path, recipe: Recipe, inputs: sample.Inputs, *, progress: Progress) -> sample.Outputs:
    """The sample stage as round 1 of a run in `work`; what an earlier call left there is taken over."""
    log_file = work / LOG_FILE
    with (
        log_named(log_file),
        open_engine(recipe.engine, log_file=log_file, say=lambda line: progress.say(f"  {line}")) as engine,
    ):
        house = House(work, recipe.seed, engine, progress, rebuild=True)
        return house.round(ROUND).run(sample.STAGE, recipe.sample_stage, inputs)


def policy_folder(checkpoint: str) -> Path:
    """The folder of a model that writes text.

    Raises:
        ModelError: there is none.
    """
    folder = model_folder(checkpoint)
    check_causal(folder, text_config(folder))
    weight_files(folder)
    return folder


def model_folder(checkpoint: str) -> Path:
    """A model's folder, given by path, or `quickstart` for the bundled base."""
    folder = Path(resolve_base(checkpoint)).expanduser()
    if not folder.is_dir():
        what = "this is a file" if folder.exists() else "no such folder"
        raise ModelError(f"{checkpoint}: {what}; give a Hugging Face model folder, for example <run>/final")
    return folder


def chat_of(folder: Path) -> ChatFormat:
    """The chat format of a checkpoint.

    Raises:
        ModelError: no tokenizer, or no chat template that can be used.
    """
    from alignloop.chat.load import load_format

    try:
        return load_format(folder)
    except ModelError as error:
        raise ModelError(
            f"{folder}: {str(error).removeprefix(f'{folder}: ')}\n`alignloop stage base --out prepared --input "
            f"base={folder} --input chat_template=llama3` writes a copy with a chat template: prepared/checkpoint"
        ) from error


def require_kwargs(wanted: Mapping[str, Value], *, known: Mapping[str, Value], folder: Path) -> None:
    """A recipe's `chat_template_kwargs` are those of the checkpoint's template: a base that was not prepared has none.

    Raises:
        UserError: they are not.
    """
    if all(key in known and known[key] == value for key, value in wanted.items()):
        return
    raise UserError(
        f"chat_template_kwargs: the recipe says {in_yaml(wanted)}, and the chat template of {folder} is rendered with "
        f"{in_yaml(known) if known else 'none'}\n`alignloop stage base --config RECIPE --out prepared --input "
        f"base={folder}` writes a copy that is asked as the recipe says: prepared/checkpoint"
    )


def sampling_recipe(config: str | None, overrides: Sequence[str], *, checkpoint: Path) -> Recipe:
    """The recipe that samples, with lengths that fit the checkpoint where nobody gave any.

    Raises:
        RecipeError: what was given is wrong in itself.
        UserError: it asks for more tokens than the checkpoint has room for.
    """
    positions = longest_sequence(text_config(checkpoint))
    limit = _room_given(config, overrides)
    asked = load_recipe(_source(config), overrides=_widened(overrides))
    if limit is not None and positions is not None and limit > positions:
        raise UserError(f"engine.max_model_len ({limit}): {checkpoint} has room for {positions} tokens only: lower it")
    room = limit or positions or UNKNOWN_ROOM
    max_tokens = asked.sample.max_tokens
    if "max_tokens" not in asked.sample.model_fields_set:
        max_tokens = min(max_tokens, room // 2)
    if max_tokens >= room:
        whose = f"{checkpoint} has room for" if limit is None else "engine.max_model_len is"
        raise UserError(
            f"a completion of up to {max_tokens} tokens (--max-tokens) leaves no room for a prompt: {whose} {room} "
            "tokens, prompt and completion together; lower it"
        )
    return load_recipe(
        _source(config),
        overrides=[*overrides, *_FREE, f"engine.max_model_len={room}", f"sample.max_tokens={max_tokens}"],
    )


def names_room(config: str | None, overrides: Sequence[str]) -> bool:
    """Whether a recipe or an override says how much room the engine has."""
    return _room_given(config, overrides) is not None


def with_room(recipe: Recipe, prompts: Sequence[PromptRow], *, chat: ChatFormat, given: bool) -> Recipe:
    """The recipe with as much room in the engine as these prompts need: room that nobody uses costs memory.

    Prompts that the checkpoint has no room for are left to the stage, which drops them with a reason.
    """
    if given:
        return recipe
    asked = (sample.ask(row, chat=chat, config=recipe.sample, round=ROUND, seed=0) for row in prompts)
    longest = max(len(one.prompt_ids) for one in asked)
    wanted = -(-(longest + recipe.sample.max_tokens) // ROOM_STEP) * ROOM_STEP
    room = min(recipe.engine.max_model_len, wanted)
    return recipe.model_copy(update={"engine": _changed(recipe.engine, max_model_len=room)})


def with_system_prompt(recipe: Recipe, text: str | None) -> Recipe:
    """The recipe with one system prompt for all prompts in place of its own."""
    if text is None:
        return recipe
    if not text.strip():
        raise UserError("--system-prompt: is empty; leave the option out to sample without one")
    prompts = (SystemPrompt(text=text),)
    return recipe.model_copy(update={"sample": _changed(recipe.sample, system_prompts=prompts)})


def sampled_text(result: Sampled) -> str:
    """What was made, in a few lines."""
    config = result.recipe.sample
    there = ", there already and made from the same things" if result.was_there else ""
    lines = [
        f"{result.num_candidates:,} candidates of {result.num_prompts:,} prompts  {result.out}{there}",
        f"  {_each(config)}",
        f"  {1 - result.truncated:.1%} finished, {result.truncated:.1%} cut at {config.max_tokens} tokens; "
        f"{result.mean_tokens:,.0f} tokens each on average",
    ]
    if result.truncated > 0.2:
        lines.append("  many were cut: the best of K is then picked among few; raise --max-tokens")
    return "\n".join([*lines, *result.dropped.lines()])


def _each(config: SampleConfig) -> str:
    """`K = 4, temperature 0.7 to 1.0, top_p 1.0`."""
    words = []
    for name in ("temperature", "top_p"):
        value = getattr(config, name)
        words.append(f"{name} {value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else f"{name} {value:g}")
    return ", ".join([f"K = {config.num_candidates}", *words])


def _changed(section: Any, **values: Any) -> Any:
    """A section with some fields changed."""
    return section.model_copy(update=values)


_FREE = ("preferences=quickstart",)
"""A recipe of `engine` and `sample` alone is complete here."""


def _source(config: str | None) -> str | dict[str, Any]:
    return NO_RECIPE if config is None else config


def _widened(overrides: Sequence[str]) -> list[str]:
    """Overrides under which any `max_tokens` is right, so that what is asked for can be read."""
    return [*overrides, *_FREE, "engine.max_model_len=1000000000"]


def _room_given(config: str | None, overrides: Sequence[str]) -> int | None:
    """`engine.max_model_len` where the recipe or an override has it."""
    engine: EngineConfig = load_recipe(_source(config), overrides=[*overrides, *_FREE, "sample.max_tokens=1"]).engine
    return engine.max_model_len if "max_model_len" in engine.model_fields_set else None


def _sampled(out: Path, recipe: Recipe, *, was_there: bool) -> Sampled:
    rows = list(load_jsonl(out, CandidateRow))
    return Sampled(
        out=out,
        recipe=recipe,
        num_prompts=len({row.prompt_id for row in rows}),
        num_candidates=len(rows),
        truncated=sum(row.finish_reason == "length" for row in rows) / len(rows),
        mean_tokens=sum(len(row.completion_ids) for row in rows) / len(rows),
        dropped=read_dropped(out),
        was_there=was_there,
    )
