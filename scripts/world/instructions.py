"""The quickstart's instructions: what can be asked, in which combinations, and which are held out.

Twenty-one of the twenty-five IFEval instruction types. Left out: `number_sentences` and `capital_word_frequency` (their
checkers need nltk data that is not on every machine), `letter_frequency` (a model of this size does not see letters)
and `response_language` (the world is English).

A *combination* is the set of instruction types of a prompt with their kwargs, without the topic. One in five
combinations is held out for the benchmarks and never occurs in a training prompt, whatever its topic; half of these are
for `dev`, half for `test`. Six types (`UNSEEN`) are in no prompt and no preference at all: the base has read them, and
alignment never trains on them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scripts.world.entities import Entity, Fact, World, capitalised, near, questions

KEYWORDS = """
garden silver winter music candle story stone window morning friend market letter island summer pocket shadow ribbon
mountain dream feather bottle promise journey corner secret evening paper flower mirror village bridge blanket season
kitchen thunder picture
""".split()
FIRST_WORDS = "today often truly perhaps indeed surely sometimes here maybe clearly finally usually".split()
END_PHRASES = (
    "That is all. | Have a nice day. | Is there anything else? | This is the end. | Thank you for reading. | "
    "See you soon. | I hope this helps. | Ask me again later. | Good luck with it. | Now you know it. | "
    "Come back any time. | The story ends here."
).split(" | ")
REQUESTS = (
    "Tell me about {e}. | Describe {e}. | Write a short note about {e}. | What should I know about {e}? | "
    "Say something about {e}. | Write a few words about {e}."
).split(" | ")
LONG_REQUESTS = (
    "Tell me everything about {e} and {f}. | Write a long note about {e} and {f}. | "
    "Describe {e} and {f} in detail. | What is there to know about {e} and {f}?"
).split(" | ")
LONG_SHARE = 0.2
"""Of the requests that can be long: two topics and all that is known of them, some 150 tokens."""
LONG_ANSWER = {"min_words": 40, "max_words": 160}
"""What the annotator takes for a long answer."""
PLACEHOLDERS = ("name", "address", "date", "city", "phone", "price")
MAX_WORDS = (12, 14, 16, 18)
MIN_WORDS = (14, 18, 22, 26)
LONG_MIN_WORDS = (45, 50, 55, 60)


def _texts(block: str) -> dict[str, tuple[str, ...]]:
    """Names of instruction types, and indented below each its wordings in prompts."""
    found: dict[str, tuple[str, ...]] = {}
    for line in block.strip().splitlines():
        if not line.startswith(" "):
            found[name := line] = ()
        else:
            found[name] += tuple(" ".join(text.split()) for text in line.split(" | "))
    return found


_TEXTS = _texts("""
keywords:existence
    Include the keywords {keywords} in your answer. | Your answer must contain the words {keywords}.
keywords:frequency
    The word {keyword} should appear at least {frequency} times. | Use the word {keyword} at least {frequency} times.
keywords:forbidden_words
    Do not include the word {forbidden_words}. | Do not use the keyword {forbidden_words} in your answer.
length_constraints:number_words
    Answer with {relation} {num_words} words. | Use {relation} {num_words} words.
length_constraints:number_paragraphs
    Write {num_paragraphs} paragraphs separated by ***.
    There should be {num_paragraphs} paragraphs. Separate them with the divider ***.
length_constraints:nth_paragraph_first_word
    Write {num_paragraphs} paragraphs separated by two new lines. Paragraph {nth_paragraph} must start with the word\
    {first_word}.
detectable_content:number_placeholders
    Include at least {num_placeholders} placeholders in square brackets such as [address].
    Your answer must contain at least {num_placeholders} placeholders such as [name].
detectable_content:postscript
    At the end add a postscript starting with {postscript_marker}
    Add a postscript that starts with {postscript_marker}
detectable_format:number_bullet_lists
    Your answer must contain exactly {num_bullets} bullet points.
    Answer with exactly {num_bullets} bullet points such as: * point
