"""What hangs on `dpo.loss`: defaults, what an explicit value does, and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignloop.artifacts import fingerprint
from alignloop.config import load_recipe
from alignloop.config.load import sound_part
from alignloop.config.training import DpoConfig, DpoLoss
from alignloop.errors import RecipeError
from alignloop.run_dir.layout import enter, locked
from alignloop.stages import train_dpo


@pytest.mark.parametrize(
    ("loss", "beta", "gamma", "label_smoothing", "nll_coefficient"),
    [
        ("sigmoid", 0.1, None, None, 0.2),
        ("sigmoid_norm", 5.0, None, None, 0.2),
        ("ipo", 0.1, None, None, 0.2),
        ("hinge", 0.1, None, None, 0.2),
        ("robust", 0.1, None, 0.1, 0.2),
        ("apo_zero", 0.1, None, None, 0.2),
        ("apo_down", 0.1, None, None, 0.0),
        ("simpo", 2.0, 1.0, None, 0.2),
    ],
)
def test_each_loss_brings_its_defaults_and_an_explicit_value_wins(
    loss: DpoLoss, beta: float, gamma: float | None, label_smoothing: float | None, nll_coefficient: float
) -> None:
    config = DpoConfig(loss=loss)
    found = (config.beta, config.gamma, config.label_smoothing, config.nll_coefficient)
    assert found == (beta, gamma, label_smoothing, nll_coefficient)
    assert DpoConfig(loss=loss, beta=0.3).beta == 0.3


def test_what_was_left_to_a_loss_is_left_to_another_one() -> None:
    simpo = load_recipe("quickstart", overrides=["dpo.loss=simpo"])
    assert (simpo.dpo.beta, simpo.dpo.gamma) == (2.0, 1.0)
    ipo = load_recipe(simpo, overrides=["dpo.loss=ipo"])
    assert (ipo.dpo.beta, ipo.dpo.gamma) == (0.1, None)
    explicit = load_recipe("quickstart", overrides=["dpo.loss=simpo", "dpo.beta=3"])
    assert load_recipe(explicit, overrides=["dpo.loss=sigmoid_norm"]).dpo.beta == 3.0


def test_a_run_holds_what_its_loss_brings_and_its_sparse_recipe_does_not(tmp_path: Path) -> None:
    recipe = load_recipe({"preferences": "x.jsonl", "dpo": {"loss": "simpo", "gamma": 0.5, "margin": "strength"}})
    with locked(tmp_path):
        enter(tmp_path, recipe, rebuild=False)
    resolved = json.loads((tmp_path / "resolved.json").read_text())["recipe"]["dpo"]
    assert (resolved["beta"], resolved["gamma"], resolved["margin_scale"]) == (2.0, 0.5, 1.0)
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert again.model_dump(exclude_defaults=True)["dpo"] == {"loss": "simpo", "gamma": 0.5, "margin": "strength"}
    assert load_recipe({"preferences": "x.jsonl"}).model_dump(exclude_defaults=True) == {"preferences": ("x.jsonl",)}


def test_a_stage_is_known_by_the_beta_it_trains_with_however_it_came_about() -> None:
    def known(**dpo: object) -> str:
        settings = train_dpo.settings(load_recipe({"preferences": "x.jsonl", "dpo": dpo}))
        return fingerprint(settings.model_dump(mode="json"))

    assert known() == known(beta=0.1) == known(loss="sigmoid", margin="none")
    assert len({known(), known(beta=0.2), known(loss="hinge"), known(loss="robust"), known(margin="strength")}) == 5


@pytest.mark.parametrize(
    ("dpo", "message"),
    [
        ({"gamma": 1.0}, "dpo: gamma (1) is read with loss: simpo alone, and loss is sigmoid: leave it out"),
        (
            {"loss": "sigmoid_norm", "label_smoothing": 0.1},
            "dpo: label_smoothing (0.1) is read with loss: robust alone, and loss is sigmoid_norm: leave it out",
        ),
        (
            {"margin_scale": 2.0},
            "dpo: margin_scale (2) is read with margin: strength or reward alone, and margin is none: leave it out",
        ),
        (
            {"loss": "ipo", "variants": [{"beta": 0.2}, {"gamma": 0.5}]},
            "dpo: variants.1.gamma (0.5) is read with loss: simpo alone, and loss is ipo: leave it out",
        ),
        (
            {"loss": "apo_zero", "margin": "strength"},
            "dpo: margin (strength) goes with loss sigmoid, sigmoid_norm, simpo, not with apo_zero, which has nothing "
            "to take it from: set margin: none, or another loss",
        ),
        (
            {"loss": "apo_down", "nll_coefficient": 0.2},
            "dpo: nll_coefficient (0.2) raises the chosen completions, which loss: apo_down is there to lower: set it "
            "to 0, or take apo_zero",
        ),
        (
            {"loss": "apo_down", "variants": [{"nll_coefficient": 0.1}]},
            "dpo: variants.0.nll_coefficient (0.1) raises the chosen completions, which loss: apo_down is there to "
            "lower: set it to 0, or take apo_zero",
        ),
        (
            {"loss": "simpo", "gamma": None},
            "dpo: gamma must be a number with loss: simpo: leave it out to have its default",
        ),
        (
            {"loss": "simpo", "reference": "ema"},
            "dpo: reference (ema) is read by losses that have one, and loss is simpo: leave it out",
        ),
        ({"loss": "robust", "label_smoothing": 0.5}, "dpo.label_smoothing: must be below 0.5, found 0.5"),
        ({"beta": None}, "dpo.beta: must be a number, found nothing"),
    ],
)
def test_what_does_not_go_together_is_said(dpo: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe({"preferences": "x.jsonl", "dpo": dpo})
    assert str(refused.value).splitlines()[1:] == [f"  - {message}"]


def test_a_wrong_field_is_named_alone_without_the_defaults_that_hang_on_it() -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe({"preferences": "x.jsonl", "dpo": {"loss": "dpo_norm", "learning_rate": "fast"}})
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["  - dpo.learning_rate", "  - dpo.loss"]
    assert "'sigmoid_norm'" in lines[1]
    found = sound_part({"preferences": "x.jsonl", "dpo": {"loss": "dpo_norm", "epochs": 3}})
    assert found is not None
    assert (found.dpo.loss, found.dpo.beta, found.dpo.epochs) == ("sigmoid", 0.1, 3)


def test_a_margin_by_reward_needs_pairs_that_have_one() -> None:
    recipe = {"preferences": "x.jsonl", "dpo": {"margin": "reward"}}
    assert load_recipe(recipe).dpo.margin_scale == 1.0
    with pytest.raises(RecipeError, match=r"dpo\.margin: reward needs pairs with a reward gap.*on_policy: add it"):
        load_recipe({**recipe, "pairs": {"sources": ["file", "annotated"]}})
