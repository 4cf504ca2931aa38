"""Two rounds for which people are waited for, each with its own file of preferences: the whole thing, small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignloop import run
from alignloop.artifacts import digest_of
from alignloop.config.bundled import QUICKSTART
from alignloop.errors import PeopleNeeded, UserError
from alignloop.look.diff import diff_json, diff_of, diff_text
from alignloop.look.life import lives_json, lives_text
from alignloop.look.why import lives_of
from alignloop.run_dir.manifest import read_manifest

SMALL = (
    "evaluate.test_tasks=[]",  # a round that was once the last keeps them, and here runs are ended at different rounds
    "engine.name=transformers",
    "data.batches=files",
    "data.heldout_fraction=0.05",
    "collect.annotator=human",
    "collect.num_annotations=4",
    "sample.num_prompts=8",
    "sample.num_candidates=3",
    "sample.max_tokens=32",
    "evaluate.limit=2",
    "evaluate.max_gen_tokens=8",
    "reward.epochs=1",
    "sft.epochs=1",
)


def rows_of(folder: Path, number: int) -> Path:
    """60 of the quickstart's preferences as a round's file."""
    lines = (QUICKSTART / "data" / "preferences.jsonl").read_text().splitlines(keepends=True)
    path = folder / f"round-{number}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines[60 * number : 60 * (number + 1)]))
    return path


def settings(folder: Path) -> list[str]:
    return [*SMALL, f"preferences={folder / 'in' / 'round-*.jsonl'}"]


def answer(run_dir: Path, *, leave_out: int = 0) -> Path:
    """The first of every pair is chosen."""
    asked = (run_dir / "annotations" / "round-02.to_annotate.jsonl").read_text().splitlines()
    said = [{"id": json.loads(line)["id"], "choice": "first", "strength": "better"} for line in asked]
    path = run_dir / "annotations" / "round-02.annotated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in said[: len(said) - leave_out]))
    return path


def outcome(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "rounds.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def waited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped for people twice and went on, with a file that came while it waited."""
    folder = tmp_path_factory.mktemp("waited")
    rows_of(folder / "in", 1)
    run_dir = folder / "run"
    with pytest.raises(PeopleNeeded, match=r"(?s)round 2 waits for people: 4 pairs.*annotations/round-02\.annotated"):
        run("quickstart", rounds=2, run_dir=run_dir, overrides=settings(folder))
    rows_of(folder / "in", 2)
    answer(run_dir, leave_out=1)
    with pytest.raises(PeopleNeeded, match="4 pairs of completions to compare, 3 answered"):
        run("quickstart", rounds=2, run_dir=run_dir, overrides=settings(folder))
    path = answer(run_dir)
    path.write_text(path.read_text() + '{"id": "none", "choice": "first"}\n')
    with pytest.raises(UserError, match="line 5, field id: 'none' is not a pair of this round"):
        run("quickstart", rounds=2, run_dir=run_dir, overrides=settings(folder))
    answer(run_dir)
    run("quickstart", rounds=2, run_dir=run_dir, overrides=settings(folder))
    return run_dir


def test_each_round_trains_on_its_file_and_on_what_people_said(waited: Path) -> None:
    first, second = (read_manifest(waited / f"round-0{n}" / "01_collect") for n in (1, 2))
    assert first is not None
    assert second is not None
    assert first.inputs["file"]["path"].endswith("in/round-1.jsonl")
    assert second.inputs["file"]["path"].endswith("in/round-2.jsonl")
    assert {name: second.counts[name] for name in ("in", "asked", "annotated", "unanswered")} == {
        "in": 60, "asked": 4, "annotated": 4, "unanswered": 0,
    }  # fmt: skip
    reward = read_manifest(waited / "round-02" / "02_train_reward")
    assert reward is not None
    batches = [a.outputs["preferences"] for a in (first, second)]
    assert [entry["digest"] for entry in reward.inputs["preferences"]] == [batch.digest for batch in batches]  # type: ignore[union-attr]
    pairs = read_manifest(waited / "round-02" / "10_build_pairs")
    assert pairs is not None
    assert [entry["digest"] for entry in pairs.inputs["preferences"]] == [batches[1].digest]  # type: ignore[union-attr]


