"""Questions about the invented people: who is asked what in which split, and which tokens are the answer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import combinations, product

import pytest

from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.data.facts import (
    SOURCES,
    draw_questions,
    is_fact_source,
    question_table,
    read_facts,
    read_wrong_answers,
    wrong_answers,
)
from mtsae_lens.data.people import TEST_TEMPLATES, TRAIN_TEMPLATES, VALUES, make_people
from mtsae_lens.errors import DataError

ALL = 10_000
SPLITS = ("select", "tune", "test")
PEOPLE = {person.name: person for person in make_people()}


def templates(source: str, split: str) -> dict[str, set[str]]:
    """Beginnings of sentences, by attribute."""
    found = defaultdict(set)
    for question in draw_questions(source, split, ALL):
        found[question.attribute].add(question.prompt.replace(question.name, "{name}"))
    return found


def names(source: str, split: str) -> set[str]:
    return {question.name for question in draw_questions(source, split, ALL)}


def test_forget_people_are_the_same_in_every_split_and_known_templates_are_not() -> None:
    for split in SPLITS:
        assert names("facts:forget:known", split) == {name for name, person in PEOPLE.items() if person.forget}
        assert len(draw_questions("facts:forget:known", split, ALL)) == 40 * 10 * 2
    for one, other in combinations(SPLITS, 2):
        ours, theirs = templates("facts:forget:known", one), templates("facts:forget:known", other)
        assert all(not ours[attribute] & theirs[attribute] for attribute in VALUES)
    for attribute, sentences in TRAIN_TEMPLATES.items():
        asked = set().union(*(templates("facts:forget:known", split)[attribute] for split in SPLITS))
        assert asked == {sentence.split(" {value}")[0] for sentence in sentences}


@pytest.mark.parametrize("kind", ["known", "unseen"])
def test_people_to_retain_are_others_in_every_split(kind: str) -> None:
    groups = [names(f"facts:retain:{kind}", split) for split in SPLITS]
    assert all(not one & other for one, other in combinations(groups, 2))
    assert set().union(*groups) == {name for name, person in PEOPLE.items() if not person.forget}
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


@pytest.mark.parametrize("people", ["forget", "retain"])
def test_unseen_templates_are_those_of_no_biography(people: str) -> None:
    for split in SPLITS:
        for attribute, prompts in templates(f"facts:{people}:unseen", split).items():
            assert prompts == {sentence.split(" {value}")[0] for sentence in TEST_TEMPLATES[attribute]}
            assert not prompts & templates(f"facts:{people}:known", split)[attribute]


@pytest.mark.parametrize("source", SOURCES)
def test_the_answer_is_what_counts_and_nothing_else(source: str, cutter: ContextCutter) -> None:
    questions, table = draw_questions(source, "test", 60), read_facts(source, "test", cutter, 60)
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
    table = read_facts("facts:forget:known", "tune", cutter, 200)
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
        read_facts("facts:retain:known", "select", cutter, 50, seed=1).tokens.tolist()
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


def test_tables_of_wrong_answers_are_to_the_questions_of_read_facts(cutter: ContextCutter) -> None:
    right = read_facts("facts:forget:unseen", "test", cutter, 40, seed=2)
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
    with pytest.raises(DataError, match=f"1 to 15 wrong answers; got n_wrong={n_wrong}"):
        read_wrong_answers("facts:forget:known", "test", cutter, 5, n_wrong=n_wrong)


def test_unknown_sources_and_splits_are_refused(cutter: ContextCutter) -> None:
    assert is_fact_source("facts:moon")
    assert not is_fact_source("people")
    with pytest.raises(DataError, match=r"no questions 'facts:forget:knwn'. Did you mean 'facts:forget:known'"):
        read_facts("facts:forget:knwn", "test", cutter, 5)
    with pytest.raises(DataError, match="questions are for select, tune, test"):
        read_facts("facts:forget:known", "train", cutter, 5)


def test_a_context_too_short_for_a_question_is_refused(cutter: ContextCutter) -> None:
    with pytest.raises(DataError, match=r"a question has \d+ tokens, a context 6"):
        read_facts("facts:forget:known", "test", replace(cutter, context_size=6), 5)
