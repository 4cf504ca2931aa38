"""What is found wrong before anything begins, word for word and in its order, held against a golden file.

A case of `cases/*.yaml` is one command in a folder of its own, where `good.jsonl` lies:

    command:      the words after `alignloop`; default: `plan mine.yaml`
    recipe:       what `mine.yaml` says beside a sound recipe; without it, `base` and `preferences` there is none
    files:        name -> content: a text, rows, or a tag of `golden_files.py`
    base:         the recipe's base is a copy of the bundled one with these changes
    preferences:  content of the recipe's one file of preferences
    at_work:      the run directory that another process holds

A change of words, of their order, or of what is found at all shows as a difference of `findings.json`. Where the change
is meant, write the file anew and look at its diff:

    REWRITE_GOLDEN=1 scripts/test tests/golden -n 0
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden_files import SMALL, Loader, base, put, row

from alignloop.config.yaml_values import dump_yaml
from alignloop.run_dir.layout import locked

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
GOLDEN = HERE / "findings.json"
TABLES = [
    yaml.load((HERE / "cases" / f"{name}.yaml").read_text(encoding="utf-8"), Loader)
    for name in ("recipes", "data", "models", "settings", "runs", "stages", "files")
]
CASES: dict[str, dict[str, Any]] = {name: case for table in TABLES for name, case in table.items()}
REWRITE = bool(os.environ.get("REWRITE_GOLDEN"))
OF_THIS_MACHINE = (
    (re.compile(r"python -m [\w.]*alignloop"), "alignloop"),
    (re.compile(r"process \d+"), "process {pid}"),
    (re.compile(r"has \d+ cores"), "has {cores} cores"),
    (re.compile(r"[\d,.]+ [kMGT]B free"), "{bytes} free"),
)
"""Differs between machines."""


@pytest.fixture(autouse=True)
def _one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no hub, no colours; modules that a case names are imported from its own folder alone."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("name", CASES)
def test_findings_are_those_of_the_golden_file(alignloop: Any, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    make(case, tmp_path)
    with locked(tmp_path / case["at_work"]) if "at_work" in case else nullcontext():
        outcome = alignloop(*shlex.split(case.get("command", "plan mine.yaml")))
    found = {"code": outcome.code, "out": _lines(outcome.out, tmp_path), "err": _lines(outcome.err, tmp_path)}
    golden = _golden()
    if REWRITE:
        golden[name] = found
        ordered = {known: golden[known] for known in CASES if known in golden}
        GOLDEN.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == golden.get(name)


def make(case: dict[str, Any], folder: Path) -> None:
    files, recipe = dict(case.get("files", {})), dict(case.get("recipe", {}))
    if "base" in case:
        recipe["base"], files["my-base"] = "my-base", base(case["base"])
    if "preferences" in case:
        recipe["preferences"], files["bad.jsonl"] = "bad.jsonl", case["preferences"]
    if {"recipe", "base", "preferences"} & case.keys():
        files["mine.yaml"] = dump_yaml({**SMALL, **recipe})
    for name, content in {"good.jsonl": [row(number, {}) for number in range(40)], **files}.items():
        put(folder / name, content)


def test_the_golden_file_holds_these_cases_and_no_others() -> None:
    assert sum(len(table) for table in TABLES) == len(CASES)
    assert list(_golden()) == list(CASES)


def _golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}


def _lines(text: str, folder: Path) -> list[str]:
    for path, mark in ((folder, "{dir}"), (ROOT, "{root}")):
        text = text.replace(str(path), mark)
    for pattern, mark in OF_THIS_MACHINE:
        text = pattern.sub(mark, text)
    return text.splitlines()
