"""A run directory is locked, of one recipe, and of no newer version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alignloop.alone.out_file import work_dir
from alignloop.config import load_recipe
from alignloop.errors import RunDirError, UserError
from alignloop.loop.plan import make_plan
from alignloop.run_dir.layout import changed_fields, enter, holder, locked

RECIPE = {"preferences": "p.jsonl", "rounds": 6}


def test_same_recipe_goes_on_and_more_rounds_are_allowed(tmp_path: Path) -> None:
    enter(tmp_path, load_recipe(RECIPE), rebuild=False)
    enter(tmp_path, load_recipe(RECIPE, overrides=["rounds=8"]), rebuild=False)
    assert json.loads((tmp_path / "resolved.json").read_text())["recipe"]["rounds"] == 8


def test_another_recipe_is_refused_with_every_changed_field(tmp_path: Path) -> None:
    enter(tmp_path, load_recipe(RECIPE), rebuild=False)
    other = load_recipe(RECIPE, overrides=["seed=3", "dpo.beta=0.5"])
    with pytest.raises(RunDirError) as refused:
        enter(tmp_path, other, rebuild=False)
    assert "seed: 0 -> 3" in str(refused.value)
    assert "dpo.beta: 0.1 -> 0.5" in str(refused.value)
    enter(tmp_path, other, rebuild=True)
    enter(tmp_path, other, rebuild=False)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirError, match="not a run directory"):
        enter(tmp_path, load_recipe(RECIPE), rebuild=True)


@pytest.mark.parametrize("kind", ["file", "loop", "pipe"])
def test_a_round_that_is_no_folder_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    enter(tmp_path, load_recipe(RECIPE), rebuild=False)
    path = tmp_path / "round-01"
    {"file": path.touch, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}[kind]()
    before = (tmp_path / "resolved.json").stat()
    for rebuild in (False, True):
        with pytest.raises(RunDirError, match=r"round-01: is no folder.*put the round's folder back, or remove it"):
            enter(tmp_path, load_recipe(RECIPE), rebuild=rebuild)
    assert (tmp_path / "resolved.json").stat().st_ino == before.st_ino
    with pytest.raises(UserError, match="round-01: is no folder"):
        make_plan(load_recipe(RECIPE), run_dir=tmp_path)
    path.unlink()
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to("elsewhere")  # a round on another disk
    enter(tmp_path, load_recipe(RECIPE), rebuild=False)


def test_newer_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "resolved.json").write_text('{"run_version": 99, "recipe": {}}')
    with pytest.raises(RunDirError, match="newer alignloop"):
        enter(tmp_path, load_recipe(RECIPE), rebuild=False)


def test_second_process_is_refused_and_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    code = "import sys, pathlib, alignloop.run_dir.layout as r\nwith r.locked(pathlib.Path(sys.argv[1])): print('held')"
    with locked(tmp_path):
        refused = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert "in use by process" in refused.stderr
    allowed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert allowed.stdout.strip() == "held"


def test_looking_never_keeps_a_run_from_starting(tmp_path: Path) -> None:
    looked, end = [], threading.Event()

    def look() -> None:
        while not end.is_set():
            looked.append(holder(tmp_path))

    with locked(tmp_path):
        assert holder(tmp_path) == str(os.getpid())
        before = (tmp_path / "run.lock").stat()
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(300):
            with locked(tmp_path):
                pass
        with locked(tmp_path):
            while str(os.getpid()) not in looked:
                time.sleep(0.001)
    finally:
        end.set()
        watcher.join()
    assert {None, str(os.getpid())} == set(looked)
    (tmp_path / "run.lock").unlink()
    assert holder(tmp_path) is None
    assert not (tmp_path / "run.lock").exists()
    assert before.st_size == len(f"{os.getpid()}\n")


def test_a_folder_that_goes_with_its_lock_has_one_owner(tmp_path: Path) -> None:
    """The next owner may have the removed lock's file open already."""
    inside: list[int] = []
    most = []

    def work() -> None:
        done = 0
        while done < 40:
            try:
                with work_dir(tmp_path / "out.jsonl"):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.0002)
                    inside.pop()
                    done += 1
            except UserError:
                continue

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 120
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_left_as_it_was_where_nothing_was_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing"), locked(tmp_path / "new"):
        raise ValueError("nothing was made")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "made").touch()
    assert (tmp_path / "new" / "made").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_a_lock_that_is_no_file_is_named(tmp_path: Path, kind: str) -> None:
    lock = tmp_path / "run.lock"
    {"folder": lock.mkdir, "pipe": lambda: os.mkfifo(lock), "loop": lambda: lock.symlink_to(lock)}[kind]()
    assert holder(tmp_path) is None
    with pytest.raises(RunDirError, match=r"cannot be used as a run directory \(.*run\.lock: "), locked(tmp_path):
        pass


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunDirError, match="cannot be used as a run directory"), locked(tmp_path / "runs"):
        pass


def test_the_layout_of_rows_may_not_change_and_processes_may(tmp_path: Path) -> None:
    enter(tmp_path, load_recipe(RECIPE), rebuild=False)
    enter(tmp_path, load_recipe(RECIPE, overrides=["training.num_processes=2"]), rebuild=False)
    with pytest.raises(RunDirError, match=r"training\.layout: packed -> separate"):
        enter(tmp_path, load_recipe(RECIPE, overrides=["training.layout=separate"]), rebuild=False)


def test_where_a_judge_is_and_how_large_the_engine_may_change(tmp_path: Path) -> None:
    judged = {**RECIPE, "collect": {"annotator": "judge"}, "judge": {"model": "m", "endpoint": "http://a:1/v1"}}
    enter(tmp_path, load_recipe(judged), rebuild=False)
    moved = ["judge.endpoint=http://b:2/v1", "judge.concurrency=2", "engine.kv_cache_gb=2", "engine.data_parallel=2"]
    enter(tmp_path, load_recipe(judged, overrides=moved), rebuild=False)
    with pytest.raises(RunDirError, match=r"judge\.model: m -> other"):
        enter(tmp_path, load_recipe(judged, overrides=["judge.model=other"]), rebuild=False)


def test_changed_fields_walks_sections_and_ignores_free_ones() -> None:
    before = {"a": {"b": 1, "c": 2}, "rounds": 6}
    after = {"a": {"b": 1, "c": 3}, "rounds": 8, "d": 4}
    assert changed_fields(before, after) == ["a.c: 2 -> 3", "d: (not there) -> 4"]


def test_a_run_of_an_earlier_version_is_said_to_be_one(tmp_path: Path) -> None:
    enter(tmp_path, load_recipe(RECIPE), rebuild=False)
    values = json.loads((tmp_path / "resolved.json").read_text())
    del values["recipe"]["evaluate"]["strip_reasoning"]
    (tmp_path / "resolved.json").write_text(json.dumps(values))
    with pytest.raises(RunDirError) as refused:
        enter(tmp_path, load_recipe(RECIPE), rebuild=False)
    assert "or of another version of alignloop:\n  - evaluate.strip_reasoning: (not there) -> False" in str(
        refused.value
    )
    assert "Go on with the version of alignloop that began it" in str(refused.value)
    assert "Put it back" not in str(refused.value)
