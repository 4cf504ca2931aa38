"""`collect.policies: n`: which models of the earlier rounds answer beside the policy, in which round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from alignloop.artifacts import Artifact
from alignloop.config import load_recipe
from alignloop.config.recipe import Recipe
from alignloop.loop.check import Checked
from alignloop.loop.control import control_recipe
from alignloop.loop.plan import planned_stages
from alignloop.loop.rounds import other_policies
from alignloop.records import RoundRow
from alignloop.report.paired import Spent
from alignloop.run_dir.manifest import describe
from alignloop.run_dir.stage import Location, Stage, Standing
from alignloop.stages import runner, train_dpo, training
from alignloop.stages.facts import BaseFacts, Rows


def recipe(*overrides: str) -> Recipe:
    return load_recipe("quickstart", overrides=["engine.name=transformers", "collect.pairs_per_prompt=1", *overrides])


def made(name: str) -> Artifact:
    return Artifact(Path("/run") / name, f"sha256:{name}")


def row(number: int, *, gated: str | None = None) -> RoundRow:
    empty: dict[str, Any] = {name: {} for name in ("metrics", "stderr", "reward_model", "rows", "seconds")}
    return RoundRow(round=number, policy=f"round-{number}", gated=gated, **empty)


POLICIES = {number: made(f"policy-{number}") for number in range(5)}
VARIANTS: Mapping[int, tuple[Artifact, ...]] = {
    number: (made(f"v1-{number}"), made(f"v2-{number}")) for number in range(1, 5)
}


def others(num: int, rows: list[RoundRow], policy: int, *, variants: Mapping[int, tuple[Artifact, ...]]) -> list[str]:
    asked = recipe(f"collect.policies={num}")
    found = other_policies(asked, rows, POLICIES, policy=POLICIES[policy], variants=variants)
    return [artifact.path.name for artifact in found]


def test_the_last_rounds_that_passed_the_gate_answer_and_the_base_does_not() -> None:
    rows = [row(number) for number in range(5)]
    assert others(3, rows, 4, variants={}) == ["policy-3", "policy-2"]
    assert others(3, rows, 2, variants={}) == ["policy-4", "policy-3"]  # the best samples, and is not the last
    assert others(9, rows, 4, variants={}) == ["policy-3", "policy-2", "policy-1"]
    assert others(3, rows[:1], 0, variants={}) == []
    assert others(3, rows[:2], 1, variants={}) == []
    fell = [*rows[:3], row(3, gated="fell"), rows[4]]
    assert others(3, fell, 4, variants={}) == ["policy-2", "policy-1"]


def test_variants_of_the_policys_own_round_come_first() -> None:
    rows = [row(number) for number in range(5)]
    assert others(3, rows, 4, variants=VARIANTS) == ["v1-4", "v2-4"]
    assert others(4, rows, 2, variants=VARIANTS) == ["v1-2", "v2-2", "policy-4"]
    assert others(2, rows[:2], 1, variants=VARIANTS) == ["v1-1"]  # from round 2 on


def test_a_named_checkpoint_that_is_the_policy_is_no_second_model() -> None:
    rows, named = [row(number) for number in range(5)], (made("a"), POLICIES[4], made("a"))
    asked = recipe("collect.policies=[a, b, a]")
    for policy, expected in ((3, ["a", "policy-4"]), (4, ["a"])):
        found = other_policies(asked, rows, POLICIES, policy=POLICIES[policy], variants=VARIANTS, named=named)
        assert [artifact.path.name for artifact in found] == expected


def test_of_each_variant_the_last_checkpoint_is_its_model() -> None:
    paths = ["variant-01/step-3", "variant-01/step-9", "variant-02/step-4"]
    several = training.Outputs(checkpoints=tuple(map(made, paths)), logs=(), summary=made("summary"))
    assert [each.path.name for each in train_dpo.last_of_variants(several)] == ["step-9", "step-4"]
    alone = training.Outputs(checkpoints=(made("step-3"), made("step-9")), logs=(), summary=made("summary"))
    assert train_dpo.last_of_variants(alone) == ()  # the steps of one training are the policy's own


def planned(
    monkeypatch: pytest.MonkeyPatch, folder: Path, config: Recipe
) -> dict[tuple[int, str], tuple[dict[str, Any], Any]]:
    """(round, stage) -> what it is described by, and its inputs; as a plan walks the rounds."""
    found: dict[tuple[int, str], tuple[dict[str, Any], Any]] = {}

    def standing(
        stage: Stage[Any, Any, Any], settings: Any, inputs: Any, *, location: Location
    ) -> Standing[Any, Any, Any]:
        described = describe(settings, inputs, seed=location.seed(stage.name))
        found.setdefault((location.round, stage.name), (described, inputs))
        return Standing(stage, settings, inputs, location, described)

    monkeypatch.setattr(runner, "standing", standing)
    planned_stages(config, folder / "run", Checked(Rows(), BaseFacts(had_template=True), None, 0, ()))
    return found


def test_rounds_hand_on_the_models_and_what_they_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = recipe("collect.policies=3", "rounds=5", "sample.policy=previous")
    found = planned(monkeypatch, tmp_path, config)
    used = [
        [artifact.path.parts[-3] for artifact in found[number, "sample"][1].other_policies] for number in range(1, 6)
    ]
    assert used == [[], [], ["round-01"], ["round-02", "round-01"], ["round-03", "round-02"]]
    policies = [found[number, "sample"][1].policy.path.parts[-3] for number in range(2, 6)]
    assert policies == [f"round-0{number}" for number in range(1, 5)]
    assert found[4, "collect"][1].other_candidates[0].path.parent == found[3, "score"][1].candidates.path.parent
    assert not {"other_candidates", "other_policies"} & set(found[4, "select"][0]["inputs"])


def test_named_checkpoints_answer_from_the_first_round_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors").write_bytes(b"1")
    config = recipe(f"collect.policies=['{tmp_path / 'a'}']", "rounds=2")
    found = planned(monkeypatch, tmp_path, config)
    assert [[a.path for a in found[n, "sample"][1].other_policies] for n in (1, 2)] == [[tmp_path / "a"]] * 2


def test_controls_without_annotation_or_loop_go_without_other_models() -> None:
    config, spent = recipe("collect.policies=2"), Spent(sft_tokens=0, dpo_tokens=0, annotations=0, seconds=0.0)
    policies = [
        control_recipe(config, kind, spent=spent, rounds=2).collect.policies
        for kind in ("no-annotation", "offline", "random-pick")
    ]
    assert policies == [None, None, 2]
