"""Answers to quickstart tasks: good ones that follow every instruction, and bad ones that do not.

Task --good_answer--> text that passes the IFEval checkers
Task --plain_answer--> on the topic, as if nothing else had been asked
Task --other_answer--> a good answer to another instruction (the mismatch that stops reward hacking)
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from scripts.world.entities import Entity, Fact, capitalised, statement
from scripts.world.instructions import INSTRUCTION_IDS, PLACEHOLDERS, Constraint, Task, compatible, draw_constraint

Said = tuple[Entity, Fact]
_MAX_TRIES = 40
_LAYOUTS = {
    "length_constraints:number_paragraphs": "\n***\n",
    "length_constraints:nth_paragraph_first_word": "\n\n",
    "combination:two_responses": "\n******\n",
}
"""Layouts whose marks stand between the units."""


class _Wanted:
    """What the task's constraints ask for; neutral values where nothing is asked."""

    def __init__(self, task: Task) -> None:
        self.ids = frozenset(constraint.instruction_id for constraint in task.constraints)
        self._kwargs = {name: value for one in task.constraints for name, value in one.kwargs.items()}
        relation = self.get("relation", "")
        self.max_words = self.get("num_words") if relation == "less than" else None
        self.min_words = self.get("num_words") if relation == "at least" else 0
        units = ("num_bullets", "num_paragraphs", "num_sections")
        self.num_units = 2 if "combination:two_responses" in self.ids else max(1, *map(self.get, units))
        """Bullets, paragraphs, sections or responses in the answer."""

    def get(self, name: str, default: Any = 0) -> Any:
        return self._kwargs.get(name, default)


def num_words(text: str) -> int:
    """Words as the IFEval checker counts them."""
    return len(re.findall(r"\w+", text))


def good_answer(rng: random.Random, task: Task) -> str:
    """A short answer on the topic that follows every constraint."""
    wanted = _Wanted(task)
    for _ in range(_MAX_TRIES + 1):
        facts = task.facts(rng)
        spare = next(fact for entity, fact in reversed(facts) if entity is task.entity)
        text = _laid_out(_units(rng, task, wanted, facts), wanted)
        answer = _finished(rng, task, wanted, text, spare_fact=spare)
        if wanted.max_words is None or num_words(answer) < wanted.max_words:
            break
    return answer


def _units(rng: random.Random, task: Task, wanted: _Wanted, facts: Sequence[Said]) -> list[str]:
    """One or more sentences for each unit of the layout, extra sentences (keywords, placeholders) in the last."""
    if task.truth is not None:
        return [f"My answer is {'yes' if task.truth else 'no'}."]
    sentences = _sentences(rng, task, wanted, facts)
    per_unit = math.ceil(len(sentences) / wanted.num_units)
    units = [sentences[start : start + per_unit] for start in range(0, len(sentences), per_unit)]
    if "length_constraints:nth_paragraph_first_word" in wanted.ids:
        paragraph = units[wanted.get("nth_paragraph") - 1]
        paragraph[0] = f"{capitalised(wanted.get('first_word'))} {_lowered(paragraph[0], task.entity)}"
    units[-1].extend(_extras(rng, wanted))
    may_join = wanted.num_units == 1 and "punctuation:no_comma" not in wanted.ids and len(units[0]) > 1
    if may_join and rng.random() < 0.35:
        return [_comma_joined(units[0], task.entity)]
    return [" ".join(unit) for unit in units]


def _sentences(rng: random.Random, task: Task, wanted: _Wanted, facts: Sequence[Said]) -> list[str]:
    highlights = wanted.get("num_highlights")
    count = len(facts) if task.companion is not None else _num_sentences(rng, wanted)
    sentences: list[str] = []
    before: Entity | None = None
    for index, (entity, fact) in enumerate(facts):
        if len(sentences) >= count and num_words(" ".join(sentences)) >= wanted.min_words:
            break
        mark = "*" if index < highlights else ""
        pronoun = entity is before and rng.random() < 0.6
        sentences.append(statement(fact, entity=entity, template=rng.randrange(2), pronoun=pronoun, mark=mark))
        before = entity
    return sentences


