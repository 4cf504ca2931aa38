"""The command line on real input, good and bad: exit codes, messages, and a clean stop."""

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
from alignloop.config import load_recipe
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
    assert "quickstart" in listed
    assert "llama3_paper" in listed
    assert "six rounds" in listed.lower()


def test_unknown_verb_and_option(alignloop) -> None:
    wrong = alignloop("rnu")
    assert wrong.code == 2
    assert "No such command" in wrong.err
    assert alignloop("run", "--round", "3").code == 2


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "rounds: "),
        (["--set", "sample.num_candidates=0"], "sample.num_candidates: "),
        (["--set", "dpo.betta=0.2"], "dpo.betta: unknown key - did you mean 'dpo.beta'?"),
        (["--set", "rounds=many"], "rounds: "),
        (["--set", "preferences=none.jsonl"], "none.jsonl: no such file"),
        (["--set", "preferences=empty.jsonl"], "empty.jsonl: the file is empty"),
        (["--set", "preferences=broken.jsonl"], "broken.jsonl, line 2"),
        (["--set", "preferences=nochosen.jsonl"], "nochosen.jsonl, line 2, field chosen: is missing"),
        (["--set", "preferences=same.jsonl"], "chosen and rejected are the same text"),
        (["--set", "base=hollow"], "no config.json"),
        (["--set", "base=holow"], "near: hollow"),
        (["none.yaml"], "no such file"),
    ],
)
def test_bad_input_is_said_before_anything_runs(
    alignloop, tmp_path: Path, verb: str, arguments: list[str], message: str
) -> None:
    write(tmp_path / "empty.jsonl", "")
    write(tmp_path / "broken.jsonl", GOOD_ROW + '\n{"prompt": "Hi", \n')
    write(tmp_path / "nochosen.jsonl", GOOD_ROW + '\n{"prompt": "Hi", "rejected": "No."}\n')
    write(tmp_path / "same.jsonl", GOOD_ROW + '\n{"prompt": "Hi", "chosen": "No.", "rejected": "No."}\n')
    (tmp_path / "hollow").mkdir()
    outcome = alignloop(verb, "--set", ENGINE, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.glob("runs/*/round-*"))


def test_plan_names_recipe_and_data_errors_together(alignloop, tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "preferences: none.jsonl\nbase: nowhere/at/all\nroundz: 2\n")
    outcome = alignloop("plan", path)
    assert outcome.code == 2
    for part in ("did you mean 'rounds'?", "none.jsonl: no such file", "nowhere/at/all: no such folder"):
        assert part in outcome.err


def test_plan_of_the_quickstart(alignloop, tmp_path: Path) -> None:
    outcome = alignloop("plan", "--set", ENGINE, "--rounds", "2")
    assert outcome.code == 0, outcome.err
    for stage in ("01_ingest", "02_base", "01_collect", "04_sample", "11_train_dpo", "13_evaluate", "14_measure"):
        assert stage in outcome.out
    assert "2 rounds" in outcome.out
    assert "round 2 " in outcome.out
    assert "free at" in outcome.out
    assert "SFT model of its round, which is its reference" in outcome.out
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


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_run_directory_of_another_recipe(alignloop, tmp_path: Path, verb: str) -> None:
    folder = make_run_dir(tmp_path / "mine", "dpo.beta=0.5")
    outcome = alignloop(verb, "--set", ENGINE, "--run-dir", folder)
    assert outcome.code == 2
    assert "is a run of another recipe" in outcome.err
    assert "dpo.beta: 0.5 -> 0.1" in outcome.err


def test_run_directory_of_a_newer_version(alignloop, tmp_path: Path) -> None:
    folder = make_run_dir(tmp_path / "mine")
    resolved = json.loads((folder / "resolved.json").read_text())
    (folder / "resolved.json").write_text(json.dumps({**resolved, "run_version": 99}))
    for verb in ("run", "plan"):
        outcome = alignloop(verb, "--set", ENGINE, "--run-dir", folder)
        assert outcome.code == 2
        assert "99 was written by a newer alignloop" in outcome.err
    assert "newer alignloop" in alignloop("status", folder).err


