"""What a round takes from people: which file is whose, and where their questions lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignloop.artifacts import Artifact
from alignloop.config import load_recipe
from alignloop.config.recipe import Recipe
from alignloop.errors import DataError, PeopleNeeded, RecipeError, UserError
from alignloop.look.status import status_text
from alignloop.loop.check import check
from alignloop.loop.plan import make_plan
from alignloop.loop.plan_text import plan_text
from alignloop.loop.round_inputs import ask_people, files_of_rounds, people_files, waiting
from alignloop.run_dir.layout import enter, locked
from alignloop.run_dir.manifest import Manifest


def write(path: Path, *prompts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": prompt, "chosen": f"{prompt} yes.", "rejected": "No."} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(folder: Path, **values: Any) -> Recipe:
    return load_recipe(
        {
            "preferences": str(folder / "in" / "round-*.jsonl"),
            "rounds": 4,
            "data": {"batches": "files", "heldout_fraction": 0.0},
            "sample": {"max_tokens": 64},
            "evaluate": {"include_path": "quickstart"},
            "engine": {"max_model_len": 384, "name": "transformers"},
            **{stage: {"max_length": 384} for stage in ("reward", "sft", "dpo")},
            **values,
        }
    )


def publish(run_dir: Path, number: int, file: Path) -> None:
    """The manifest of a finished `collect`, as far as it is looked at."""
    folder = run_dir / f"round-{number:02d}" / "01_collect"
    folder.mkdir(parents=True)
    inputs = {"file": {"digest": Artifact.of(file).digest, "path": str(file.resolve())}}
    manifest = Manifest(
        stage="collect", round=number, fingerprint="x", config={}, inputs=inputs, outputs={}, counts={}, metrics={},
        seed=0, versions={}, started="", ended="", seconds={},
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def names(recipe: Recipe, run_dir: Path | None, number: int) -> list[str]:
    return [file.name for file in files_of_rounds(recipe, run_dir, number=number)]


def test_each_round_has_its_file_and_the_last_is_seen_again(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        write(tmp_path / "in" / f"round-{number}.jsonl", "A")
    assert names(recipe_of(tmp_path), None, 4) == ["round-1.jsonl", "round-2.jsonl", "round-10.jsonl", "round-10.jsonl"]


def test_a_file_that_comes_later_is_the_next_rounds_and_finished_rounds_keep_theirs(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    one, two = (write(tmp_path / "in" / f"round-{n}.jsonl", f"{n}") for n in (1, 2))
    for number, file in ((1, one), (2, two), (3, two)):  # round 3 found no file of its own
        publish(run_dir, number, file)
    write(tmp_path / "in" / "round-3.jsonl", "late")
    write(tmp_path / "in" / "round-1b.jsonl", "between")
    recipe = recipe_of(tmp_path)
    assert names(recipe, run_dir, 5) == [
        "round-1.jsonl", "round-2.jsonl", "round-2.jsonl", "round-1b.jsonl", "round-3.jsonl",
    ]  # fmt: skip

    two.rename(tmp_path / "in" / "round-9.jsonl")  # the same bytes elsewhere
    assert names(recipe, run_dir, 3)[1:] == ["round-9.jsonl", "round-9.jsonl"]
    (tmp_path / "in" / "round-9.jsonl").unlink()
    with pytest.raises(UserError, match=r"round-2\.jsonl: round 2 took its preferences from this file"):
        names(recipe, run_dir, 2)


def test_the_checks_see_what_the_rounds_will_see(tmp_path: Path) -> None:
    write(tmp_path / "in" / "round-1.jsonl", *(f"Question {n}" for n in range(10)))
    held = check(recipe_of(tmp_path, data={"batches": "files", "heldout_fraction": 0.2})).rows.heldout
    write(tmp_path / "in" / "round-2.jsonl", held[0].messages[0].content, "Another")
    checked = check(recipe_of(tmp_path, data={"batches": "files", "heldout_fraction": 0.2}))
    assert [row.id for row in checked.rows.heldout] == [row.id for row in held]
    assert [row.messages[0].content for row in checked.rows.train if "round-2" in row.source.file] == ["Another"]


def test_a_pattern_without_files_is_told_with_everything_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)2 problems.*\*\.jsonl: the pattern matches no file.*no such folder"):
        check(recipe_of(tmp_path, base=str(tmp_path / "none")))
    with pytest.raises(DataError, match="the pattern matches no file"):
        names(recipe_of(tmp_path), None, 1)


def test_people_asked_for_nothing_are_a_slip(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"collect\.num_annotations is 0"):
        recipe_of(tmp_path, collect={"annotator": "human"})
    with pytest.raises(RecipeError, match=r"collect\.min_annotated is for people"):
        recipe_of(tmp_path, collect={"annotator": "simulated", "num_annotations": 3, "min_annotated": 2})


def test_plan_and_status_say_that_people_are_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "in" / "round-1.jsonl", *(f"Question {n}" for n in range(10)))
    recipe = recipe_of(tmp_path, collect={"annotator": "human", "num_annotations": 2})
    run_dir = tmp_path / "run"
    with locked(run_dir):
        enter(run_dir, recipe, rebuild=False)
    (run_dir / "round-02" / "01_collect.partial").mkdir(parents=True)
    made = run_dir / "round-02" / "01_collect.partial" / "to_annotate.jsonl"
    made.write_text('{"id":"p/1/0-1","messages":[],"first":"a","second":"b"}\n{"id":"q/1/0-1"}\n')
    wait = ask_people(PeopleNeeded("", questions=made, num_asked=2, num_answered=0), run_dir=run_dir, number=2)
    files = people_files(run_dir, 2)
    assert wait.questions == files.questions == run_dir / "annotations" / "round-02.to_annotate.jsonl"
    for part in ("round 2 waits for people: 2 pairs", str(files.answers), "choice", "first, second or tie"):
        assert part in str(wait)

    files.answers.write_text('{"id":"p/1/0-1","choice":"first"}\nhalf a li')
    for text in (status_text(run_dir), plan_text(make_plan(recipe, run_dir=run_dir))):
        assert "waits for people: 1 of 2 pairs answered" in text
        assert str(files.answers) in text
    assert "  01_collect          waits" in plan_text(make_plan(recipe, run_dir=run_dir))
    assert "goes on from here when people are done" in status_text(run_dir)
    enough = recipe.model_copy(update={"collect": recipe.collect.model_copy(update={"min_annotated": 1})})
    assert waiting(enough.model_dump(), run_dir, 2) is None


def test_questions_that_people_have_changed_are_not_written_over(tmp_path: Path) -> None:
    made = tmp_path / "made.jsonl"
    made.write_text('{"id":"a","first":"x"}\n')
    wait = PeopleNeeded("", questions=made, num_asked=1)
    files = people_files(tmp_path, 2)
    ask_people(wait, run_dir=tmp_path, number=2)
    # What a person has broken beside it counts for nothing.
    files.questions.write_bytes(b'{"id":"a","first":"x","choice":"first"}\n' + b"[" * 100_000 + b"\n\xff\nnull\n")
    assert "save it as round-02.annotated.jsonl" in str(ask_people(wait, run_dir=tmp_path, number=2))
    assert b"choice" in files.questions.read_bytes()
    made.write_text('{"id":"b","first":"x"}\n')
    assert "kept in round-02.to_annotate.before.jsonl" in str(ask_people(wait, run_dir=tmp_path, number=2))
    assert files.questions.read_text() == made.read_text()
