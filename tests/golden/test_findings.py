"""What is found wrong before anything begins, word for word and in its order, held against a golden file.

A change of words, of their order, or of what is found at all shows as a difference of `findings.json`. Where the change
is meant, write the file anew and look at its diff:

    REWRITE_GOLDEN=1 scripts/test tests/golden -n 0
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from data_golden import DATA
from golden_case import Case
from models_golden import MODELS
from recipes_golden import RECIPES
from settings_golden import SETTINGS
from verbs_golden import FILES, RUNS, STAGES

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("findings.json")
TABLES = (RECIPES, DATA, MODELS, SETTINGS, RUNS, STAGES, FILES)
CASES: dict[str, Case] = {name: case for table in TABLES for name, case in table.items()}
REWRITE = bool(os.environ.get("REWRITE_GOLDEN"))
OF_THIS_MACHINE = (
    (re.compile(r"python -m [\w.]*alignloop"), "alignloop"),
    (re.compile(r"process \d+"), "process {pid}"),
    (re.compile(r"has \d+ cores"), "has {cores} cores"),
    (re.compile(r"[\d,.]+ [kMGT]B free"), "{bytes} free"),
)
"""What is another number on another machine."""


@pytest.fixture(autouse=True)
def _one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no hub, no colours; modules that a case names are looked for in its own folder alone."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("name", CASES)
def test_findings_are_those_of_the_golden_file(alignloop: Any, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    case.make(tmp_path)
    with case.during(tmp_path):
        outcome = alignloop(*case.command)
    found = {"code": outcome.code, "out": _lines(outcome.out, tmp_path), "err": _lines(outcome.err, tmp_path)}
    golden = _golden()
    if REWRITE:
        golden[name] = found
        ordered = {known: golden[known] for known in CASES if known in golden}
        GOLDEN.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == golden.get(name)


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
