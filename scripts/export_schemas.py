"""Write `data_schemas/`: one JSON Schema a row model and one for recipes, for editors and other tools.

With `--check` nothing is written: the files that differ from their models are named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from alignloop.config.load import LISTS
from alignloop.config.recipe import Recipe
from alignloop.records import ROW_MODELS

SCHEMA_DIR = Path(__file__).resolve().parents[1] / "data_schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_files() -> dict[str, str]:
    """File name -> text of every schema.

    In a recipe, fields that take a list also take one value, as in `load_recipe`.
    """
    texts, models = {}, dict[str, type[BaseModel]]({**ROW_MODELS, "recipe": Recipe})
    for name, model in models.items():
        schema = {"$schema": DIALECT, **model.model_json_schema(mode="validation")}
        for field in (schema["properties"][key] for key in LISTS if name == "recipe"):
            many = {key: field.pop(key) for key in ("type", "items")}
            field["anyOf"] = [many["items"], many]
        texts[f"{name}.schema.json"] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    return texts


def drift(folder: Path) -> list[str]:
    """Names of the schema files in `folder` that are missing, out of date, or of no model any more."""
    expected = schema_files()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.schema.json")}
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write data_schemas/ from the row models and the recipe.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file differs")
    arguments = parser.parse_args(argv)
    drifted = drift(SCHEMA_DIR)
    if arguments.check:
        for name in drifted:
            sys.stderr.write(f"data_schemas/{name}: differs from its model; run: python scripts/export_schemas.py\n")
        return 1 if drifted else 0
    expected = schema_files()
    for name in drifted:
        path = SCHEMA_DIR / name
        if name in expected:
            path.write_text(expected[name], encoding="utf-8")
        else:
            path.unlink()
        sys.stdout.write(f"data_schemas/{name}: {'written' if name in expected else 'removed'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
