"""The charts of reports, as Vega-Lite specifications: values in, a specification out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
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
_MOST_NUMBERED_COLUMNS = 9


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


def by_round(lines: Sequence[Line], *, y_title: str, least: float | None = None, most: float | None = None) -> Spec:
    """Lines over rounds with error bars, each with its name at its end.

    Args:
        lines: at least one with a point; all values finite.
        least, most: what the values cannot go beyond.
    """
    values = [v for line in lines for p in line.points for v in (p.y, p.low, p.high) if v is not None]
    low, high = nice_domain(values, least=least, most=most)
    xs = sorted({point.x for line in lines for point in line.points})
    points, bars = [], []
    for index, line in enumerate(lines):
        # Lines stand a little beside each other, so that no error bar covers another.
        shift = (index - (len(lines) - 1) / 2) * 0.012 * (xs[-1] - xs[0])
        points += [{"series": line.name, "x": point.x + shift, "y": point.y} for point in line.points]
        bars += _bars(line, shift=shift, low=low, high=high)
    names = [line.name for line in lines]
    colours, dashes = _by_series(names, theme.colour), _by_series(names, theme.dash)
    layers = [
        _layer(points, {"type": "line", "strokeWidth": 2}, stroke=colours, strokeDash=dashes),
        _layer(points, {"type": "point", "filled": True, "size": 28, "opacity": 1}, fill=colours),
    ]
    if bars:
        ends = {"y": _number("low"), "y2": {"field": "high"}}
        layers.append(_layer(bars, {"type": "rule", "strokeWidth": 1.5}, **ends, stroke=colours))
    if len(lines) > 1:
        mark = {"type": "text", "align": "left", "dx": 9, "clip": False}
        heights = spread(
            [line.points[-1].y for line in lines], gap=(high - low) * _LINE / (HEIGHT - 44), low=low, high=high
        )
        labels = [{"series": name, "x": xs[-1], "y": y} for name, y in zip(names, heights, strict=True)]
        layers.append(_layer(labels, mark, text=_category("series"), fill=colours))
    y = {"axis": {"title": y_title, "tickCount": 5}, "scale": _domain(low, high)}
    return _layered(layers, x=_round_axis(xs), y=y)


def stacked(rows: Sequence[Mapping[str, Any]], *, order: Sequence[str], y_title: str) -> Spec:
    """A bar a round, made of parts.

    Args:
        rows: `x` (the round's name), `part`, `value`.
        order: the parts from below; a legend names them.
    """
    names = list(dict.fromkeys(str(row["x"]) for row in rows))
    longest = max(map(len, order), default=1)
    paint = {"domain": list(order), "range": [theme.colour(index) for index in range(len(order))]}
    legend = {"title": None, "orient": "bottom", "columns": max(1, int(WIDTH // (26 + _CHARACTER * longest)))}
    return {
        **_frame(HEIGHT + 40),
        "data": {"values": [dict(row) for row in rows]},
        "mark": {"type": "bar", "stroke": theme.PAPER, "strokeWidth": 0.75},
        "encoding": {
            "x": _category(
                "x",
                sort=names,
                axis={"title": "round", "values": _thinned(names), "labelOverlap": True},
                scale={"paddingInner": 0.25, "paddingOuter": 0.15},
            ),
            "y": _number("value", axis={"title": y_title, "tickCount": 5}),
            "order": _number("rank"),
            "color": _category("part", sort=list(order), scale=paint, legend=legend),
        },
        "transform": [{"calculate": f"indexof({json.dumps(list(order))}, datum.part)", "as": "rank"}],
    }


def outlines(edges: Sequence[float], found: Sequence[Outline], *, x_title: str, y_title: str) -> Spec:
    """Distributions as outlines over one axis, their means as upright lines.

    Args:
        edges: ascending, one more than each outline has shares.
    """
    layers: list[Spec] = []
    key: list[Spec] = []
    left = 0.0
    for index, outline in enumerate(found):
        steps = [{"x": edge, "y": 100 * share} for edge, share in zip(edges, outline.shares, strict=False)]
        steps.append({"x": edges[-1], "y": steps[-1]["y"]})
        stroke = {"stroke": theme.colour(index), "strokeWidth": 2, "strokeDash": theme.dash(index)}
        area = {"type": "area", "interpolate": "step-after", "fill": theme.colour(index), "fillOpacity": 0.16}
        layers.append(_layer(steps, {**area, "line": {**stroke, "interpolate": "step-after"}}))
        if outline.mean is not None:
            mean = min(max(outline.mean, edges[0]), edges[-1])
            encoding = {"x": _number("x")}
            layers.append({"data": {"values": [{"x": mean}]}, "mark": {"type": "rule", **stroke}, "encoding": encoding})
        key += _key(outline.name, stroke, left=left)
        left += 42 + _CHARACTER * len(outline.name)
    x = {"axis": {"title": x_title, "tickCount": 6}, "scale": _domain(edges[0], edges[-1])}
    y = {"axis": {"title": y_title, "tickCount": 4}}
    return _layered([*layers, *key], x=x, y=y, right=10, top=24)


def intervals(rows: Sequence[Interval], *, x_title: str) -> Spec:
    """Differences, one a line, with their intervals and a line at zero; those that leave zero out stand out."""
    low, high = nice_domain([0.0, *(v for row in rows for v in (row.low, row.high, row.value))])
    x = {"axis": {"title": x_title, "grid": True, "tickCount": 5}, "scale": _domain(low, high)}
    axis = {"title": None, "labelLimit": 150, "domain": False, "ticks": False}
    y = _category("name", sort=[row.name for row in rows], axis=axis)
    scale = {"domain": ["up", "down", "none"], "range": [theme.SERIES[2], theme.SERIES[4], theme.SOFT]}
    paint = _category("kind", legend=None, scale=scale)
    kinds = ["up" if row.low > 0 else "down" if row.high < 0 else "none" for row in rows]
    ends = {"x": _number("low", **x), "x2": {"field": "high"}}
    point = {"type": "point", "filled": True, "size": 60, "opacity": 1}
    return {
        **_frame(52 + 24 * len(rows), left=14),
        "data": {"values": [{**vars(row), "kind": kind} for row, kind in zip(rows, kinds, strict=True)]},
        "layer": [
            {
                "mark": {"type": "rule", "stroke": theme.INK},
                "encoding": {"x": {"datum": 0, "type": "quantitative", **x}},
            },
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {**ends, "y": y, "color": paint}},
            {"mark": point, "encoding": {"x": _number("value", **x), "y": y, "color": paint}},
        ],
    }


def heat(rows: Sequence[Mapping[str, Any]], *, names: Sequence[str], columns: Sequence[str]) -> Spec:
    """Percentages in a grid: a row a name, a column a round, each with its number where there is room for it.

    Args:
        rows: `name`, `x`, `value` in percent.
    """
    top = {"title": "round", "orient": "top", "domain": False, "ticks": False, "labelOverlap": True}
    grid = {
        "x": _category("x", sort=list(columns), axis=top),
        "y": _category("name", sort=list(names), axis={"title": None, "labelLimit": 150, "domain": False}),
    }
    depth = _number("deep", legend=None, scale={"domain": [0, 1], "range": [0.03, 0.5]})
    rect = {"type": "rect", "fill": theme.SERIES[0], "stroke": None}
    number = {**grid, "text": _number("value", format=".0f")}
    layers = [
        {"mark": rect, "encoding": {**grid, "fillOpacity": depth}},
        {"mark": {"type": "text", "fontSize": 11}, "encoding": number},
    ]
    return {
        **_frame(44 + 18 * len(names), left=14),
        "data": {"values": [{**row, "deep": row["value"] / 100} for row in rows]},
        "layer": layers if len(columns) <= _MOST_NUMBERED_COLUMNS else layers[:1],
    }


def against_diagonal(points: Sequence[Point], *, x_title: str, y_title: str, low: float, high: float) -> Spec:
    """Shares over shares with the line where both are equal (a reliability diagram); in percent."""
    dashed = {"type": "line", "stroke": theme.SOFT, "strokeDash": [3, 3], "strokeWidth": 1}
    dots = {"filled": True, "fill": theme.colour(0), "size": 28}
    layers = [
        _layer([{"x": low, "y": low}, {"x": high, "y": high}], dashed),
        _layer(
            [{"x": point.x, "y": point.y} for point in points],
            {"type": "line", "stroke": theme.colour(0), "strokeWidth": 2, "point": dots},
        ),
    ]
    x, y = ({"axis": {"title": title, "tickCount": 5}, "scale": _domain(low, high)} for title in (x_title, y_title))
    return _layered(layers, x=x, y=y, right=10)


def _bars(line: Line, *, shift: float, low: float, high: float) -> list[Spec]:
    """The intervals of the points that have one, as far as the axis goes."""
    return [
        {"series": line.name, "x": point.x + shift, "low": max(point.low, low), "high": min(point.high, high)}
        for point in line.points
        if point.low is not None and point.high is not None
    ]


def _number(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", **more}


def _category(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "nominal", **more}


def _by_series(names: Sequence[str], look: Callable[[int], Any]) -> Spec:
    """Colours or dashes."""
    scale = {"domain": list(names), "range": [look(index) for index in range(len(names))]}
    return _category("series", legend=None, scale=scale)


def _domain(low: float, high: float) -> Spec:
    return {"domain": [low, high], "nice": False}


def _layer(values: Sequence[Spec], mark: Spec, **encoding: Spec) -> Spec:
    return {"data": {"values": values}, "mark": mark, "encoding": {"x": _number("x"), "y": _number("y"), **encoding}}


def _layered(layers: Sequence[Spec], *, x: Spec, y: Spec, right: int = 8, top: int = 8) -> Spec:
    """Layers that share two quantitative axes; the first layer brings the axes."""
    first, *rest = layers
    encoding = first["encoding"]
    axes = {"x": {**encoding["x"], **x}, "y": {**encoding["y"], **y}}
    return {**_frame(HEIGHT, right=right, top=top), "layer": [{**first, "encoding": {**encoding, **axes}}, *rest]}


def _frame(height: int, *, left: int = 4, right: int = 8, top: int = 8) -> Spec:
    return {
        "width": WIDTH,
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": left, "right": right, "top": top, "bottom": 4},
    }


def _key(name: str, stroke: Spec, *, left: float) -> list[Spec]:
    """A line and a name above the plot."""
    line = {"x": {"value": left}, "x2": {"value": left + 22}, "y": {"value": -12}}
    label = {"type": "text", "align": "left", "baseline": "middle", "text": name}
    return [
        {"data": {"values": [{}]}, "mark": {"type": "rule", **stroke}, "encoding": line},
        {"data": {"values": [{}]}, "mark": label, "encoding": {"x": {"value": left + 28}, "y": {"value": -12}}},
    ]


def _round_axis(xs: Sequence[float]) -> Spec:
    margin = 0.06 * (xs[-1] - xs[0]) or 0.5
    label = "datum.value == 0 ? 'base' : datum.label"
    axis = {"title": "round", "values": _thinned(xs), "format": "d", "labelExpr": label}
    return {"axis": axis, "scale": _domain(xs[0] - margin, xs[-1] + margin)}


def _thinned(xs: Sequence[Any]) -> list[Any]:
    """At most about eight of them, the last among them."""
    every = max(1, math.ceil(len(xs) / _ROUND_TICKS))
    return [x for index, x in enumerate(xs) if (len(xs) - 1 - index) % every == 0]
