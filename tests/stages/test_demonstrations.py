"""Demonstrations: in any form, in once, pruned as people's, drawn by share, epochs and window, and told of."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_case import context, preference, write

from alignloop.artifacts import Artifact, stage_seed
from alignloop.config import load_recipe
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import load_jsonl
from alignloop.data.split import windowed
from alignloop.errors import DataError
from alignloop.look.why import lives_of
from alignloop.loop.check import check
from alignloop.loop.plan import make_plan
from alignloop.loop.plan_text import plan_text
from alignloop.loop.rounds import ingest_inputs
from alignloop.progress import QuietProgress
from alignloop.records import DroppedRow, RejectedRow, SelectedRow, SftRow
from alignloop.run_dir.layout import enter, locked
from alignloop.run_dir.manifest import describe
from alignloop.run_dir.stage import Location, StageContext, run_stage
from alignloop.stages import ingest, prune
from alignloop.stages.facts import ProblemsError

PAIRS = [{"id": str(n), "prompt": f"Name river number {n}.", "chosen": "The Lea.", "rejected": "No."} for n in range(8)]
QUESTION = "Farmers keep nine brown hens and two grey geese behind the old stone barn near Ghent."
HELD = 3
"""The pair that is held out, by the hash of its prompt."""
SHOWN = [{"messages": [{"role": "user", "content": f"Spell {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
         for n in range(6)]  # fmt: skip


def recipe_of(folder: Path, data: Any, *overrides: str) -> Recipe:
    bench = {"key": 1, "prompt": QUESTION, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    values = {
        "preferences": [str(write(folder / "pairs.jsonl", *PAIRS))],
        "evaluate": {"tasks": [f"ifeval={write(folder / 'bench.jsonl', bench)}"]},
        "engine": {"max_model_len": 1024, "name": "transformers"},
        "sample": {"max_tokens": 512},
        "data": {"heldout_fraction": 0.2},
        "sft": {"data": data},
    }
    return load_recipe(values, overrides=overrides)


def ingested(recipe: Recipe, out: Path) -> ingest.Outputs:
    ctx = context(out, number=0, seed=stage_seed(0, round=0, stage="ingest"))
    return ingest.run(ingest.settings(recipe), ingest_inputs(recipe), ctx)


def rows_of(files: tuple[Artifact, ...]) -> list[SftRow]:
    return [row for file in files for row in load_jsonl(file.path, SftRow)]


def pruned(recipe: Recipe, files: tuple[Artifact, ...], out: Path, *, number: int = 1) -> tuple[Any, list[SftRow]]:
    """The stage's outputs and its rows; one sampled row of a low reward and one of a high one, and one pair."""
    out.mkdir()
    best = [
        SelectedRow(
            id=f"p{n}/1/0", prompt_id=f"p{n}", messages=[{"role": "user", "content": f"Sing song {n} {n}."}],
            completion=f"La {n}.", finish_reason="stop", reward=n, random_reward=0.0, rewards=[n], pass_rate=None,
            round=1, policy="sha256:x",
        )
        for n in range(4)
    ]  # fmt: skip
    (out / "selected.jsonl").write_text("".join(f"{row.model_dump_json()}\n" for row in best))
    (out / "batch.jsonl").write_text(preference("h0").model_dump_json() + "\n")
    engine: Any = SimpleNamespace(sleep=lambda: None)
    ctx = StageContext(dir=out, seed=7, round=number, engine=engine, progress=QuietProgress())
    selected, batch = (Artifact.of(out / name) for name in ("selected.jsonl", "batch.jsonl"))
    given = prune.inputs(recipe, files, selected=selected, preferences=batch, policy=selected)
    outputs = prune.run(prune.settings(recipe), given, ctx)
    assert outputs.counts["in"] == outputs.counts["kept"] + outputs.counts["dropped"]
    return outputs, list(load_jsonl(outputs.rows.path, SftRow))


QUARTER = ("prune.quality.top_fraction=0.25", "prune.near_duplicates.enabled=true")
STEPS = [f"prune.{step}.enabled=false" for step in ("semantic_dedup", "decontaminate")]


