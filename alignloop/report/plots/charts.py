"""The charts of reports, as Vega-Lite specifications: values in, a specification out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignloop.report.plots import theme
from alignloop.report.plots.scale import nice_domain, spread

Spec = dict[str, Any]
WIDTH, HEIGHT = 340, 230
"""Of a whole chart, labels included: its letters are read without zooming on a screen of 360 pixels."""
_CHARACTER = 7.2
_LINE = 14.0
_ROUND_TICKS = 8


@dataclass(frozen=True)
class Point:
    """A value at a round, with the ends of its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A named series of points in ascending order of x."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Outline:
    """A distribution: shares of the bins, and its mean."""

    name: str
    shares: tuple[float, ...]
    mean: float | None = None


@dataclass(frozen=True)
class Interval:
    """A named difference with its interval."""

    name: str
    value: float
    low: float
    high: float


def by_round(
    lines: Sequence[Line],
    *,
    y_title: str,
    least: float | None = None,
    most: float | None = None,
    height: int = HEIGHT,
    zero_is_base: bool = True,
) -> Spec:
    """Lines over rounds with error bars, each with its name at its end.

    Args:
        lines: at least one with a point; all values finite.
        least, most: what the values cannot go beyond.
        zero_is_base: round 0 is called `base`.
    """
    values = [v for line in lines for p in line.points for v in (p.y, p.low, p.high) if v is not None]
    low, high = nice_domain(values, least=least, most=most)
    xs = sorted({point.x for line in lines for point in line.points})
    span = xs[-1] - xs[0]
    points, bars = [], []
    for index, line in enumerate(lines):
        shift = _shift(index, len(lines), span=span)
        points += [{"series": line.name, "x": point.x + shift, "y": point.y} for point in line.points]
        bars += _bars(line, shift=shift, low=low, high=high)
    gap = (high - low) * _LINE / (height - 44)
    places = spread([line.points[-1].y for line in lines], gap=gap, low=low, high=high)
    ends = [{"series": line.name, "x": xs[-1], "y": y} for line, y in zip(lines, places, strict=True)]
    names = [line.name for line in lines]
    layers = [
        {
            "data": {"values": points},
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {**_xy(), "stroke": _paint(names), "strokeDash": _dashes(names)},
        },
        {
            "data": {"values": points},
            "mark": {"type": "point", "filled": True, "size": 28, "opacity": 1},
            "encoding": {**_xy(), "fill": _paint(names)},
        },
    ]
    if bars:
        encoding = {**_xy(y="low"), "y2": {"field": "high"}, "stroke": _paint(names)}
        layers.append({"data": {"values": bars}, "mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": encoding})
    if len(lines) > 1:
        mark = {"type": "text", "align": "left", "dx": 9, "clip": False}
        encoding = {**_xy(), "text": {"field": "series", "type": "nominal"}, "fill": _paint(names)}
        layers.append({"data": {"values": ends}, "mark": mark, "encoding": encoding})
    return _layered(
        layers,
        x=_round_axis(xs, zero_is_base=zero_is_base),
        y={"axis": {"title": y_title, "tickCount": 5}, "scale": {"domain": [low, high], "nice": False}},
        padding_right=8,
        height=height,
    )


def stacked(
    rows: Sequence[Mapping[str, Any]], *, order: Sequence[str], y_title: str, height: int = HEIGHT + 40
) -> Spec:
    """A bar a round, made of parts.

    Args:
        rows: `x` (the round's name), `part`, `value`.
        order: the parts from below; a legend names them.
    """
    names = list(dict.fromkeys(str(row["x"]) for row in rows))
    return {
        **_frame(height),
        "data": {"values": [dict(row) for row in rows]},
        "mark": {"type": "bar", "stroke": theme.PAPER, "strokeWidth": 0.75},
        "encoding": {
            "x": {
                "field": "x",
                "type": "nominal",
                "sort": names,
                "axis": {"title": "round", "values": _thinned(names), "labelOverlap": True},
                "scale": {"paddingInner": 0.25, "paddingOuter": 0.15},
            },
            "y": {"field": "value", "type": "quantitative", "axis": {"title": y_title, "tickCount": 5}},
            "order": {"field": "rank", "type": "quantitative"},
            "color": {
                "field": "part",
                "type": "nominal",
                "sort": list(order),
                "scale": {"domain": list(order), "range": [theme.colour(index) for index in range(len(order))]},
                "legend": {
                    "title": None,
                    "orient": "bottom",
                    "columns": _legend_columns(order),
                    "labelFontSize": theme.FONT_SIZE,
                    "labelColor": theme.INK,
                    "labelLimit": 300,
                    "symbolType": "square",
                    "symbolStrokeWidth": 0,
                },
            },
        },
        "transform": [{"calculate": f"indexof({_js(order)}, datum.part)", "as": "rank"}],
    }


