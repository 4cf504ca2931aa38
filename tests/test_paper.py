"""docs/paper.md says nothing that the code or the recipe does not: files and names exist, values are theirs."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignloop.config import Recipe, load_recipe
from alignloop.config.yaml_values import read_yaml

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = Recipe(preferences=("p.jsonl",))
RECIPE = ROOT / "recipes" / "llama3_paper.yaml"
PAPER = load_recipe(RECIPE)
SECTIONS = ["4.1", *(f"4.1.{n}" for n in range(1, 7)), "4.2.1", "4.2.2", "4.2.3", "4.3", "5.2"]
NOT_IN_TABLES = {"name", "base", "preferences", "data.split_rounds"}
"""What the recipe names of the user's own, and how its file is cut."""


def table_rows() -> dict[str, list[list[str]]]:
    """Section -> the cells of its table's rows."""
    found: dict[str, list[list[str]]] = {}
    for line in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            rows = found.setdefault(line.split()[1], [])
        elif line.startswith("| ") and not line.startswith(("| the paper |", "| --- |")):
            rows.append([cell.strip() for cell in line.strip("|").split(" |")])
    return found


ROWS = [row for rows in table_rows().values() for row in rows]


def values_in(cell: str) -> dict[str, Any]:
    """`a.b: value` in code marks -> the value."""
    items = [yaml.safe_load(text) for text in re.findall(r"`([a-z_.]+: [^`]*)`", cell)]
    return {name: float(value) if _is_exponent(value) else value for item in items for name, value in item.items()}


def _is_exponent(value: Any) -> bool:
    """YAML 1.1 takes `1e-5` for a text."""
    return isinstance(value, str) and re.fullmatch(r"\d+e-\d+", value) is not None


def value_of(recipe: Recipe, name: str) -> Any:
    value = reduce(getattr, name.split("."), recipe)
    return list(value) if isinstance(value, tuple) else value


def same(found: Any, stated: Any) -> bool:
    return found == ("off" if stated is False and found == "off" else stated)


def test_the_tables_go_through_section_4() -> None:
    assert list(table_rows()) == SECTIONS
    assert all(len(row) == 5 and row[0] for row in ROWS)
    assert len(ROWS) > 60


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_what_is_kept_is_there(row: list[str]) -> None:
    kept = row[1]
    if kept == "Not kept":
        assert row[2:4] == ["", ""]
        return
    for place in kept.split("; "):
        file, names = re.fullmatch(r"`([^`]+)`: (.+)", place).groups()  # type: ignore[union-attr]
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`([^`]+)`", names):
            defined = rf"^\s*(?:def|class) {name}\b|^{name}\b" if file.endswith(".py") else rf"\b{name}\b"
            assert re.search(defined, text, re.MULTILINE), f"{file} has no {name}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_values_are_the_defaults_and_the_recipes(row: list[str]) -> None:
    defaults, recipe = values_in(row[2]), values_in(row[3])
    for name, value in defaults.items():
        assert same(value_of(DEFAULT, name), value), name
    for name, value in (defaults if row[3] == "the same" else recipe).items():
        assert same(value_of(PAPER, name), value), name
    assert (row[3] == "") == (row[2] == "")


def test_all_that_the_recipe_sets_stands_in_a_table() -> None:
    """But what says how fast it runs."""
    stated = {name for row in ROWS for name in (*values_in(row[2]), *values_in(row[3]))} | NOT_IN_TABLES
    said = dict(_leaves(read_yaml(RECIPE)))
    unsaid = [name for name in said if name not in stated and not name.startswith(("engine.", "training."))]
    assert [name for name in unsaid if not name.endswith((".max_length", ".gradient_checkpointing"))] == []


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def test_the_recipe_steers_later_rounds_by_capability() -> None:
    code, general = PAPER.sample.system_prompts
    assert (code.first_round, code.topics) == (4, ("code",))
    assert (general.first_round, general.last_round, general.topics) == (4, None, ())


def test_the_recipe_leaves_out_pairs_of_the_reward_model() -> None:
    assert "on_policy" in DEFAULT.pairs.sources
    assert "on_policy" not in PAPER.pairs.sources
