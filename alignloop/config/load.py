"""From a YAML file and `--set a.b=c` to a checked `Recipe`. Every problem is reported in one go."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from alignloop.config.base import (
    ANNOTATOR_NAME,
    FOLDER_NAME,
    FUNCTION_NAME,
    PASS_NAME,
    POLICY_NAME,
    TRUTH_NAME,
    VARIABLE_NAME,
)
from alignloop.config.bundled import RECIPES
from alignloop.config.recipe import Recipe
from alignloop.config.yaml_values import MAX_DEPTH, YamlProblem, YamlRefused, parse_yaml, read_yaml
from alignloop.errors import RecipeError, did_you_mean
from alignloop.terminal import printable

LISTS = ("preferences", "prompts")
"""Fields that take one value or a list."""
ALIASES = {
    "k": "sample.num_candidates",
    "lr": "learning_rate",
    "model": "base",
    "base_model": "base",
    "data": "preferences",
    "num_rounds": "rounds",
    "batch_size": "batch_groups",
    "num_epochs": "epochs",
    "output_dir": "name",
}
"""Keys that people write for ours and that are spelt too differently to be found by likeness."""
REPLACED = {
    "pairs.on_policy": "is part of pairs.sources: in place of false write sources: [file, annotated]; true is the "
    "default, leave it out",
}
"""Keys of earlier recipes, and how what they said is spelt."""
_TYPES = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_too_short": "a text that is not empty",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a section (`key: value` lines)",
    "dict_type": "a section (`key: value` lines)",
    "model_attributes_type": "a section (`key: value` lines)",
}
_PATTERNS = {
    FOLDER_NAME: "a plain folder name (no slash, no dot at its start)",
    VARIABLE_NAME: "a name of letters, digits and _",
    FUNCTION_NAME: "a function as module:function",
    POLICY_NAME: "best, previous, base or a round as round-3",
    ANNOTATOR_NAME: "none, simulated, judge, human, or a function as module:function",
    PASS_NAME: "`reward`, or a function as module:function",
    TRUTH_NAME: "`checkers`, or a function as module:function",
}


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
    what = "is a pipe or a device, no file" if path.exists() else "no such file"
    if path.is_dir():
        what = "is a folder"
    near = did_you_mean(Path(source).stem, bundled, quote="'")
    hint = f"; {near}" if near else ""
    known = ", ".join(sorted(bundled))
    raise RecipeError([f"{what}, and no bundled recipe has this name{hint} - bundled: {known}"], where=str(source))


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        source: a YAML path, a bundled recipe's name, a mapping, or a recipe.
        overrides: `a.b=value` strings; the value is read as YAML.

    Raises:
        RecipeError: with every problem found.
    """
    values, problems = _overridden(source, overrides)
    problems += [f"{where}: holds a line break, which no name or path here has" for where in _broken(values)]
    try:
        recipe = _model_of(values)
    except ValidationError as error:
        problems += _sentences(error, values)
    if problems:
        raise RecipeError(problems, where=str(source) if isinstance(source, str | Path) else "recipe")
    return recipe


def sound_part(source: str | Path | Mapping[str, Any] | Recipe, *, overrides: Sequence[str] = ()) -> Recipe | None:
    """A recipe without its wrong fields, so that the files it names can be looked at; None where too much is wrong.

    Raises:
        RecipeError: there is nothing to read.
    """
    values, _ = _overridden(source, overrides)
    for _ in range(2):  # once for the fields, once for what stands against each other
        try:
            return _model_of(values)
        except ValidationError as error:
            for detail in error.errors():
                _remove(values, detail["loc"])
    return None


