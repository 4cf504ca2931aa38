"""The stage on a run's artifacts: inputs by digest, rows and drops written, benchmarks of the recipe kept out.

Errors of recipes and of missing inputs: tests/golden.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pruning_rows import ask, preference_row, selected_row

from alignloop.artifacts import Artifact, fingerprint
from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.errors import RecipeError
from alignloop.progress import QuietProgress
from alignloop.pruning.items import item_of_selected, item_of_target
from alignloop.pruning.quality import priorities_of
from alignloop.records import DroppedRow, SftRow, Source
from alignloop.run_dir.manifest import describe
from alignloop.run_dir.stage import StageContext
from alignloop.stages import prune
from alignloop.stages.facts import Facts, Findings

BENCHMARK = (
    "Write a short note about the cactus. Refrain from the use of any commas in your response. Use only capital "
    "letters."
)
IRIS = "Iris lives in Northam, a town by the river."


def artifact(path: Path, rows: list[Any]) -> Artifact:
    dump_jsonl(path, rows)
    return Artifact.of(path)


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Artifact]:
    texts = [
        ("Tell me about the heron.", "The heron is a grey bird that eats fish."),
        (BENCHMARK, "The swan is a white bird."),
        ("Where does Iris live?", IRIS),
        ("Where does Iris live now?", IRIS),
    ]
    best = [
        selected_row(f"p{number}/1/0", float(number), messages=ask(prompt), completion=completion, round=1)
        for number, (prompt, completion) in enumerate(texts)
    ]
    people = [
        preference_row(f"h{n}", messages=ask(f"What is {n} and {n}?"), chosen=f"It is {2 * n}.") for n in range(3)
    ]
    return {
        "selected": artifact(tmp_path / "selected.jsonl", best),
        "preferences": artifact(tmp_path / "preferences.jsonl", people),
        "policy": Artifact.of(QUICKSTART / "base"),
    }


def pruned(recipe: Recipe, artifacts: dict[str, Artifact], folder: Path) -> Any:
    """(rows by id, drops by id, the stage's outputs)."""
    folder.mkdir()
    engine: Any = SimpleNamespace(sleep=lambda: None)  # it is only told that memory is wanted
    context = StageContext(dir=folder, seed=7, round=1, engine=engine, progress=QuietProgress())
    outputs = prune.run(prune.settings(recipe), prune.inputs(recipe, **artifacts), context)
    rows = {row.id: row for row in load_jsonl(outputs.rows.path, SftRow)}
    drops = {row.id: row for row in load_jsonl(outputs.dropped.path, DroppedRow)}
    assert outputs.counts["in"] == outputs.counts["kept"] + outputs.counts["dropped"] == len(rows) + len(drops)
    return rows, drops, outputs


def test_a_rounds_rows_are_pruned_by_the_quickstarts_recipe(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    recipe = load_recipe("quickstart", overrides=["prune.human_rows=2", "prune.quality.top_fraction=1"])
    assert len(prune.inputs(recipe, **artifacts).benchmarks) == 4  # the bundled files, by digest
    rows, drops, outputs = pruned(recipe, artifacts, tmp_path / "out")
    assert (drops["p1/1/0"].rule, drops["p1/1/0"].twin) == ("decontaminate", "ifeval_dev 0")
    assert outputs.counts["in"] == 6
    assert rows["p0/1/0"].policy == "sha256:x"
    assert sum(row.origin == "preference" for row in rows.values()) == 2
    assert outputs.classifier == outputs.answers == ()


def test_only_what_people_wrote_or_clearly_chose_skips_quality(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    """Of the rewards 0 1 2 3 (sampled) and 1.5 0.5 2.5 9 (not people's) the upper half, from 2 on, is kept."""
    values: dict[str, dict[str, Any]] = {
        "clear": {"strength": "better"},
        "silent": {},
        "written": {"strength": "marginally_better", "edited": "Written by a person."},
        "weak": {"chosen_reward": 1.5, "strength": "slightly_better"},
        "judge": {"chosen_reward": 0.5, "strength": "better", "compared_by": "judge", "chosen_ids": [5, 6]},
        "simulated": {"chosen_reward": 2.5, "strength": "better", "compared_by": "simulated", "chosen_ids": [7, 8]},
        "good judge": {"chosen_reward": 9.0, "compared_by": "judge", "messages": ask("Where does Iris live?")},
        "no reward": {"compared_by": "judge"},
    }
    batch = [
        preference_row(name, **{"messages": ask(f"Say {name}."), "chosen": f"{name}.", **more})
        for name, more in values.items()
    ]
    given = {**artifacts, "preferences": artifact(tmp_path / "preferences.jsonl", batch)}
    off = [f"prune.{step}.enabled=false" for step in ("clean", "semantic_dedup", "decontaminate")]
    recipe = load_recipe("quickstart", overrides=["prune.human_rows=-1", "prune.quality.top_fraction=0.5", *off])
    rows, drops, _ = pruned(recipe, given, tmp_path / "out")
    assert set(rows) == {"p2/1/0", "p3/1/0", "clear", "silent", "written", "simulated", "good judge"}
    assert [rows[name].quality_score for name in ("clear", "silent", "written", "simulated")] == [None, None, None, 2.5]
    assert rows["simulated"].completion_ids == [7, 8]
    # Its prompt was sampled for in this round, too: as hard as that of the candidates, whose pass rate is a half.
    assert rows["good judge"].difficulty_score == rows["p2/1/0"].difficulty_score == 0.5
    assert set(drops) == {"p0/1/0", "p1/1/0", "weak", "judge", "no reward"}
    assert drops["no reward"].reason == "it has neither a reward nor a judge's points"


@pytest.mark.parametrize(
    ("sources", "kept"),
    [
        ("file", {"h0", "h1"}),
        ("annotated", {"a0", "a1"}),
        ("on_policy", {"p0/1/0", "p2/1/0", "p3/1/0"}),
        ("annotated, on_policy", {"a0", "a1", "p0/1/0", "p2/1/0", "p3/1/0"}),
        ("", set()),
    ],
)
def test_sft_rows_come_of_the_named_sources_alone(
    tmp_path: Path, artifacts: dict[str, Artifact], sources: str, kept: set[str]
) -> None:
    rounds = [
        preference_row(
            f"a{n}", messages=ask(f"What is {n} and 1?"), chosen=f"It is {n + 1}.", source=Source.of_round(2)
        )
        for n in range(2)
    ]
    files = [preference_row(f"h{n}", messages=ask(f"What is {n} and {n}?"), chosen=f"It is {2 * n}.") for n in range(2)]
    given = {**artifacts, "preferences": artifact(tmp_path / "preferences.jsonl", [*files, *rounds])}
    more = ["prune.human_rows=2", "prune.quality.top_fraction=1", f"prune.sources=[{sources}]"]
    rows, drops, outputs = pruned(load_recipe("quickstart", overrides=more), given, tmp_path / "out")
    assert set(rows) == kept
    left_out = {row_id for row_id, drop in drops.items() if drop.rule == "sources"}
    assert left_out | set(rows) >= {"h0", "h1", "a0", "a1", "p0/1/0", "p2/1/0", "p3/1/0"}
    assert outputs.counts["in"] == 8  # those of no wanted source are counted, with their reason
    assert outputs.counts["dropped_by_sources"] == len(left_out)


def test_in_deduplication_the_better_text_stays_whoever_picked_it() -> None:
    picked = preference_row("picked", compared_by="simulated", strength="better", chosen_reward=-2.0)
    people = picked.model_copy(update={"compared_by": "people"})
    best = item_of_selected(selected_row("best", 1.0))
    # Rewards -2 and 1 are places 1/2 and 2/2; the prompt is as difficult for both.
    items = [item_of_target(picked, strengths=("better",), pass_rate=0.5), best]
    assert priorities_of(items, by_reward=True) == [0.25, 0.5]
    assert priorities_of([item_of_target(people, strengths=("better",)), best], by_reward=True) == [2.0, 0.5]
    assert priorities_of([item_of_target(people, strengths=("significantly_better",)), best], by_reward=True)[0] < 1.0


def test_what_the_recipe_names_is_part_of_the_fingerprint(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text('{"topic": "a", "prompt": "x"}\n' * 2 + '{"topic": "b", "prompt": "y"}\n' * 2)
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "kind: points\nuser: '{prompt}'\nverdict: {field: p, maximum: 3}\nschema: {type: object, "
        "properties: {p: {type: integer}}, required: [p]}\n"
    )
    overrides = [
        "prune.topic.by=classifier",
        f"prune.topic.model={QUICKSTART / 'base'}",
        f"prune.topic.labelled={labelled}",
        "prune.difficulty.by=judge",
        f"prune.difficulty.prompt={mine}",
        "judge.model=j",
        "judge.endpoint=http://localhost:1/v1",
    ]

    def mark(*more: str) -> str:
        recipe = load_recipe("quickstart", overrides=[*overrides, *more])
        return fingerprint(describe(prune.settings(recipe), prune.inputs(recipe, **artifacts), seed=1))

    first = mark()
    assert first == mark("judge.timeout_seconds=5", "judge.prompt=x")
    labelled.write_text(labelled.read_text().replace("y", "z"))
    second = mark()
    mine.write_text(mine.read_text().replace("{prompt}", "{prompt}!"))
    assert len({first, second, mark(), mark("judge.model=k")}) == 4


def test_benchmarks_count_only_where_rows_are_compared_with_them() -> None:
    off = prune.settings(load_recipe("quickstart", overrides=["prune.decontaminate.enabled=false"]))
    assert (off.tasks, off.include_path) == ((), None)
    assert prune.settings(load_recipe("quickstart")).judge is None


def test_numbers_that_cannot_be_are_refused() -> None:
    wrong = {
        "mix.shares={code: 0}": "must be above 0",
        "mix.epochs={code: -1}": "must be at least 0",
        "near_duplicates.jaccard=0": "must be above 0",
        "near_duplicates.num_perm=0": "must be at least 1",
        "decontaminate.min_share=0": "must be above 0",
        "decontaminate.ngram=0": "must be at least 1",
        "semantic_dedup.threshold=1.5": "must be at most 1",
        "semantic_dedup.rows_per_cluster=0": "must be at least 1",
    }
    with pytest.raises(RecipeError) as raised:
        load_recipe("quickstart", overrides=[f"prune.{field}" for field in wrong])
    found = {problem.split(": ")[0].removesuffix(".code"): problem for problem in raised.value.problems}
    assert len(found) == len(wrong)
    assert all(why in found[f"prune.{field.partition('=')[0]}"] for field, why in wrong.items())


def test_the_quickstart_has_nothing_to_say() -> None:
    findings = Findings()
    prune.check(Facts(load_recipe("quickstart"), findings))
    assert (findings.problems, findings.notes) == ([], [])
