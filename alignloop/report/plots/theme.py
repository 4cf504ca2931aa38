"""Colours and type of all charts, and the style sheet that turns them dark."""

from __future__ import annotations

from typing import Any

INK, SOFT, FAINT, PAPER = "#1b1f24", "#5a6472", "#d4d9df", "#fefefe"
SERIES = ("#1f5fbf", "#b8480a", "#1a7a4c", "#7a3fb8", "#a3155f", "#6a6a00", "#006d7c", "#5c4a3d")
"""In the order they are given out; each has at least 4.5:1 on white, and its dark one on the dark paper."""
DARK = {
    INK: "#e6e9ec",
    SOFT: "#a3acb5",
    FAINT: "#394048",
    PAPER: "#14171a",
    "#1f5fbf": "#7db1ff",
    "#b8480a": "#ffa15c",
    "#1a7a4c": "#62d29a",
    "#7a3fb8": "#c8a2ff",
    "#a3155f": "#ff8fc2",
    "#6a6a00": "#d3d35e",
    "#006d7c": "#5fd0df",
    "#5c4a3d": "#d3bba7",
}
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (8, 2, 2, 2), (4, 4), (10, 3), (3, 1), (6, 2, 1, 2))
"""A series is told by its dashes, too: colours are not for everybody, and not for every printer."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
FONT_SIZE = 12

CONFIG: dict[str, Any] = {
    "background": None,
    # Texts are measured by this font, and shown in the reader's own, which is narrower: no label is cut off.
    "font": "monospace",
    # The figure has one description of its own; one a mark would be most of the page.
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": FONT_SIZE,
        "titleFontSize": FONT_SIZE,
        "titleFontWeight": "normal",
        "labelColor": INK,
        "titleColor": SOFT,
        "gridColor": FAINT,
        "domainColor": SOFT,
        "tickColor": SOFT,
    },
    "axisX": {"grid": False, "labelAngle": 0},
    "axisY": {"domain": False, "ticks": False},
    "legend": {
        "labelFontSize": FONT_SIZE,
        "labelColor": INK,
        "labelLimit": 300,
        "symbolType": "square",
        "symbolStrokeWidth": 0,
    },
    "text": {"fontSize": FONT_SIZE, "fill": INK},
    "rule": {"stroke": SOFT},
}


def colour(index: int) -> str:
    """Of the series `index`, from 0; after the last they begin again."""
    return SERIES[index % len(SERIES)]


def dash(index: int) -> list[int]:
    """Of the series `index`, from 0."""
    return list(DASHES[index % len(DASHES)])


def _dark_rules() -> str:
    return "\n".join(
        f'  .chart [fill="{light}"] {{ fill: {dark} }} .chart [stroke="{light}"] {{ stroke: {dark} }}'
        for light, dark in DARK.items()
    )


PAGE_COLOURS = f"""
:root {{ color-scheme: light dark; --paper: #ffffff; --ink: {INK}; --soft: {SOFT}; --faint: {FAINT}; --card: #f6f7f9;
  --a: {SERIES[0]}; --b: {SERIES[1]}; --good: {SERIES[2]}; --bad: {SERIES[4]}; }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --paper: {DARK[PAPER]}; --ink: {DARK[INK]};
  --soft: {DARK[SOFT]}; --faint: {DARK[FAINT]}; --card: #1d2126; --a: {DARK[SERIES[0]]}; --b: {DARK[SERIES[1]]};
  --good: {DARK[SERIES[2]]}; --bad: {DARK[SERIES[4]]}; }} }}
"""
STYLE = f"""{PAGE_COLOURS}
.chart {{ margin: 0; min-width: 0; }}
.chart svg {{ display: block; width: 100%; height: auto; max-width: 36rem; }}
@media screen and (prefers-color-scheme: dark) {{
{_dark_rules()}
}}
@media print {{ :root {{ color-scheme: light; }} .chart {{ break-inside: avoid; }} }}
"""
"""For a page with charts: `:root` has its colours as variables, light or dark as the reader wants; print is light."""
