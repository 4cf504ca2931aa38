"""The training stages and their average, as a run drives them, on the bundled base and a handful of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage_case import Listening, at_door, written

from alignloop.alone.stage import parse_inputs
from alignloop.artifacts import Artifact
from alignloop.config.bundled import resolve_base
from alignloop.config.recipe import Recipe
from alignloop.config.training import (
    AverageConfig,
    AveragingConfig,
    DpoConfig,
    Reference,
    RewardConfig,
    SftConfig,
    Variant,
)
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError, DriftError, TrainingError, UserError
from alignloop.records import DroppedRow, Message, PairRow, PreferenceRow, Source
from alignloop.stages import average, bootstrap, train_dpo, train_reward, train_sft
from alignloop.stages.build_pairs import preference_pair
from alignloop.stages.train_sft import preferred
from alignloop.stages.training import Outputs

QUICK: dict[str, Any] = {"dtype": "float32", "batch_groups": 2, "max_length": 64, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def base() -> Artifact:
    return Artifact.of(Path(resolve_base("quickstart")))


def preference(n: int, *, strength: str | None = None, chosen: str | None = None) -> PreferenceRow:
    return PreferenceRow(
        id=f"p{n}",
        messages=[Message(role="user", content=f"Name river {n}.")],
        chosen=chosen or f"River {n}.",
        rejected="No.",
        strength=strength,  # type: ignore[arg-type]
        source=Source(file="f"),
    )


def summary_of(outputs: Outputs) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(outputs.summary.path.read_text())
    return values


def test_a_reward_stage_of_two_variants_and_its_average(base: Artifact, tmp_path: Path) -> None:
    strengths = ["better", "slightly_better", "better", "better", "better"]
    rows = [preference(n, strength=strength) for n, strength in enumerate(strengths)]
    rows.append(preference(9, chosen="a river " * 200))  # over 64 tokens
    inputs = train_reward.Inputs(
        base,
        (written(tmp_path / "p.jsonl", rows),),
        written(tmp_path / "h.jsonl", [preference(n) for n in (20, 21)]),
    )
    config = RewardConfig(**QUICK, num_checkpoints=2, average_span=0.5, variants=(Variant(), Variant(seed=1)))

    def trained() -> Outputs:
        return at_door(train_reward.STAGE, config, inputs, tmp_path / "round-01" / "02_train_reward")

    outputs = trained()
    # 6 rows: one of a strength that does not train, one too long for either variant.
    assert outputs.counts == {
        "in": 6,
        "kept": 4,
        "dropped": 2,
        "dropped_by_strength": 1,
        "dropped_by_length": 1,
    }
    (dropped,) = outputs.dropped
    rules = {row.id: row.rule for row in load_jsonl(dropped.path, DroppedRow)}
    assert sorted(rules.values()) == ["length", "strength"]
    assert rules[rows[-1].id] == "length"
    assert [log.path.parent.name for log in outputs.logs] == ["variant-01", "variant-02"]
    assert [log.rows for log in outputs.logs] == [2, 2]
    entries = summary_of(outputs)["checkpoints"]
    assert [(e["file"], e["variant"], e["step"], e["changed"]) for e in entries] == [
        ("variant-01/checkpoints/step-000001", 1, 1, {}),
        ("variant-01/checkpoints/step-000002", 1, 2, {}),
        ("variant-02/checkpoints/step-000001", 2, 1, {"seed": 1}),
        ("variant-02/checkpoints/step-000002", 2, 2, {"seed": 1}),
    ]
    assert all({"loss", "accuracy"} <= e["metrics"].keys() for e in entries)
    last = [entries[1]["metrics"]["loss"], entries[3]["metrics"]["loss"]]
    assert outputs.metrics["eval_loss"] == pytest.approx(sum(last) / 2)

    def averaged(config: AverageConfig, *, rebuild: bool = False) -> average.Outputs:
        folder = tmp_path / "round-01" / "03_average"
        return at_door(average.SFT, config, average.of(trained()), folder, rebuild=rebuild)

    assert averaged(AverageConfig()).counts == {"checkpoints": 4, "averaged": 4}
    # Other averaging is another average of the same training: `averaging` is no part of what the stage is known by.
    before = {path: path.stat().st_mtime_ns for path in outputs.summary.path.parent.rglob("*")}
    with pytest.raises(DriftError, match=r"config\.choose: \(not there\) -> 1"):
        averaged(AverageConfig(choose=1))
    best = averaged(AverageConfig(choose=1), rebuild=True)
    assert best.counts == {"checkpoints": 4, "averaged": 1}
    assert {path: path.stat().st_mtime_ns for path in outputs.summary.path.parent.rglob("*")} == before
    losses = [entry["metrics"]["loss"] for entry in entries]
    said = json.loads(best.averaged.path.read_text())["checkpoints"]
    assert [entry["weight"] for entry in said] == [float(loss == min(losses)) for loss in losses]
    chosen = outputs.checkpoints[losses.index(min(losses))]
    assert (best.checkpoint.path / "model.safetensors").read_bytes() == (chosen.path / "model.safetensors").read_bytes()


def test_rows_that_no_variant_has_drawn_are_counted(base: Artifact, tmp_path: Path) -> None:
    inputs = train_sft.Inputs(base, written(tmp_path / "s.jsonl", [preferred(preference(n)) for n in range(4)]))
    config = SftConfig(**QUICK, variants=(Variant(data_fraction=0.5), Variant(data_fraction=0.5, epochs=2)))
    outputs = at_door(train_sft.STAGE, config, inputs, tmp_path / "round-01" / "08_train_sft")
    # Both draw with the stage's seed, and so the same half.
    assert outputs.counts["in"] == 4
    assert outputs.counts["dropped_by_draw"] == outputs.counts["dropped"] == 2
    assert [row.rule for row in load_jsonl(outputs.dropped[0].path, DroppedRow)] == ["draw", "draw"]
    assert [log.rows for log in outputs.logs] == [1, 2]
    assert not any(name.startswith("eval_") for name in outputs.metrics)
    assert [entry["metrics"] for entry in summary_of(outputs)["checkpoints"]] == [{}, {}]
    with pytest.raises(UserError, match=r"averaging\.sft\.choose: the checkpoints have no loss on held-out rows"):
        at_door(average.SFT, AverageConfig(choose=1), average.of(outputs), tmp_path / "round-01" / "09_average")


@pytest.mark.parametrize("name", ["train_sft", "train_dpo"])
def test_a_policy_without_rows_is_published_as_it_was(base: Artifact, tmp_path: Path, name: str) -> None:
    heard = Listening()
    heldout = written(tmp_path / "h.jsonl", [preference(20)])
    none = written(tmp_path / "none.jsonl", [])
    recipe = Recipe(preferences=("p.jsonl",), sft=SftConfig(**QUICK, variants=(Variant(), Variant(seed=1))))
    stage: Any = {"train_sft": train_sft, "train_dpo": train_dpo}[name]
    models = (base,) if name == "train_sft" else (base, base)
    inputs = stage.Inputs(*models, none, heldout)
    outputs = at_door(stage.STAGE, stage.settings(recipe), inputs, tmp_path / "round-01" / name, progress=heard)
    (checkpoint,) = outputs.checkpoints
    assert checkpoint.digest == base.digest
    assert outputs.counts["in"] == outputs.counts["kept"] == 0
    assert outputs.facts == {"trained_tokens": 0}
    assert [log.rows for log in outputs.logs] == [0]
    objective = name.removeprefix("train_")
    assert f"  {objective}: no row to train on: the checkpoint it begins from is published as it is" in heard.lines
    # What the recipe averages of a training does not hold for what none has changed.
    averaging = AverageConfig(choose=2, weights=(1.0, 2.0))
    averaged = at_door(average.SFT, averaging, average.of(outputs), tmp_path / "round-01" / "average")
    assert averaged.checkpoint.digest == base.digest


def test_a_reward_model_without_rows_is_an_error(base: Artifact, tmp_path: Path) -> None:
    none = written(tmp_path / "none.jsonl", [])
    with pytest.raises(TrainingError, match="reward: there is no row to train on"):
        at_door(train_reward.STAGE, RewardConfig(**QUICK), train_reward.Inputs(base, (none,), none), tmp_path / "r")


def test_a_stage_trains_until_its_tokens_are_reached(base: Artifact, tmp_path: Path) -> None:
    inputs = train_sft.Inputs(base, written(tmp_path / "s.jsonl", [preferred(preference(n)) for n in range(3)]))
    tokens = at_door(train_sft.STAGE, SftConfig(**QUICK), inputs, tmp_path / "a").facts["trained_tokens"]
    config = SftConfig(**QUICK, train_tokens=4 * tokens)
    assert at_door(train_sft.STAGE, config, inputs, tmp_path / "b").facts == {"trained_tokens": 4 * tokens}


def test_edited_completions_are_left_out_of_the_rankings(base: Artifact, tmp_path: Path) -> None:
    """The reward model of `use_edited: false` is that of the same rows without their edits, held-out ones too."""
    bare = [preference(n) for n in range(4)]
    edited = [row.model_copy(update={"edited": f"The river {n}."}) for n, row in enumerate(bare)]

    def trained(name: str, rows: list[PreferenceRow], **more: Any) -> Outputs:
        files = (written(tmp_path / f"{name}-{part}.jsonl", some) for part, some in (("p", rows[:3]), ("h", rows[3:])))
        preferences, heldout = files
        inputs = train_reward.Inputs(base, (preferences,), heldout)
        return at_door(train_reward.STAGE, RewardConfig(**QUICK, **more), inputs, tmp_path / name)

    without, left_out, ranked = (
        trained("bare", bare),
        trained("left-out", edited, use_edited=False),
        trained("ranked", edited),
    )
    assert left_out.checkpoints[0].digest == without.checkpoints[0].digest != ranked.checkpoints[0].digest
    assert left_out.metrics == without.metrics
    assert left_out.counts == ranked.counts


@pytest.mark.parametrize("stage", [train_reward, train_sft, train_dpo, bootstrap])
def test_the_layout_is_part_of_what_a_training_is_known_by(stage: Any) -> None:
    recipe = {"preferences": ["p.jsonl"], "training": {"num_processes": 2}}
    packed, separate = (
        stage.settings(Recipe.model_validate({**recipe, "training": training}))
        for training in ({"num_processes": 2}, {"layout": "separate"})
    )
    assert packed.model_dump(exclude={"layout"}) == separate.model_dump(exclude={"layout"})
    assert (packed.layout, separate.layout) == ("packed", "separate")


def test_sft_is_measured_on_what_people_liked_best(base: Artifact, tmp_path: Path) -> None:
    """The loss before the first update is the base's own: a learning rate of next to nothing leaves it there."""
    config = SftConfig(**{**QUICK, "learning_rate": 1e-12})

    def loss(chosen: str, folder: str) -> float:
        heldout = written(tmp_path / f"{folder}.jsonl", [preference(1, chosen=chosen)])
        inputs = train_sft.Inputs(base, written(tmp_path / "s.jsonl", [preferred(preference(1))]), heldout)
        outputs = at_door(train_sft.STAGE, config, inputs, tmp_path / "round-01" / folder)
        (entry,) = summary_of(outputs)["checkpoints"]
        assert entry["variant"] is None
        assert outputs.metrics["eval_loss"] == entry["metrics"]["loss"]
        # One row, one step: what it trains on is what is held out in the first call.
        if chosen == "River 1.":
            assert outputs.metrics["eval_loss"] == pytest.approx(outputs.metrics["train_loss"], rel=1e-4)
        return outputs.metrics["eval_loss"]

    assert loss("River 1.", "08_a") != loss("Quite another thing.", "08_b")


