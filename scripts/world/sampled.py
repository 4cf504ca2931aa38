"""The quickstart's preferences: two models' answers to a prompt, compared by the simulated annotator.

    prompts -> an answer of the base, an answer of its sibling -> annotator, with noise -> rows; one in ten edited

No answer is the generator's: what is right among them is what the models happened to get right.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignloop.data.jsonl import load_jsonl
from alignloop.quickstart.annotator import annotate
from alignloop.records import CandidateRow, PreferenceRow, PromptRow
from scripts.world.datasets import JsonRow, prompt_rows, write_jsonl
from scripts.world.edits import mended
from scripts.world.entities import build_world

NUM_TASKS, NUM_QUESTIONS = 4400, 700
"""Prompts that are answered; where both answers are equally good there is no row."""
NUM_ROWS = 1500
EDITED_SHARE = 0.1
MAX_TOKENS = 224


def write_preferences(data: Path, *, models: Sequence[Path], work: Path, seed: int) -> dict[str, int]:
    """Write `preferences.jsonl` beside the prompts, which they share none with; returns counts."""
    known = {row.messages[-1].content for row in _prompts(data / "prompts.jsonl")}
    asked = work / f"asked-{seed}.jsonl"
    rng = random.Random(f"{seed}/preferences")
    rows = prompt_rows(rng, build_world(), num_tasks=NUM_TASKS, num_questions=NUM_QUESTIONS, known=known)
    write_jsonl(asked, rows)
    answers = [_answers(model, asked, out=work / f"answers-{seed}-{model.name}.jsonl", seed=seed) for model in models]
    pairs = [
        (prompt, first, second)
        for prompt, first, second in zip(_prompts(asked), *answers, strict=True)
        if first.finish_reason == second.finish_reason == "stop" and first.completion and second.completion
    ]
    compared = annotate(pairs, seed=seed)
    kept = rng.sample(compared, NUM_ROWS)
    written = list(_rows(rng, kept))
    write_jsonl(data / "preferences.jsonl", written)
    counts = {"asked": len(rows), "finished": len(pairs), "compared": len(compared), "written": len(written)}
    return counts | {"edited": sum("edited" in row for row in written)}


def _prompts(path: Path) -> list[PromptRow]:
    from alignloop.data.readers import read_prompts

    return list(read_prompts([path], max_bad_fraction=0.0).rows)


def _answers(model: Path, prompts: Path, *, out: Path, seed: int) -> list[CandidateRow]:
    """One sampled answer a prompt, by `alignloop sample`."""
    options = ["-k", "1", "--max-tokens", str(MAX_TOKENS), "--set", "engine.dtype=float32", "--set", f"seed={seed}"]
    command = ["alignloop", "sample", str(model.resolve()), str(prompts), "--out", str(out), *options]
    subprocess.run([sys.executable, "-m", *command], check=True)
    return list(load_jsonl(out, CandidateRow))


def _rows(rng: random.Random, compared: Sequence[PreferenceRow]) -> Iterator[JsonRow]:
    """As a user would write them, with an edit of `chosen` in one of ten, among those that one can mend."""
    edits = {}
    for row in compared:
        edited = mended(rng, meta=row.meta, prompt=row.messages[-1].content, text=row.chosen)
        if edited is not None and edited not in (row.chosen, row.rejected):
            edits[row.id] = edited
    drawn = set(rng.sample(sorted(edits), min(len(edits), round(EDITED_SHARE * len(compared)))))
    for row in compared:
        written: JsonRow = {"prompt": row.messages[-1].content, "chosen": row.chosen, "rejected": row.rejected}
        if row.id in drawn:
            written["edited"] = edits[row.id]
        yield written | {"strength": row.strength, "meta": row.meta}
