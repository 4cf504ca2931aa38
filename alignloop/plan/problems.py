"""All that is wrong with recipe and files in one go, also where the recipe alone is wrong already."""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.config import Recipe, load_recipe
from alignloop.config.load import sound_part
from alignloop.errors import RecipeError
from alignloop.preflight import check
from alignloop.preflight.findings import Findings, PreflightError


def recipe_or_problems(source: str, *, overrides: Sequence[str], rounds: int | None) -> Recipe:
    """The recipe; where it is wrong, what else is wrong with its files is said too.

    Raises:
        UserError: with all problems of the recipe, its files and its base.
    """
    more = [*overrides] if rounds is None else [*overrides, f"rounds={rounds}"]
    try:
        return load_recipe(source, overrides=more)
    except RecipeError as error:
        sound = sound_part(source, overrides=more)
        if sound is None:
            raise
        alone = Findings()
        with alone.collecting():
            check(sound)
        if not alone.problems:
            raise
        raise PreflightError([*error.problems, *alone.problems]) from error
