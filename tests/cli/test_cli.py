"""The command line: help, exit codes, one stage alone, and a clean stop. Errors found beforehand: tests/golden."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from alignloop import __version__
from alignloop.config import Recipe, load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.errors import EngineError, TrainingError
from alignloop.run_dir.layout import enter, locked

DATA = Path(__file__).resolve().parents[2] / "../shared/data/preferences"
ENGINE = "engine.name=transformers"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


GOOD_ROW = json.dumps({"prompt": "Name a river.", "chosen": "The Elbe.", "rejected": "A hill."})


def test_help_is_quick() -> None:
    command = [sys.executable, "-m", "alignloop", "--help"]
    subprocess.run(command, capture_output=True, check=True)
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    assert all(verb in done.stdout for verb in ("run", "plan", "status", "eval", "stage", "recipes"))
    # Processor time of the child, which a busy machine does not stretch as it does the clock.
    used = after.children_user - before.children_user + after.children_system - before.children_system
    assert used < 0.5


def test_version_and_recipes(alignloop) -> None:
    assert alignloop("--version").out == f"{__version__}\n"
    listed = alignloop("recipes").out
    assert all(word in listed for word in ("quickstart", "llama3_paper", "Six rounds"))


def test_plan_of_the_quickstart(alignloop, tmp_path: Path) -> None:
    outcome = alignloop("plan", "--set", ENGINE, "--rounds", "2")
    assert outcome.code == 0, outcome.err
    stages = ("01_ingest", "02_base", "01_collect", "04_sample", "11_train_dpo", "13_evaluate", "14_measure")
    words = ("2 rounds", "round 2 ", "free at", "SFT model of its round, which is its reference")
    assert [word for word in (*stages, *words) if word not in outcome.out] == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(("name", "rows"), [("sharegpt_en.jsonl", 200), ("sharegpt_zh.json", 120)])
def test_plan_of_own_data(alignloop, name: str, rows: int) -> None:
    outcome = alignloop("plan", "own_data", "--set", f"preferences={(DATA / name).resolve()}", "--set", ENGINE)
    assert outcome.code == 0, outcome.err
    assert f"01_ingest           to do {rows:>14}" in outcome.out
    assert "(sharegpt)" in outcome.out


def make_run_dir(folder: Path, *overrides: str) -> Path:
    with locked(folder):
        enter(folder, load_recipe("quickstart", overrides=[ENGINE, *overrides]), rebuild=False)
    return folder


def test_status_says_who_is_at_work(alignloop, tmp_path: Path) -> None:
    folder = make_run_dir(tmp_path / "mine")
    with locked(folder):
        assert f"running as process {os.getpid()}" in alignloop("status", folder).out
    assert "not running" in alignloop("status", folder).out


def test_a_run_that_may_not_begin_writes_nothing(alignloop, tmp_path: Path) -> None:
    """Neither beside another process's work, nor in a folder of something else, nor where the data is wrong."""
    bad = write(tmp_path / "bad.jsonl", GOOD_ROW + '\n{"prompt": "Hi", \n')
    data = ("--set", ENGINE, "--set", f"preferences={bad}")
    folder = make_run_dir(tmp_path / "mine", "data.max_bad_fraction=0.9", f"preferences={bad}")
    rejected = write(folder / "rejected_rows.jsonl", "of the run at work\n")
    with locked(folder):
        outcome = alignloop("run", *data, "--set", "data.max_bad_fraction=0.9", "--run-dir", folder)
    assert (outcome.code, rejected.read_text()) == (2, "of the run at work\n")
    assert "in use by process" in outcome.err
    (tmp_path / "thesis").mkdir()
    write(tmp_path / "thesis" / "thesis.tex", "years of work")
    for verb in ("run", "plan"):
        assert "not a run directory" in alignloop(verb, "--set", ENGINE, "--run-dir", tmp_path / "thesis").err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    assert alignloop("run", "--set", ENGINE, "--set", "preferences=none.jsonl", "--run-dir", "new").code == 2
    assert not (tmp_path / "new").exists()


def rivers(file: Path, *numbers: int) -> Path:
    rows = ({"prompt": f"Name river {n}.", "chosen": f"River {n}.", "rejected": "No."} for n in numbers)
    return write(file, "\n".join(map(json.dumps, rows)))


def test_one_stage_alone_is_the_same_in_any_folder(alignloop, tmp_path: Path) -> None:
    first, second = rivers(tmp_path / "a.jsonl", *range(20)), rivers(tmp_path / "b.jsonl", *range(20, 30))
    command = ("stage", "ingest", "--set", ENGINE, "--set", "data.heldout_fraction=0.2", "--out")
    manifests = []
    for folder in ("one", "two"):
        outcome = alignloop(*command, folder, "--input", f"preferences={first},{second}")
        assert outcome.code == 0, outcome.err
        assert "kept  30" in outcome.out
        manifests.append(json.loads((tmp_path / folder / "manifest.json").read_text()))
    assert manifests[0]["stage"] == "ingest"
    assert len(manifests[0]["inputs"]["preferences"]) == 2
    for name in ("seed", "fingerprint", "outputs"):
        assert manifests[0][name] == manifests[1][name]
    # The same again is taken over; other inputs are refused.
    assert alignloop(*command, "one", "--input", f"preferences={first}", "--input", f"preferences={second}").code == 0
    drift = alignloop(*command, "one", "--input", f"preferences={first}")
    assert drift.code == 2
    assert "input.preferences" in drift.err


