"""Axes and labels by hand, and what a drawn chart holds."""

from __future__ import annotations

import re

import pytest

from alignloop.report import charts
from alignloop.report.charts import nice_domain, spread
from alignloop.report.drawing import CONFIG, DARK, SERIES, draw


def test_axes_end_on_round_numbers() -> None:
    assert nice_domain([0.13, 0.87]) == [0.0, 1.0]  # steps of 0.2
    assert nice_domain([21.5, 84.5], least=0.0, most=100.0) == [20.0, 100.0]
    assert nice_domain([96.0, 104.0], most=100.0) == [96.0, 100.0]
    assert nice_domain([5.0, 5.0]) == [4.4, 5.6]  # 4.5 to 5.5 in steps of 0.2
    assert nice_domain([0.0]) == [-1.0, 1.0]


def test_labels_make_room_for_each_other() -> None:
    assert spread([10.0, 50.0], gap=5.0, low=0.0, high=100.0) == [10.0, 50.0]
    assert spread([50.0, 50.0], gap=5.0, low=0.0, high=100.0) == [50.0, 55.0]
    assert spread([99.0, 98.0, 100.0], gap=5.0, low=0.0, high=100.0) == [95.0, 90.0, 100.0]
    assert spread([1.0, 1.0, 1.0], gap=9.0, low=0.0, high=10.0) == [0.0, 5.0, 10.0]
    assert spread([3.0], gap=9.0, low=0.0, high=1.0) == [3.0]


def test_a_drawing_scales_and_speaks() -> None:
    line = (charts.Point(0, 10.0, 5.0, 15.0), charts.Point(1, 20.0, 15.0, 25.0))
    svg = draw(charts.lines({"a": line}, y_title="%", least=0.0, most=100.0), alt='10 & "20"')
    opening = svg[: svg.index(">")]
    assert 'viewBox="0 0 340 230"' in opening
    assert 'aria-label="10 &amp; &quot;20&quot;"' in opening
    assert "width=" not in opening
    assert svg.count(f'stroke="{SERIES[0]}"') == 3  # the line, and a bar a round
    assert "base" in svg
    assert "http://" not in svg.replace('="http://www.w3.org/', "")
    assert svg.endswith("</svg>")


def test_series_are_told_by_name_colour_and_dash() -> None:
    points = (charts.Point(0, 1.0), charts.Point(1, 2.0))
    svg = draw(charts.lines({"one <1>": points, "two": points}, y_title=""), alt="")
    assert f'fill="{SERIES[1]}"' in svg
    assert 'stroke-dasharray="6,3"' in svg
    assert "one &lt;1&gt;" in svg


def test_intervals_are_cut_at_the_axis() -> None:
    line = (charts.Point(0, 1.0, -9.0, 11.0), charts.Point(1, 99.0, 89.0, 109.0))
    spec = charts.lines({"a": line}, y_title="%", least=0.0, most=100.0)
    bars = spec["layer"][2]["data"]["values"]
    assert [(bar["low"], bar["high"]) for bar in bars] == [(0.0, 11.0), (89.0, 100.0)]


def test_differences_are_told_by_their_side_of_zero() -> None:
    rows = [charts.Interval("up", 2, 1, 3), charts.Interval("down", -2, -3, -1), charts.Interval("none", 1, -1, 3)]
    assert [value["kind"] for value in charts.intervals(rows, x_title="")["data"]["values"]] == ["up", "down", "none"]


@pytest.mark.parametrize("num_rounds", [1, 2, 7, 100])
def test_rounds_have_at_most_eight_ticks(num_rounds: int) -> None:
    line = [charts.Point(number, 1.0) for number in range(num_rounds)]
    ticks = charts.lines({"a": line}, y_title="")["layer"][0]["encoding"]["x"]["axis"]["values"]
    assert len(ticks) <= 8
    assert ticks[-1] == num_rounds - 1


def test_every_colour_has_a_dark_one() -> None:
    assert set(SERIES) < set(DARK)
    assert re.findall(r"#[0-9a-f]{6}", str(CONFIG)) != []
    assert set(re.findall(r"#[0-9a-f]{6}", str(CONFIG))) <= set(DARK)