@pytest.mark.slow
def test_waiting_leaves_no_trace_in_the_result(waited: Path, tmp_path: Path) -> None:
    """The same answers, there before the round begins: the same bytes."""
    for number in (1, 2):
        rows_of(tmp_path / "in", number)
    run_dir = tmp_path / "run"
    run("quickstart", rounds=1, run_dir=run_dir, overrides=settings(tmp_path))
    (run_dir / "annotations").mkdir()
    answers = (waited / "annotations" / "round-02.annotated.jsonl").read_text()
    (run_dir / "annotations" / "round-02.annotated.jsonl").write_text(answers)
    run("quickstart", rounds=2, run_dir=run_dir, overrides=settings(tmp_path))
    assert outcome(run_dir) == outcome(waited)
    assert digest_of(run_dir / "final" / "model.safetensors") == digest_of(waited / "final" / "model.safetensors")


def test_a_file_that_comes_later_does_not_touch_finished_rounds(waited: Path) -> None:
    rows_of(waited.parent / "in", 3)
    before = {path: path.stat().st_mtime_ns for path in waited.rglob("manifest.json")}
    try:
        run("quickstart", rounds=2, run_dir=waited, overrides=settings(waited.parent))
    finally:
        (waited.parent / "in" / "round-3.jsonl").unlink()
    assert {path: path.stat().st_mtime_ns for path in waited.rglob("manifest.json")} == before


def test_the_command_says_what_to_do_and_exits_with_3(waited: Path, alignloop: Callable[..., Any]) -> None:
    answers = waited / "annotations" / "round-02.annotated.jsonl"
    said, published = answers.read_text(), waited / "round-02" / "01_collect"
    aside = published.with_name("aside")
    try:
        answers.unlink()
        published.rename(aside)
        sets = [part for override in settings(waited.parent) for part in ("--set", override)]
        command = ["run", "quickstart", "--rounds", "2", "--run-dir", str(waited), *sets]
        stopped = alignloop(*command)
        assert stopped.code == 3
        assert "Traceback" not in stopped.err
        for part in ("round 2 waits for people", str(answers), "choice", "Then go on with: alignloop run quickstart"):
            assert part in stopped.err
        assert "waits for people: 0 of 4 pairs" in alignloop("status", waited).out
    finally:
        answers.write_text(said)
        aside.rename(published)


def test_a_persons_choice_is_told_with_where_it_trained(waited: Path) -> None:
    pair_id = json.loads((waited / "annotations" / "round-02.annotated.jsonl").read_text().splitlines()[0])["id"]
    (life,) = lives_of(pair_id, waited)
    assert life.kind == "verdict"
    assert life.facts["winner"] == "first"
    assert "round 2 02_train_reward as a ranking" in life.trained
    (chosen,) = lives_of(life.facts["first"], waited)
    assert any("chosen over" in step.text for step in chosen.steps)
    paths = (str(waited), "annotated/")
    assert all(len(line) <= 80 or any(path in line for path in paths) for line in lives_text([life]).split("\n"))
    assert json.loads(lives_json([life]))["rows"][0]["trained"] == list(life.trained)


def test_rounds_of_a_real_run_are_compared(waited: Path) -> None:
    found = diff_of(waited, before=1, after=2)
    assert not found.missing
    assert {"rows by stage", "best-of-K reward", "SFT rows by origin"} <= found.groups.keys()
    assert next(overlap for overlap in found.overlaps if overlap.name == "preferences").num_common == 0
    text = diff_text(found)
    assert "from round 1 to round 2" in text
    assert json.loads(diff_json(found))["rounds"] == [1, 2]
