"""Test the questions about the invented people: which questions are in which split, and which tokens are the answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations, product

import pytest

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.people import TEST_TEMPLATES, TRAIN_TEMPLATES, VALUES, make_people
from mtsae_lens.data.questions import (
    SOURCES,
    draw_questions,
    is_question_source,
    question_table,
    read_questions,
    read_wrong_answers,
    wrong_answers,
)
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError

ALL = 10_000
SPLITS = ("select", "tune", "test")
PEOPLE = {person.name: person for person in make_people()}


ASKED = [(source, split) for source in SOURCES for split in SPLITS if split == "test" or "strangers" not in source]


def names(source: str, split: str) -> set[str]:
    return {question.name for question in draw_questions(source, split, ALL)}


def asked(source: str, split: str) -> dict[tuple[str, str], set[str]]:
    """Beginnings of sentences, by fact."""
    found = defaultdict(set)
    for question in draw_questions(source, split, ALL):
        found[question.name, question.attribute].add(question.prompt.replace(question.name, "{name}"))
    return found


def test_people_are_the_same_in_every_split() -> None:
    groups = {group: names(f"facts:{group}:known", "test") for group in ("forget", "retain", "strangers")}
    assert {group: len(people) for group, people in groups.items()} == {"forget": 40, "retain": 120, "strangers": 40}
    assert groups["forget"] == {name for name, person in PEOPLE.items() if person.forget}
    assert set().union(*groups.values()) == set(PEOPLE)
    for source, split in ASKED:
        assert names(source, split) == groups[source.split(":")[1]]


def test_strangers_are_for_test_alone() -> None:
    for templates, split in product(("known", "unseen"), ("select", "tune")):
        with pytest.raises(DataError, match=f"facts:strangers:{templates}: expected (split 'test'|role 'neutral')"):
            draw_questions(f"facts:strangers:{templates}", split, 5)


@pytest.mark.parametrize("people", ["forget", "retain", "strangers"])
def test_the_known_templates_of_a_fact_are_dealt_out_to_the_splits(people: str) -> None:
    splits = ("test",) if people == "strangers" else SPLITS
    of_split = {split: asked(f"facts:{people}:known", split) for split in splits}
    facts = set(product(names(f"facts:{people}:known", "test"), VALUES))
    assert all(set(found) == facts for found in of_split.values())
    assert all(len(draw_questions(f"facts:{people}:known", split, ALL)) == 2 * len(facts) for split in splits)
    for name, attribute in facts:
        dealt = [of_split[split][name, attribute] for split in splits]
        assert [len(prompts) for prompts in dealt] == [2] * len(splits)  # a third of six
        assert all(not one & other for one, other in combinations(dealt, 2))
        known = {sentence.split(" {value}")[0] for sentence in TRAIN_TEMPLATES[attribute]}
        assert set().union(*dealt) <= known
        assert people == "strangers" or set().union(*dealt) == known


@pytest.mark.parametrize("split", SPLITS)
def test_over_all_facts_every_split_has_every_template_about_as_often(split: str) -> None:
    counts: dict[str, Counter[str]] = {attribute: Counter() for attribute in VALUES}
    for (_, attribute), prompts in asked("facts:retain:known", split).items():
        counts[attribute].update(prompts)
    for attribute, of_template in counts.items():
        assert len(of_template) == len(TRAIN_TEMPLATES[attribute]) == 6
        assert all(20 <= count <= 60 for count in of_template.values())  # 40 of 120 expected, with a deviation of 5


@pytest.mark.parametrize("people", ["forget", "retain", "strangers"])
def test_unseen_templates_are_those_of_no_biography(people: str) -> None:
    for split in ("test",) if people == "strangers" else SPLITS:
        for (_, attribute), prompts in asked(f"facts:{people}:unseen", split).items():
            assert prompts == {sentence.split(" {value}")[0] for sentence in TEST_TEMPLATES[attribute]}
            assert not prompts & {sentence.split(" {value}")[0] for sentence in TRAIN_TEMPLATES[attribute]}


@pytest.mark.parametrize("source", SOURCES)
def test_the_answer_is_what_counts_and_nothing_else(source: str, cutter: ContextCutter) -> None:
    questions, table = draw_questions(source, "test", 60), read_questions(source, "test", cutter, 60)
    assert table.documents == tuple(question.name for question in questions)
    assert len({(q.name, q.prompt) for q in questions}) == 60
    counted = table.counted(cutter)
    for row, question in enumerate(questions):
        tokens = table.tokens[row]
        assert tokens[0] == cutter.tokenizer.bos_token_id
        ids = tokens[1:][counted[row]].tolist()
        assert cutter.tokenizer.decode(ids) == question.answer == " " + PEOPLE[question.name].facts[question.attribute]
        place = counted[row].nonzero().squeeze(-1) + 1
        assert place.tolist() == list(range(int(place[0]), int(place[0]) + len(ids)))  # in one piece
        assert cutter.tokenizer.decode(tokens[1 : int(place[0])].tolist()) == question.prompt
        assert (tokens[int(place[-1]) + 1 :] == cutter.tokenizer.eos_token_id).all()


def test_padding_is_never_counted(cutter: ContextCutter) -> None:
    table = read_questions("facts:forget:known", "tune", cutter, 200)
    special = cutter.special_positions(table.tokens)
    assert special[:, 1:].any()  # there is padding
    assert not (table.counted(cutter) & special[:, 1:]).any()
    assert table.answers is not None
    everything = TokenTable(table.corpus, table.tokens, table.documents)
    assert everything.counted(cutter).sum() > 2 * table.counted(cutter).sum()
    wide = replace(table, answers=table.answers | True)
    assert not (wide.counted(cutter) & special[:, 1:]).any()


def test_questions_are_drawn_by_seed(cutter: ContextCutter) -> None:
    one, same, other = (draw_questions("facts:retain:known", "select", 50, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert (
        read_questions("facts:retain:known", "select", cutter, 50, seed=1).tokens.tolist()
        == question_table("x", one, cutter).tokens.tolist()
    )


def test_wrong_answers_are_other_values_of_the_same_attribute() -> None:
    questions = draw_questions("facts:forget:known", "test", 300)
    wrong = wrong_answers(questions, 5, seed=3)
    assert len(wrong) == 5
    for row, question in enumerate(questions):
        answers = [table[row].answer for table in wrong]
        assert len({question.answer, *answers}) == 6
        assert {answer.removeprefix(" ") for answer in answers} <= set(VALUES[question.attribute])
        assert all(replace(table[row], answer=question.answer) == question for table in wrong)
    assert wrong == wrong_answers(questions, 5, seed=3) != wrong_answers(questions, 5, seed=4)
    every = wrong_answers(questions[:1], 15)
    assert {table[0].answer for table in every} | {questions[0].answer} == {" " + v for v in VALUES[questions[0].attribute]}


def test_tables_of_wrong_answers_are_to_the_questions_of_read_questions(cutter: ContextCutter) -> None:
    right = read_questions("facts:forget:unseen", "test", cutter, 40, seed=2)
    wrong = read_wrong_answers("facts:forget:unseen", "test", cutter, 40, n_wrong=3, seed=2)
    assert len(wrong) == 3
    for table, row in product(wrong, range(40)):
        assert table.documents[row] == right.documents[row]
        start = int(right.answers[row].nonzero()[0])  # type: ignore[index]
        assert table.tokens[row, :start].tolist() == right.tokens[row, :start].tolist()
        assert table.answers[row].nonzero()[0] == start  # type: ignore[index]
        assert table.tokens[row, start:].tolist() != right.tokens[row, start:].tolist()


@pytest.mark.parametrize("n_wrong", [0, 16])
def test_as_many_wrong_answers_as_there_are(n_wrong: int, cutter: ContextCutter) -> None:
    with pytest.raises(DataError, match=f"n_wrong from 1 to 15, got {n_wrong}"):
        read_wrong_answers("facts:forget:known", "test", cutter, 5, n_wrong=n_wrong)


def test_unknown_sources_and_splits_are_refused(cutter: ContextCutter) -> None:
    assert is_question_source("facts:moon")
    assert not is_question_source("people")
    with pytest.raises(DataError, match=r"got 'facts:forget:knwn'. Did you mean 'facts:forget:known'"):
        read_questions("facts:forget:knwn", "test", cutter, 5)
    with pytest.raises(DataError, match=r"a split of questions .select, tune, test"):
        read_questions("facts:forget:known", "train", cutter, 5)


def test_a_context_too_short_for_a_question_is_refused(cutter: ContextCutter) -> None:
    with pytest.raises(DataError, match=r"questions of at most 6 tokens, got \d+"):
        read_questions("facts:forget:known", "test", replace(cutter, context_size=6), 5)


def test_a_numbered_group_is_the_first_people_of_the_group() -> None:
    few, group = draw_questions("facts:forget/16:known", "tune", ALL), names("facts:forget:known", "tune")
    assert len({q.name for q in few}) == 16
    assert {q.name for q in few} < group
    assert {q.name for q in draw_questions("facts:forget/40:unseen", "tune", ALL)} == group
    with pytest.raises(DataError, match="strangers/3:known: expected split 'test'"):
        draw_questions("facts:strangers/3:known", "tune", ALL)
    for wrong in ("facts:forget/0:known", "facts:forget/41:known", "facts:forget/:known", "facts:forget/x:known"):
        with pytest.raises(DataError, match="expected known questions"):
            draw_questions(wrong, "tune", ALL)