def test_manifest_of_a_newer_version(alignloop, tmp_path: Path) -> None:
    folder = make_run_dir(tmp_path / "mine")
    stage = folder / "round-00" / "01_ingest"
    stage.mkdir(parents=True)
    (stage / "manifest.json").write_text('{"manifest_version": 99}')
    outcome = alignloop("plan", "--set", ENGINE, "--run-dir", folder)
    assert outcome.code == 2
    assert "manifest_version 99" in outcome.err


def test_run_directory_in_use(alignloop, tmp_path: Path) -> None:
    folder = make_run_dir(tmp_path / "mine")
    with locked(folder):
        outcome = alignloop("run", "--set", ENGINE, "--run-dir", folder)
        assert outcome.code == 2
        assert f"in use by process {os.getpid()}" in outcome.err
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


def test_status_where_there_is_no_run(alignloop, tmp_path: Path) -> None:
    make_run_dir(tmp_path / "runs" / "mine")
    outcome = alignloop("status", "runs/other")
    assert outcome.code == 2
    assert "no run lies here" in outcome.err
    assert "runs/mine" in outcome.err


def test_stage_says_which_inputs_it_takes(alignloop, tmp_path: Path) -> None:
    missing = alignloop("stage", "score", "--out", "scored")
    assert missing.code == 2
    assert "--input candidates=PATH is missing" in missing.err
    assert "--input reward_model=PATH" in missing.err
    unknown = alignloop("stage", "score", "--out", "scored", "--input", "rm=x")
    assert unknown.code == 2
    assert "--input rm=x: unknown input" in unknown.err
    nothing = alignloop("stage", "score", "--out", "scored", "--input", "candidates=none.jsonl")
    assert nothing.code == 2
    assert "nothing lies there" in nothing.err
    assert "did you mean score?" in alignloop("stage", "scor", "--out", "scored").err
    assert list(tmp_path.iterdir()) == []


def test_one_stage_alone(alignloop, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"Name river {n}.", "chosen": f"River {n}.", "rejected": "No."}) for n in range(30)]
    first, second = write(tmp_path / "a.jsonl", "\n".join(rows[:20])), write(tmp_path / "b.jsonl", "\n".join(rows[20:]))
    command = ("stage", "ingest", "--out", "in", "--set", ENGINE, "--set", "data.heldout_fraction=0.2")
    outcome = alignloop(*command, "--input", f"preferences={first},{second}")
    assert outcome.code == 0, outcome.err
    assert "kept  30" in outcome.out
    manifest = json.loads((tmp_path / "in" / "manifest.json").read_text())
    assert manifest["stage"] == "ingest"
    assert len(manifest["inputs"]["preferences"]) == 2
    # The same again is taken over; other inputs are refused.
    assert alignloop(*command, "--input", f"preferences={first}", "--input", f"preferences={second}").code == 0
    drift = alignloop(*command, "--input", f"preferences={first}")
    assert drift.code == 2
    assert "input.preferences" in drift.err


def test_one_stage_is_the_same_in_any_folder(alignloop, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"Name river {n}.", "chosen": f"River {n}.", "rejected": "No."}) for n in range(30)]
    data = write(tmp_path / "a.jsonl", "\n".join(rows))
    manifests = []
    for folder in ("one", "two"):
        outcome = alignloop("stage", "ingest", "--out", folder, "--set", ENGINE, "--input", f"preferences={data}")
        assert outcome.code == 0, outcome.err
        manifests.append(json.loads((tmp_path / folder / "manifest.json").read_text()))
    one, two = manifests
    assert one["seed"] == two["seed"]
    assert one["fingerprint"] == two["fingerprint"]
    assert one["outputs"] == two["outputs"]


