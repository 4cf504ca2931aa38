"""From a YAML file and `--set a.b=c` to a checked `Recipe`. Every problem is reported in one go."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from alignloop.bundled import RECIPES
from alignloop.config.recipe import Recipe
from alignloop.errors import RecipeError

LISTS = ("preferences", "prompts")
"""Fields that take one value or a list."""


class _Loader(yaml.SafeLoader):
    """SafeLoader in which `5e-7` is a number (YAML 1.1 wants `5.0e-7`) and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here a second time", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe given by path or by a bundled recipe's name.

    Raises:
        RecipeError: there is no such file and no such bundled recipe.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    bundled = {file.stem: file for file in RECIPES.glob("*.yaml")}
    if str(source) in bundled:
        return bundled[str(source)]
    near = difflib.get_close_matches(Path(source).stem, bundled, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    what = "is a folder" if path.is_dir() else "no such file"
    raise RecipeError(
        [f"{what}, and no bundled recipe has this name{hint} - bundled: {', '.join(sorted(bundled))}"],
        where=str(source),
    )


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        source: a YAML path, a bundled recipe's name, a mapping, or a recipe.
        overrides: `a.b=value` strings; the value is read as YAML.

    Raises:
        RecipeError: with every problem found.
    """
    where = str(source) if isinstance(source, str | Path) else "recipe"
    values = _values(source)
    problems: list[str] = []
    for override in overrides:
        problems += _apply_override(values, override)
    for name in LISTS:
        if isinstance(values.get(name), str):
            values[name] = [values[name]]
    try:
        # Strict JSON validation: "3" is no number and `true` no count, while lists become tuples.
        recipe = Recipe.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        problems += [_sentence(detail) for detail in error.errors()]
    if problems:
        raise RecipeError(problems, where=where)
    return recipe


def _values(source: str | Path | Mapping[str, Any] | Recipe) -> dict[str, Any]:
    if isinstance(source, Recipe):
        return source.model_dump(mode="json")
    if isinstance(source, Mapping):
        return json.loads(json.dumps(source, default=str))  # a deep copy that keeps the caller's mapping as it is
    path = find_recipe(source)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError([f"not valid YAML: {' '.join(str(error).split())}"], where=str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"cannot be read: {error}"], where=str(path)) from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise RecipeError([f"expected `key: value` lines, found {found}"], where=str(path))
    return values


def _apply_override(values: dict[str, Any], override: str) -> list[str]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        return [f"--set {override}: expected a.b=value"]
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        value = text
    *sections, last = key.strip().split(".")
    target = values
    for section in sections:
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            return [f"--set {override}: {section} is a value, not a section"]
        target = inner
    target[last] = value
    return []


def _sentence(detail: Any) -> str:
    """One line of plain English for one pydantic error."""
    where = ".".join(str(part) for part in detail["loc"])
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(detail['loc'])}"
    message = str(detail["msg"])
    if detail["type"] == "value_error":
        return message.removeprefix("Value error, ")
    if detail["type"] in ("model_type", "dict_type") or isinstance(value, dict | list):
        return f"{where}: {message[0].lower()}{message[1:]}"
    return f"{where}: {message[0].lower()}{message[1:]} (found {value!r})"


def _nearest(location: Sequence[int | str]) -> str:
    """The right key most like an unknown one, looked for in its own section first, then everywhere."""
    *sections, last = [str(part) for part in location]
    model: type[BaseModel] | None = Recipe
    for section in sections:
        model = _section(model, section) if model else None
    names = {name: ".".join([*sections, name]) for name in (model.model_fields if model else ())}
    everywhere = {path.rsplit(".", 1)[-1]: path for path in _all_keys(Recipe)}
    for known in (names, everywhere):
        near = difflib.get_close_matches(last, known, n=1, cutoff=0.6)
        if near:
            return f" - did you mean {known[near[0]]!r}?"
    return f" - known here: {', '.join(names)}" if names else ""


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name)
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in model.model_fields:
        inner = _section(model, name)
        keys.append(f"{prefix}{name}")
        if inner is not None:
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys
