"""Results -> lines for the screen, the table and the JSON object."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.bench.data_cases import Result

HEADER = ("| what | measured | value (each) | bar |", "| --- | --- | --- | --- |")


def line(result: Result) -> str:
    """For the screen; remarks on lines of their own."""
    told = f"{result.key.name}: {_value(result)}{_each(result)}, {_bar(result)}; {result.facts}"
    return "\n".join([told, *(f"  {remark}" for remark in result.remarks)])


def to_markdown(results: Sequence[Result], *, heading: str) -> str:
    """`heading`, the table, and the remarks as a list."""
    rows = [
        f"| `{result.key.name}` | {result.facts} | **{_value(result)}**{_each(result)} | {_bar(result)} |"
        for result in results
    ]
    remarks = [f"- `{result.key.name}`: {remark}" for result in results for remark in result.remarks]
    parts = [heading, "\n".join([*HEADER, *rows]), *(["\n".join(remarks)] if remarks else [])]
    return "\n\n".join(parts) + "\n"


def to_json(results: Sequence[Result]) -> dict[str, float]:
    """Flat: every result by its key, and what was measured beside it."""
    values: dict[str, float] = {}
    for result in results:
        values[result.key.name] = round(result.value, 4)
        values |= {name: round(value, 4) for name, value in result.extra.items()}
    return values


def number(value: float) -> str:
    """Few digits, as many as say something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _value(result: Result) -> str:
    return f"{number(result.value)}{result.key.unit}"


def _each(result: Result) -> str:
    return f" ({' '.join(number(part) for part in result.each)})" if len(result.each) > 1 else ""


def _bar(result: Result) -> str:
    key = result.key
    if key.bar is None:
        return "told"
    bar = f"{'at least' if key.at_least else 'at most'} {key.bar:,g}{key.unit}"
    return f"{bar}, not held to it: {result.smaller}" if result.smaller else f"{bar} {key.verdict(result.value)}"
