"""One home for charts: Vega-Lite specifications, drawn to static SVG when a page is built.

values ─► charts (a specification) ─► drawing.draw ─► SVG text in a page, coloured by theme.STYLE

The pages load nothing and draw nothing: light and dark are a matter of style sheets.
"""

from __future__ import annotations
