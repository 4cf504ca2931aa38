"""A reward that knows the truth, for the laboratory's oracle arm alone: 1 where an answer meets all its demands."""

from __future__ import annotations

from typing import Any

from alignloop.quickstart.annotator import check


def right(prompts: list[Any], completions: list[Any], *, meta: list[dict[str, Any]], **columns: Any) -> list[float]:
    return [
        float(all(check(row, completion[0]["content"], prompt=prompt[-1]["content"])))
        for prompt, completion, row in zip(prompts, completions, meta, strict=True)
    ]
