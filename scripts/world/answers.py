"""Answers to quickstart tasks: good ones that follow every instruction, bad ones that do not, and flaws.

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
from typing import Any, Literal

from scripts.world.entities import Entity, Fact, answer_text, capitalised, statement
from scripts.world.instructions import (
    INSTRUCTION_IDS,
    PLACEHOLDERS,
    Task,
    allowed_facts,
    compatible,
    draw_constraint,
    forbidden_words,
)

Flaw = Literal["repeated", "truncated", "off_topic"]
FLAWS: tuple[Flaw, ...] = ("repeated", "truncated", "off_topic")

_MAX_TRIES = 40


class _Asked:
    """The task's constraints by what they ask for; neutral values where nothing is asked."""

    def __init__(self, task: Task) -> None:
        self.ids = frozenset(constraint.instruction_id for constraint in task.constraints)
        self._kwargs: dict[str, Any] = {}
        for constraint in task.constraints:
            self._kwargs.update(constraint.kwargs)

    def get(self, name: str, default: Any = 0) -> Any:
        return self._kwargs.get(name, default)

    @property
    def num_units(self) -> int:
        """Bullets, paragraphs, sections or responses the answer is laid out in."""
        if "combination:two_responses" in self.ids:
            return 2
        return max(1, self.get("num_bullets"), self.get("num_paragraphs"), self.get("num_sections"))

    @property
    def max_words(self) -> int | None:
        return self.get("num_words") if self.get("relation", "") == "less than" else None

    @property
    def min_words(self) -> int:
        return self.get("num_words") if self.get("relation", "") == "at least" else 0


def num_words(text: str) -> int:
    """Words as the IFEval checker counts them."""
    return len(re.findall(r"\w+", text))


def good_answer(rng: random.Random, task: Task) -> str:
    """A short answer on the topic that follows every constraint."""
    asked = _Asked(task)
    answer = _good_draft(rng, task, asked)
    for _ in range(_MAX_TRIES):
        if asked.max_words is None or num_words(answer) < asked.max_words:
            break
        answer = _good_draft(rng, task, asked)
    return answer


def _good_draft(rng: random.Random, task: Task, asked: _Asked) -> str:
    facts = allowed_facts(task)
    rng.shuffle(facts)
    units = _units(rng, task, asked, facts)
    text = _laid_out(units, asked)
    return _finished(rng, task, asked, text, spare_fact=facts[-1])


def _units(rng: random.Random, task: Task, asked: _Asked, facts: Sequence[Fact]) -> list[str]:
    """One or more sentences for each unit of the layout, extra sentences (keywords, placeholders) in the last."""
    if task.truth is not None:
        return [f"My answer is {'yes' if task.truth else 'no'}."]
    sentences = _sentences(rng, task, asked, facts)
    per_unit = math.ceil(len(sentences) / asked.num_units)
    units = [sentences[start : start + per_unit] for start in range(0, len(sentences), per_unit)]
    if "length_constraints:nth_paragraph_first_word" in asked.ids:
        paragraph = units[asked.get("nth_paragraph") - 1]
        paragraph[0] = f"{capitalised(asked.get('first_word'))} {_lowered(paragraph[0], task.entity)}"
    units[-1].extend(_extras(rng, asked))
    if asked.num_units == 1 and "punctuation:no_comma" not in asked.ids:
        return [_joined(rng, unit, task.entity) for unit in units]
    return [" ".join(unit) for unit in units]


def _sentences(rng: random.Random, task: Task, asked: _Asked, facts: Sequence[Fact]) -> list[str]:
    highlights = asked.get("num_highlights")
    wanted = _num_sentences(rng, asked)
    sentences: list[str] = []
    for index, fact in enumerate(facts):
        if len(sentences) >= wanted and num_words(" ".join(sentences)) >= asked.min_words:
            break
        mark = "*" if index < highlights else ""
        pronoun = index > 0 and rng.random() < 0.6
        template = rng.randrange(2)
        sentences.append(statement(fact, entity=task.entity, template=template, pronoun=pronoun, mark=mark))
    return sentences


def _num_sentences(rng: random.Random, asked: _Asked) -> int:
    if asked.max_words is not None:
        return 1
    if asked.num_units > 1:
        per_unit = math.ceil(asked.get("num_highlights") / asked.num_units)
        return asked.num_units * max(1, per_unit)
    shortest = 2 if {"change_case:english_lowercase", "change_case:english_capital"} & asked.ids else 1
    return max(rng.choice((shortest, 2, 2)), asked.get("num_highlights"))


def _extras(rng: random.Random, asked: _Asked) -> list[str]:
    """Sentences that hold the keywords or placeholders asked for."""
    extras: list[str] = []
    if asked.get("keywords", ()):
        extras.append(f"It reminds me of {' and '.join(asked.get('keywords'))}.")
    if asked.get("keyword"):
        extras.append(f"I think of {' and '.join([asked.get('keyword')] * asked.get('frequency'))}.")
    if asked.get("num_placeholders"):
        names = rng.sample(PLACEHOLDERS, asked.get("num_placeholders"))
        extras.append(f"Please ask {' and '.join(f'[{name}]' for name in names)}.")
    return extras


def _joined(rng: random.Random, sentences: Sequence[str], entity: Entity) -> str:
    """Sentences in a line, the first two sometimes joined with a comma."""
    if len(sentences) > 1 and rng.random() < 0.35:
        return _comma_joined(sentences, entity)
    return " ".join(sentences)


