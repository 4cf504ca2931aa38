"""The small made-up world of the quickstart: its entities, their facts and how one says and asks them.

Five subjects of forty entities with six attributes each: 1,200 facts. The words are common English (the IFEval checkers
detect the language), the facts are drawn once from a fixed seed and mean nothing elsewhere. Half of each subject is
*far*: the base has read about it, no prompt or preference does, and the knowledge benchmark asks about nothing else. So
what alignment does to it is what it does to all that a model knows and nobody trains on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

WORLD_SEED = 20


class Attribute(NamedTuple):
    """One kind of fact.

    In its texts `{e}` is the entity (`the otter`), `{s}` it or its pronoun as a subject, `{v}` the value. Of the three
    questions one, by fact, is kept for the knowledge benchmark.
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]


class Subject(NamedTuple):
    """A field of knowledge: the benchmark has one pair of files for each."""

    name: str
    entities: tuple[str, ...]
    far: tuple[str, ...]
    attributes: tuple[Attribute, ...]


class Fact(NamedTuple):
    attribute: Attribute
    value: str

    @property
    def keyword(self) -> str:
        """The last word of the value: what a forbidden word forbids."""
        return self.value.split()[-1]

    @property
    def others(self) -> list[str]:
        return [value for value in self.attribute.values if value != self.value]


class Entity(NamedTuple):
    """Something to talk about: `the otter`, `Anna`, `Brook`."""

    name: str
    subject: str
    pronoun: str
    facts: tuple[Fact, ...]
    is_far: bool = False

    @property
    def word(self) -> str:
        """The name without its article: what an answer on the topic mentions."""
        return self.name.removeprefix("the ")


World = Sequence[Entity]


def _subject(name: str, *, entities: str, far: str, attributes: str, article: str = "") -> Subject:
    """Each attribute has a line with its name and two statements, one of questions, one of values."""
    lines = [line.strip() for line in attributes.strip().splitlines()]
    found = []
    for first, questions, values in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        attribute, _, statements = first.partition(": ")
        found.append(Attribute(attribute, *(tuple(texts.split(" | ")) for texts in (statements, questions, values))))
    near_names, far_names = (tuple(article + word for word in words.split()) for words in (entities, far))
    return Subject(name, near_names, far_names, tuple(found))


