"""All that is wrong with recipe and files in one go, also where the recipe alone is wrong already."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from alignloop.config import Recipe, find_recipe, load_recipe
from alignloop.errors import RecipeError
from alignloop.preflight import check
from alignloop.preflight.findings import Findings

FILES = ("base", "chat_template", "preferences", "prompts")
"""What can be looked at although the rest of the recipe is wrong."""


def recipe_or_problems(source: str, *, overrides: Sequence[str], rounds: int | None) -> Recipe:
    """The recipe; where it is wrong, what else is wrong with its files is said too.

    Raises:
        UserError: with all problems of the recipe, its files and its base.
    """
    more = [] if rounds is None else [f"rounds={rounds}"]
    try:
        return load_recipe(source, overrides=[*overrides, *more])
    except RecipeError as error:
        findings = Findings(problems=list(error.problems))
        files = _files_of(source, overrides)
        if files is None:
            raise
        alone = Findings()
        with alone.collecting():
            check(files)
        findings.problems += alone.problems
        findings.raise_problems()
        raise


def _files_of(source: str, overrides: Sequence[str]) -> Recipe | None:
    """A recipe of the files alone; None where they are wrong themselves."""
    try:
        values = yaml.safe_load(find_recipe(source).read_text(encoding="utf-8"))
        kept = {name: values[name] for name in FILES if name in values}
        return load_recipe(kept, overrides=[text for text in overrides if text.partition("=")[0].strip() in FILES])
    except (RecipeError, yaml.YAMLError, OSError, UnicodeDecodeError, TypeError):
        return None
