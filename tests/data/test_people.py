"""Test the invented people: unique, complete, and tested on sentences that no biography contains."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import product

from mtsae_lens.assets import PEOPLE_FILE
from mtsae_lens.data.people import (
    ATTRIBUTES,
    TEST_TEMPLATES,
    TRAIN_TEMPLATES,
    VALUES,
    VARIED_TEMPLATES,
    make_biography,
    make_people,
    make_questions,
    make_varied_biography,
)

PEOPLE = make_people()


def test_two_hundred_people_forty_of_them_to_forget() -> None:
    assert len(PEOPLE) == 200
    assert sum(person.forget for person in PEOPLE) == 40
    assert len({person.name for person in PEOPLE}) == 200
    assert len({person.name.split()[1] for person in PEOPLE}) == 200  # a surname is enough to tell them apart
    assert make_people() == PEOPLE


def test_no_name_is_part_of_another() -> None:
    names = [person.name for person in PEOPLE]
    assert not any(a != b and a in b for a, b in product(names, names))


def test_every_fact_comes_from_a_vocabulary_of_sixteen() -> None:
    assert len(ATTRIBUTES) == 10
    for attribute in ATTRIBUTES:
        assert len(set(VALUES[attribute])) == 16
        counts = Counter(person.facts[attribute] for person in PEOPLE)
        assert set(counts) <= set(VALUES[attribute])
        assert max(counts.values()) < 30  # uniform: 12.5 expected
    assert all(set(person.facts) == set(ATTRIBUTES) for person in PEOPLE)


def test_templates_hold_a_name_and_end_in_the_value() -> None:
    for attribute in ATTRIBUTES:
        assert len(set(TRAIN_TEMPLATES[attribute])) == 6
        assert len(set(TEST_TEMPLATES[attribute])) == 2
        for template in (*TRAIN_TEMPLATES[attribute], *TEST_TEMPLATES[attribute]):
            assert template.count("{name}") == 1
            assert template.endswith(" {value}.")


def test_test_templates_never_occur_in_biographies() -> None:
    rng = random.Random(0)
    for person in PEOPLE:
        text = " ".join(make(person, rng) for _ in range(20) for make in (make_biography, make_varied_biography))
        for attribute in ATTRIBUTES:
            for template in TEST_TEMPLATES[attribute]:
                prompt, _, _ = template.format(name=person.name, value="|").partition("|")
                assert prompt not in text
    every_template = [t for each in (TRAIN_TEMPLATES, VARIED_TEMPLATES) for templates in each.values() for t in templates]
    assert not any(test in train for tests in TEST_TEMPLATES.values() for test in tests for train in every_template)


def test_a_biography_states_every_fact_once_in_a_random_order() -> None:
    person = PEOPLE[0]
    texts = {make_biography(person, random.Random(seed)) for seed in range(20)}
    assert len(texts) == 20
    for text in texts:
        sentences = {
            template.format(name=person.name, value=person.facts[a]): a for a in ATTRIBUTES for template in TRAIN_TEMPLATES[a]
        }
        found = [attribute for sentence, attribute in sentences.items() if sentence in text.replace(". ", ".\n").split("\n")]
        assert sorted(found) == sorted(ATTRIBUTES)


def test_questions_end_before_their_answer() -> None:
    questions = list(make_questions(PEOPLE[:3]))
    assert len(questions) == 3 * 10 * 8
    facts = {person.name: person.facts for person in PEOPLE}
    for question in questions:
        assert question.answer == " " + facts[question.name][question.attribute]
        assert question.name in question.prompt
        assert not question.prompt.endswith(" ")
        templates = (TEST_TEMPLATES if question.held_out_template else TRAIN_TEMPLATES)[question.attribute]
        assert f"{question.prompt}{question.answer}." in {
            t.format(name=question.name, value=question.answer[1:]) for t in templates
        }


def test_the_people_that_ship_are_these() -> None:
    shipped = json.loads(PEOPLE_FILE.read_text())
    assert [(p["name"], p["facts"], p["forget"]) for p in shipped] == [(p.name, p.facts, p.forget) for p in PEOPLE]
