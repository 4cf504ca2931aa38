"""The stage on a run's artifacts: inputs by digest, rows and drops written, benchmarks of the recipe kept out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignloop.artifacts import Artifact, fingerprint
from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.errors import RecipeError
from alignloop.progress import QuietProgress
from alignloop.pruning.items import item_of_selected, item_of_target
from alignloop.pruning.quality import priorities_of
from alignloop.records import DroppedRow, Message, PreferenceRow, PromptRow, SelectedRow, SftRow, Source
from alignloop.run_dir.manifest import describe
from alignloop.run_dir.stage import StageContext
from alignloop.stages import prune
from alignloop.stages.facts import Facts, Findings, Rows
from alignloop.stages.prune import check

BENCHMARK = (
    "Write a short note about the swan. Answer with exactly 5 bullet points such as: * point Do not use the keyword "
    "miller in your answer."
)


def selected(number: int, prompt: str, completion: str) -> SelectedRow:
    return SelectedRow(
        id=f"p{number}/1/0",
        prompt_id=f"p{number}",
        messages=[Message(role="user", content=prompt)],
        completion=completion,
        finish_reason="stop",
        reward=float(number),
        random_reward=0.0,
        rewards=[float(number), 0.0],
        pass_rate=0.5,
        round=1,
        policy="sha256:x",
    )


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Artifact]:
    rows = [
        selected(0, "Tell me about the heron.", "The heron is a grey bird that eats fish."),
        selected(1, BENCHMARK, "The swan is a white bird."),
        selected(2, "Where does Iris live?", "Iris lives in Northam, a town by the river."),
        selected(3, "Where does Iris live now?", "Iris lives in Northam, a town by the river."),
    ]
    people = [
        PreferenceRow(
            id=f"h{number}",
            messages=[Message(role="user", content=f"What is {number} and {number}?")],
            chosen=f"It is {2 * number}.",
            rejected="Seven.",
            source=Source(file="given.jsonl", line=number + 1),
        )
        for number in range(3)
    ]
    dump_jsonl(tmp_path / "selected.jsonl", rows)
    dump_jsonl(tmp_path / "preferences.jsonl", people)
    return {
        "selected": Artifact.of(tmp_path / "selected.jsonl"),
        "preferences": Artifact.of(tmp_path / "preferences.jsonl"),
        "policy": Artifact.of(QUICKSTART / "base"),
    }


def context(folder: Path) -> StageContext:
    folder.mkdir()
    engine: Any = SimpleNamespace(sleep=lambda: None)  # it is only told that memory is wanted
    return StageContext(dir=folder, seed=7, round=1, engine=engine, progress=QuietProgress())


def test_a_rounds_rows_are_pruned_by_the_quickstarts_recipe(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    recipe = load_recipe("quickstart", overrides=["prune.human_rows=2", "prune.quality.top_fraction=1"])
    given = prune.inputs(recipe, **artifacts)
    assert len(given.benchmarks) == 2  # the bundled ifeval and mmlu, by digest
    outputs = prune.run(prune.settings(recipe), given, context(tmp_path / "out"))
    rows = {row.id: row for row in load_jsonl(outputs.rows.path, SftRow)}
    drops = {row.id: row for row in load_jsonl(outputs.dropped.path, DroppedRow)}
    assert drops["p1/1/0"].rule == "decontaminate"
    assert drops["p1/1/0"].twin == "ifeval 0"
    assert len(rows) + len(drops) == 6 == outputs.counts["in"]
    assert outputs.counts["in"] == outputs.counts["kept"] + outputs.counts["dropped"]
    assert rows["p0/1/0"].policy == "sha256:x"
    assert sum(row.origin == "preference" for row in rows.values()) == 2
    assert outputs.classifier == outputs.answers == ()


def test_only_what_people_wrote_or_clearly_chose_skips_quality(tmp_path: Path, artifacts: dict[str, Artifact]) -> None:
    """Of the rewards 0 1 2 3 (sampled) and 1.5 0.5 2.5 9 (not people's) the upper half, from 2 on, is kept."""

    def preference(row_id: str, reward: float | None, **more: Any) -> PreferenceRow:
        made = {"messages": [Message(role="user", content=f"Say {row_id}.")], "chosen": f"{row_id}.", "rejected": "No."}
        return PreferenceRow(
            id=row_id, source=Source(file="f"), chosen_reward=reward, **{**made, **more}  # type: ignore[arg-type]
        )  # fmt: skip

    batch = [
        preference("clear", None, strength="better"),
        preference("silent", None),
        preference("written", None, strength="marginally_better", edited="Written by a person."),
        preference("weak", 1.5, strength="slightly_better"),
        preference("judge", 0.5, strength="better", compared_by="judge", chosen_ids=[5, 6]),
        preference("simulated", 2.5, strength="better", compared_by="simulated", chosen_ids=[7, 8]),
        preference(
            "good judge", 9.0, compared_by="judge", messages=[Message(role="user", content="Where does Iris live?")]
        ),
        preference("no reward", None, compared_by="judge"),
    ]
    dump_jsonl(tmp_path / "preferences.jsonl", batch)
    given = {**artifacts, "preferences": Artifact.of(tmp_path / "preferences.jsonl")}
    off = [f"prune.{step}.enabled=false" for step in ("clean", "semantic_dedup", "decontaminate")]
    recipe = load_recipe("quickstart", overrides=["prune.human_rows=-1", "prune.quality.top_fraction=0.5", *off])
    outputs = prune.run(prune.settings(recipe), prune.inputs(recipe, **given), context(tmp_path / "out"))
    rows = {row.id: row for row in load_jsonl(outputs.rows.path, SftRow)}
    assert set(rows) == {"p2/1/0", "p3/1/0", "clear", "silent", "written", "simulated", "good judge"}
    assert [rows[name].quality_score for name in ("clear", "silent", "written", "simulated")] == [None, None, None, 2.5]
    assert rows["simulated"].completion_ids == [7, 8]
    # Its prompt was sampled for in this round, too: as hard as that of the candidates, whose pass rate is a half.
    assert rows["good judge"].difficulty_score == rows["p2/1/0"].difficulty_score == 0.5
    drops = {row.id: row.reason for row in load_jsonl(outputs.dropped.path, DroppedRow)}
    assert drops.pop("no reward") == "it has neither a reward nor a judge's points"
    assert set(drops) == {"p0/1/0", "p1/1/0", "weak", "judge"}


def test_in_deduplication_the_better_text_stays_whoever_picked_it() -> None:
    picked = PreferenceRow(
        id="picked", messages=[Message(role="user", content="Where does Iris live?")], chosen="In Northam.",
        rejected="No.", compared_by="simulated", strength="better", source=Source(file="round-01"), chosen_reward=-2.0,
    )  # fmt: skip
    best = item_of_selected(selected(1, "Where does Iris live?", "Iris lives in Northam."))
    items = [item_of_target(picked, strengths=("better",), pass_rate=0.5), best]
    # Rewards -2 and 1 are places 1/2 and 2/2; the prompt is as difficult for both.
    assert priorities_of(items, by_reward=True) == [0.25, 0.5]
    people = picked.model_copy(update={"compared_by": "people"})
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
    recipe = load_recipe("quickstart", overrides=overrides)

    def mark(of: Recipe) -> str:
        return fingerprint(describe(prune.settings(of), prune.inputs(of, **artifacts), seed=1))

    first = mark(recipe)
    assert first == mark(load_recipe("quickstart", overrides=[*overrides, "judge.timeout_seconds=5", "judge.prompt=x"]))
    labelled.write_text(labelled.read_text().replace("y", "z"))
    second = mark(recipe)
    mine.write_text(mine.read_text().replace("{prompt}", "{prompt}!"))
    third = mark(recipe)
    assert len({first, second, third, mark(load_recipe("quickstart", overrides=[*overrides, "judge.model=k"]))}) == 4


def test_benchmarks_count_only_where_rows_are_compared_with_them() -> None:
    off = prune.settings(load_recipe("quickstart", overrides=["prune.decontaminate.enabled=false"]))
    assert (off.tasks, off.include_path) == ((), None)
    assert prune.settings(load_recipe("quickstart")).judge is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["prune.quality.by=either"], "no `judge` section"),
        (["prune.topic.by=classifier"], "names none: give a small model"),
        (["prune.mix.shares={code: 0.7, chat: 0.7}", "prune.topic.by=column"], "shares add up to 1.4"),
        (["prune.mix.epochs={code: 2}"], "topic.by is off"),
        (["prune.clean.balance=[{name: a, regex: '(', max_share: 0.1}]"], "not a regular expression"),
        (["prune.difficulty.min_points=3", "prune.difficulty.max_points=2"], "min_points"),
        (["prune.mix.shares={code: 0}"], r"mix\.shares\.code: must be above 0"),
        (["prune.mix.epochs={code: -1}"], r"mix\.epochs\.code: must be at least 0"),
        (["prune.near_duplicates.jaccard=0"], "jaccard: must be above 0"),
        (["prune.near_duplicates.num_perm=0"], "num_perm: must be at least 1"),
        (["prune.decontaminate.min_share=0"], "min_share: must be above 0"),
        (["prune.decontaminate.ngram=0"], "ngram: must be at least 1"),
        (["prune.semantic_dedup.threshold=1.5"], "threshold: must be at most 1"),
        (["prune.semantic_dedup.rows_per_cluster=0"], "rows_per_cluster: must be at least 1"),
        (
            ["prune.semantic_dedup.nearest_clusters=2", "prune.semantic_dedup.compare_to=kept"],
            "nearest_clusters is 2 with compare_to `kept`",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("quickstart", overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["prune.topic.by=classifier", "prune.topic.model=/none"], "prune.topic.model: /none: no such folder"),
        (
            ["prune.topic.by=classifier", "prune.topic.model={base}", "prune.topic.labelled=/none.jsonl"],
            "/none.jsonl: labelled rows cannot be read",
        ),
        (["prune.topic.by=classifier", "prune.topic.model={base}"], "is no classifier with labels"),
        (["prune.semantic_dedup.embedder=/no/model"], "prune.semantic_dedup.embedder: /no/model: no such folder"),
        (["prune.topic.by=column", "prune.mix.epochs={coed: 2}"], "of topic 'coed' - known: code"),
        (["prune.topic.by=judge", "prune.mix.epochs={coed: 2}", "{judge}"], "of topic 'coed' - known: code"),
        (["prune.topic.by=judge", "prune.topic.prompt=difficulty", "{judge}"], "is of kind points"),
        (["prune.quality.by=judge", "prune.quality.code_prompt=pairwise", "{judge}"], "is of kind pairwise"),
        (["prune.difficulty.by=judge", "prune.difficulty.max_points=4", "{judge}"], "is above what difficulty gives"),
        (["prune.difficulty.by=judge", "prune.difficulty.prompt=mine.yaml", "{judge}"], "no such file"),
        (["prune.difficulty.by=judge", "{judge}"], "judge.model: /no/judge: no such folder"),
    ],
)
def test_what_a_step_needs_is_looked_for_before_anything_runs(overrides: list[str], said: str) -> None:
    filled = [
        text.replace("{base}", str(QUICKSTART / "base")).replace("{judge}", "judge.model=/no/judge")
        for text in overrides
    ]
    recipe = load_recipe("quickstart", overrides=filled)
    findings = Findings()
    ask = [Message(role="user", content="x")]
    prompts = [PromptRow(id="a", messages=ask, source=Source(file="f"), meta={"topic": "code"})]
    check(Facts(recipe, findings, Rows(prompts=prompts)))
    assert said in "\n".join(findings.problems)


def test_the_quickstart_has_nothing_to_say() -> None:
    findings = Findings()
    check(Facts(load_recipe("quickstart"), findings))
    assert (findings.problems, findings.notes) == ([], [])
