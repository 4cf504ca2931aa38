"""Results -> lines for the screen, the table and the JSON object."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.bench.sampling_cases import Result

HEADER = (
    "| what | alignloop | against | value (each) | bar |",
    "| --- | --- | --- | --- | --- |",
)
MOST_SHOWN = 6
"""Of the parts of a value: of twenty swaps, least and greatest are told instead."""


def line(result: Result) -> str:
    """For the screen; remarks on lines of their own."""
    facts = f"{result.ours}; {result.other}"
    told = f"{result.key}: {_value(result)}{_each(result)}, bar {_bar(result)}; {facts}"
    return "\n".join([told, *(f"  {remark}" for remark in result.remarks)])


def to_markdown(results: Sequence[Result], *, heading: str) -> str:
    """`heading`, the table, and the remarks as a list."""
    rows = [_row(result) for result in results]
    remarks = [f"- `{result.key}`: {remark}" for result in results for remark in result.remarks]
    parts = [heading, "\n".join([*HEADER, *rows]), *(["\n".join(remarks)] if remarks else [])]
    return "\n\n".join(parts) + "\n"


def to_json(results: Sequence[Result]) -> dict[str, float]:
    """Flat: every result by its key, and what was measured beside it."""
    values: dict[str, float] = {}
    for result in results:
        values[result.key] = round(result.value, 4)
        values |= {name: round(value, 4) for name, value in result.extra.items()}
    return values


def _row(result: Result) -> str:
    cells = (f"`{result.key}`", result.ours, result.other, f"**{_value(result)}**{_each(result)}", _bar(result))
    return f"| {' | '.join(cells)} |"


def _value(result: Result) -> str:
    return f"{result.value:.2f}{result.case.unit}"


def _each(result: Result) -> str:
    parts = result.each
    if len(parts) > MOST_SHOWN:
        return f" ({min(parts):.2f} to {max(parts):.2f})"
    return f" ({' '.join(f'{part:.2f}' for part in parts)})" if parts else ""


def _bar(result: Result) -> str:
    bound = "at least" if result.case.at_least else "at most"
    return f"{bound} {result.case.bar:g}{result.case.unit} {result.case.verdict(result.value)}"
