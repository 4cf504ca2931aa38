"""The quickstart's preferences: two models' answers to a prompt, compared by the simulated annotator.

    prompts -> answers of the base, answers of its sibling -> annotator, with noise -> rows; one in ten edited

No answer is the generator's: what is right among them is what the models happened to get right.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignloop.data.jsonl import load_jsonl
from alignloop.data.readers import read_prompts
from alignloop.judging.by_function import annotate
from alignloop.quickstart.annotator import SIMULATED
from alignloop.records import CandidateRow, PreferenceRow, PromptRow
from scripts.world.datasets import JsonRow, write_jsonl
from scripts.world.edits import mended

NUM_ANSWERS = 3
"""Of each model to each prompt, compared in pairs, one of each; where both are equally good there is no row."""
NUM_ROWS = 2100
EDITED_SHARE = 0.1
MAX_TOKENS = 224


def write_preferences(data: Path, *, models: Sequence[Path], work: Path, seed: int) -> dict[str, int]:
    """Write `preferences.jsonl` about the prompts beside it; returns counts."""
    rng = random.Random(f"{seed}/preferences")
    prompts = {row.id: row for row in _prompts(data / "prompts.jsonl")}
    answers = [
        _answers(model, data / "prompts.jsonl", out=work / f"answers-{seed}-{model.name}.jsonl", seed=seed)
        for model in models
    ]
    pairs = [
        (prompts[first.prompt_id], first, second)
        for first, second in zip(*answers, strict=True)
        if first.finish_reason == second.finish_reason == "stop" and first.completion and second.completion
    ]
    compared = annotate(pairs, by=SIMULATED, seed=seed).rows
    written = list(_rows(rng, rng.sample(compared, NUM_ROWS)))
    write_jsonl(data / "preferences.jsonl", written)
    counts = {"pairs": len(pairs), "compared": len(compared), "written": len(written)}
    return counts | {"edited": sum("edited" in row for row in written)}


def _prompts(path: Path) -> list[PromptRow]:
    return list(read_prompts([path], max_bad_fraction=0.0).rows)


def _answers(model: Path, prompts: Path, *, out: Path, seed: int) -> list[CandidateRow]:
    """Sampled answers in the prompts' order, by `alignloop sample`."""
    options = [
        "-k",
        str(NUM_ANSWERS),
        "--max-tokens",
        str(MAX_TOKENS),
        "--set",
        "engine.dtype=float32",
        "--set",
        f"seed={seed}",
    ]
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
