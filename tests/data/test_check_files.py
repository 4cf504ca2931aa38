"""What is said of a file, by one process or several, and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_files import write

from alignloop.cli import data as cli_data
from alignloop.config.data import DataConfig
from alignloop.data import check_files
from alignloop.data.check_files import check_file, guess_kind
from alignloop.data.tally import num_repeated, quantiles, scripts_of


def preference(n: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": "bad", **more}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "alignloop", "data", *arguments]
    return subprocess.run(line, capture_output=True, text=True)


def test_counts_by_hand(tmp_path: Path) -> None:
    rows = [
        preference(1, strength="better"),
        preference(1, strength="better"),
        preference(1, rejected="worse", edited="best 1"),
        {"system": "S", "prompt": "Q", "chosen": "a", "rejected": "b"},
        "{\n",
        preference(2, chosen=""),
    ]
    check = check_file(write(tmp_path / "a.jsonl", *rows), workers=1)
    tally = check.tally
    assert (check.kind, check.form, check.unit, check.is_good) == ("preferences", "canonical", "line", False)
    assert (tally.num_read, tally.num_kept, tally.num_rejected, tally.num_rows) == (6, 4, 2, 4)
    assert (num_repeated(tally.prompts), num_repeated(tally.rows)) == (2, 1)
    assert dict(tally.strengths) == {"better": 2, "none given": 2}
    assert (tally.systems, tally.edited, dict(tally.turns)) == (1, 1, {1: 4})
    assert list(tally.prompt_characters) == [11, 11, 11, 2]
    assert [(row.line, row.field) for row in tally.bad] == [(5, None), (6, "chosen")]


def test_token_ids_that_are_left_out_are_counted(tmp_path: Path) -> None:
    rows = [preference(1, chosen_ids=[1, 2]), preference(2, rejected_ids=[3], chosen_ids=None), preference(3)]
    bad = preference(4, chosen="", chosen_ids=[4])
    path = write(tmp_path / "a.jsonl", *rows, preference(5, chosen_ids=None), bad)
    assert check_file(path, workers=1).tally.num_with_ids == 2
    assert check_file(path, kind="prompts", workers=1).tally.num_with_ids == 0
    json_file = tmp_path / "check.json"
    checked = command("check", str(path), "--base", "none", "--json", str(json_file)).stdout
    assert "left out    2 rows have token ids (chosen_ids, rejected_ids): a run tokenises" in checked
    assert '"with_ids_left_out": 2,' in json_file.read_text()


def test_several_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_files, "MIN_PART", 1000)
    rows: list[Any] = [preference(n % 150, strength="better") for n in range(300)]
    rows[40] = rows[200] = "{\n"
    rows[250] = "\n"
    rows[270] = {"conversations": [], "chosen": "a", "rejected": "b"}
    file = write(tmp_path / "a.jsonl", *rows)
    one, many = (check_file(file, workers=workers) for workers in (1, 3))
    assert [(row.line, row.reason, row.field) for row in one.tally.bad] == [
        (row.line, row.reason, row.field) for row in many.tally.bad
    ]
    assert one.tally.bad[1].line == 201
    assert one.mixture is not None
    assert "1 rows sharegpt (the first: line 271)" in one.mixture
    assert one.mixture == many.mixture
    for name in (
        "num_read",
        "num_kept",
        "num_rejected",
        "num_rows",
        "prompt_characters",
        "strengths",
        "reasons",
        "turns",
    ):
        assert getattr(one.tally, name) == getattr(many.tally, name)
    for name in ("prompts", "rows"):
        assert num_repeated(getattr(one.tally, name)) == num_repeated(getattr(many.tally, name)) > 0
    assert one.tally.first == many.tally.first


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (preference(1), "preferences"),
        ({"prompt": "Q", "ranking": ["a", "b"]}, "preferences"),
        ({"instruction": "Q", "output": ["a", "b"]}, "preferences"),
        ({"prompt": "Q"}, "prompts"),
        ({"messages": [{"role": "user", "content": "Q"}]}, "prompts"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "sft"),
        ({"instruction": "Q", "output": "A"}, "sft"),
        ({"prompt": "Q", "completion": "A"}, "sft"),
    ],
)
def test_kinds(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    assert guess_kind(write(tmp_path / "a.jsonl", row)) == kind


def test_scripts_and_quantiles() -> None:
    assert scripts_of("Hello, world") == "Latin"
    assert scripts_of("你好世界") == "Han"
    assert scripts_of("用 pandas 读取数据") == "Latin + Han"
    assert scripts_of("これはテスト") == "Kana"
    assert scripts_of("Привет") == "Cyrillic"
    assert scripts_of("1 + 1") == "none"
    assert quantiles(list(range(101))) == (0, 5, 50, 95, 100)
    assert quantiles([]) == (0, 0, 0, 0, 0)


def test_the_command_knows_the_recipes_limit() -> None:
    assert DataConfig().max_characters == cli_data.MAX_CHARACTERS


def test_check_says_it_all_in_80_columns(tmp_path: Path) -> None:
    rows = [preference(n, strength="better") for n in range(5)]
    good = write(tmp_path / "good.jsonl", *rows)
    bad = write(tmp_path / "bad.jsonl", *rows, preference(9, chosen=3), preference(8, strength="x" * 300))
    done = command("check", str(good))
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        "canonical: prompt",
        "5 read = 5 kept + 0",
        "user      Question 0?",
        "better 5",
        "prompt, tokens",
        "Latin",
    ):
        assert part in done.stdout
    for objective in ("reward", "sft", "dpo"):
        assert f"\n  {objective} " in done.stdout
    done = command(
        "check", str(good), str(bad), str(tmp_path / "none.jsonl"), "--base", "none", "--json", str(tmp_path / "c")
    )
    assert done.returncode == 1
    assert "bad.jsonl, line 6, field chosen: must be a text, found the number 3" in done.stdout
    assert "found: xxx" in done.stdout
    assert "no such file" in " ".join(done.stdout.split())
    assert max(len(line) for line in done.stdout.splitlines() if str(tmp_path) not in line) <= 80
    first, second, third = json.loads((tmp_path / "c").read_text(encoding="utf-8"))
    assert (first["good"], first["read"], first["lengths"]["prompt_characters"]["most"]) == (True, 5, 11)
    assert [row["line"] for row in second["rejected_rows"]] == [6, 7]
    assert third["good"] is False


def test_convert_on_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", preference(1), "{\n")
    done = command("convert", str(file), "--out", str(tmp_path / "out.jsonl"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 rows" in done.stdout
    assert "2 read = 1 kept + 1" in done.stdout
    done = command("convert", str(file), "--out", str(tmp_path / "out.jsonl"))
    assert (done.returncode, "--overwrite" in done.stderr) == (2, True)


MEMORY = """
import resource, sys
from alignloop.data.reading import Reading
from alignloop.data.check_files import check_file
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
rows = iter(Reading(sys.argv[1], "preferences"))
for _ in range(2000): next(rows)
before = peak()
count = 2000 + sum(1 for _ in rows)
read = peak()
check_file(sys.argv[1], workers=1)
print(count, read - before, peak() - read)
"""


@pytest.mark.parametrize("array", [False, True])
def test_memory_stays_flat(tmp_path: Path, array: bool) -> None:
    num_rows = 30_000 if array else 100_000
    with (tmp_path / "rows").open("w") as file:
        for n in range(num_rows):
            begin, end = ("[" if n == 0 else ",", "]" if n == num_rows - 1 else "") if array else ("", "\n")
            file.write(f'{begin}{{"prompt": "Question {n}?", "chosen": "yes {n}", "rejected": "no", "n": {n}}}{end}')
    line = [sys.executable, "-c", MEMORY, str(tmp_path / "rows")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    count, reading, checking = done.stdout.split()
    assert int(count) == num_rows
    assert float(reading) < 8  # MiB; as objects the rows of the file are some 100
    assert float(checking) < 25  # lengths and hashes (32 bytes a row), a sample of rows
