"""The laboratory: its arms are recipes, its intervals are worked by hand, and its tables say what runs say."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignloop.config import load_recipe
from alignloop.loop.final import FINAL
from alignloop.records import RoundRow
from scripts.bench.method import KNOWLEDGE, STRICT, UNSEEN, Estimate, Lab, headline, report
from scripts.bench.method_arms import ARMS, CLAIMS, LOOP


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_recipe(name: str) -> None:
    arm = ARMS[name]
    rounds = [f"rounds={arm.rounds}"] if arm.rounds else []
    assert load_recipe("quickstart", overrides=[*rounds, *arm.settings])


def test_claims_name_arms_that_there_are() -> None:
    assert {name for claim in CLAIMS for name in (claim.reference, *claim.arms)} == set(ARMS)


def test_an_interval_over_seeds_by_hand() -> None:
    """Of 0.1, 0.2, 0.3: a standard deviation of 0.1, t of two degrees of freedom 4.3027, so 0.24842 either way."""
    estimate = Estimate((0.1, 0.2, 0.3))
    assert estimate.mean == pytest.approx(0.2)
    assert estimate.half == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert not estimate.is_clear
    assert str(estimate) == "+20.0 (-4.8 to +44.8)"
    assert Estimate((0.19, 0.2, 0.21)).is_clear
    assert (Estimate((0.2,)).half, Estimate((0.2,)).is_clear) == (None, False)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Three seeds of the loop, which gains 30 points in two rounds, and of a control that stands 20 lower."""
    made = Lab(tmp_path, rounds=2, seeds=(0, 1, 2))
    for seed in made.seeds:
        for arm, low in ((LOOP, 0.0), ("offline", 0.2), ("two-way", 0.0)):
            rows = [_row(number, 0.3 + 0.15 * number + 0.01 * seed - (low if number else 0.0)) for number in range(3)]
            folder = made.run_dir(arm, seed)
            folder.mkdir(parents=True)
            (folder / "rounds.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
            if (arm, seed) != ("two-way", 2):  # still at work
                (folder / FINAL).mkdir()
    return made


def _row(number: int, strict: float) -> RoundRow:
    metrics = {STRICT: strict, UNSEEN: strict / 2, KNOWLEDGE: 0.8}
    nothing: dict[str, dict[str, float]] = {"stderr": {}, "reward_model": {}, "rows": {}, "seconds": {}}
    return RoundRow.model_validate({"round": number, "policy": f"round-{number}", "metrics": metrics, **nothing})


def test_figures_are_the_runs_and_controls_are_paired_by_seed(lab: Lab) -> None:
    text, figures = report(lab)
    assert figures["num_seeds"] == 3
    assert figures[LOOP] == pytest.approx(0.61)
    assert figures["loop_minus_offline"] == pytest.approx(0.2)
    assert figures["loop_minus_offline_low"] == pytest.approx(figures["loop_minus_offline_high"]) == pytest.approx(0.2)
    assert figures["round6_minus_round1"] == pytest.approx(0.15)
    assert figures["unseen_minus_base"] == pytest.approx(0.15)
    assert figures["mmlu_minus_base"] == pytest.approx(0.0)
    assert "loop_minus_random_pick" not in headline(lab)
    assert "| 2 | 61.0 | 41.0 | 30.5 | 80.0 |" in text
    assert "| offline | `control --kind offline` | 41.0 | +20.0 (+20.0 to +20.0) | seen |" in text


def test_an_arm_of_which_a_seed_is_missing_is_not_shown(lab: Lab) -> None:
    text, figures = report(lab)
    assert "two-way" not in figures
    assert "| two-way |" not in text
    assert "## three-way\n\nA third, edited response helps the reward model (4.1.2).\n\nNot run." in text