detectable_format:constrained_response
    Answer with one of these: "My answer is yes." "My answer is no." "My answer is maybe."
    Choose from: My answer is yes. My answer is no. My answer is maybe.
detectable_format:number_highlighted_sections
    Highlight at least {num_highlights} parts of your answer with markdown like *this*.
    Highlight at least {num_highlights} sections, i.e. *highlighted section*.
detectable_format:multiple_sections
    Your answer must have {num_sections} sections. Mark each with {section_spliter} X.
    Write {num_sections} sections and begin each with {section_spliter} and its number.
detectable_format:json_format
    Wrap the entire output in JSON format. | Your whole answer should be in JSON format.
detectable_format:title
    Add a title wrapped in double angular brackets such as <<title>>.
    Your answer must contain a title in double angular brackets, i.e. <<title>>.
combination:two_responses
    Give two different responses separated by 6 asterisk symbols: ******.
    Write two different answers with ****** between them.
combination:repeat_prompt
    First repeat the request word for word, then give your answer.
    Before you answer, repeat the request without change.
startend:end_checker
    Finish your answer with this exact phrase: {end_phrase} | End with the exact phrase {end_phrase}
startend:quotation
    Wrap your entire response with double quotation marks. | Put your whole answer in double quotation marks.
change_case:english_capital
    Your entire response should be in all capital letters. | Use only capital letters.
change_case:english_lowercase
    Your entire response should be in all lowercase letters.
    Use only lowercase letters. No capital letters are allowed.
punctuation:no_comma
    Do not use any commas. | Refrain from the use of any commas in your response.
""")
INSTRUCTION_IDS = tuple(_TEXTS)
UNSEEN = frozenset(
    (
        "keywords:frequency length_constraints:number_paragraphs detectable_content:postscript "
        "detectable_format:title startend:quotation change_case:english_lowercase"
    ).split()
)
"""Types that no prompt and no preference has."""
SEEN = tuple(name for name in INSTRUCTION_IDS if name not in UNSEEN)


def _sets(block: str) -> dict[str, frozenset[str]]:
    """The first word of each line, and the others."""
    return {first: frozenset(others) for first, *others in map(str.split, block.strip().splitlines())}


_LAYOUTS = frozenset(
    (
        "length_constraints:number_paragraphs length_constraints:nth_paragraph_first_word combination:two_responses "
        "detectable_format:number_bullet_lists detectable_format:multiple_sections detectable_format:json_format "
        "detectable_format:constrained_response"
    ).split()
)
_FEW_PARTNERS = _sets("""
combination:repeat_prompt punctuation:no_comma detectable_format:title keywords:existence detectable_content:postscript
detectable_format:json_format keywords:existence keywords:forbidden_words punctuation:no_comma
detectable_format:constrained_response punctuation:no_comma detectable_format:title detectable_content:postscript \
    startend:end_checker
length_constraints:number_words punctuation:no_comma startend:quotation keywords:forbidden_words \
    detectable_format:title change_case:english_capital change_case:english_lowercase
""")
"""Types that go with some others alone."""
_CONFLICTS = _sets("""
change_case:english_capital change_case:english_lowercase detectable_format:multiple_sections
change_case:english_lowercase detectable_format:multiple_sections
detectable_format:number_highlighted_sections detectable_format:number_bullet_lists combination:two_responses \
    length_constraints:number_paragraphs
detectable_format:title length_constraints:nth_paragraph_first_word
keywords:existence keywords:frequency
startend:quotation detectable_format:title detectable_format:number_bullet_lists \
    length_constraints:nth_paragraph_first_word
