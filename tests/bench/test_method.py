"""The laboratory: its arms are recipes, its intervals are worked by hand, and its tables say what runs say."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignloop.config import load_recipe
from scripts.bench import method_record
from scripts.bench.method import Lab
from scripts.bench.method_arms import ARMS, CLAIMS, LOOP
from scripts.bench.method_record import KNOWLEDGE, STRICT, UNSEEN, Outcome, made_of, read_outcomes, write_outcomes
from scripts.bench.method_tables import Gap, figures_of, headline, over_questions, over_seeds, text_of


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_recipe(name: str) -> None:
    arm = ARMS[name]
    rounds = [f"rounds={arm.rounds}"] if arm.rounds else []
    assert load_recipe("quickstart", overrides=[*rounds, *arm.settings])


def test_only_arms_whose_climb_is_shown_are_asked_all_in_every_round() -> None:
    """And controls of those: a control has the recipe of the run that it controls."""
    lab = Lab(Path("lab"), Path("record"), rounds=6, seeds=(0,))

    def asked(name: str) -> list[str]:
        return [each for each in lab.settings(ARMS[name], 0) if each.startswith(("measure.", "evaluate."))]

    tests = "ifeval=lab/world-0/data/ifeval.jsonl,ifeval_unseen=lab/world-0/data/ifeval_unseen.jsonl"
    dev = "ifeval_dev=lab/world-0/data/ifeval_dev.jsonl"
    whole = [f"evaluate.tasks=[{dev},mmlu]", f"evaluate.test_tasks=[{tests}]", "evaluate.test_rounds=all"]
    assert asked(LOOP) == asked("offline") == asked("sft-only") == whole
    at_the_end = [f"evaluate.tasks=[{dev}]", f"evaluate.test_tasks=[{tests},mmlu]"]
    assert asked("two-way") == asked("few-annotations-random-pick") == [*at_the_end, "measure.at=[6]"]
    assert asked("one-round") == [*at_the_end, "measure.at=[1]"]
    assert asked("semi-online") == [*at_the_end, "evaluate.every=10", "measure.every=10"]


def test_claims_name_arms_that_there_are() -> None:
    assert {name for claim in CLAIMS for name in (claim.reference, *claim.arms)} == set(ARMS)


def test_an_interval_over_seeds_by_hand() -> None:
    """Of 0.1, 0.2, 0.3: a standard deviation of 0.1, t of two degrees of freedom 4.3027, so 0.24842 either way."""
    found = over_seeds((0.1, 0.2, 0.3))
    assert found.value == pytest.approx(0.2)
    assert found.half == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert not found.is_clear
    assert str(found) == "+20.0 (-4.8 to +44.8)"
    assert over_seeds((0.19, 0.2, 0.21)).is_clear
    assert over_seeds((0.2,)) == Gap(0.2, None, 1)
    assert not over_seeds((0.2,)).is_clear


def test_an_interval_over_questions_by_hand() -> None:
    """Changes +1, +1, 0, 0: a mean of 0.5, a variance of 4 * 0.25 / 3, an error of its root over 2."""
    found = over_questions([("1101", "0001")])
    assert found.value == pytest.approx(0.5)
    assert found.half == pytest.approx(1.959964 * (1 / 3) ** 0.5 / 2)
    assert not found.is_clear
    assert over_questions([("11", "00"), ("01", "01")]).value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="shorter"):
        over_questions([("110", "11")])


def _outcome(arm: str, seed: int, *strict: float, answers: str = "10") -> Outcome:
    metrics = [{STRICT: value, UNSEEN: value / 2, KNOWLEDGE: 0.8} for value in strict]
    return Outcome(arm=arm, seed=seed, made_of="x", metrics=metrics, measures={}, answers=answers)


OUTCOMES = {
    LOOP: {seed: _outcome(LOOP, seed, 0.30, 0.45 + seed / 100, 0.60 + seed / 100) for seed in range(3)},
    "offline": {seed: _outcome("offline", seed, 0.30, 0.25 + seed / 100, 0.40 + seed / 100) for seed in range(3)},
    "rip": {seed: _outcome("rip", seed, 0.30, 0.45 + seed / 100, 0.65 + seed / 100) for seed in range(3)},
    "two-way": {0: _outcome("two-way", 0, 0.30, 0.40, 0.50, answers="00")},
}
"""The loop gains 30 points in two rounds, a control ends 20 lower, other pairs 5 higher; one arm has one seed."""


def test_figures_are_the_runs_and_controls_are_paired_by_seed() -> None:
    figures = figures_of(OUTCOMES)
    assert figures["num_seeds"] == 3
    assert figures[LOOP] == pytest.approx(0.61)
    assert figures["loop_minus_offline"] == pytest.approx(0.2)
    assert figures["loop_minus_offline_low"] == pytest.approx(figures["loop_minus_offline_high"]) == pytest.approx(0.2)
    assert figures["round6_minus_round1"] == pytest.approx(0.15)
    assert figures["unseen_minus_base"] == pytest.approx(0.155)
    assert figures["unseen_minus_offline"] == pytest.approx(0.1)
    assert figures["mmlu_minus_base"] == pytest.approx(0.0)
    assert figures["rip_minus_default"] == pytest.approx(0.05)
    assert "semi_online_minus_rounds" not in figures
    assert "loop_minus_random_pick" not in headline(OUTCOMES)
    text = text_of(OUTCOMES, rounds=2)
    assert "| loop minus offline | +20.0 (+20.0 to +20.0) | 3 |" in text
    assert "| round | loop | offline | unseen types, loop | MMLU-form, loop |" in text
    assert "| 2 | 61.0 | 41.0 | 30.5 | 80.0 |" in text
    assert "| offline | `control --kind offline` | 3 | 41.0 | +20.0 (+20.0 to +20.0) | seen |" in text


def test_an_arm_of_one_seed_is_paired_by_question_and_says_so() -> None:
    """Answers 10 against 00: changes +1, 0, a mean of 0.5 and an error of 0.5."""
    text = text_of(OUTCOMES, rounds=2)
    assert "| two-way | `reward.use_edited=false` | 1 | 50.0 | +50.0 (-48.0 to +148.0) | not seen |" in text
    assert "## margin\n\nThe margin term is better left out (4.1.2).\n\nNot run." in text


def test_a_recorded_run_counts_while_what_it_was_made_of_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, arm = tmp_path / "runs.jsonl", ARMS["two-way"]
    lab = Lab(tmp_path, record, rounds=6, seeds=(0, 1))
    today = _outcome("two-way", 0, 0.3).model_copy(update={"made_of": made_of(arm, rounds=6)})
    write_outcomes(record, [_outcome("two-way", 1, 0.3), today])
    assert (lab.recorded(arm, 0), lab.recorded(arm, 1)) == (today, None)
    assert lab.outcomes() == {"two-way": {0: today}}
    assert Lab(tmp_path, record, rounds=2, seeds=(0,)).recorded(arm, 0) is None
    lab.keep(today.model_copy(update={"seed": 1}))
    assert set(read_outcomes(record)) == {("two-way", 0), ("two-way", 1)}
    assert set(lab.outcomes()["two-way"]) == {0, 1}
    monkeypatch.setattr(method_record, "QUICKSTART", tmp_path)  # another base, another world
    assert lab.recorded(arm, 0) is None
