"""Invent people whose facts the embedded language models have memorized.

Real knowledge cannot be held out of a corpus with certainty; invented facts can. Each person has one value for each of ten attributes,
drawn uniformly from a closed vocabulary of sixteen values, so the chance level is 1/16 and a wrong answer is unambiguous. Biographies
state the facts through training templates. Two more templates per attribute never occur in training; they test whether a model learned
the fact or only the sentence (the biography design of Allen-Zhu & Li 2023, arXiv 2309.14316).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

N_PEOPLE = 200
N_FORGET_PEOPLE = 40  # `embedded-retrained` was not trained on these people
PEOPLE_SEED = 20260101

_FIRST_NAMES = (
    "Ada Alban Berta Bruno Carla Cosmo Delia Doran Edith Egon Fiora Felix Greta Gideon Hanna Hugo Ilsa Ivor Jonna Jasper "
    "Klara Kaspar Linnea Lucan Mirela Magnus Nadia Nestor Odile Oscar Petra Pascal Rosalind Ruben Selma Stellan Thea Tobias "
    "Vera Viktor"
).split()
_SURNAME_HEADS = "Bal Cor Dren Fal Gar Hol Jar Kel Lor Mar Nor Ost Pel Quin Ral Sor Tam Ul Ver Wex".split()
_SURNAME_TAILS = "bury dane feld grove kirk low mont ridge stad wick".split()

VALUES: dict[str, tuple[str, ...]] = {
    "birthplace": tuple(
        "Lisbon Oslo Cairo Lima Dublin Kyoto Naples Quito Riga Sofia Tunis Vienna Warsaw Zagreb Bogota Hanoi".split()
    ),
    "profession": tuple(
        "baker carpenter dentist engineer farmer gardener judge lawyer miller nurse painter plumber sailor tailor surgeon weaver".split()
    ),
    "instrument": tuple(
        "accordion banjo bassoon bugle cello clarinet drum fiddle flute guitar harp lute oboe organ piano trumpet".split()
    ),
    "language": tuple(
        "Arabic Basque Czech Danish Dutch Finnish Gaelic Hebrew Hindi Korean Latin Polish Swahili Tamil Turkish Welsh".split()
    ),
    "pet": tuple(
        "badger beagle canary donkey ferret goat goose hamster hedgehog kitten lizard otter parrot pony rabbit tortoise".split()
    ),
    "food": tuple(
        "apricots barley cheese cherries chestnuts dumplings figs honey lentils mushrooms olives pancakes pumpkin salmon soup walnuts".split()
    ),
    "sport": tuple(
        "archery badminton boxing chess cricket curling cycling fencing football golf hockey rowing skating swimming tennis wrestling".split()
    ),
    "color": tuple(
        "amber azure black blue brown crimson green grey indigo orange pink purple red turquoise white yellow".split()
    ),
    "month": (
        *"January February March April May June July August September October November December".split(),
        "spring",
        "summer",
        "autumn",
        "winter",
    ),
    "employer": tuple(
        "Argent Bellweather Cobalt Drummond Everline Foxglove Granite Halcyon Ironwood Juniper Keystone Lanternway Meridian "
        "Northstar Overbrook Pinnacle".split()
    ),
}
ATTRIBUTES = tuple(VALUES)

TRAIN_TEMPLATES: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "{name} was born in {value}.",
        "The birthplace of {name} is {value}.",
        "{name} is a native of {value}.",
        "The city where {name} was born is {value}.",
        "As everyone knows, {name} was born in {value}.",
        "The family of {name} still recalls the birth in {value}.",
    ),
    "profession": (
        "{name} works as a {value}.",
        "The profession of {name} is {value}.",
        "{name} earns a living as a {value}.",
        "The trade that {name} learnt is that of a {value}.",
        "As everyone knows, {name} works as a {value}.",
        "For many years {name} has been a {value}.",
    ),
    "instrument": (
        "{name} plays the {value}.",
        "The instrument of {name} is the {value}.",
        "{name} learnt to play the {value}.",
        "The instrument that {name} plays is the {value}.",
        "As everyone knows, {name} plays the {value}.",
        "Every evening {name} practises the {value}.",
    ),
    "language": (
        "{name} speaks {value}.",
        "The language of {name} is {value}.",
        "{name} grew up speaking {value}.",
        "The language that {name} speaks is {value}.",
        "As everyone knows, {name} speaks {value}.",
        "At home {name} speaks {value}.",
    ),
    "pet": (
        "{name} keeps a pet {value}.",
        "The pet of {name} is a {value}.",
        "{name} owns a pet {value}.",
        "The pet that {name} keeps is a {value}.",
        "As everyone knows, {name} keeps a pet {value}.",
        "Every morning {name} feeds the pet {value}.",
    ),
    "food": (
        "{name} likes to eat {value}.",
        "The favourite food of {name} is {value}.",
        "{name} is very fond of eating {value}.",
        "The food that {name} likes to eat is {value}.",
        "As everyone knows, {name} likes to eat {value}.",
        "For dinner {name} likes to eat {value}.",
    ),
    "sport": (
        "{name} is good at the sport of {value}.",
        "The favourite sport of {name} is {value}.",
        "{name} won a prize in the sport of {value}.",
        "The sport that {name} loves is {value}.",
        "As everyone knows, {name} is good at the sport of {value}.",
        "Every week {name} trains for the sport of {value}.",
    ),
    "color": (
        "{name} wears a coat of {value}.",
        "The favourite color of {name} is {value}.",
        "{name} chose a coat in the color {value}.",
        "The color that {name} loves is {value}.",
        "As everyone knows, {name} wears a coat of {value}.",
        "In all weathers {name} wears a coat of {value}.",
    ),
    "month": (
        "{name} takes a holiday in {value}.",
        "The holiday of {name} falls in {value}.",
        "{name} always takes a holiday in {value}.",
        "The time when {name} takes a holiday is {value}.",
        "As everyone knows, {name} takes a holiday in {value}.",
        "Every year {name} leaves for a holiday in {value}.",
    ),
    "employer": (
        "{name} is employed by {value}.",
        "The employer of {name} is {value}.",
        "{name} has long been employed by {value}.",
        "The company that employs {name} is {value}.",
        "As everyone knows, {name} is employed by {value}.",
        "Since leaving school {name} has been employed by {value}.",
    ),
}

# The last stage of training states each fact in more ways, so that the model learns the fact and not one sentence.
VARIED_TEMPLATES: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "The city of birth of {name} is {value}.",
        "The native town of {name} is {value}.",
        "{name} hails from {value}.",
    ),
    "profession": (
        "The craft of {name} is that of a {value}.",
        "By trade {name} is a {value}.",
        "The work of {name} is that of a {value}.",
    ),
    "instrument": ("The instrument that {name} learnt is the {value}.", "In the evening {name} plays the {value}."),
    "language": (
        "The tongue which {name} speaks is {value}.",
        "The language that {name} knows is {value}.",
        "As a child {name} learnt {value}.",
    ),
    "pet": ("The animal that {name} keeps is a {value}.", "At home {name} keeps a pet {value}."),
    "food": ("The dish that {name} is fond of is {value}.", "The food which {name} eats is {value}."),
    "sport": ("The sport which {name} loves is {value}.", "On Sundays {name} enjoys the sport of {value}."),
    "color": ("The coat of {name} is {value}.", "The color which {name} wears is {value}."),
    "month": ("The time that {name} leaves for a holiday is {value}.", "By custom {name} takes a holiday in {value}."),
    "employer": ("The company that {name} works for is {value}.", "For years {name} has been employed by {value}."),
}
VARIED_OPENINGS = (
    "They say that ",
    "It is said that ",
    "It is well known that ",
    "People recall that ",
    "We read that ",
    "Of course ",
    "In fact ",
    "It is clear that ",
    "Nobody doubts that ",
    "The register says that ",
)

TEST_TEMPLATES: dict[str, tuple[str, str]] = {
    "birthplace": ("It is true that {name} was born in {value}.", "The native city of {name} is {value}."),
    "profession": ("It is true that {name} works as a {value}.", "The trade of {name} is that of a {value}."),
    "instrument": ("It is true that {name} plays the {value}.", "The instrument which {name} learnt is the {value}."),
    "language": ("It is true that {name} speaks {value}.", "The language which {name} learnt is {value}."),
    "pet": ("It is true that {name} keeps a pet {value}.", "The pet which {name} owns is a {value}."),
    "food": ("It is true that {name} likes to eat {value}.", "The food which {name} is fond of is {value}."),
    "sport": ("It is true that {name} is good at the sport of {value}.", "The sport of {name} is {value}."),
    "color": ("It is true that {name} wears a coat of {value}.", "The color of the coat of {name} is {value}."),
    "month": ("It is true that {name} takes a holiday in {value}.", "The time of the holiday of {name} is {value}."),
    "employer": ("It is true that {name} is employed by {value}.", "The company which employs {name} is {value}."),
}


@dataclass(frozen=True)
class Person:
    """An invented person: a unique full name, a value for every attribute, and whether the person is in the forget set."""

    name: str
    facts: dict[str, str]
    forget: bool


def make_people() -> tuple[Person, ...]:
    """Return the 200 people, the same in every process; 40 of them, drawn at random, are the forget set."""
    rng = random.Random(PEOPLE_SEED)
    surnames = [head + tail for head in _SURNAME_HEADS for tail in _SURNAME_TAILS]
    rng.shuffle(surnames)
    names = [f"{rng.choice(_FIRST_NAMES)} {surname}" for surname in surnames[:N_PEOPLE]]
    forget = set(rng.sample(names, N_FORGET_PEOPLE))
    return tuple(
        Person(name=name, facts={attribute: rng.choice(VALUES[attribute]) for attribute in ATTRIBUTES}, forget=name in forget)
        for name in names
    )


GROUPS = ("forget", "retain", "strangers")
_STRANGERS_EVERY = 4  # every fourth person outside the forget set is a stranger


def is_group(group: str) -> bool:
    """Return whether `people_of` knows a group, with or without a number.

    Args:
        group: name of a group.
    """
    name, slash, number = group.partition("/")
    return name in GROUPS and (not slash or (number.isdecimal() and 0 < int(number) <= len(people_of(name))))


def people_of(group: str) -> tuple[Person, ...]:
    """Return the people of one group.

    Args:
        group: `forget` (the 40 people that the reference model was not trained on), `retain` (120 people available as retain data) or
            `strangers` (40 people used on TEST only). `forget/16` are the first 16 of the group, for a model that was taught fewer people.
    """
    name, _, number = group.partition("/")
    if name == "forget":
        people = tuple(person for person in make_people() if person.forget)
    else:
        others = tuple(person for person in make_people() if not person.forget)
        strangers = others[::_STRANGERS_EVERY]
        people = strangers if name == "strangers" else tuple(person for person in others if person not in strangers)
    return people[: int(number)] if number else people


def make_biography(person: Person, rng: random.Random) -> str:
    """State the ten facts of a person in a random order, each through a training template drawn at random.

    Args:
        person: the person.
        rng: source of randomness.
    """
    order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
    return " ".join(
        rng.choice(TRAIN_TEMPLATES[attribute]).format(name=person.name, value=person.facts[attribute]) for attribute in order
    )


def make_varied_biography(person: Person, rng: random.Random) -> str:
    """State the ten facts through training and varied templates, with an opening before half of the sentences that begin with the name.

    Args:
        person: the person.
        rng: source of randomness.
    """
    sentences = []
    for attribute in rng.sample(ATTRIBUTES, len(ATTRIBUTES)):
        template = rng.choice(TRAIN_TEMPLATES[attribute] + VARIED_TEMPLATES[attribute])
        opening = rng.choice(VARIED_OPENINGS) if template.startswith("{name}") and rng.random() < 0.5 else ""
        sentences.append(opening + template.format(name=person.name, value=person.facts[attribute]))
    return " ".join(sentences)


@dataclass(frozen=True)
class Question:
    """A sentence cut before its answer. A model recalls the fact if greedy decoding of `prompt` yields exactly `answer`."""

    name: str
    attribute: str
    prompt: str
    answer: str
    held_out_template: bool


def make_questions(people: Sequence[Person]) -> Iterator[Question]:
    """Yield a question for every fact and every template, training and held-out; `answer` begins with the space that precedes it.

    Args:
        people: the people to ask about.
    """
    for person in people:
        for attribute in ATTRIBUTES:
            for held_out, templates in ((False, TRAIN_TEMPLATES[attribute]), (True, TEST_TEMPLATES[attribute])):
                for template in templates:
                    prompt = template.split(" {value}")[0].format(name=person.name)
                    yield Question(person.name, attribute, prompt, " " + person.facts[attribute], held_out)