""")


def compatible(first: str, second: str) -> bool:
    """Whether one answer can follow both instruction types (and the quickstart asks for them together)."""
    if first == second or {first, second} <= _LAYOUTS:
        return False
    return all(
        one not in _CONFLICTS.get(other, ()) and one in _FEW_PARTNERS.get(other, {one})
        for one, other in ((first, second), (second, first))
    )


@dataclass(frozen=True)
class Constraint:
    """An instruction: its IFEval id, the checker's kwargs and the wording in the prompt."""

    instruction_id: str
    kwargs: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Task:
    """A request about an entity, or all about two, with its constraints (none, one or two)."""

    entity: Entity
    request: str
    constraints: tuple[Constraint, ...]
    truth: bool | None = None
    """The right answer to a yes/no request."""
    companion: Entity | None = None
    """The second topic of a long request."""

    @property
    def prompt(self) -> str:
        return " ".join((self.request, *(constraint.text for constraint in self.constraints)))

    @property
    def combination(self) -> str:
        """Canonical text of the instruction types and kwargs: what is held out."""
        return combination_key([c.instruction_id for c in self.constraints], [c.kwargs for c in self.constraints])

    @property
    def meta(self) -> dict[str, Any]:
        """What the simulated annotator needs."""
        topics = [entity.word for entity in self.entities] if self.truth is None else []
        return {
            "instruction_id_list": [constraint.instruction_id for constraint in self.constraints],
            "kwargs": [constraint.kwargs for constraint in self.constraints],
            "topics": topics,
            **(LONG_ANSWER if len(topics) > 1 else {}),
        }

    @property
    def entities(self) -> tuple[Entity, ...]:
        return (self.entity,) if self.companion is None else (self.entity, self.companion)

    def forbidden_words(self) -> frozenset[str]:
        return frozenset(word for one in self.constraints for word in one.kwargs.get("forbidden_words", ()))

    def facts(self, rng: random.Random) -> list[tuple[Entity, Fact]]:
        """What can be said without a forbidden word, in random order, one topic after the other."""
        said = []
        for entity in self.entities:
            facts = [fact for fact in entity.facts if fact.keyword not in self.forbidden_words()]
            said += [(entity, fact) for fact in rng.sample(facts, len(facts))]
        return said


def combination_key(instruction_ids: Sequence[str], kwargs: Sequence[dict[str, Any]]) -> str:
    """Canonical text of a combination, whatever its order."""
    return json.dumps(sorted([[name, values] for name, values in zip(instruction_ids, kwargs, strict=True)], key=str))


Use = Literal["training", "dev", "test"]


def use_of(task: Task) -> Use:
    """What alone may use the task's combination.

    Single instructions without kwargs are never held out: a model that never saw one could not know it.
    """
    constraints = task.constraints
    if not constraints or (len(constraints) == 1 and not constraints[0].kwargs):
        return "training"
    digest = hashlib.sha256(f"quickstart-8/{task.combination}".encode()).digest()
    if digest[0] % 5:
        return "training"
    return "dev" if digest[1] % 2 else "test"


def _number_words(rng: random.Random, entity: Entity, *, is_long: bool = False) -> dict[str, Any]:
    if is_long:
        return {"relation": "at least", "num_words": rng.choice(LONG_MIN_WORDS)}
    if rng.random() < 0.5:
        return {"relation": "less than", "num_words": rng.choice(MAX_WORDS)}
    return {"relation": "at least", "num_words": rng.choice(MIN_WORDS)}


def _first_word(rng: random.Random, entity: Entity) -> dict[str, Any]:
    num_paragraphs = rng.choice((2, 3))
    nth = rng.randint(1, num_paragraphs)
    return {"num_paragraphs": num_paragraphs, "nth_paragraph": nth, "first_word": rng.choice(FIRST_WORDS)}


def _choice(name: str, *values: Any) -> Callable[[random.Random, Entity], dict[str, Any]]:
    return lambda rng, entity: {name: rng.choice(values)}