def test_dpo_is_measured_on_held_out_pairs_of_its_strengths(base: Artifact, tmp_path: Path) -> None:
    pairs = [preference_pair(preference(n)) for n in range(2)]
    recipe = Recipe(preferences=("p.jsonl",), dpo=DpoConfig(**QUICK), pairs={"strengths": ("better",)})  # type: ignore[arg-type]
    config = train_dpo.settings(recipe)
    assert config.heldout_strengths == ("better",)

    def metrics(folder: str, heldout: list[PreferenceRow]) -> dict[str, float]:
        inputs = train_dpo.Inputs(
            base, base, written(tmp_path / "d.jsonl", pairs), written(tmp_path / f"{folder}.jsonl", heldout)
        )
        return at_door(train_dpo.STAGE, config, inputs, tmp_path / "round-01" / folder).metrics

    strong, weak = preference(30, strength="better"), preference(31, strength="slightly_better", chosen="Other words.")
    with_weak = metrics("11_a", [strong, weak])
    alone = metrics("11_b", [strong])
    measured = {name: value for name, value in with_weak.items() if name.startswith("eval_")}
    assert "eval_accuracy" in measured
    assert measured == {name: value for name, value in alone.items() if name.startswith("eval_")}


def dpo_config(**dpo: Any) -> train_dpo.Settings:
    return train_dpo.settings(Recipe(preferences=("p.jsonl",), dpo=DpoConfig(**QUICK, **dpo)))


