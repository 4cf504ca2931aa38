"""Standard errors, and what the benchmarks do not show, worked by hand."""

from __future__ import annotations

import math

import pytest

from alignloop.errors import ModelError
from alignloop.evaluation.measures import (
    Ending,
    Figures,
    add_divergence,
    add_texts,
    add_win_rate,
    by_reward,
    calibration_error,
    confidence,
    ends_in_mid_sentence,
    is_right,
    pair_loss,
    reliability,
    repeats_at_end,
    sum_k1,
    sum_k3,
    without_asking,
)
from alignloop.evaluation.standard_error import clustered, mean, mean_of, ratio


def margin_of(probability: float) -> float:
    """The margin whose sigmoid is `probability`."""
    return math.log(probability / (1.0 - probability))


def test_mean_has_the_usual_standard_error() -> None:
    # 1, 0, 1, 1: mean 3/4; sum of squares about it 3 * 1/16 + 9/16 = 3/4; sd^2 = 3/4 / 3 = 1/4; sd / sqrt(4) = 1/4
    estimate = mean([1.0, 0.0, 1.0, 1.0])
    assert (estimate.value, estimate.stderr) == (0.75, pytest.approx(0.25))
    assert mean([1.0]).stderr is None


def test_ratio_counts_prompts_not_instructions() -> None:
    # Two prompts with two instructions each, one all right and one all wrong: 2 / 4 = 1/2.
    # Influences (2 - 1) / 4 and (0 - 1) / 4: variance 2 / 1 * (1/16 + 1/16) = 1/4: as of two trials, not four.
    estimate = ratio([2.0, 0.0], [2.0, 2.0])
    assert (estimate.value, estimate.stderr) == (0.5, pytest.approx(0.5))
    assert mean([1.0, 1.0, 0.0, 0.0]).stderr == pytest.approx(math.sqrt(4 / 3 * 4 / 64))


def test_the_same_figure_twice_is_no_surer_than_once_and_opposite_ones_have_no_error() -> None:
    figure = mean([1.0, 0.0, 1.0, 1.0])
    assert mean_of([figure, figure]).stderr == pytest.approx(figure.stderr)
    both = mean_of([mean([1.0, 0.0, 1.0]), mean([0.0, 1.0, 0.0])])
    assert (both.value, both.stderr) == (pytest.approx(0.5), pytest.approx(0.0))


def test_rows_of_one_prompt_are_one_cluster() -> None:
    """Prompt a: 1, 1, prompt b: 0. p = 2/3; u_a = (2 - 2/3 * 2) / 3 = 2/9, u_b = (0 - 2/3) / 3 = -2/9.

    The error is sqrt(2/1 * (4/81 + 4/81)) = 4/9; three prompts of their own would have 1/3.
    """
    found = clustered([1.0, 1.0, 0.0], clusters=["a", "a", "b"])
    assert (found.value, found.stderr) == (pytest.approx(2 / 3), pytest.approx(4 / 9))
    assert clustered([1.0, 1.0, 0.0], clusters=["a", "c", "b"]).stderr == pytest.approx(1 / 3)


def test_right_confidence_and_loss_of_a_margin() -> None:
    assert [is_right(margin) for margin in (2.0, -0.1, 0.0)] == [1.0, 0.0, 0.5]
    found = [confidence(margin) for margin in (margin_of(0.8), margin_of(0.2), 0.0, -800.0)]
    assert found == pytest.approx([0.8, 0.8, 0.5, 1.0])
    losses = [pair_loss(margin) for margin in (0.0, margin_of(0.8), -1000.0)]
    assert losses == pytest.approx([math.log(2.0), -math.log(0.8), 1000.0])


def test_calibration_error_by_hand() -> None:
    """Two pairs at 0.82 (one right), one at 0.97 (right), one at 0.52 (wrong).

    |0.5 - 0.82| * 2/4 + |1 - 0.97| * 1/4 + |0 - 0.52| * 1/4 = 0.16 + 0.0075 + 0.13 = 0.2975
    """
    bins = reliability([margin_of(0.82), -margin_of(0.82), margin_of(0.97), margin_of(0.48)])
    found = [number for each in bins for number in (each.low, each.high, each.count, each.accuracy)]
    assert found == pytest.approx([0.50, 0.55, 1, 0.0, 0.80, 0.85, 2, 0.5, 0.95, 1.00, 1, 1.0])
    assert bins[1].confidence == pytest.approx(0.82)
    assert calibration_error(bins) == pytest.approx(0.2975)


def test_a_calibrated_model_has_no_error_and_certainty_falls_into_the_last_bin() -> None:
    """At 0.75 three of four right; at certainty all right."""
    bins = reliability([margin_of(0.75)] * 3 + [-margin_of(0.75)] + [900.0] * 4)
    assert calibration_error(bins) == pytest.approx(0.0, abs=1e-12)
    assert (bins[-1].count, bins[-1].high) == (4, pytest.approx(1.0))


def test_divergence_of_two_tokens_by_hand() -> None:
    """Policy (1/2, 1/4), base (1/4, 1/2): k1 = ln 2 - ln 2 = 0; k3 = (1/2 - 1 + ln 2) + (2 - 1 - ln 2) = 1/2."""
    policy, base = [math.log(0.5), math.log(0.25)], [math.log(0.25), math.log(0.5)]
    assert sum_k1(policy, base) == pytest.approx(0.0, abs=1e-15)
    assert sum_k3(policy, base) == pytest.approx(0.5)