def test_files_of_any_form_come_in_once_and_each_row_is_accounted_for(tmp_path: Path) -> None:
    messages = write(
        tmp_path / "messages.jsonl",
        {"id": "1", "messages": SHOWN[0]["messages"]},
        {"id": "2", "messages": SHOWN[1]["messages"][:1]},  # nobody answers
        {"id": "3", "messages": [{"role": "user", "content": QUESTION}, SHOWN[0]["messages"][1]]},
    )
    sharegpt = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "Hum."}, {"from": "gpt", "value": "Hm."}]
    held = [{"from": "human", "value": PAIRS[HELD]["prompt"]}, {"from": "gpt", "value": "Hm."}]
    sharegpt.write_text(json.dumps([{"id": "1", "conversations": turns}, {"id": "2", "conversations": held}]))
    alpaca = tmp_path / "alpaca.parquet"
    pq.write_table(pa.Table.from_pylist([{"instruction": "Add.", "input": "1 1", "output": "2"}]), alpaca)
    data = [str(messages), {"file": str(tmp_path / "*.json")}, str(alpaca)]
    outputs = ingested(recipe_of(tmp_path, data, "data.max_bad_fraction=0.5"), tmp_path / "out")
    assert [file.path.name for file in outputs.demonstrations] == [f"demonstrations-{n}.jsonl" for n in (1, 2, 3)]
    rows = rows_of(outputs.demonstrations)
    # The prompt of the preference that is held out trains nowhere, and ids are apart from those of preferences.
    assert [row.id for row in rows][:2] == ["demonstration/1", "demonstration/1~2"]
    assert [row.target.text for row in rows] == ["It is 0.", "Hm.", "2"]
    assert {row.origin for row in rows} == {"demonstration"}
    assert [(row.source.file, row.source.line) for row in rows[:2]] == [(str(messages), 1), (str(sharegpt), 1)]
    dropped = [row for file in outputs.dropped_demonstrations for row in load_jsonl(file.path, DroppedRow)]
    assert [(row.id, row.rule) for row in dropped] == [
        ("demonstration/3", "decontaminate"),
        ("demonstration/2", "heldout_prompt"),
    ]
    (bad,) = load_jsonl(outputs.rejected_rows.path, RejectedRow)
    assert (bad.file, bad.line, bad.field) == (str(messages), 2, "messages[0]")
    assert "the last turn must be the assistant's, not the user's" in bad.reason
    counts = outputs.counts
    assert (counts["demonstrations_in"], counts["demonstrations"], counts["demonstrations_dropped"]) == (6, 3, 3)
    assert counts["in"] == 8  # of preferences alone, as without demonstrations


def test_what_an_earlier_run_found_by_its_own_models_is_left_behind(tmp_path: Path) -> None:
    row = {"id": "a/1/0", "origin": "best_of_k", "source": {"file": "round-01"}, "completion_ids": [5, 6], "round": 1,
           "quality_score": 9.0, "policy": "sha256:x", "rewards": [9.0], "finish_reason": "length",
           **SHOWN[0]}  # fmt: skip
    outputs = ingested(recipe_of(tmp_path, str(write(tmp_path / "rows.jsonl", row))), tmp_path / "out")
    (found,) = rows_of(outputs.demonstrations)
    assert (found.origin, found.completion_ids, found.quality_score, found.policy) == (
        "demonstration",
        None,
        None,
        None,
    )
    assert found.finish_reason == "length"  # cut off is cut off