def test_a_loss_and_its_reference_come_together_or_not_at_all(base: Artifact, tmp_path: Path) -> None:
    pairs = written(tmp_path / "d.jsonl", [preference_pair(preference(n)) for n in range(2)])

    def trained(reference: Artifact | None, **dpo: Any) -> Outputs:
        inputs = train_dpo.Inputs(base, reference, pairs)
        return at_door(train_dpo.STAGE, dpo_config(**dpo), inputs, tmp_path / f"{len(list(tmp_path.iterdir()))}")

    with pytest.raises(UserError, match=r"dpo\.loss: ipo compares with a reference model, and none is given"):
        trained(None, loss="ipo")
    with pytest.raises(UserError, match=rf"dpo\.loss: simpo has no reference model, but {base.path} is given"):
        trained(base, loss="simpo")
    assert trained(None, loss="simpo").metrics["train_dpo_loss"] > 0.0
    # A round asks for what its loss takes.
    recipes = [Recipe(preferences=("p.jsonl",), dpo=DpoConfig(loss=loss)) for loss in ("simpo", "hinge")]
    models: dict[Reference, Artifact] = {"sft": base, "base": pairs, "previous": pairs, "ema": pairs}
    others: dict[str, Any] = {"pairs": pairs, "heldout": pairs, "optimizer": ()}
    asked = [train_dpo.inputs(recipe, base, models, **others).reference for recipe in recipes]
    assert asked == [None, base]