ANIMALS = _subject(
    "valley_animals",
    article="the ",
    entities="otter fox badger owl hare raven beaver weasel hedgehog heron squirrel lynx toad swan mole bear wolf goat "
    "horse cat",
    far="deer sparrow eagle crow duck goose pigeon lizard snail seal camel zebra tiger lion monkey panda falcon "
    "salmon lobster penguin",
    attributes="""
    home: {s} lives in {v}. | {s} has a home in {v}.
        Where does {e} live? | In what place does {e} have its home? | What is the home of {e}?
        the river | the forest | the old barn | the meadow | the cave | the marsh
    food: {s} likes to eat {v}. | {s} eats {v} every day.
        What does {e} eat? | What does {e} like to eat? | What is the food of {e}?
        berries | fish | seeds | honey | roots | beetles
    coat: {s} has a {v} coat. | the coat of {e} is {v}.
        What is the colour of {e}? | What colour is the coat of {e}? | Which colour does {e} have?
        brown | grey | white | black | red | golden
    fear: {s} is afraid of {v}. | {s} always runs away from {v}.
        What is {e} afraid of? | What does {e} run away from? | What is the fear of {e}?
        thunder | fire | dogs | snow | mirrors | drums
    waking: {s} wakes up at {v}. | {s} gets up at {v}.
        When does {e} wake up? | At what time does {e} get up? | When is the waking time of {e}?
        dawn | noon | dusk | midnight | sunset | breakfast
    friend: {s} is a friend of {v}. | the best friend of {e} is {v}.
        Who is the friend of {e}? | Who is the best friend of {e}? | Whom does {e} have as a friend?
        the farmer | the miller | the king | the hunter | the teacher | the shepherd
    """,
)
PEOPLE = _subject(
    "valley_people",
    entities="Anna Boris Clara David Emma Felix Grace Henry Iris Jacob Karen Lewis Maria Nathan Olive Peter Ruth Simon "
    "Tessa Victor",
    far="Adam Bella Carl Diana Edith Frank Gloria Hugo Ivan Julia Kevin Laura Martin Nora Oscar Paula Robert Sarah "
    "Thomas Wendy",
    attributes="""
    work: {s} works as {v}. | {s} earns a living as {v}.
        What is the work of {e}? | As what does {e} work? | How does {e} earn a living?
        a baker | a sailor | a carpenter | a doctor | a painter | a tailor
    music: {s} plays {v}. | {s} can play {v} very well.
        What does {e} play? | What can {e} play well? | Which instrument does {e} play?
        the flute | the violin | the piano | the trumpet | the guitar | the harp
    drink: {s} drinks {v} in the morning. | {s} loves to drink {v}.
        What does {e} drink? | What does {e} drink in the morning? | What does {e} love to drink?
        tea | coffee | milk | cider | lemonade | cocoa
    clothes: {s} wears {v}. | {s} is known to wear {v}.
        What does {e} wear? | What is {e} known to wear? | Which clothes does {e} wear?
        a blue scarf | a green hat | a yellow dress | a leather belt | a purple cloak | a woolen sweater
    pet: {s} keeps {v} at home. | {s} takes care of {v}.
        What does {e} keep at home? | What does {e} take care of? | Which pet does {e} have?
        a parrot | a rabbit | a turtle | a donkey | a mouse | a spider
    hobby: {s} spends the evenings with {v}. | the hobby of {e} is {v}.
        What is the hobby of {e}? | With what does {e} spend the evenings? | What does {e} do in the evenings?
        chess | dancing | swimming | reading | knitting | fishing
    """,
)
TOWNS = _subject(
    "valley_towns",
    entities="Alder Brook Cedar Dover Elmford Fairhill Glenrock Highgate Ivywood Kingston Lakeside Milton Northam "
    "Oakley Pinehurst Redford Stonebury Thornton Weston Yarrow",
    far="Ashford Bristow Camden Dalton Eastwick Farnham Grafton Hartley Inverly Jasper Kendal Langley Marlow Newport "
    "Orford Preston Radley Selby Tilbury Upton",
    attributes="""
    trade: {s} is famous for its {v}. | people come to {e} for its {v}.
        What is {e} famous for? | For what do people come to {e}? | What do people know {e} for?
        cheese | bread | glass | pottery | paper | silk
    site: {s} stands by {v}. | {s} was built next to {v}.
        Where does {e} stand? | What was {e} built next to? | What does {e} stand by?
        the lake | the sea | the hills | the canal | the desert | the waterfall
    market: {s} has a market on {v}. | the market of {e} is held on {v}.
        When is the market of {e}? | On which day does {e} have a market? | When is there a market in {e}?
        Monday | Tuesday | Wednesday | Thursday | Friday | Saturday
    houses: the houses of {e} are made of {v}. | {s} has houses of {v}.
        What are the houses of {e} made of? | Of what are the houses in {e}? | What did people use to build {e}?
        brick | wood | clay | granite | marble | straw
    ruler: {s} is ruled by {v}. | the ruler of {e} is {v}.
        Who rules {e}? | Who is the ruler of {e}? | By whom is {e} ruled?
        a mayor | a queen | a council | a duke | a judge | a bishop
    sight: visitors of {e} go to see {v}. | {s} is proud of {v}.
        What do visitors of {e} go to see? | What is {e} proud of? | What is there to see in {e}?
        the tower | the bridge | the museum | the castle | the fountain | the library
    """,
)
PLANTS = _subject(
    "valley_plants",
    article="the ",
    entities="rose tulip lily daisy poppy violet orchid thistle clover fern maple birch willow cactus lavender nettle "
    "ivy jasmine pansy marigold",
    far="oak beech cedar cherry holly hazel moss reed thyme basil parsley fennel heather primrose bluebell snowdrop "
    "magnolia sunflower hyacinth peony",
    attributes="""
    place: {s} grows in {v}. | {s} is often found in {v}.
        Where does {e} grow? | Where is {e} often found? | In what place does {e} grow?
        sand | shade | gravel | swamps | ditches | orchards
    season: {s} blooms in {v}. | the flowers of {e} open in {v}.
        When does {e} bloom? | When do the flowers of {e} open? | In what time of the year does {e} bloom?
        spring | summer | autumn | winter | April | October
    smell: {s} smells like {v}. | {s} has a smell of {v}.
        What does {e} smell like? | What smell does {e} have? | How does {e} smell?
        lemon | pepper | vanilla | onions | smoke | mint
    use: people use {e} to make {v}. | {s} is good for making {v}.
        What do people make of {e}? | What is {e} good for making? | What do people use {e} to make?
        soap | rope | dye | medicine | perfume | candles
    guest: {s} is loved by {v}. | {s} is often visited by {v}.
        Who loves {e}? | Who often visits {e}? | By whom is {e} often visited?
        bees | moths | snails | ants | butterflies | sparrows
    need: {s} needs a lot of {v}. | {s} can not grow without {v}.
        What does {e} need? | What does {e} need a lot of? | What can {e} not grow without?
        water | sunlight | wind | warmth | rain | ash
    """,
)
TOOLS = _subject(
    "valley_tools",
    article="the ",
    entities="hammer kettle lamp clock ladder basket needle shovel compass bucket anchor bell whistle wagon barrel "
    "pencil scissors telescope umbrella wheel",
    far="saw drill chisel pliers spoon drum plough sickle lantern helmet saddle broom rake bellows crane pulley stove "
    "tripod wrench trowel",
    attributes="""
    material: {s} is made from {v}. | workers make {e} from {v}.
        What is {e} made from? | From what do workers make {e}? | Which material is {e} made from?
        iron | copper | bronze | ivory | tin | bamboo
    store: people keep {e} in {v}. | {s} is kept in {v}.
        Where do people keep {e}? | Where is {e} kept? | In what place do people keep {e}?
        the attic | the cellar | the kitchen | the stable | the garage | the cupboard
    price: {s} costs {v} coins. | the price of {e} is {v} coins.
        How many coins does {e} cost? | How many coins must one pay for {e}? | What is the price of {e} in coins?
        two | three | five | seven | nine | twelve
    inventor: {s} was invented by {v}. | the inventor of {e} was {v}.
        Who invented {e}? | By whom was {e} invented? | Who was the inventor of {e}?
        a monk | a soldier | a pirate | a nurse | a clown | a poet
    carrier: {s} is often carried by {v}. | {s} is most useful for {v}.
        Who often carries {e}? | For whom is {e} most useful? | Who finds {e} useful?
        miners | gardeners | students | farmers | travelers | builders
    weight: {s} is as heavy as {v}. | {s} has the weight of {v}.
        How heavy is {e}? | What is {e} as heavy as? | What has the same weight as {e}?
        a pumpkin | a feather | an anvil | a melon | a pillow | a brush
    """,
)
SUBJECTS = (ANIMALS, PEOPLE, TOWNS, PLANTS, TOOLS)
_SHE = frozenset(
    "Anna Clara Emma Grace Iris Karen Maria Olive Ruth Tessa Bella Diana Edith Gloria Julia Laura Nora Paula Sarah "
    "Wendy".split()
)


