"""A Vega-Lite specification as SVG text by Vega's own renderer, and the colours and type of all charts.

The pages load nothing and draw nothing: light and dark are a matter of the style sheet. No browser, no network.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

Spec = dict[str, Any]
VEGA_LITE = "https://vega.github.io/schema/vega-lite/v6.json"
INK, SOFT, FAINT, PAPER = "#1b1f24", "#5a6472", "#d4d9df", "#fefefe"
SERIES = ("#1f5fbf", "#b8480a", "#1a7a4c", "#7a3fb8", "#a3155f", "#6a6a00", "#006d7c", "#5c4a3d")
"""In the order in which series get them; each has at least 4.5:1 on white, and its dark one on the dark paper."""
DARK_SERIES = ("#7db1ff", "#ffa15c", "#62d29a", "#c8a2ff", "#ff8fc2", "#d3d35e", "#5fd0df", "#d3bba7")
DARK = {INK: "#e6e9ec", SOFT: "#a3acb5", FAINT: "#394048", PAPER: "#14171a"} | dict(
    zip(SERIES, DARK_SERIES, strict=True)
)
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (8, 2, 2, 2), (4, 4), (10, 3), (3, 1), (6, 2, 1, 2))
"""A series has dashes of its own, too: colours are not for everybody, and not for every printer."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
FONT_SIZE = 12

CONFIG: Spec = {
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
_DARK_RULES = "\n".join(
    f'  .chart [fill="{light}"] {{ fill: {dark} }} .chart [stroke="{light}"] {{ stroke: {dark} }}'
    for light, dark in DARK.items()
)
STYLE = f"""
:root {{ color-scheme: light dark; --paper: #ffffff; --ink: {INK}; --soft: {SOFT}; --faint: {FAINT}; --card: #f6f7f9;
  --a: {SERIES[0]}; --b: {SERIES[1]}; --good: {SERIES[2]}; --bad: {SERIES[4]}; }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --paper: {DARK[PAPER]}; --ink: {DARK[INK]};
  --soft: {DARK[SOFT]}; --faint: {DARK[FAINT]}; --card: #1d2126; --a: {DARK[SERIES[0]]}; --b: {DARK[SERIES[1]]};
  --good: {DARK[SERIES[2]]}; --bad: {DARK[SERIES[4]]}; }} }}

.chart {{ margin: 0; min-width: 0; }}
.chart svg {{ display: block; width: 100%; height: auto; max-width: 36rem; }}
@media screen and (prefers-color-scheme: dark) {{
{_DARK_RULES}
}}
@media print {{ :root {{ color-scheme: light; }} .chart {{ break-inside: avoid; }} }}
"""
"""For a page with charts: `:root` has its colours as variables, light or dark as the reader wants; print is light."""

_OPENING = re.compile(r"<svg\b[^>]*>")
_VIEW_BOX = re.compile(r'viewBox="[^"]*"')
_NEVER_SEEN = re.compile(
    r'<path class="(?:background|foreground)"[^>]*?/>'
    r'| (?:pointer-events="none"|opacity="1"|stroke-width="1"|aria-hidden="true")'
    r'| font-family="[^"]*"'
)
"""Half of what the renderer writes."""


def colour(index: int) -> str:
    """Of the series `index`, from 0; after the last they begin again."""
    return SERIES[index % len(SERIES)]


def dash(index: int) -> list[int]:
    """Of the series `index`, from 0."""
    return list(DASHES[index % len(DASHES)])


def draw(spec: Spec, *, alt: str) -> str:
    """The chart as an `<svg>` as wide as the page lets it. `spec` is Vega-Lite without `config`, with its values in it;
    `alt` says what it shows, numbers included, for those who do not see it."""
    import vl_convert

    whole = {"$schema": VEGA_LITE, "config": CONFIG, **spec}
    # Nothing may be fetched: neither while it is drawn nor, by an address in the SVG, when it is looked at.
    drawn = vl_convert.vegalite_to_svg(whole, allowed_base_urls=[])
    opening = _OPENING.search(drawn)
    assert opening is not None, "the renderer returned no SVG"
    box = _VIEW_BOX.search(opening[0])
    assert box is not None, "the renderer's SVG has no viewBox"
    body = _NEVER_SEEN.sub("", drawn[opening.end() :])
    return f'<svg {box[0]} role="img" aria-label="{escape(alt)}" font-family="{escape(FONT)}">{body}'