def outlines(
    edges: Sequence[float], found: Sequence[Outline], *, x_title: str, y_title: str, height: int = HEIGHT
) -> Spec:
    """Distributions as outlines over one axis, their means as upright lines.

    Args:
        edges: ascending, one more than each outline has shares.
    """
    layers: list[Spec] = []
    labels: list[Spec] = []
    for index, outline in enumerate(found):
        steps = [{"x": edge, "y": 100 * share} for edge, share in zip(edges, outline.shares, strict=False)]
        steps.append({"x": edges[-1], "y": steps[-1]["y"]})
        paint, dashes = theme.colour(index), theme.dash(index)
        layers.append(
            {
                "data": {"values": steps},
                "mark": {
                    "type": "area",
                    "interpolate": "step-after",
                    "fill": paint,
                    "fillOpacity": 0.16,
                    "line": {"stroke": paint, "strokeWidth": 2, "strokeDash": dashes, "interpolate": "step-after"},
                },
                "encoding": _xy(),
            }
        )
        if outline.mean is not None:
            mean = min(max(outline.mean, edges[0]), edges[-1])
            layers.append(
                {
                    "data": {"values": [{"x": mean}]},
                    "mark": {"type": "rule", "stroke": paint, "strokeWidth": 2, "strokeDash": dashes},
                    "encoding": {"x": {"field": "x", "type": "quantitative"}},
                }
            )
        labels += _key(outline.name, index, before=[other.name for other in found[:index]])
    return _layered(
        [*layers, *labels],
        x={"axis": {"title": x_title, "tickCount": 6}, "scale": {"domain": [edges[0], edges[-1]], "nice": False}},
        y={"axis": {"title": y_title, "tickCount": 4}},
        padding_right=10,
        height=height,
        padding_top=24,
    )


def intervals(rows: Sequence[Interval], *, x_title: str) -> Spec:
    """Differences, one a line, with their intervals and a line at zero; those that leave zero out stand out."""
    values = [v for row in rows for v in (row.low, row.high, row.value)]
    domain = nice_domain([*values, 0.0])
    data = [
        {"name": row.name, "value": row.value, "low": row.low, "high": row.high, "kind": _kind(row)} for row in rows
    ]
    names = [row.name for row in rows]
    x = {"type": "quantitative", "axis": {"title": x_title, "grid": True, "tickCount": 5}}
    x["scale"] = {"domain": domain, "nice": False}
    paint = {
        "field": "kind",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": ["up", "down", "none"], "range": [theme.SERIES[2], theme.SERIES[4], theme.SOFT]},
    }
    y = {
        "field": "name",
        "type": "nominal",
        "sort": names,
        "axis": {"title": None, "labelLimit": 150, "domain": False, "ticks": False},
    }
    return {
        **_frame(52 + 24 * len(names), left=14),
        "data": {"values": data},
        "layer": [
            {"mark": {"type": "rule", "stroke": theme.INK}, "encoding": {"x": {"datum": 0, **x}}},
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y, "color": paint},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"x": {"field": "value", **x}, "y": y, "color": paint},
            },
        ],
    }


def heat(rows: Sequence[Mapping[str, Any]], *, names: Sequence[str], columns: Sequence[str]) -> Spec:
    """Percentages in a grid: a row a name, a column a round, each with its number.

    Args:
        rows: `name`, `x`, `value` in percent.
    """
    deep = [{**row, "deep": row["value"] / 100} for row in rows]
    many = len(columns) > 9
    base: Spec = {
        "x": {
            "field": "x",
            "type": "nominal",
            "sort": list(columns),
            "axis": {"title": "round", "orient": "top", "domain": False, "ticks": False, "labelOverlap": True},
        },
        "y": {
            "field": "name",
            "type": "nominal",
            "sort": list(names),
            "axis": {"title": None, "labelLimit": 150, "domain": False},
        },
    }
    cells: Spec = {
        "mark": {"type": "rect", "fill": theme.SERIES[0], "stroke": None},
        "encoding": {
            **base,
            "fillOpacity": {
                "field": "deep",
                "type": "quantitative",
                "legend": None,
                "scale": {"domain": [0, 1], "range": [0.03, 0.5]},
            },
        },
    }
    text: Spec = {
        "mark": {"type": "text", "fontSize": 11},
        "encoding": {**base, "text": {"field": "value", "type": "quantitative", "format": ".0f"}},
    }
    return {
        **_frame(44 + 18 * len(names), left=14),
        "data": {"values": deep},
        "layer": [cells] if many else [cells, text],
    }