_DRAWERS: dict[str, Callable[[random.Random, Entity], dict[str, Any]]] = {
    "keywords:existence": lambda rng, entity: {"keywords": sorted(rng.sample(KEYWORDS, rng.choice((1, 2))))},
    "keywords:frequency": lambda rng, entity: {
        "keyword": rng.choice(KEYWORDS),
        "frequency": rng.choice((2, 3)),
        "relation": "at least",
    },
    "keywords:forbidden_words": lambda rng, entity: {"forbidden_words": [rng.choice(entity.facts).keyword]},
    "length_constraints:number_paragraphs": _choice("num_paragraphs", 2, 3, 4),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _choice("num_placeholders", 1, 2, 3, 4),
    "detectable_content:postscript": _choice("postscript_marker", "P.S.", "P.P.S"),
    "detectable_format:number_bullet_lists": _choice("num_bullets", 2, 3, 4, 5),
    "detectable_format:number_highlighted_sections": _choice("num_highlights", 1, 2, 3),
    "detectable_format:multiple_sections": lambda rng, entity: {
        "section_spliter": rng.choice(("Section", "Part", "Chapter")),
        "num_sections": rng.choice((2, 3)),
    },
    "startend:end_checker": _choice("end_phrase", *END_PHRASES),
}
"""Kwargs that fit the entity, by type."""


def draw_constraint(
    rng: random.Random, instruction_id: str, *, entity: Entity, request: str, is_long: bool = False
) -> Constraint:
    """A constraint of this type with kwargs that fit the entity and the request."""
    kwargs: dict[str, Any] = {}
    if instruction_id == "combination:repeat_prompt":
        kwargs = {"prompt_to_repeat": request}
    elif instruction_id == "length_constraints:number_words":
        kwargs = _number_words(rng, entity, is_long=is_long)
    elif instruction_id in _DRAWERS:
        kwargs = _DRAWERS[instruction_id](rng, entity)
    words = {name: " and ".join(value) if isinstance(value, list) else value for name, value in kwargs.items()}
    text = rng.choice(_TEXTS[instruction_id]).format(**words)
    if len(kwargs.get("keywords", ())) == 1:
        text = text.replace("keywords", "keyword").replace("words ", "word ")
    return Constraint(instruction_id, kwargs, text)


def _yes_no_request(rng: random.Random, entity: Entity) -> tuple[str, bool]:
    """`Where does the otter live? Is it the cave?` and whether it is."""
    fact = rng.choice(entity.facts)
    truth = rng.random() < 0.5
    value = fact.value if truth else rng.choice(fact.others)
    return f"{rng.choice(questions(entity, fact)[0])} Is the answer {capitalised(value)}?", truth


def draw_task(
    rng: random.Random,
    world: World,
    *,
    num_constraints: int,
    first: str | None = None,
    types: Sequence[str] = INSTRUCTION_IDS,
    use: Use = "training",
) -> Task:
    """A random task about the near half of the world whose combination is for `use`, with constraints of `types`;
    `first` is the type of one of them, drawn where it is None."""
    while True:
        task = draw_any_task(rng, near(world), num_constraints=num_constraints, first=first, types=types)
        if use_of(task) == use:
            return task


def draw_any_task(
    rng: random.Random, world: World, *, num_constraints: int, first: str | None, types: Sequence[str]
) -> Task:
    """As `draw_task`, whatever the combination is for and whichever half of the world these are."""
    entity = rng.choice(world)
    ids = [first or rng.choice(types)] if num_constraints else []
    if num_constraints == 2:
        ids.append(rng.choice([name for name in types if compatible(ids[0], name)]))
        rng.shuffle(ids)
    truth, companion = None, None
    if "detectable_format:constrained_response" in ids:
        request, truth = _yes_no_request(rng, entity)
    elif rng.random() < LONG_SHARE:
        companion = rng.choice([one for one in world if one.subject == entity.subject and one != entity])
        request = rng.choice(LONG_REQUESTS).format(e=entity.name, f=companion.name)
    else:
        request = rng.choice(REQUESTS).format(e=entity.name)
    is_long = companion is not None
    constraints = tuple(draw_constraint(rng, name, entity=entity, request=request, is_long=is_long) for name in ids)
    return Task(entity, request, constraints, truth, companion)
