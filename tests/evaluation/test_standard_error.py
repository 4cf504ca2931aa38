from __future__ import annotations

import math

import pytest

from alignloop.evaluation.standard_error import mean, mean_of, ratio


def test_mean_has_the_usual_standard_error() -> None:
    # 1, 0, 1, 1: mean 3/4; sum of squares about it 3 * 1/16 + 9/16 = 3/4; sd^2 = 3/4 / 3 = 1/4; sd / sqrt(4) = 1/4
    estimate = mean([1.0, 0.0, 1.0, 1.0])
    assert estimate.value == 0.75
    assert estimate.stderr == pytest.approx(0.25)


def test_ratio_counts_prompts_not_instructions() -> None:
    # Two prompts with two instructions each, one all right and one all wrong: 2 / 4 = 1/2.
    # Influences (2 - 1) / 4 and (0 - 1) / 4: variance 2 / 1 * (1/16 + 1/16) = 1/4: as of two trials, not four.
    estimate = ratio([2.0, 0.0], [2.0, 2.0])
    assert estimate.value == 0.5
    assert estimate.stderr == pytest.approx(0.5)
    assert mean([1.0, 1.0, 0.0, 0.0]).stderr == pytest.approx(math.sqrt(4 / 3 * 4 / 64))


def test_mean_of_the_same_figure_twice_is_no_surer_than_once() -> None:
    figure = mean([1.0, 0.0, 1.0, 1.0])
    assert mean_of([figure, figure]).stderr == pytest.approx(figure.stderr)


def test_mean_of_opposite_figures_has_no_error() -> None:
    both = mean_of([mean([1.0, 0.0, 1.0]), mean([0.0, 1.0, 0.0])])
    assert both.value == pytest.approx(0.5)
    assert both.stderr == pytest.approx(0.0)


def test_one_prompt_has_no_standard_error() -> None:
    assert mean([1.0]).stderr is None
