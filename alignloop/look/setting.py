"""Under which recipe and with which tokenizer a row is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from alignloop.chat.format import ChatFormat
from alignloop.config import Recipe, load_recipe
from alignloop.errors import ModelError, RunDirError
from alignloop.run_dir.layout import RESOLVED, read_resolved, run_around
from alignloop.run_dir.reader import published_stage
from alignloop.stages.base import STAGE as BASE_STAGE
from alignloop.stages.base import look_at_base
from alignloop.stages.facts import Findings


@dataclass(frozen=True)
class Setting:
    """What decides how a row trains, beside the row; `base` is what the tokenizer and the chat template were read
    from."""

    recipe: Recipe
    base: str
    chat: ChatFormat
    notes: tuple[str, ...] = ()


def find_setting(file: Path, *, base: str | None, chat_template: str | None, config: str | None) -> Setting:
    """The setting for a row of `file`.

    A file of a run directory is looked at as that run trains: with its recipe and its prepared base. Other files: as
    `config` says, or as the quickstart does, or, where only a base is named, under the defaults. UserError: no such
    recipe or base, no chat template, or one in which the spans cannot be found.
    """
    run_dir = run_around(file.parent)
    if config is not None:
        recipe = load_recipe(config)
    elif run_dir is not None and base is None:
        recipe = recipe_of(run_dir)
    else:
        recipe = load_recipe("quickstart") if base is None else Recipe(base=base, preferences=(str(file),))
    if base is None and config is None and run_dir is not None:
        base = _prepared_base(run_dir)
    wanted = {"base": base or recipe.base, "chat_template": chat_template or recipe.chat_template}
    findings = Findings()
    facts = look_at_base(recipe.model_copy(update=wanted), findings=findings)
    if facts.chat is None:
        findings.raise_problems()
        raise ModelError(f"{wanted['base']}: its tokenizer is not on this machine; give a folder with --base")
    notes = findings.notes if chat_template is not None else ()
    return Setting(recipe, str(wanted["base"]), facts.chat, tuple(notes))


def recipe_of(run_dir: Path) -> Recipe:
    """The recipe a run directory was made from; RunDirError where this alignloop cannot read it."""
    try:
        return Recipe.model_validate(read_resolved(run_dir))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise RunDirError(
            f"{run_dir / RESOLVED}: {field}: {problem['msg']}. Was it written by another alignloop? Name a recipe with "
            "--config"
        ) from None


def _prepared_base(run_dir: Path) -> str | None:
    """The run's own copy of its base, with the chat template that the recipe names; None where it is not yet made."""
    stage = published_stage(run_dir, 0, BASE_STAGE.name)
    return next((str(folder) for folder in stage.files("checkpoint")), None) if stage is not None else None
