"""Rows that the tests of pruning are made of."""

from __future__ import annotations

from typing import Any

from alignloop.records import Message, PreferenceRow, SelectedRow, Source


def ask(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def selected_row(row_id: str, reward: float, **values: Any) -> SelectedRow:
    made: dict[str, Any] = {
        "id": row_id,
        "prompt_id": f"p-{row_id}",
        "messages": ask(f"Say something about the number {row_id}."),
        "completion": "A plain answer.",
        "finish_reason": "stop",
        "reward": reward,
        "random_reward": 0.0,
        "rewards": [reward, -9.0],
        "pass_rate": 0.5,
        "round": 2,
        "policy": "sha256:x",
    }
    return SelectedRow(**made | values)


def preference_row(row_id: str, **values: Any) -> PreferenceRow:
    made = {"messages": ask("Name a colour."), "chosen": "Blue.", "rejected": "Seven."}
    return PreferenceRow(id=row_id, **{"source": Source(file="given.jsonl", line=3), **made, **values})