def against_diagonal(points: Sequence[Point], *, x_title: str, y_title: str, low: float, high: float) -> Spec:
    """Shares over shares with the line where both are equal (a reliability diagram); in percent."""
    axis = {"scale": {"domain": [low, high], "nice": False}}
    diagonal = {
        "data": {"values": [{"x": low, "y": low}, {"x": high, "y": high}]},
        "mark": {"type": "line", "stroke": theme.SOFT, "strokeDash": [3, 3], "strokeWidth": 1},
        "encoding": _xy(),
    }
    paint = theme.colour(0)
    found = {
        "data": {"values": [{"x": point.x, "y": point.y} for point in points]},
        "mark": {
            "type": "line",
            "stroke": paint,
            "strokeWidth": 2,
            "point": {"filled": True, "fill": paint, "size": 28},
        },
        "encoding": _xy(),
    }
    return _layered(
        [diagonal, found],
        x={"axis": {"title": x_title, "tickCount": 5}, **axis},
        y={"axis": {"title": y_title, "tickCount": 5}, **axis},
        padding_right=10,
        height=HEIGHT,
    )


def _bars(line: Line, *, shift: float, low: float, high: float) -> list[Spec]:
    """The intervals of the points that have one, as far as the axis goes."""
    return [
        {"series": line.name, "x": point.x + shift, "low": max(point.low, low), "high": min(point.high, high)}
        for point in line.points
        if point.low is not None and point.high is not None
    ]


def _paint(names: Sequence[str]) -> Spec:
    """Colours by series."""
    colours = [theme.colour(index) for index in range(len(names))]
    return _by_series(names, colours)


def _dashes(names: Sequence[str]) -> Spec:
    """Dashes by series."""
    return _by_series(names, [theme.dash(index) for index in range(len(names))])


def _by_series(names: Sequence[str], values: Sequence[Any]) -> Spec:
    return {
        "field": "series",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(names), "range": list(values)},
    }


def _layered(
    layers: Sequence[Spec], *, x: Spec, y: Spec, padding_right: int, height: int, padding_top: int = 8
) -> Spec:
    """Layers that share two quantitative axes; the first layer brings the axes."""
    first, *rest = [dict(layer) for layer in layers]
    encoding = dict(first["encoding"])
    encoding["x"], encoding["y"] = {**encoding["x"], **x}, {**encoding["y"], **y}
    first["encoding"] = encoding
    return {
        **_frame(height),
        "padding": {"left": 4, "right": padding_right, "top": padding_top, "bottom": 4},
        "layer": [first, *rest],
    }


def _frame(height: int, *, left: int = 4) -> Spec:
    return {
        "width": WIDTH,
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": left, "right": 8, "top": 8, "bottom": 4},
    }


def _xy(*, y: str = "y") -> Spec:
    return {"x": {"field": "x", "type": "quantitative"}, "y": {"field": y, "type": "quantitative"}}


def _key(name: str, index: int, *, before: Sequence[str]) -> list[Spec]:
    """A line and a name above the plot, right of those before it."""
    left = sum(42 + _CHARACTER * len(other) for other in before)
    paint = theme.colour(index)
    line: Spec = {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "stroke": paint, "strokeWidth": 2, "strokeDash": theme.dash(index)},
        "encoding": {"x": {"value": left}, "x2": {"value": left + 22}, "y": {"value": -12}},
    }
    text: Spec = {
        "data": {"values": [{}]},
        "mark": {"type": "text", "align": "left", "baseline": "middle", "text": name},
        "encoding": {"x": {"value": left + 28}, "y": {"value": -12}},
    }
    return [line, text]


def _round_axis(xs: Sequence[float], *, zero_is_base: bool) -> Spec:
    room = 0.06 * (xs[-1] - xs[0]) or 0.5
    axis: Spec = {"title": "round", "values": _thinned(xs), "format": "d"}
    if zero_is_base:
        axis["labelExpr"] = "datum.value == 0 ? 'base' : datum.label"
    return {"axis": axis, "scale": {"domain": [xs[0] - room, xs[-1] + room], "nice": False}}


def _thinned(xs: Sequence[Any]) -> list[Any]:
    """At most about eight of them, the last among them."""
    every = max(1, math.ceil(len(xs) / _ROUND_TICKS))
    return [x for index, x in enumerate(xs) if (len(xs) - 1 - index) % every == 0]


def _shift(index: int, num: int, *, span: float) -> float:
    """Lines stand a little beside each other, so that no error bar covers another."""
    return (index - (num - 1) / 2) * 0.012 * span


def _legend_columns(names: Sequence[str]) -> int:
    return max(1, int(WIDTH // (26 + _CHARACTER * max(map(len, names), default=1))))


def _kind(row: Interval) -> str:
    return "up" if row.low > 0 else "down" if row.high < 0 else "none"


def _js(names: Sequence[str]) -> str:
    return json.dumps(list(names))