def _num_sentences(rng: random.Random, wanted: _Wanted) -> int:
    if wanted.max_words is not None:
        return 1
    if wanted.num_units > 1:
        return wanted.num_units * max(1, math.ceil(wanted.get("num_highlights") / wanted.num_units))
    shortest = 2 if {"change_case:english_lowercase", "change_case:english_capital"} & wanted.ids else 1
    return max(rng.choice((shortest, 2, 2)), wanted.get("num_highlights"))


def _extras(rng: random.Random, wanted: _Wanted) -> list[str]:
    extras: list[str] = []
    if wanted.get("keywords", ()):
        extras.append(f"It reminds me of {' and '.join(wanted.get('keywords'))}.")
    if wanted.get("keyword"):
        extras.append(f"I think of {' and '.join([wanted.get('keyword')] * wanted.get('frequency'))}.")
    if wanted.get("num_placeholders"):
        names = rng.sample(PLACEHOLDERS, wanted.get("num_placeholders"))
        extras.append(f"Please ask {' and '.join(f'[{name}]' for name in names)}.")
    return extras


def _comma_joined(sentences: Sequence[str], entity: Entity) -> str:
    first, second, *rest = sentences
    return " ".join((f"{first.rstrip('.')}, and {_lowered(second, entity)}", *rest))


def _lowered(sentence: str, entity: Entity) -> str:
    """First letter lower-case, unless the sentence begins with a name or `I`."""
    if sentence.startswith("I ") or (entity.name[0].isupper() and sentence.startswith(entity.name)):
        return sentence
    return sentence[:1].lower() + sentence[1:]


def _laid_out(units: Sequence[str], wanted: _Wanted) -> str:
    if "detectable_format:number_bullet_lists" in wanted.ids:
        return "\n".join(f"* {unit}" for unit in units)
    if "detectable_format:multiple_sections" in wanted.ids:
        return "\n".join(f"{wanted.get('section_spliter')} {n}\n{unit}" for n, unit in enumerate(units, start=1))
    if "detectable_format:json_format" in wanted.ids:
        return json.dumps({"answer": " ".join(units)})
    between = next((between for name, between in _LAYOUTS.items() if name in wanted.ids), " ")
    return between.join(units)


def _finished(rng: random.Random, task: Task, wanted: _Wanted, text: str, *, spare_fact: Fact) -> str:
    """Title, postscript, end phrase, case, quotation marks and the repeated request, in an order that fits."""
    ids, entity = wanted.ids, task.entity
    if "detectable_format:title" in ids:
        text = f"<<{capitalised(entity.name)}>>\n{text}"
    if "detectable_content:postscript" in ids:
        note = statement(spare_fact, entity=entity, template=rng.randrange(2), pronoun=True)
        text = f"{text}\n{wanted.get('postscript_marker')} {note}"
    if "startend:end_checker" in ids:
        text = "\n".join((text, wanted.get("end_phrase"))) if "\n" in text else f"{text} {wanted.get('end_phrase')}"
    if "change_case:english_capital" in ids:
        text = text.upper()
    if "change_case:english_lowercase" in ids:
        text = text.lower()
    if "startend:quotation" in ids:
        text = f'"{text}"'
    if "combination:repeat_prompt" in ids:
        text = f"{task.request}\n{text}"
    return text