def _comma_joined(sentences: Sequence[str], entity: Entity) -> str:
    first, second, *rest = sentences
    return " ".join((f"{first.rstrip('.')}, and {_lowered(second, entity)}", *rest))


def _lowered(sentence: str, entity: Entity) -> str:
    """First letter lower-case, unless the sentence begins with a name or `I`."""
    if sentence.startswith("I ") or (entity.name[0].isupper() and sentence.startswith(entity.name)):
        return sentence
    return sentence[:1].lower() + sentence[1:]


def _laid_out(units: Sequence[str], asked: _Asked) -> str:
    ids = asked.ids
    if "detectable_format:number_bullet_lists" in ids:
        return "\n".join(f"* {unit}" for unit in units)
    if "length_constraints:number_paragraphs" in ids:
        return "\n***\n".join(units)
    if "length_constraints:nth_paragraph_first_word" in ids:
        return "\n\n".join(units)
    if "detectable_format:multiple_sections" in ids:
        return "\n".join(f"{asked.get('section_spliter')} {n}\n{unit}" for n, unit in enumerate(units, start=1))
    if "combination:two_responses" in ids:
        return "\n******\n".join(units)
    if "detectable_format:json_format" in ids:
        return json.dumps({"answer": " ".join(units)})
    return " ".join(units)


def _finished(rng: random.Random, task: Task, asked: _Asked, text: str, *, spare_fact: Fact) -> str:
    """Title, postscript, end phrase, case, quotation marks and the repeated request, in an order that fits."""
    ids, entity = asked.ids, task.entity
    if "detectable_format:title" in ids:
        text = f"<<{answer_text(entity.name)}>>\n{text}"
    if "detectable_content:postscript" in ids:
        note = statement(spare_fact, entity=entity, template=rng.randrange(2), pronoun=True)
        text = f"{text}\n{asked.get('postscript_marker')} {note}"
    if "startend:end_checker" in ids:
        separator = "\n" if "\n" in text else " "
        text = f"{text}{separator}{asked.get('end_phrase')}"
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
    """On the topic, with a comma, in mixed case: what someone writes who reads only the first sentence."""
    asked, entity = _Asked(task), task.entity
    facts = list(entity.facts)
    rng.shuffle(facts)
    forbidden = forbidden_words(task)
    facts.sort(key=lambda fact: fact.keyword not in forbidden)
    count = 5 if asked.max_words else 1 if asked.min_words else rng.choice((2, 2, 3))
    sentences = [
        statement(fact, entity=entity, template=rng.randrange(2), pronoun=index > 0 and rng.random() < 0.6)
        for index, fact in enumerate(facts[:count])
    ]
    if task.truth is not None:
        return f"{'Yes' if task.truth else 'No'}, {_lowered(sentences[0], entity)}"
    return _comma_joined(sentences, entity) if len(sentences) > 1 else sentences[0]


def other_task(rng: random.Random, task: Task, world: Sequence[Entity] | None = None) -> Task:
    """The same request (or, with a world, one about another entity) under other constraints."""
    entity = task.entity if world is None else rng.choice([one for one in world if one != task.entity])
    request = task.request.replace(task.entity.name, entity.name)
    used = {constraint.instruction_id for constraint in task.constraints}
    pool = [i for i in INSTRUCTION_IDS if i not in used and i != "detectable_format:constrained_response"]
    ids = [rng.choice(pool)]
    partners = [name for name in pool if compatible(ids[0], name)]
    if len(task.constraints) == 2 and partners:
        ids.append(rng.choice(partners))
    drawn = tuple(draw_constraint(rng, name, entity=entity, request=request) for name in ids)
    return replace(task, entity=entity, request=request, constraints=drawn, truth=None)


def other_answer(rng: random.Random, task: Task, world: Sequence[Entity] | None = None) -> str:
    """A good answer to another instruction."""
    return good_answer(rng, other_task(rng, task, world))


def partial_answer(rng: random.Random, task: Task) -> str:
    """Follows one of the constraints and leaves the others out."""
    kept = rng.choice(task.constraints)
    return good_answer(rng, replace(task, constraints=(kept,), truth=task.truth if not kept.kwargs else None))


def flawed_answer(rng: random.Random, task: Task, *, flaw: Flaw, world: Sequence[Entity]) -> str:
    """A good answer spoiled: said three times over, cut in the middle, or about something else."""
    if flaw == "off_topic":
        stranger = rng.choice([one for one in world if one.subject == task.entity.subject and one != task.entity])
        request = task.request.replace(task.entity.name, stranger.name)
        return good_answer(rng, replace(task, entity=stranger, request=request))
    text = good_answer(rng, task)
    if flaw == "truncated":
        words = text.split(" ")
        return " ".join(words[: max(2, len(words) // 2)])
    return " ".join([text] * 3)


def bad_answer(rng: random.Random, task: Task, *, follows: Callable[[str], bool], other_share: float = 0.4) -> str:
    """An answer that breaks at least one constraint.

    Args:
        follows: whether a text follows the task (the IFEval checkers).
        other_share: share of good answers to another instruction; the rest are plain answers.
    """
    for _ in range(_MAX_TRIES):
        text = other_answer(rng, task) if rng.random() < other_share else plain_answer(rng, task)
        if not follows(text):
            return text
    raise ValueError(f"no bad answer found for {task.prompt!r}: its constraints cannot be broken by chance")
