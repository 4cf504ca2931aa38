"""The charts of reports, as Vega-Lite specifications: values in, a specification out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from alignloop.report.drawing import INK, PAPER, SERIES, SOFT, Spec, colour, dash
from alignloop.sampling.reward_statistics import nice_step

WIDTH, HEIGHT = 340, 230
"""Of a whole chart, labels included: its letters are read without zooming on a screen of 360 pixels."""
_CHARACTER = 7.2
_LINE = 14.0
_ROUND_TICKS = 8
_MOST_NUMBERED_COLUMNS = 9


class Point(NamedTuple):
    """A value at a round, with the ends of its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Interval(NamedTuple):
    """A named difference with its interval."""

    name: str
    value: float
    low: float
    high: float


def lines(
    series: Mapping[str, Sequence[Point]], *, y_title: str, least: float | None = None, most: float | None = None
) -> Spec:
    """Lines over rounds with error bars, each with its name at its end. At least one of the `series` has a point;
    points are in ascending order of x, all values finite. `least` and `most` are what the values cannot go beyond."""
    values = [v for line in series.values() for p in line for v in (p.y, p.low, p.high) if v is not None]
    low, high = nice_domain(values, least=least, most=most)
    xs = sorted({point.x for line in series.values() for point in line})
    points, bars = [], []
    for index, (name, line) in enumerate(series.items()):
        # Lines stand a little beside each other, so that no error bar covers another.
        shift = (index - (len(series) - 1) / 2) * 0.012 * (xs[-1] - xs[0])
        for point in line:
            points.append({"series": name, "x": point.x + shift, "y": point.y})
            if point.low is not None and point.high is not None:
                # As far as the axis goes.
                ends = {"low": max(point.low, low), "high": min(point.high, high)}
                bars.append({"series": name, "x": point.x + shift, **ends})
    colours, dashes = (_by_series(list(series), look) for look in (colour, dash))
    layers = [
        _layer(points, {"type": "line", "strokeWidth": 2}, stroke=colours, strokeDash=dashes),
        _layer(points, {"type": "point", "filled": True, "size": 28, "opacity": 1}, fill=colours),
    ]
    if bars:
        encoding = {"y": _number("low"), "y2": {"field": "high"}}
        layers.append(_layer(bars, {"type": "rule", "strokeWidth": 1.5}, **encoding, stroke=colours))
    if len(series) > 1:
        mark = {"type": "text", "align": "left", "dx": 9, "clip": False}
        ends_at = [line[-1].y for line in series.values()]
        heights = spread(ends_at, gap=(high - low) * _LINE / (HEIGHT - 44), low=low, high=high)
        labels = [{"series": name, "x": xs[-1], "y": y} for name, y in zip(series, heights, strict=True)]
        layers.append(_layer(labels, mark, text=_category("series"), fill=colours))
    margin = 0.06 * (xs[-1] - xs[0]) or 0.5
    label = "datum.value == 0 ? 'base' : datum.label"
    x_axis = {"title": "round", "values": _thinned(xs), "format": "d", "labelExpr": label}
    x = {"axis": x_axis, "scale": _domain(xs[0] - margin, xs[-1] + margin)}
    y = {"axis": {"title": y_title, "tickCount": 5}, "scale": _domain(low, high)}
    return _layered(layers, x=x, y=y)


