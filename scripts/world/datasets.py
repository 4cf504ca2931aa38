"""The quickstart's prompts and benchmarks, all drawn from one seed.

Training rows use no combination and no question wording of the benchmarks (see `instructions.use_of` and
`entities.questions`).
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from alignloop.quickstart.annotator import check
from scripts.world.entities import SUBJECTS, Entity, Fact, World, capitalised, near, questions, statement
from scripts.world.instructions import INSTRUCTION_IDS, SEEN, UNSEEN, Task, Use, draw_any_task, draw_task, use_of

JsonRow = dict[str, Any]
Drawn = TypeVar("Drawn", "Task", "FactQuestion")
Part = Literal["dev", "test", "unseen"]
NUM_SHOTS = 5
"""Questions of each subject that the question benchmark keeps as examples."""
PER_TYPE: dict[Part, int] = {"dev": 47, "test": 47, "unseen": 50}
"""Prompts of each type in a benchmark."""
BENCHMARKS: dict[str, Part] = {"ifeval_dev.jsonl": "dev", "ifeval.jsonl": "test", "ifeval_unseen.jsonl": "unseen"}


class FactQuestion(NamedTuple):
    entity: Entity
    fact: Fact
    question: str

    @property
    def prompt(self) -> str:
        return self.question

    @property
    def meta(self) -> JsonRow:
        values = [capitalised(value) for value in self.fact.attribute.values]
        return {"answer": capitalised(self.fact.value), "options": values}

    def answer(self, rng: random.Random, value: str | None = None) -> str:
        """A short answer (`The river`) or, one time in four, a sentence; with `value`, that (wrong) one."""
        fact = self.fact if value is None else Fact(self.fact.attribute, value)
        if rng.random() < 0.75:
            return capitalised(fact.value)
        return statement(fact, entity=self.entity, template=rng.randrange(2))


def draw_question(rng: random.Random, world: World) -> FactQuestion:
    """A training question about a random fact of these entities."""
    entity = rng.choice(world)
    fact = rng.choice(entity.facts)
    return FactQuestion(entity, fact, rng.choice(questions(entity, fact)[0]))


def follows(task: Task, text: str) -> bool:
    """Whether the IFEval checkers pass the text on every constraint."""
    return all(check(task.meta, text, prompt=task.prompt))


def prompt_rows(rng: random.Random, world: World, *, num_tasks: int, num_questions: int) -> list[JsonRow]:
    """Distinct prompts with what the annotator needs, shuffled: about the near half of the world, with the types that
    are trained on."""

    def distinct(draw: Callable[[], Drawn], count: int) -> list[JsonRow]:
        found: dict[str, Drawn] = {}
        while len(found) < count:
            one = draw()
            found.setdefault(one.prompt, one)
        return [{"prompt": one.prompt, "meta": one.meta} for one in found.values()]

    rows = distinct(lambda: draw_task(rng, world, num_constraints=rng.choice((1, 2, 2)), types=SEEN), num_tasks)
    rows += distinct(lambda: draw_question(rng, near(world)), num_questions)
    rng.shuffle(rows)
    return rows


def ifeval_rows(rng: random.Random, world: World, *, part: Part) -> list[JsonRow]:
    """A held-out benchmark in the official IFEval form, every type in turn, alone or with a second one.

    `dev` and `test` have the types that are trained on; every prompt of `unseen` has one that is not.
    """
    use: Use = "dev" if part == "dev" else "test"
    firsts, types = (sorted(UNSEEN), INSTRUCTION_IDS) if part == "unseen" else (SEEN, SEEN)
    tasks: dict[str, Task] = {}
    for name in firsts:
        goal = len(tasks) + PER_TYPE[part]
        while len(tasks) < goal:
            task = draw_any_task(rng, near(world), num_constraints=rng.choice((1, 2)), first=name, types=types)
            if use_of(task) == use:  # of some types no combination that stands alone is
                tasks.setdefault(task.prompt, task)
    ordered = list(tasks.values())
    rng.shuffle(ordered)
    return [
        {"key": key, "prompt": task.prompt, **{name: task.meta[name] for name in ("instruction_id_list", "kwargs")}}
        for key, task in enumerate(ordered, start=1)
    ]


def mmlu_rows(rng: random.Random, world: World) -> dict[str, list[list[str]]]:
    """Per subject, one question for every fact of the far half, in its held-out wording: question, A, B, C, D, answer
    letter."""
    rows: dict[str, list[list[str]]] = {subject.name: [] for subject in SUBJECTS}
    for entity in world:
        for fact in entity.facts if entity.is_far else ():
            options = [*rng.sample(fact.others, 3), fact.value]
            rng.shuffle(options)
            letter = "ABCD"[options.index(fact.value)]
            rows[entity.subject].append([questions(entity, fact)[1], *map(capitalised, options), letter])
    for subject_rows in rows.values():
        rng.shuffle(subject_rows)
    return rows


def write_datasets(folder: Path, world: World, *, seed: int) -> None:
    """Write the prompts and the benchmarks under `folder`; the preferences are sampled (`sampled.py`)."""

    def rng(name: str) -> random.Random:
        return random.Random(f"{seed}/{name}")

    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "prompts.jsonl", prompt_rows(rng("prompts"), world, num_tasks=2000, num_questions=300))
    for file, part in BENCHMARKS.items():
        write_jsonl(folder / file, ifeval_rows(rng(part), world, part=part))
    for subject, rows in mmlu_rows(rng("mmlu"), world).items():
        _write_csv(folder / "mmlu" / "dev" / f"{subject}_dev.csv", rows[:NUM_SHOTS])
        _write_csv(folder / "mmlu" / "test" / f"{subject}_test.csv", rows[NUM_SHOTS:])


def write_jsonl(path: Path, rows: Iterable[JsonRow]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
