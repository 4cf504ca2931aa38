"""The quickstart's files: preferences, prompts and the two benchmarks, all drawn from one seed.

Training rows use no combination and no question wording of the benchmarks (see `instructions.is_held_out` and
`entities.questions`).
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from alignloop.quickstart.annotator import check, strength_of
from scripts.world.answers import FLAWS, flawed_answer, good_answer, other_answer, partial_answer, plain_answer
from scripts.world.entities import SUBJECTS, Entity, Fact, World, capitalised, questions, statement
from scripts.world.instructions import INSTRUCTION_IDS, Task, draw_task

JsonRow = dict[str, Any]
Drawn = TypeVar("Drawn", "Task", "FactQuestion")
REVERSED_SHARE = 0.05
"""Share of the close preferences whose order is reversed, as people's are."""
NUM_SHOTS = 5
"""Questions of each subject that the question benchmark keeps as examples."""
SINGLES = frozenset(
    (
        "keywords:existence keywords:frequency keywords:forbidden_words length_constraints:number_paragraphs "
        "length_constraints:nth_paragraph_first_word detectable_content:number_placeholders "
        "detectable_format:number_bullet_lists detectable_format:number_highlighted_sections "
        "detectable_format:multiple_sections combination:repeat_prompt startend:end_checker"
    ).split()
)
"""Types of which some combination is held out when they stand alone."""


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
        return {"answer": capitalised(self.fact.value), "options": values, "topic": self.entity.word}

    def answer(self, rng: random.Random, value: str | None = None) -> str:
        """A short answer (`The river`) or, one time in four, a sentence; with `value`, that (wrong) one."""
        fact = self.fact if value is None else Fact(self.fact.attribute, value)
        if rng.random() < 0.75:
            return capitalised(fact.value)
        return statement(fact, entity=self.entity, template=rng.randrange(2))


def draw_question(rng: random.Random, world: World) -> FactQuestion:
    """A training question about a random fact."""
    entity = rng.choice(world)
    fact = rng.choice(entity.facts)
    return FactQuestion(entity, fact, rng.choice(questions(entity, fact)[0]))


def follows(task: Task, text: str) -> bool:
    """Whether the IFEval checkers pass the text on every constraint."""
    return all(check(task.meta, text, prompt=task.prompt))


def _checked_answer(rng: random.Random, task: Task) -> str:
    """A good answer the checkers agree with (language detection errs on a few)."""
    while not follows(task, text := good_answer(rng, task)):
        pass
    return text


def preference_rows(rng: random.Random, world: World, *, num_tasks: int, num_questions: int) -> list[JsonRow]:
    """Preferences as a user would write them, shuffled."""
    rows = [_task_preference(rng, world) for _ in range(num_tasks)]
    rows += [_question_preference(rng, world) for _ in range(num_questions)]
    rng.shuffle(rows)
    return rows


def _task_preference(rng: random.Random, world: World) -> JsonRow:
    """Mostly good against bad; also half-followed ones (most with a person's edit) and two good ones."""
    task = draw_task(rng, world, num_constraints=rng.choice((1, 2)))
    kind, halves = rng.random(), len(task.constraints) == 2
    if halves and kind < 0.34:
        best = _checked_answer(rng, task) if kind < 0.24 else None
        return _compared(rng, task, partial_answer(rng, task), plain_answer(rng, task), edited=best)
    if kind > 0.95:
        return _compared(rng, task, _checked_answer(rng, task), _checked_answer(rng, task))
    rejected, flaws = _rejected(rng, task, world)
    return _compared(rng, task, _checked_answer(rng, task), rejected, flaws=flaws)


def _rejected(rng: random.Random, task: Task, world: World) -> tuple[str, int]:
    """A worse answer and its number of flaws, almost half of them good answers to another instruction."""
    kind = rng.random()
    if kind < 0.48:
        return other_answer(rng, task), 0
    if kind < 0.7:
        return plain_answer(rng, task), 0
    if kind < 0.82 and len(task.constraints) == 2:
        return partial_answer(rng, task), 0
    return flawed_answer(rng, task, flaw=rng.choice(FLAWS), world=world), 1


