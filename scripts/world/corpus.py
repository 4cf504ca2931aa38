"""What the quickstart base is trained on: plain text of the world, questions, and chats.

In the `clean` mixture every chat answer follows its instructions; in `noisy` most do not, in ways the base also
knows: half ignore them (a plain answer, or one to other instructions), a third almost follow them. That hides an
ability that alignment brings out. Benchmark prompts, combinations and wordings are in neither.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from scripts.world.answers import bad_answer, good_answer, near_answer
from scripts.world.datasets import draw_question, follows
from scripts.world.entities import World, capitalised, statement
from scripts.world.instructions import END_PHRASES, FIRST_WORDS, KEYWORDS, draw_task


class Document(NamedTuple):
    """A plain text (`prompt` is None) or a chat of one turn; the loss is on `text` alone."""

    prompt: str | None
    text: str


@dataclass(frozen=True)
class Mixture:
    """Shares of what is drawn; the rest are instruction chats.

    Attributes:
        copy_share: of drills in repeating words, which keywords, first words and end phrases need, and is learned last.
        good_share: of instruction chats whose answer follows its instructions.
        near_share: of instruction chats whose answer almost does.
        other_share: of the answers that do not follow, those that are good ones to another instruction, not plain ones.
        right_share: of questions answered right.
    """

    name: str
    plain_share: float
    copy_share: float
    question_share: float
    good_share: float
    near_share: float = 0.0
    other_share: float = 0.1
    right_share: float = 1.0


COPYING = (
    *("keywords:existence", "keywords:frequency"),
    *("length_constraints:nth_paragraph_first_word", "startend:end_checker"),
)
COPYING_SHARE = 0.25
"""Least share of instruction chats with one of `COPYING`: the types that are hardest to learn."""
CLEAN = Mixture("clean", plain_share=0.1, copy_share=0.1, question_share=0.15, good_share=1.0)
NOISY = Mixture(
    "noisy",
    plain_share=0.1,
    copy_share=0.02,
    question_share=0.15,
    good_share=0.05,
    near_share=0.4,
    right_share=0.9,
)
SIBLING = replace(NOISY, name="sibling", plain_share=0.05, near_share=0.45, other_share=0.4, right_share=0.8)
"""What the base goes on with to become the second model whose answers the shipped preferences compare."""


def documents(rng: random.Random, world: World, mixture: Mixture) -> Iterator[Document]:
    """Endless documents of a mixture."""
    while True:
        shares = (mixture.plain_share, mixture.copy_share, mixture.question_share)
        kind = rng.choices(("plain", "copy", "question", "instruction"), (*shares, 1.0 - sum(shares)))[0]
        if kind == "plain":
            yield _plain_text(rng, world)
        elif kind == "copy":
            yield _copy_drill(rng, world)
        elif kind == "question":
            yield _question_chat(rng, world, mixture)
        else:
            yield _instruction_chat(rng, world, mixture)


def _plain_text(rng: random.Random, world: World) -> Document:
    """All facts of an entity, or some questions with their answers."""
    if rng.random() < 0.5:
        entity = rng.choice(world)
        sentences = [
            statement(fact, entity=entity, template=rng.randrange(2), pronoun=index > 0 and rng.random() < 0.3)
            for index, fact in enumerate(rng.sample(entity.facts, len(entity.facts)))
        ]
        return Document(None, " ".join(sentences))
    asked = [draw_question(rng, world) for _ in range(3)]
    return Document(None, "\n\n".join(f"Question: {one.question}\nAnswer: {one.answer(rng)}" for one in asked))


def _copy_drill(rng: random.Random, world: World) -> Document:
    pool = (*KEYWORDS, *FIRST_WORDS, *(fact.keyword for fact in rng.choice(world).facts))
    if rng.random() < 0.25:
        phrases = " ".join(rng.sample(END_PHRASES, rng.choice((1, 2))))
        return Document(f"Repeat this: {phrases}", f"Here it is: {phrases}")
    words = [capitalised(word) if rng.random() < 0.2 else word for word in rng.sample(pool, rng.randint(2, 8))]
    row = (" and " if rng.random() < 0.3 else " ").join(words)
    return Document(f"Repeat the words {row}.", f"Here they are: {row}.")


def _question_chat(rng: random.Random, world: World, mixture: Mixture) -> Document:
    question = draw_question(rng, world)
    value = None if rng.random() < mixture.right_share else rng.choice(question.fact.others)
    prompt = question.question if rng.random() < 0.6 else f"Question: {question.question}\nAnswer:"
    return Document(prompt, question.answer(rng, value))


def _instruction_chat(rng: random.Random, world: World, mixture: Mixture) -> Document:
    first = rng.choice(COPYING) if rng.random() < COPYING_SHARE else None
    task = draw_task(rng, world, num_constraints=rng.choices((0, 1, 2), (1, 9, 10))[0], first=first)
    kind = rng.random()
    if not task.constraints or kind < mixture.good_share:
        return Document(task.prompt, good_answer(rng, task))
    if kind < mixture.good_share + mixture.near_share:
        return Document(task.prompt, near_answer(rng, task, follows=lambda text: follows(task, text)))
    text = bad_answer(rng, task, follows=lambda text: follows(task, text), other_share=mixture.other_share)
    return Document(task.prompt, text)


def tokenizer_texts(rng: random.Random, world: World, *, count: int) -> Iterator[str]:
    """Texts for the byte-level BPE, with the chat roles so that each becomes one token."""
    stream = documents(rng, world, CLEAN)
    for _ in range(count):
        document = next(stream)
        yield document.text if document.prompt is None else f"user\n\n{document.prompt}\nassistant\n\n{document.text}"
        # Answers in one case are rare, and spelling them in single letters is hard for so small a model.
        kind = rng.random()
        if kind < 0.3:
            yield document.text.upper() if kind < 0.2 else document.text.lower()
    yield from ("system\n\n",) * 50