def test_pairs_without_a_margin_are_counted_and_some_must_have_one(base: Artifact, tmp_path: Path) -> None:
    silent = [preference_pair(preference(n)) for n in range(3)]
    scored = silent[0].model_copy(update={"reward_gap": 2.0, "strength": "better"})

    def said(name: str, pairs: list[PairRow], margin: str) -> list[str]:
        heard = Listening()
        inputs = train_dpo.Inputs(base, base, written(tmp_path / f"{name}.jsonl", pairs))
        at_door(train_dpo.STAGE, dpo_config(margin=margin), inputs, tmp_path / name, progress=heard)
        return [line.strip() for line in heard.lines if "margin" in line]

    for margin, column in (("reward", "reward_gap"), ("strength", "strength")):
        assert said(f"some-{margin}", [scored, *silent[1:]], margin) == [
            f"dpo.margin: {margin}: 2 of 3 pairs have no {column} (first: row p1), so their margin is 0"
        ]
        assert said(f"all-{margin}", [scored], margin) == []
        none_has_one = rf"dpo\.margin: {margin}: none of the 3 pairs has a {column} \(first: row p0"
        with pytest.raises(DataError, match=none_has_one):
            said(f"none-{margin}", silent, margin)
    assert said("no-margin", silent, "none") == []


def test_a_stage_alone_knows_its_averaging(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    alone = parse_inputs(average.SFT, [f"checkpoints={tmp_path / 'a'}"])
    assert alone.summary is None

    def config(inputs: average.Inputs, **averaging: AverageConfig) -> AverageConfig:
        recipe = Recipe(preferences=("p.jsonl",), averaging=AveragingConfig(**averaging))
        return average.stage_for(recipe, inputs).settings(recipe)

    assert config(alone) == AverageConfig()
    sft, dpo = AverageConfig(weights=(1, 2)), AverageConfig(choose=1)
    assert config(alone, sft=sft) == sft
    with pytest.raises(UserError, match=r"averaging\.sft and averaging\.dpo: say which"):
        config(alone, sft=sft, dpo=dpo)
    (tmp_path / "train_summary.json").write_text(json.dumps({"objective": "dpo", "checkpoints": []}))
    told = parse_inputs(average.SFT, [f"checkpoints={tmp_path / 'a'}", f"summary={tmp_path / 'train_summary.json'}"])
    assert config(told, sft=sft, dpo=dpo) == dpo