def test_quality_drops_none_for_lack_of_a_reward_and_cleaning_drops_as_ever(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Say ha."}, {"role": "assistant", "content": "ha ha ha " * 40}]
    shown = [*SHOWN, SHOWN[0], {"messages": turns}]
    recipe = recipe_of(tmp_path, str(write(tmp_path / "shown.jsonl", *shown)), *QUARTER, *STEPS)
    files = ingested(recipe, tmp_path / "in").demonstrations
    outputs, rows = pruned(recipe, files, tmp_path / "out")
    by_origin = {origin: [row for row in rows if row.origin == origin] for origin in ("best_of_k", "demonstration")}
    assert [row.id for row in by_origin["best_of_k"]] == ["p3/1/0"]
    assert len(by_origin["demonstration"]) == outputs.counts["demonstrations"] == 6
    assert outputs.counts["other_rows"] == 2  # with the preference's chosen completion
    assert sorted(row.rule for row in load_jsonl(outputs.dropped.path, DroppedRow)) == [
        "clean",
        "near_duplicates",
        "quality",
        "quality",
        "quality",
    ]


def test_epochs_repeat_rows_and_a_share_makes_the_longer_side_give_way(tmp_path: Path) -> None:
    file = str(write(tmp_path / "shown.jsonl", *SHOWN))
    whole = ("prune.quality.enabled=false", *STEPS)
    twice = recipe_of(tmp_path, {"file": file, "epochs": 2.5}, *whole)
    files = ingested(twice, tmp_path / "in").demonstrations
    outputs, rows = pruned(twice, files, tmp_path / "twice")
    # 6 rows, each twice and half of them a third time, beside 4 sampled and 1 of the pair.
    assert (len(rows), outputs.counts["repeated"], outputs.counts["demonstrations"]) == (20, 9, 6)
    few = recipe_of(tmp_path, {"file": file, "share": 0.375}, *whole)
    outputs, rows = pruned(few, files, tmp_path / "few")
    # All 5 others are 62.5 % of 8: 3 demonstrations are drawn.
    assert (outputs.counts["demonstrations"], outputs.counts["other_rows"]) == (3, 5)
    many = recipe_of(tmp_path, {"file": file, "share": 0.75}, *whole)
    outputs, rows = pruned(many, files, tmp_path / "many")
    # All 6 are 75 % of 8: 2 of the 5 others are drawn.
    assert (outputs.counts["demonstrations"], outputs.counts["other_rows"]) == (6, 2)
    assert outputs.counts["dropped_by_mix"] == 3


def test_a_window_is_of_the_rounds_in_which_rows_came_in(tmp_path: Path) -> None:
    rows = list("abcdef")
    taken = ["".join(windowed(rows, round=n, window=2, split_rounds=3)) for n in range(1, 6)]
    assert taken == ["ab", "abcd", "cdef", "ef", "ef"]  # later rounds bring the last share again
    assert windowed(rows, round=4, window=None, split_rounds=3) == rows
    assert windowed(["a"], round=2, window=1, split_rounds=3) == ["a"]
    recipe = recipe_of(
        tmp_path, str(write(tmp_path / "shown.jsonl", *SHOWN)), "sft.data_window=1", "data.split_rounds=3", *STEPS
    )
    files = ingested(recipe, tmp_path / "in").demonstrations
    _, found = pruned(recipe, files, tmp_path / "out", number=2)
    assert [row.source.line for row in found if row.origin == "demonstration"] == [3, 4]
    # In rounds 2 and 4 of four, with a window of one: those of rounds 1 and 3 of six train nowhere, nor those after 4.
    few = recipe_of(
        tmp_path, str(tmp_path / "shown.jsonl"), "sft.data_window=1", "rounds=4", "sft.every=2", "evaluate.every=1"
    )
    assert any("4 of 6 demonstrations" in note and "raise sft.data_window (1)" in note for note in check(few).notes)


def test_the_plan_counts_them_and_says_which_train(tmp_path: Path) -> None:
    file = str(write(tmp_path / "shown.jsonl", *SHOWN))
    recipe = recipe_of(tmp_path, [{"file": file, "epochs": 2}], "sft.data_window=2", "data.split_rounds=3", "rounds=3")
    text = " ".join(plan_text(make_plan(recipe, run_dir=tmp_path / "run")).split())
    assert "6 prompts, 6 demonstrations" in text
    assert f"sft.data {file}: 6 rows, 2 epochs" in text
    assert "sft.data_window 2: those that came in in the last 2 rounds, of 3 shares" in text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "the file is empty"),
        ([{"messages": SHOWN[0]["messages"][:1]}], "the last turn must be the assistant's"),
        ([{"instruction": QUESTION, "output": "No."}], "holds a question"),
    ],
)
def test_what_cannot_train_is_a_problem_before_the_run_and_an_error_in_it(
    tmp_path: Path, rows: list[Any], words: str
) -> None:
    recipe = recipe_of(tmp_path, str(write(tmp_path / "shown.jsonl", *rows)))
    with pytest.raises(ProblemsError) as found:
        check(recipe)
    assert words in str(found.value)
    assert "shown.jsonl" in str(found.value)
    with pytest.raises(DataError):
        ingested(recipe, tmp_path / "out")


def test_a_run_without_them_is_as_it_was(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, [])
    with locked(tmp_path / "run"):
        enter(tmp_path / "run", recipe, rebuild=False)
    location = Location(tmp_path / "run" / "round-00" / "01_ingest", 0, 0, run_dir=tmp_path / "run")
    engine: Any = None
    run_stage(
        ingest.STAGE, ingest.settings(recipe), ingest_inputs(recipe), location=location, engine=engine,
        progress=QuietProgress(),
    )  # fmt: skip
    assert "demonstration" not in (location.dir / "manifest.json").read_text()
    given = prune.inputs(recipe, (), selected=ARTIFACT, preferences=ARTIFACT, policy=ARTIFACT)
    assert "demonstrations" not in describe(prune.settings(recipe), given, seed=1)["inputs"]
    assert "demonstrations" not in describe(prune.settings(recipe), given, seed=1)["config"]


ARTIFACT = Artifact(Path("rows.jsonl"), "sha256:x")


def test_why_tells_of_one_from_its_file_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = recipe_of(tmp_path, str(write(tmp_path / "shown.jsonl", *SHOWN)))
    with locked(run):
        enter(run, recipe, rebuild=False)
    location = Location(run / "round-00" / "01_ingest", 0, 0, run_dir=run)
    engine: Any = None
    run_stage(
        ingest.STAGE, ingest.settings(recipe), ingest_inputs(recipe), location=location, engine=engine,
        progress=QuietProgress(),
    )  # fmt: skip
    (life,) = lives_of("shown.jsonl:3", run)
    assert (life.kind, life.texts, [step.verdict for step in life.steps]) == (
        "demonstration",
        {"target": "It is 2."},
        ["read"],
    )