def test_divergence_is_a_token_and_its_error_is_of_the_prompts() -> None:
    """Prompt 0: completions of 1 and 2 tokens that moved by 1 and 2 nats; prompt 1: one of 1 token that moved by 0.

    A token: 3 / 4. u_0 = (3 - 3/4 * 3) / 4 = 3/16, u_1 = (0 - 3/4) / 4 = -3/16; error sqrt(2 * 2 * 9/256) = 3/8.
    A completion: 3 / 3 = 1.
    """
    found = Figures()
    add_divergence(found, [[-1.0], [-1.0, -1.0], [-2.0]], [[-2.0], [-2.0, -2.0], [-2.0]], prompts=[0, 0, 1])
    k3 = 3 * (math.exp(-1.0) - 1.0 + 1.0) / 4
    expected = {"kl_to_base": 0.75, "kl_to_base_k3": k3, "kl_to_base_completion": 1.0}
    assert found.values == pytest.approx(expected)
    assert found.errors["kl_to_base_stderr"] == pytest.approx(3 / 8)


def test_both_estimators_find_the_divergence_of_two_known_models() -> None:
    """A token is 0 with probability 3/4 under the policy, 1/2 under the base: KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    found = Figures()
    drawn = [[math.log(0.75)]] * 3 + [[math.log(0.25)]]
    add_divergence(found, drawn, [[math.log(0.5)]] * 4, prompts=range(4))
    exact = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found.values == pytest.approx(dict.fromkeys(found.values, exact))


def test_win_rate_counts_ties_half() -> None:
    """Win, win, tie, loss: 2.5 / 4; sd of (1, 1, .5, 0) about .625 is sqrt(.6875 / 3), through sqrt(4)."""
    found = Figures()
    outcomes = [by_reward(*two) for two in ((2.0, 1.0), (0.1, 0.0), (1.0, 1.0), (0.0, 1.0))]
    add_win_rate(found, "win_rate/base", outcomes, lengths=[4.0] * len(outcomes))
    assert found.values == {"win_rate/base": 0.625, "win_rate/base_ties": 0.25}
    assert found.errors == {"win_rate/base_stderr": pytest.approx(math.sqrt(0.6875 / 3) / 2)}


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [("Yes. ", "Yes.", 0.5), ("", " ", 0.5), ("Yes.", "", 1.0), (" ", "Yes.", 0.0), ("Yes.", "No.", None)],
)
def test_what_needs_no_judge(ours: str, theirs: str, outcome: float | None) -> None:
    assert without_asking(ours, theirs) == outcome


def test_endings_lengths_and_repetitions() -> None:
    """Seven words in a loop of two have four 4-word sequences, two of them different: half of them repeat.

    The last four, b a b a, stood there before; of the two that end without a full stop one was cut.
    """
    figures = Figures()
    texts = [("a b a b a b a", 8, True), ("", 1, True), ("one two three four five", 6, False)]
    add_texts(figures, [Ending(*text) for text in texts])
    assert figures.values == pytest.approx(
        {
            "stop_rate": 2 / 3,
            "truncation_rate": 1 / 3,
            "repetition_rate": 0.5 / 3,
            "tail_repetition_rate": 1 / 3,
            "abrupt_end_rate": 1 / 3,
            "empty_rate": 1 / 3,
            "mean_tokens": 5.0,
        }
    )
    # 8, 1, 6: squares about 5 are 9, 16, 1; sqrt(26 / 2) / sqrt(3)
    assert figures.errors["mean_tokens_stderr"] == pytest.approx(math.sqrt(13.0 / 3.0))


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("The cat sat on the mat. The cat sat on the mat.", True),
        ("Go, go, go, go, go!", True),
        ("Please call me back. I am here, please call me back", True),
        ("go go go go", False),  # four words: nothing stood before them
        ("The cat sat on the mat, and on the mat sat the cat.", False),
        ("The cat sat on the mat. The cat sat on the rug.", False),  # it repeats, but not at its end
        ("", False),
    ],
)
def test_a_tail_repeats_where_its_last_four_words_stood_before(text: str, repeats: bool) -> None:
    assert repeats_at_end(text) == repeats


@pytest.mark.parametrize(
    ("text", "abrupt"),
    [
        ("The bell is often carried by", True),
        ("It costs 3", True),
        ("There are two,", True),
        ("These are the parts: \n", True),
        ("The bell (", True),
        ("The bell is grey. \n", False),
        ("Is it?", False),
        ('"The bell is grey."', False),
        ('{"answer": "grey"}', False),
        ("* grey *", False),
        ("\u9418\u3002", False),
        ("<think>so it is</think>\n\nGrey.", False),
        ("<think>so it is</think>", False),  # without an answer it is empty
        ("", False),
    ],
)
def test_an_end_is_abrupt_where_something_should_follow(text: str, abrupt: bool) -> None:
    assert ends_in_mid_sentence(text) == abrupt


def test_figures_put_values_first_and_refuse_what_is_no_number() -> None:
    figures = Figures()
    figures.add("a", mean([1.0, 3.0]))
    figures.details["bin"] = 4.0
    figures.add("b", mean([1.0]))
    assert list(figures.flat.items()) == [("a", 2.0), ("b", 1.0), ("a_stderr", 1.0), ("bin", 4.0)]
    figures.values["c"] = math.nan
    with pytest.raises(ModelError, match="c is nan"):
        figures.flat  # noqa: B018
