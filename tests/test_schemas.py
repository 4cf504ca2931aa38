"""The published schemas are those of the models, and both accept the same rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from alignloop.config import Recipe, load_recipe
from alignloop.records import ROW_MODELS
from scripts import export_schemas

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "data_schemas"


def example_rows(name: str) -> list[dict[str, Any]]:
    lines = (SCHEMAS / "examples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_schemas_are_those_of_the_models() -> None:
    assert export_schemas.drift(SCHEMAS) == []


def test_check_names_what_drifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_schemas, "SCHEMA_DIR", tmp_path)
    assert export_schemas.main([]) == 0
    (tmp_path / "pair.schema.json").write_text("{}\n", encoding="utf-8")
    (tmp_path / "prompt.schema.json").unlink()
    (tmp_path / "long_gone.schema.json").write_text("{}\n", encoding="utf-8")
    assert export_schemas.main(["--check"]) == 1
    named = re.findall(r"data_schemas/(\w+)\.schema\.json: differs", capsys.readouterr().err)
    assert named == ["long_gone", "pair", "prompt"]
    assert export_schemas.main([]) == 0
    assert export_schemas.main(["--check"]) == 0


def test_every_row_model_has_examples_and_no_example_is_left_over() -> None:
    assert {path.stem for path in (SCHEMAS / "examples").glob("*.jsonl")} == set(ROW_MODELS)


@pytest.mark.parametrize("name", sorted(ROW_MODELS))
def test_examples_are_valid_for_model_and_schema(name: str) -> None:
    rows = example_rows(name)
    assert rows
    for row in rows:
        ROW_MODELS[name].model_validate(row)
        validator(name).validate(row)


@pytest.mark.parametrize("name", sorted(ROW_MODELS))
def test_an_unknown_column_is_refused_by_model_and_schema(name: str) -> None:
    row = example_rows(name)[0] | {"chosen_completion": "x"}
    with pytest.raises(ValidationError, match="chosen_completion"):
        ROW_MODELS[name].model_validate(row)
    with pytest.raises(jsonschema.ValidationError, match="chosen_completion"):
        validator(name).validate(row)


def test_every_recipe_field_with_a_docstring_is_described_to_editors() -> None:
    schema = json.loads((SCHEMAS / "recipe.schema.json").read_text(encoding="utf-8"))
    described = {name for name, field in Recipe.model_fields.items() if field.description}
    assert {"base", "preferences", "bootstrap"} <= described
    assert described <= {name for name, field in schema["properties"].items() if "description" in field}


def test_recipe_schema_knows_wrong_keys_and_takes_one_file_or_many() -> None:
    recipe = validator("recipe")
    recipe.validate({"base": "./my-base", "preferences": "mine.jsonl"})
    recipe.validate({"base": "./my-base", "preferences": ["mine.jsonl", "more.json"], "dpo": {"beta": 0.2}})
    with pytest.raises(jsonschema.ValidationError, match="betta"):
        recipe.validate({"dpo": {"betta": 0.2}})


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_fits_the_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    load_recipe(path)
    # The loader also reads `5e-7` as a number, which plain YAML 1.1 takes for a text.
    values = yaml.safe_load(re.sub(r"(?<=[ :])(\d+)e-(\d+)\b", r"\1.0e-\2", text))
    validator("recipe").validate(values)
    assert text.startswith("# "), "a recipe opens with what it does, on what hardware, in what time"