def test_an_error_of_training_does_not_point_to_the_engine(alignloop, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", "")
    start = QUICKSTART / "base"
    outcome = alignloop(
        "stage", "train_sft", "--out", "sft", "--set", ENGINE, "--input", f"start={start}", "--input", f"rows={rows}"
    )
    assert outcome.code == 1
    assert "sft: there is no row to train on" in outcome.err
    assert "engine" not in outcome.err


def test_stage_does_not_publish_over_other_files(alignloop, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "notes.txt", "words")
    data = write(tmp_path / "a.jsonl", GOOD_ROW)
    outcome = alignloop("stage", "ingest", "--out", "mine", "--set", ENGINE, "--input", f"preferences={data}")
    assert outcome.code == 2
    assert "holds no published stage" in outcome.err


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
    (folder / "round-01" / "01_ingest").mkdir(parents=True)
    (folder / "round-02").mkdir()
    data = write(tmp_path / "a.jsonl", GOOD_ROW)
    for out in ("mine/round-01/01_ingest", "mine/round-01/new", "mine"):
        command = ("stage", "ingest", "--out", out, "--rebuild", "--set", ENGINE, "--input", f"preferences={data}")
        outcome = alignloop(*command)
        assert outcome.code == 2
        assert f"lies in the run directory {folder}" in outcome.err
    assert (folder / "round-02").is_dir()


def test_eval_refuses_before_it_starts(alignloop, tmp_path: Path) -> None:
    (tmp_path / "rm").mkdir()
    config = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"}
    write(tmp_path / "rm" / "config.json", json.dumps(config))
    refused = alignloop("eval", "rm", "--engine", "transformers")
    assert refused.code == 2
    assert "writes no text" in refused.err
    for place in ("nowhere/report.json", "/proc/report.json"):
        refused = alignloop("eval", "rm", "--json", place)
        assert refused.code == 2
        assert "no file can be written there" in refused.err
    refused = alignloop("eval", "rm", "--json", "one.json", "--samples", "./one.json")
    assert refused.code == 2
    assert "name two files" in refused.err


def test_eval_says_which_ifeval_it_is(alignloop) -> None:
    base, bundled = QUICKSTART / "base", "ifeval, ifeval: the bundled questions about the quickstart's world"
    for include_path, is_bundled in ((("--include-path", "quickstart"), True), ((), False)):
        outcome = alignloop("eval", base, "--tasks", "ifeval,ifeval", "--engine", "transformers", *include_path)
        assert outcome.code == 2
        said = " ".join((outcome.out + outcome.err).split())
        assert (bundled in said) is is_bundled
        assert "is named twice" in said


VERBS = ("run plan status eval stage inspect report sample score compare-sampling why diff recipes data").split()


def test_every_verb_is_named_in_these_tests(alignloop) -> None:
    listed = alignloop("--help").out.partition("Commands:")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.strip().splitlines()] == VERBS


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_a_screen(alignloop, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = alignloop(*([verb] if verb else []), "--help").out.splitlines()
    assert len(lines) <= (24 if verb else 25)
    assert max(map(len, lines)) <= 80


def test_an_error_that_is_not_the_engines_sends_nobody_to_its_log(
    alignloop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "engine.log").write_text("words")
        raise error

    monkeypatch.setattr("alignloop.loop.run.run", fails)
    error: Exception = TrainingError("the loss is not finite")
    outcome = alignloop("run", "--run-dir", "run")
    assert (outcome.code, outcome.err) == (1, "error: the loss is not finite\n")
    error = EngineError("the engine disagrees")
    outcome = alignloop("run", "--run-dir", "run")
    assert (outcome.code, outcome.err) == (1, "error: the engine disagrees\nWhat the engine said: run/engine.log\n")


def test_eval_leaves_no_folder_behind(alignloop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert alignloop("eval", tmp_path / "none", "--engine", "transformers").code == 2
    assert list((tmp_path / "temporary").iterdir()) == []


def test_eval_of_no_model(alignloop, tmp_path: Path) -> None:
    outcome = alignloop("eval", tmp_path / "none", "--engine", "transformers")
    assert outcome.code == 2
    assert "no such folder" in outcome.err


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