def stacked(bars: Mapping[str, Mapping[str, float]], *, order: Sequence[str], y_title: str) -> Spec:
    """A bar a round, made of parts: `bars` has value by part, by the round's name; `order` the parts from below."""
    longest = max(map(len, order), default=1)
    paint = {"domain": list(order), "range": [colour(index) for index in range(len(order))]}
    legend = {"title": None, "orient": "bottom", "columns": max(1, int(WIDTH // (26 + _CHARACTER * longest)))}
    return {
        **_frame(HEIGHT + 40),
        "data": {
            "values": [
                {"x": x, "part": part, "value": parts.get(part, 0)} for x, parts in bars.items() for part in order
            ]
        },
        "mark": {"type": "bar", "stroke": PAPER, "strokeWidth": 0.75},
        "encoding": {
            "x": _category(
                "x",
                sort=list(bars),
                axis={"title": "round", "values": _thinned(list(bars)), "labelOverlap": True},
                scale={"paddingInner": 0.25, "paddingOuter": 0.15},
            ),
            "y": _number("value", axis={"title": y_title, "tickCount": 5}),
            "order": _number("rank"),
            "color": _category("part", sort=list(order), scale=paint, legend=legend),
        },
        "transform": [{"calculate": f"indexof({json.dumps(list(order))}, datum.part)", "as": "rank"}],
    }


def outlines(
    edges: Sequence[float], shares: Mapping[str, Sequence[float]], means: Mapping[str, float], *, x_title: str,
    y_title: str,
) -> Spec:  # fmt: skip
    """Distributions as outlines over one axis, their means as upright lines. `edges` ascend and are one more than the
    bins."""
    layers: list[Spec] = []
    key: list[Spec] = []
    left = 0.0
    for index, (name, of_bins) in enumerate(shares.items()):
        steps = [{"x": edge, "y": 100 * share} for edge, share in zip(edges, of_bins, strict=False)]
        steps.append({"x": edges[-1], "y": steps[-1]["y"]})
        stroke = {"stroke": colour(index), "strokeWidth": 2, "strokeDash": dash(index)}
        area = {"type": "area", "interpolate": "step-after", "fill": colour(index), "fillOpacity": 0.16}
        layers.append(_layer(steps, {**area, "line": {**stroke, "interpolate": "step-after"}}))
        mean = min(max(means[name], edges[0]), edges[-1])
        layers.append(_one({"x": mean}, {"type": "rule", **stroke}, x=_number("x")))
        # A line and a name above the plot.
        height = {"value": -12}
        key.append(_one({}, {"type": "rule", **stroke}, x={"value": left}, x2={"value": left + 22}, y=height))
        text = {"type": "text", "align": "left", "baseline": "middle", "text": name}
        key.append(_one({}, text, x={"value": left + 28}, y=height))
        left += 42 + _CHARACTER * len(name)
    x = {"axis": {"title": x_title, "tickCount": 6}, "scale": _domain(edges[0], edges[-1])}
    y = {"axis": {"title": y_title, "tickCount": 4}}
    return _layered([*layers, *key], x=x, y=y, right=10, top=24)


def intervals(rows: Sequence[Interval], *, x_title: str) -> Spec:
    """Differences, one a line, with their intervals and a line at zero; those that leave zero out stand out."""
    low, high = nice_domain([0.0, *(v for row in rows for v in (row.low, row.high, row.value))])
    x = {"axis": {"title": x_title, "grid": True, "tickCount": 5}, "scale": _domain(low, high)}
    axis = {"title": None, "labelLimit": 150, "domain": False, "ticks": False}
    y = _category("name", sort=[row.name for row in rows], axis=axis)
    scale = {"domain": ["up", "down", "none"], "range": [SERIES[2], SERIES[4], SOFT]}
    paint = _category("kind", legend=None, scale=scale)
    kinds = ["up" if row.low > 0 else "down" if row.high < 0 else "none" for row in rows]
    ends = {"x": _number("low", **x), "x2": {"field": "high"}}
    point = {"type": "point", "filled": True, "size": 60, "opacity": 1}
    zero = {"datum": 0, "type": "quantitative", **x}
    return {
        **_frame(52 + 24 * len(rows), left=14),
        "data": {"values": [{**row._asdict(), "kind": kind} for row, kind in zip(rows, kinds, strict=True)]},
        "layer": [
            {"mark": {"type": "rule", "stroke": INK}, "encoding": {"x": zero}},
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {**ends, "y": y, "color": paint}},
            {"mark": point, "encoding": {"x": _number("value", **x), "y": y, "color": paint}},
        ],
    }


def heat(rows: Sequence[Mapping[str, Any]], *, names: Sequence[str], columns: Sequence[str]) -> Spec:
    """Percentages in a grid: a row a name, a column a round, each with its number where they fit. `rows` have `name`,
    `x` and `value` in percent."""
    top = {"title": "round", "orient": "top", "domain": False, "ticks": False, "labelOverlap": True}
    grid = {
        "x": _category("x", sort=list(columns), axis=top),
        "y": _category("name", sort=list(names), axis={"title": None, "labelLimit": 150, "domain": False}),
    }
    depth = _number("deep", legend=None, scale={"domain": [0, 1], "range": [0.03, 0.5]})
    rect = {"type": "rect", "fill": SERIES[0], "stroke": None}
    layers: list[Spec] = [{"mark": rect, "encoding": {**grid, "fillOpacity": depth}}]
    if len(columns) <= _MOST_NUMBERED_COLUMNS:
        number = {**grid, "text": _number("value", format=".0f")}
        layers.append({"mark": {"type": "text", "fontSize": 11}, "encoding": number})
    return {
        **_frame(44 + 18 * len(names), left=14),
        "data": {"values": [{**row, "deep": row["value"] / 100} for row in rows]},
        "layer": layers,
    }


def against_diagonal(points: Sequence[tuple[float, float]], *, x_title: str, y_title: str, low: float) -> Spec:
    """Shares over shares in percent, from `low` on, with the line where both are equal (a reliability diagram)."""
    dashed = {"type": "line", "stroke": SOFT, "strokeDash": [3, 3], "strokeWidth": 1}
    dots = {"filled": True, "fill": colour(0), "size": 28}
    solid = {"type": "line", "stroke": colour(0), "strokeWidth": 2, "point": dots}
    diagonal = [{"x": end, "y": end} for end in (low, 100.0)]
    layers = [_layer(diagonal, dashed), _layer([{"x": x, "y": y} for x, y in points], solid)]
    x, y = ({"axis": {"title": title, "tickCount": 5}, "scale": _domain(low, 100.0)} for title in (x_title, y_title))
    return _layered(layers, x=x, y=y, right=10)


def nice_domain(values: Sequence[float], *, least: float | None = None, most: float | None = None) -> list[float]:
    """Round numbers around finite values, with about five steps between; `least` and `most` are what the quantity
    cannot go beyond (a share: 0 and 100)."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        margin = 0.1 * abs(high) or 1.0
        low, high = low - margin, high + margin
    step = nice_step((high - low) / 5)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    low = low if least is None else max(low, least)
    high = high if most is None else min(high, most)
    return [round(low, 12), round(high, 12)]


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, as near to the wanted ones as can be, in their order, from low to high; evenly
    spaced where they do not all fit."""
    if len(wanted) < 2:
        return list(wanted)
    gap = min(gap, (high - low) / (len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    found = [min(max(wanted[index], low), high) for index in order]
    for index in range(1, len(found)):
        found[index] = max(found[index], found[index - 1] + gap)
    found[-1] = min(found[-1], high)
    for index in range(len(found) - 2, -1, -1):
        found[index] = min(found[index], found[index + 1] - gap)
    position = dict(zip(order, found, strict=True))
    return [position[index] for index in range(len(wanted))]


def _number(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", **more}


def _category(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "nominal", **more}


def _by_series(names: Sequence[str], look: Callable[[int], Any]) -> Spec:
    scale = {"domain": list(names), "range": [look(index) for index in range(len(names))]}
    return _category("series", legend=None, scale=scale)


def _domain(low: float, high: float) -> Spec:
    return {"domain": [low, high], "nice": False}


def _layer(values: Sequence[Spec], mark: Spec, **encoding: Spec) -> Spec:
    return {"data": {"values": values}, "mark": mark, "encoding": {"x": _number("x"), "y": _number("y"), **encoding}}


def _one(value: Spec, mark: Spec, **encoding: Spec) -> Spec:
    return {"data": {"values": [value]}, "mark": mark, "encoding": encoding}


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


def _thinned(xs: Sequence[Any]) -> list[Any]:
    """At most about eight of them, the last among them."""
    every = max(1, math.ceil(len(xs) / _ROUND_TICKS))
    return [x for index, x in enumerate(xs) if (len(xs) - 1 - index) % every == 0]
