"""The scripts that kill and that fuzz: their arithmetic by hand, and the kills themselves for real."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import strategies as st

from alignloop.engines.watch import descendants
from scripts.faults import digests, kill_test
from scripts.faults import fuzz as fuzz_script
from scripts.faults.digests import differences
from scripts.faults.fuzz import Fuzz
from scripts.faults.kill_test import points
from scripts.faults.running import At, is_alive
from scripts.faults.targets import TARGETS, Target

ROOT = Path(__file__).resolve().parents[1]


def test_points_lie_in_the_middle_of_equal_parts() -> None:
    """10 s in 5 parts of 2: 1, 3, 5, 7, 9 s; the stages end at 2, 3.5 and 10."""
    spans = [At("start", 2.0), At("a", 1.5), At("b", 6.5)]
    assert points(spans, num=5) == [At("start", 1.0), At("a", 1.0), At("b", 1.5), At("b", 3.5), At("b", 5.5)]


def test_what_is_not_there_yet_is_a_difference_at_the_end_only() -> None:
    expected = {"a": 1, "b": 2}
    assert differences(expected, {"a": 1}, partly=True) == []
    assert differences(expected, {"a": 1}, partly=False) == ["b"]
    assert differences(expected, {"a": 3, "c": 1}, partly=True) == ["a", "c"]


def test_descendants_are_all_below() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        deadline = time.monotonic() + 30
        while not descendants(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        (below,) = descendants(process.pid)
        assert is_alive(process.pid)
        subprocess.run(["kill", "-9", str(process.pid), str(below)], check=True)
        while is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.returncode is None, "not waited for yet"
        assert not is_alive(process.pid)


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (kill_test, "--kills 0", "must be at least 1"),
        (kill_test, "--kills-a-run 0", "must be at least 1"),
        (kill_test, "--work {full}", "is no empty folder"),
        (kill_test, "--json {full}/none/kills.json", "no file can be written there"),
        (digests, "{full}/none.txt --check", "no such list"),
        (digests, "{full}", "no file can be written there"),
        (fuzz_script, "--minutes nan", "must be above 0"),
        (fuzz_script, "--minutes inf", "must be above 0"),
        (fuzz_script, "--out {full}/file", "is no folder"),
    ],
)
def test_wrong_arguments_are_said_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, script: ModuleType, arguments: str, said: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        script._options(arguments.format(full=tmp_path).split())
    assert said in capsys.readouterr().err


def test_a_run_that_fails_by_itself_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert kill_test.main(["--set", "nonsense", "--work", str(tmp_path / "work")]) == 1
    assert "--set nonsense: expected a.b=value" in capsys.readouterr().err


def test_a_list_of_digests_names_what_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = {"round-00/01_ingest": {"config": {"a": 1}, "seed": 3}, "final/a b": "sha256:0", "rounds": [{"b": 2}]}
    found = digests.digests_of(outcome)
    assert list(found) == ["final/a#b", "round-00/01_ingest#config", "round-00/01_ingest#seed", "rounds"]
    head = {"commit": "c", "folder": "f", "processor": "p: 1", "threads": "1", "run": "r --rounds 2"}
    file = tmp_path / "list.txt"
    file.write_text(digests.text_of(head, found))
    assert digests.read(file.read_text()) == (head, found)
    assert digests.compare(file, {**head, "commit": "d"}, found) == 0
    assert capsys.readouterr().out == f"0 of 4 differ from {file} (c)\n"
    other = digests.digests_of({**outcome, "round-00/01_ingest": {"config": {"a": 2}, "seed": 3}})
    assert digests.compare(file, {**head, "processor": "q"}, other) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "processor: p: 1 -> q: the two need not be the same"
    assert said[1].startswith("differs: round-00/01_ingest#config: ")
    assert said[2:] == [f"1 of 4 differ from {file} (c)"]


def test_a_run_whose_digests_cannot_be_had_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "FOLDER", tmp_path / "fixed")
    assert digests.main([str(tmp_path / "list.txt"), "--set", "nonsense"]) == 1
    assert "--set nonsense: expected a.b=value" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "fixed").mkdir()
    assert digests.main([str(tmp_path / "list.txt")]) == 1
    assert "another call is at work there" in capsys.readouterr().err


def test_an_error_that_is_not_ours_is_kept_once_at_its_smallest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(file: Path) -> None:
        if len(file.read_bytes()) > 2:
            raise KeyError("x")

    found = Fuzz("readers", Target(st.tuples(st.binary(), st.just("input")), read), out=tmp_path / "found")
    found.run(seconds=0.5, seed=0)
    assert list(found.kept) == [f"KeyError from test_faults.py:{read.__code__.co_firstlineno + 2} read"]
    assert "FOUND readers: KeyError from test_faults.py" in capsys.readouterr().out
    (kept, details) = sorted((tmp_path / "found").iterdir())
    assert kept.read_bytes() == bytes(3)
    assert "Traceback" in details.read_text()


@pytest.mark.parametrize("name", TARGETS)
def test_a_moment_of_each_target_finds_nothing(name: str, tmp_path: Path) -> None:
    found = Fuzz(name, TARGETS[name](), out=tmp_path)
    found.run(seconds=1.0, seed=5)
    assert found.num > 0
    assert found.kept == {}


@pytest.mark.slow
def test_three_kills_leave_the_same_bytes(tmp_path: Path) -> None:
    json_file = tmp_path / "kills.json"
    script = ROOT / "scripts" / "faults" / "kill_test.py"
    options = ["--quick", "--set", "rounds=1", "--json", str(json_file), "--work", str(tmp_path / "work")]
    command = [sys.executable, str(script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(json_file.read_text())
    assert [kill["equal"] for kill in found["kills"]] == [True] * 3
    assert {kill["process"] for kill in found["kills"]} >= {"main", "engine"}
    assert len(found["stages"]) > 15