def _overridden(source: Any, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values as given, and what is wrong with the overrides."""
    values = _values(source)
    problems = [problem for override in overrides for problem in _apply_override(values, override)]
    for name in LISTS:
        if isinstance(values.get(name), str):
            values[name] = [values[name]]
    return values, problems


def _broken(value: Any, where: str = "") -> list[str]:
    """Where texts hold line breaks that are none of a text to be read: they would forge lines of what is printed."""
    if isinstance(value, str):
        breaks = len(value.splitlines()) > 1 and not where.endswith(".text")
        return [printable(where, keep="")] if breaks else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in children for found in _broken(child, f"{where}.{key}".lstrip("."))]


def _model_of(values: dict[str, Any]) -> Recipe:
    # Strict JSON validation: "3" is no number and `true` no count, while lists become tuples.
    return Recipe.model_validate_json(json.dumps(values, default=str), strict=True)


def _remove(values: dict[str, Any], location: Sequence[int | str]) -> None:
    """Take out what stands at `location`, or the list that holds it."""
    inner: Any = values
    for part in location[:-1]:
        if not isinstance(inner, dict) or not isinstance(inner.get(str(part)), dict):
            location = [part]
            break
        inner = inner[str(part)]
    if location and isinstance(inner, dict):
        inner.pop(str(location[-1]), None)


def _values(source: str | Path | Mapping[str, Any] | Recipe) -> dict[str, Any]:
    if isinstance(source, Recipe):
        return source.model_dump(mode="json", exclude_unset=True)  # what was left to a default stays so
    if isinstance(source, Mapping):
        try:
            return json.loads(json.dumps(source, default=str))  # a deep copy that keeps the caller's mapping as it is
        except (ValueError, TypeError, RecursionError) as error:  # it holds itself, or keys that are no texts
            raise RecipeError([f"no recipe: {error}"], where="recipe") from error
    path = find_recipe(source)
    try:
        values = read_yaml(path)
    except YamlProblem as error:
        # Rows given in place of a recipe are known by their name.
        rows = "these are rows, not a recipe - write a recipe (YAML) that names the file under `preferences`"
        what = rows if path.suffix in (".jsonl", ".parquet", ".csv") else str(error)
        raise RecipeError([what], where=str(path)) from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise RecipeError([f"expected `key: value` lines, found {found}"], where=str(path))
    return values


def _apply_override(values: dict[str, Any], override: str) -> list[str]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        return [f"--set {override}: expected a.b=value"]
    try:
        value = parse_yaml(text)
    except YamlRefused as error:
        return [f"--set {override[:60]}: {error}"]
    except YamlProblem:
        value = text
    *sections, last = key.strip().split(".")
    if len(sections) > MAX_DEPTH:
        return [f"--set {override[:60]}...: {len(sections)} sections within each other; a recipe has three at most"]
    target = values
    for section in sections:
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            return [f"--set {override}: {section} is a value, not a section"]
        target = inner
    target[last] = value
    return []


def _sentences(error: ValidationError, values: Any) -> list[str]:
    """A line of plain English for each value that is wrong; what would do instead of a union's value is one line."""
    details: dict[tuple[int | str, ...], list[Any]] = {}
    for detail in error.errors():
        if detail["type"] == "default_factory_not_called":
            continue  # a default that hangs on another field, which is wrong itself
        details.setdefault(_path_in(values, detail), []).append(detail)
    inner = {path[:-1] for path in details if path and isinstance(path[-1], int)}
    # What is wrong within a list says more than that a list is none of the other types.
    return [_sentence(path, found) for path, found in details.items() if path not in inner or len(found) > 1]


def _path_in(values: Any, detail: Any) -> tuple[int | str, ...]:
    """Where in the recipe an error lies: pydantic's place without its names for the branches of a union."""
    if detail["type"] in ("missing", "extra_forbidden", "value_error"):
        return tuple(detail["loc"])
    path: list[int | str] = []
    for part in detail["loc"]:
        if (isinstance(values, dict) and part in values) or (isinstance(values, list) and part in range(len(values))):
            values = values[part]
            path.append(part)
    return tuple(path)


def _sentence(path: Sequence[int | str], details: Sequence[Any]) -> str:
    where = printable(".".join(str(part) for part in path), keep="")
    first = details[0]
    if first["type"] == "extra_forbidden":
        return f"{where}: {REPLACED.get(where) or f'unknown key{_nearest(path)}'}"
    if first["type"] == "value_error":
        message = str(first["msg"]).removeprefix("Value error, ")
        names_it = not path or message.startswith(f"{path[0]}.")
        return message if names_it else f"{where}: {message}"
    head, *others = dict.fromkeys(_wanted(path, detail) for detail in details)
    *wanted, last = [head, *(words.removeprefix("must be ") for words in others)]
    either = f"{', '.join(wanted)} or {last}" if wanted else last
    return f"{where}: {either}, found {_found(first.get('input'))}"


def _wanted(path: Sequence[int | str], detail: Any) -> str:
    """What a value must be, said without the library's own words for types."""
    kind, context = detail["type"], detail.get("ctx") or {}
    if kind == "tuple_type" and path[-1] in LISTS:
        return "must be a file name or a list of them"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}"
    if kind == "string_pattern_mismatch":
        return f"must be {_PATTERNS[context['pattern']]}"
    for name, words in {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}.items():
        if name in context:
            return f"must be {words} {context[name]:g}"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    message = str(detail["msg"])
    return f"{message[0].lower()}{message[1:]}"


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(location: Sequence[int | str]) -> str:
    """The right key most like an unknown one, looked for in its own section first, then everywhere."""
    *sections, last = [str(part) for part in location]
    model: type[BaseModel] | None = Recipe
    for section in sections:
        model = _section(model, section) if model else None
    names = {name: ".".join([*sections, name]) for name in (model.model_fields if model else ())}
    # Where several sections have it, the one a round comes to first.
    everywhere = {path.rsplit(".", 1)[-1]: path for path in reversed(list(_all_keys(Recipe)))}
    alias = ALIASES.get(last.lower(), "")
    if alias in names or alias in _all_keys(Recipe):
        return f" - did you mean {names.get(alias, alias)!r}?"
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