def test_an_error_of_training_does_not_point_to_the_engine(alignloop, tmp_path: Path) -> None:
    empty = write(tmp_path / "rows.jsonl", "")
    inputs = (f"start={QUICKSTART / 'base'}", f"preferences={empty}", f"heldout={empty}")
    command = ("stage", "train_reward", "--out", "reward", "--set", ENGINE)
    outcome = alignloop(*command, *(word for text in inputs for word in ("--input", text)))
    assert outcome.code == 1
    assert "reward: there is no row to train on" in outcome.err
    assert "engine" not in outcome.err


def test_a_stage_alone_has_one_owner(alignloop, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", GOOD_ROW)
    command = ("stage", "ingest", "--out", "made", "--set", ENGINE, "--set", "data.heldout_fraction=0")
    with locked(tmp_path / "made.partial"):
        write(tmp_path / "made.partial" / "half.jsonl", "of the other process\n")
        refused = alignloop(*command, "--input", f"preferences={data}")
        assert (tmp_path / "made.partial" / "half.jsonl").is_file()
    assert refused.code == 2
    assert "another process makes it" in refused.err
    assert alignloop(*command, "--input", f"preferences={data}").code == 0
    assert not (tmp_path / "made.partial").exists()
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert "preferences.jsonl" in names
    assert not names & {"half.jsonl", "run.lock"}


def test_stage_does_not_publish_into_a_run(alignloop, tmp_path: Path) -> None:
    """With --rebuild it would remove what the run has built on that stage."""
    folder = make_run_dir(tmp_path / "mine")
    for made in ("round-01/01_ingest", "round-02"):
        (folder / made).mkdir(parents=True)
    given = ("--rebuild", "--set", ENGINE, "--input", f"preferences={write(tmp_path / 'a.jsonl', GOOD_ROW)}")
    for out in ("mine/round-01/01_ingest", "mine/round-01/new", "mine"):
        outcome = alignloop("stage", "ingest", "--out", out, *given)
        assert (outcome.code, f"lies in the run directory {folder}" in outcome.err) == (2, True)
    assert (folder / "round-02").is_dir()


VERBS = (
    "run control plan status eval stage inspect report sample score compare-sampling why diff recipes data"
).split()


def test_every_verb_is_named_in_these_tests(alignloop) -> None:
    listed = alignloop("--help").out.partition("Commands:")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.strip().splitlines()] == VERBS


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_a_screen(alignloop, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = alignloop(*([verb] if verb else []), "--help").out.splitlines()
    assert len(lines) <= {"": 26, "control": 30}.get(verb, 24)
    assert max(map(len, lines)) <= 80


def test_an_error_that_is_not_the_engines_sends_nobody_to_its_log(
    alignloop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(recipe: Recipe, *, run_dir: Path) -> None:
        run_dir.mkdir(exist_ok=True)
        (run_dir / "engine.log").write_text("words")
        raise error

    monkeypatch.setattr("alignloop.loop.run.check", fails)
    error: Exception = TrainingError("the loss is not finite")
    outcome = alignloop("run", "--run-dir", "first")
    assert (outcome.code, outcome.err) == (1, "error: the loss is not finite\n")
    error = EngineError("the engine disagrees")
    outcome = alignloop("run", "--run-dir", "second")
    assert (outcome.code, outcome.err) == (1, "error: the engine disagrees\nWhat the engine said: second/engine.log\n")


def test_eval_leaves_no_folder_behind(alignloop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert alignloop("eval", tmp_path / "none", "--engine", "transformers").code == 2
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_a_stop_says_how_to_go_on_and_leaves_no_process(tmp_path: Path) -> None:
    """Terminated while the engine starts for the first benchmark; for Ctrl-C see tests/loop/test_whole_loop.py."""
    arguments = ["run", "--rounds", "1", "--run-dir", str(tmp_path / "run"), "--set", ENGINE]
    child = subprocess.Popen(
        [sys.executable, "-m", "alignloop", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "03_evaluate ..." in line:
            break
    time.sleep(1.0)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"Stopped. Go on with: alignloop {' '.join(arguments)}" in err
    assert "Traceback" not in err
    assert processes_of_session(child.pid) == []
    assert (tmp_path / "run" / "round-00" / "02_base" / "manifest.json").is_file()


def processes_of_session(session: int) -> list[int]:
    """Ids of live processes of a session (zombies aside), from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found