def plain_answer(rng: random.Random, task: Task) -> str:
    """On the topic, with a comma, in mixed case: as if only the first sentence of the request was read."""
    wanted = _Wanted(task)
    is_long = task.companion is not None
    facts = [
        (entity, fact)
        for entity in task.entities
        # All that is known of two topics holds now and then the very word that is asked for.
        for fact in rng.sample(entity.facts, rng.choice((3, 4, 5, 6)) if is_long else len(entity.facts))
        if fact.keyword not in wanted.get("keywords", ())
    ]
    if not is_long:
        facts.sort(key=lambda said: said[1].keyword not in task.forbidden_words())
        facts = facts[: 5 if wanted.max_words else 1 if wanted.min_words else rng.choice((2, 2, 3))]
    elif wanted.min_words:
        facts = facts[:: rng.choice((2, 3))]  # too little of both
    sentences, before = [], None
    for entity, fact in facts:
        pronoun = entity is before and rng.random() < 0.6
        sentences.append(statement(fact, entity=entity, template=rng.randrange(2), pronoun=pronoun))
        before = entity
    if task.truth is not None:
        return f"{'Yes' if task.truth else 'No'}, {_lowered(sentences[0], task.entity)}"
    return _comma_joined(sentences, task.entity) if len(sentences) > 1 else sentences[0]


def other_answer(rng: random.Random, task: Task) -> str:
    """A good answer to the same request under other constraints."""
    used = {constraint.instruction_id for constraint in task.constraints}
    pool = [i for i in INSTRUCTION_IDS if i not in used and i != "detectable_format:constrained_response"]
    ids = [rng.choice(pool)]
    partners = [name for name in pool if compatible(ids[0], name)]
    if len(task.constraints) == 2 and partners:
        ids.append(rng.choice(partners))
    is_long = task.companion is not None
    drawn = tuple(draw_constraint(rng, name, entity=task.entity, request=task.request, is_long=is_long) for name in ids)
    return good_answer(rng, replace(task, constraints=drawn, truth=None))


def near_answer(rng: random.Random, task: Task, *, follows: Callable[[str], bool]) -> str:
    """Almost a good answer: one demand is missed or met with other values (four bullets for five, another keyword), or
    the text runs in a loop or breaks off at its end."""
    kind = rng.random()
    if kind < 0.1:
        return _looping(rng, good_answer(rng, task))
    if kind < 0.2:
        return _broken_off(rng, good_answer(rng, task))
    for _ in range(_MAX_TRIES):
        missed = rng.randrange(len(task.constraints))
        constraints = list(task.constraints)
        if (other := _other_values(rng, task, constraints[missed])) is None:
            del constraints[missed]
        else:
            constraints[missed] = other
        answerable = task.truth if constraints else None
        text = good_answer(rng, replace(task, constraints=tuple(constraints), truth=answerable))
        if not follows(text):
            return text
    return _broken_off(rng, good_answer(rng, task))


def _other_values(rng: random.Random, task: Task, constraint: Constraint) -> Constraint | None:
    """The constraint with other kwargs; None, one time in four and where there are none others."""
    if not constraint.kwargs or constraint.instruction_id == "combination:repeat_prompt" or rng.random() < 0.25:
        return None
    is_long = task.companion is not None
    for _ in range(_MAX_TRIES):
        drawn = draw_constraint(
            rng, constraint.instruction_id, entity=task.entity, request=task.request, is_long=is_long
        )
        if drawn.kwargs != constraint.kwargs:
            return drawn
    return None


def _looping(rng: random.Random, text: str) -> str:
    *before, last = text.rsplit(". ", maxsplit=1)
    return ". ".join([*before, *[last.rstrip(".")] * rng.choice((3, 4, 5))]) + "."


def _broken_off(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    return " ".join(words[: max(2, rng.randint(len(words) // 2, len(words) - 1))]).rstrip(".!?")


def bad_answer(rng: random.Random, task: Task, *, follows: Callable[[str], bool], other_share: float = 0.4) -> str:
    """An answer that breaks at least one constraint by `follows` (the IFEval checkers): with probability `other_share`
    a good answer to another instruction, else a plain one."""
    for _ in range(_MAX_TRIES):
        text = other_answer(rng, task) if rng.random() < other_share else plain_answer(rng, task)
        if not follows(text):
            return text
    raise ValueError(f"no bad answer found for {task.prompt!r}: its constraints cannot be broken by chance")
