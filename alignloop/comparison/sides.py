"""A scored file as one side of a comparison, and the prompts that two sides have in common."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignloop.alone.out_file import read_beside
from alignloop.data.candidates import OWN_COLUMNS
from alignloop.data.jsonl import load_jsonl
from alignloop.data.rawfile import open_rows
from alignloop.data.reading import first_objects
from alignloop.errors import DataError
from alignloop.records import CandidateRow, by_prompt


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: what the user called it.
        file: its scored candidates.
        settings: of `engine` and `sample`, where they are known.
        reward_model: digest; None where the file does not tell.
        reward_functions: those added to it, with weights; None where the file does not tell.
        rows: candidates of each prompt by prompt id, in file order.
        notes: what else is to be known of it.
    """

    name: str
    file: Path
    rows: dict[str, list[CandidateRow]]
    settings: dict[str, Any] = field(default_factory=dict)
    reward_model: str | None = None
    reward_functions: tuple[tuple[str, float], ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pairing:
    """Prompts of two sides.

    Attributes:
        a, b: the candidates of N prompts each, in the same order.
        only_in_a, only_in_b: how many are not in the other.
    """

    a: list[list[CandidateRow]]
    b: list[list[CandidateRow]]
    only_in_a: int
    only_in_b: int


def read_side(file: Path, *, name: str, settings: dict[str, Any] | None = None, notes: tuple[str, ...] = ()) -> Side:
    """A file of scored candidates.

    Raises:
        DataError: it holds something else, or no rewards.
    """
    if not any(row.keys() >= OWN_COLUMNS for row in first_objects(open_rows(file), columns={})):
        raise DataError(
            f"{file}: holds no scored candidates; `alignloop score REWARD_MODEL {file} --out ...` makes them"
        )
    rows = list(load_jsonl(file, CandidateRow))
    for row in rows:
        if row.reward is None and row.total_reward is None:
            raise DataError(
                f"{file}: candidate {row.id} has no reward: score the file first, `alignloop score REWARD_MODEL {file}`"
            )
    model, functions = _scored_by(file)
    return Side(
        name=name,
        file=file,
        rows=by_prompt(rows),
        settings=settings or {},
        reward_model=model,
        reward_functions=functions,
        notes=notes,
    )


def pair_up(a: Side, b: Side) -> Pairing:
    """The prompts that both have: the same dialog, or, where system prompts differ, the same id and last turn.

    Raises:
        DataError: there are none.
    """
    partners = _same(a.rows, b.rows, _dialog)
    left_a = {name: rows for name, rows in a.rows.items() if name not in partners}
    left_b = {name: rows for name, rows in b.rows.items() if name not in partners.values()}
    partners |= _same(left_a, left_b, _id_and_last_turn)
    if not partners:
        raise DataError(
            f"{a.name} and {b.name} have no prompt in common ({len(a.rows)} and {len(b.rows)} prompts; the first ones: "
            f"{_start(a)!r} and {_start(b)!r}): sample both for the same prompts"
        )
    common = [name for name in a.rows if name in partners]
    return Pairing(
        a=[a.rows[name] for name in common],
        b=[b.rows[partners[name]] for name in common],
        only_in_a=len(a.rows) - len(common),
        only_in_b=len(b.rows) - len(common),
    )


def common_num_candidates(pairing: Pairing) -> Pairing:
    """Each prompt with as many candidates in A as in B: the best of more is higher by itself.

    Candidates are drawn alike, so the first are as good as any.
    """
    counts = [min(len(x), len(y)) for x, y in zip(pairing.a, pairing.b, strict=True)]
    a, b = ([rows[:k] for rows, k in zip(side, counts, strict=True)] for side in (pairing.a, pairing.b))
    return replace(pairing, a=a, b=b)


def num_candidates_text(prompts: Iterable[Sequence[CandidateRow]]) -> str:
    """`4`, or `4 to 8` where prompts have different numbers of candidates."""
    counts = [len(rows) for rows in prompts]
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _scored_by(file: Path) -> tuple[str | None, tuple[tuple[str, float], ...] | None]:
    """Digest of the reward model, and the reward functions with their weights, by the manifest beside the file."""
    known = read_beside(file)
    if known is None or known.stage != "score":
        return None, None
    model = known.inputs.get("reward_model")
    functions = known.config.get("reward_functions") or []
    digest = model.get("digest") if isinstance(model, dict) else None
    return digest, tuple(sorted((entry["function"], float(entry["weight"])) for entry in functions))


def _same(a: dict[str, list[CandidateRow]], b: dict[str, list[CandidateRow]], key: Any) -> dict[str, str]:
    """Prompt id in A -> prompt id in B, for prompts of one key; a key that comes twice is told apart by its place."""
    of_b = {place: name for name, place in _keyed(b, key).items()}
    return {name: of_b[place] for name, place in _keyed(a, key).items() if place in of_b}


def _keyed(prompts: dict[str, list[CandidateRow]], key: Any) -> dict[str, tuple[str, int]]:
    seen: Counter[str] = Counter()
    keyed = {}
    for name, rows in prompts.items():
        value = key(name, rows[0])
        keyed[name] = (value, seen[value])
        seen[value] += 1
    return keyed


def _dialog(name: str, row: CandidateRow) -> str:
    return json.dumps([[message.role, message.content] for message in row.messages])


def _id_and_last_turn(name: str, row: CandidateRow) -> str:
    return json.dumps([name, row.messages[-1].content])


def _start(side: Side) -> str:
    text = next(iter(side.rows.values()))[0].messages[-1].content
    return text if len(text) <= 40 else text[:37] + "..."