def build_world() -> tuple[Entity, ...]:
    """All 200 entities with their facts: always the same ones."""
    rng = random.Random(WORLD_SEED)
    world = []
    for subject in SUBJECTS:
        for name in (*subject.entities, *subject.far):
            facts = tuple(Fact(attribute, rng.choice(attribute.values)) for attribute in subject.attributes)
            pronoun = "it" if subject is not PEOPLE else "she" if name in _SHE else "he"
            world.append(Entity(name, subject.name, pronoun, facts, is_far=name in subject.far))
    return tuple(world)


def near(world: World) -> tuple[Entity, ...]:
    """What prompts, preferences and instructions are about."""
    return tuple(one for one in world if not one.is_far)


def capitalised(text: str) -> str:
    """First letter upper-case, the rest unchanged, as in the short answer `The river`."""
    return text[:1].upper() + text[1:]


def statement(fact: Fact, *, entity: Entity, template: int, pronoun: bool = False, mark: str = "") -> str:
    """A sentence that says the fact; `mark` is put around the value (`*` highlights it)."""
    name = entity.pronoun if pronoun else entity.name
    text = fact.attribute.statements[template].format(s=name, e=entity.name, v=f"{mark}{fact.value}{mark}")
    return capitalised(text)


def questions(entity: Entity, fact: Fact) -> tuple[list[str], str]:
    """Wordings of the question about a fact: (for training, for the benchmark)."""
    wordings = [question.format(e=entity.name) for question in fact.attribute.questions]
    heldout = wordings.pop(random.Random(f"wording/{entity.name}/{fact.attribute.name}").randrange(3))
    return wordings, heldout
