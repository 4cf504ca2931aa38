"""A Vega-Lite specification as SVG text, by Vega's own renderer; no browser, no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from alignloop.report.plots.theme import CONFIG, FONT

VEGA_LITE = "https://vega.github.io/schema/vega-lite/v6.json"
_OPENING = re.compile(r"<svg\b[^>]*>")
_VIEW_BOX = re.compile(r'viewBox="[^"]*"')
_UNSEEN = re.compile(r'<path class="(?:background|foreground)"[^>]*?/>')
_SPARE = re.compile(r' (?:pointer-events="none"|opacity="1"|stroke-width="1"|aria-hidden="true")')
_FONT = re.compile(r' font-family="[^"]*"')


def draw(spec: Mapping[str, Any], *, alt: str) -> str:
    """The chart as an `<svg>` that is as wide as the page lets it.

    Args:
        spec: Vega-Lite without `config`, with its values in it.
        alt: what it shows, numbers included, for those who do not see it.
    """
    import vl_convert

    whole = {"$schema": VEGA_LITE, "config": CONFIG, **spec}
    # Nothing may be fetched: neither while it is drawn nor, by an address in the SVG, when it is looked at.
    drawn = vl_convert.vegalite_to_svg(whole, allowed_base_urls=[])
    return _trimmed(drawn, alt=alt)


def _trimmed(drawn: str, *, alt: str) -> str:
    """The SVG without its fixed size, and without what nobody sees: half of its length."""
    opening = _OPENING.search(drawn)
    assert opening is not None, "the renderer returned no SVG"
    box = _VIEW_BOX.search(opening[0])
    assert box is not None, "the renderer's SVG has no viewBox"
    body = drawn[opening.end() :]
    for unwanted in (_UNSEEN, _SPARE, _FONT):
        body = unwanted.sub("", body)
    return f'<svg {box[0]} role="img" aria-label="{escape(alt)}" font-family="{escape(FONT)}">{body}'