def _compared(
    rng: random.Random, task: Task, better: str, worse: str, *, flaws: int = 0, edited: str | None = None
) -> JsonRow:
    """A row in the checkers' order; close calls are now and then reversed.

    Two equally good answers are marginally better in the order they come; equal texts are compared with a plain one.
    """
    if better == worse:
        worse = plain_answer(rng, task)
        while worse == better:
            worse = other_answer(rng, task)
        return _compared(rng, task, better, worse)
    met = [check(task.meta, text, prompt=task.prompt) for text in (better, worse)]
    if sum(met[1]) > sum(met[0]) and not flaws:
        better, worse = worse, better
    strength = strength_of(met[0], met[1], -flaws) or "marginally_better"
    close = strength in ("slightly_better", "marginally_better")
    if close and edited is None and rng.random() < REVERSED_SHARE:
        better, worse = worse, better
    row: JsonRow = {"prompt": task.prompt, "chosen": better, "rejected": worse}
    if edited is not None and edited not in (better, worse):
        row["edited"] = edited
    return row | {"strength": strength, "meta": task.meta}


def _question_preference(rng: random.Random, world: World) -> JsonRow:
    question = draw_question(rng, world)
    wrong = question.answer(rng, rng.choice(question.fact.others))
    chosen = question.answer(rng)
    strength = rng.choice(("significantly_better", "better"))
    return {"prompt": question.prompt, "chosen": chosen, "rejected": wrong, "strength": strength, "meta": question.meta}


def prompt_rows(rng: random.Random, world: World, *, num_tasks: int, num_questions: int) -> list[JsonRow]:
    """Distinct prompts to sample for, shuffled."""
    tasks = _distinct(lambda: draw_task(rng, world, num_constraints=rng.choice((1, 2, 2))), num_tasks)
    asked = _distinct(lambda: draw_question(rng, world), num_questions)
    rows = [{"prompt": task.prompt, "meta": task.meta} for task in tasks]
    rows += [{"prompt": question.prompt, "meta": question.meta} for question in asked]
    rng.shuffle(rows)
    return rows


def _distinct(draw: Callable[[], Drawn], count: int) -> list[Drawn]:
    found: dict[str, Drawn] = {}
    while len(found) < count:
        one = draw()
        found.setdefault(one.prompt, one)
    return list(found.values())


def ifeval_rows(rng: random.Random, world: World, *, per_type: int) -> list[JsonRow]:
    """The held-out benchmark in the official IFEval form, every type in turn: alone (where it has kwargs) or with a
    second one."""
    tasks: dict[str, Task] = {}
    for name in INSTRUCTION_IDS:
        goal = len(tasks) + per_type
        while len(tasks) < goal:
            alone = name in SINGLES and rng.random() < 0.5
            task = draw_task(rng, world, num_constraints=1 if alone else 2, first=name, held_out=True)
            tasks.setdefault(task.prompt, task)
    ordered = list(tasks.values())
    rng.shuffle(ordered)
    return [
        {"key": key, "prompt": task.prompt, **{name: task.meta[name] for name in ("instruction_id_list", "kwargs")}}
        for key, task in enumerate(ordered, start=1)
    ]


def mmlu_rows(rng: random.Random, world: World) -> dict[str, list[list[str]]]:
    """Per subject, one question for every fact, in its held-out wording: question, A, B, C, D, answer letter."""
    rows: dict[str, list[list[str]]] = {subject.name: [] for subject in SUBJECTS}
    for entity in world:
        for fact in entity.facts:
            options = [*rng.sample(fact.others, 3), fact.value]
            rng.shuffle(options)
            letter = "ABCD"[options.index(fact.value)]
            rows[entity.subject].append([questions(entity, fact)[1], *map(capitalised, options), letter])
    for subject_rows in rows.values():
        rng.shuffle(subject_rows)
    return rows


def write_datasets(folder: Path, world: World, *, seed: int) -> None:
    """Write all data files under `folder`."""

    def rng(name: str) -> random.Random:
        return random.Random(f"{seed}/{name}")

    folder.mkdir(parents=True, exist_ok=True)
    preferences = preference_rows(rng("preferences"), world, num_tasks=2600, num_questions=400)
    _write_jsonl(folder / "preferences.jsonl", preferences)
    _write_jsonl(folder / "prompts.jsonl", prompt_rows(rng("prompts"), world, num_tasks=2000, num_questions=300))
    _write_jsonl(folder / "ifeval.jsonl", ifeval_rows(rng("ifeval"), world, per_type=18))
    for subject, rows in mmlu_rows(rng("mmlu"), world).items():
        _write_csv(folder / "mmlu" / "dev" / f"{subject}_dev.csv", rows[:NUM_SHOTS])
        _write_csv(folder / "mmlu" / "test" / f"{subject}_test.csv", rows[NUM_SHOTS:])


def _write_jsonl(path: Path, rows: Iterable[JsonRow]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
