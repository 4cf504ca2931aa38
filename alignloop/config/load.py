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
_TYPES = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "a plain folder name (no slash, no dot at its start)",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a section (`key: value` lines)",
    "dict_type": "a section (`key: value` lines)",
    "model_attributes_type": "a section (`key: value` lines)",
}


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
    recipe, problems = _validated(*_overridden(source, overrides))
    if recipe is None or problems:
        raise RecipeError(problems, where=where)
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


def _validated(values: dict[str, Any], problems: list[str]) -> tuple[Recipe | None, list[str]]:
    try:
        return _model_of(values), problems
    except ValidationError as error:
        return None, problems + [_sentence(detail) for detail in error.errors()]


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
        return source.model_dump(mode="json")
    if isinstance(source, Mapping):
        return json.loads(json.dumps(source, default=str))  # a deep copy that keeps the caller's mapping as it is
    path = find_recipe(source)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError([_yaml_sentence(error, path)], where=str(path)) from error
    except UnicodeDecodeError as error:
        raise RecipeError([f"is no text in UTF-8 ({error.reason}, byte {error.start})"], where=str(path)) from error
    except OSError as error:
        raise RecipeError([f"cannot be read: {error.strerror}"], where=str(path)) from error
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


def _yaml_sentence(error: yaml.YAMLError, path: Path) -> str:
    """Line, column and what is wrong there; rows given in place of a recipe are known by their name."""
    if path.suffix in (".jsonl", ".parquet", ".csv"):
        return "these are rows, not a recipe - write a recipe (YAML) that names the file under `preferences`"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return f"not valid YAML: {' '.join(str(error).split())}"
    what = " ".join(str(part) for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    return f"line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {what}"


def _sentence(detail: Any) -> str:
    """One line of plain English for one pydantic error."""
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(detail['loc'])}"
    if detail["type"] == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    return f"{where}: {_wanted(detail)}, found {_found(detail.get('input'))}"


def _wanted(detail: Any) -> str:
    """What a value must be, said without the library's own words for types."""
    kind, context = detail["type"], detail.get("ctx") or {}
    if kind == "tuple_type" and detail["loc"][-1] in LISTS:
        return "must be a file name or a list of them"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}"
    bounds = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for name, words in bounds.items():
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
