"""Test tasks: roles, repeated texts, and how much of each corpus is read from which split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.documents import Split
from mtsae_lens.data.questions import read_questions
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.unlearning import task as module
from mtsae_lens.unlearning.task import QUESTIONS_PER_CONTEXT, Corpus, Role, Task, check_corpus

FACTS = "facts:forget:known"


def made(*roles: str, **settings: Any) -> Task:
    """Corpora named by their role and place."""
    return Task(tuple(Corpus(f"{role}{place}", role) for place, role in enumerate(roles)), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("roles", [["far"], ["forget", "near"], ["forget", "forget", "far"], ["forget", "neutral"], []])
def test_one_corpus_to_forget_and_one_far_from_it_are_needed(roles: list[str]) -> None:
    with pytest.raises(DataError, match="exactly one corpus to forget and at least one far"):
        made(*roles)


@pytest.mark.parametrize("roles", [["forget", "far"], ["far", "neutral", "forget"], ["near", "forget", "far", "far", "near"]])
def test_every_other_choice_of_roles_is_a_task(roles: list[str]) -> None:
    task = made(*roles)
    assert task.forget == f"forget{roles.index('forget')}"
    for role in ("forget", "near", "far", "neutral"):
        expected = [f"{r}{place}" for place, r in enumerate(roles) if r == role]
        assert task.sources(role) == expected  # type: ignore[arg-type]
        assert all(task.role(source) == role for source in expected)
    assert task.sources("near", "far") == [f"{r}{place}" for place, r in enumerate(roles) if r in ("near", "far")]


def test_a_role_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="role out of forget, near, far, neutral for kjv, got 'retain'"):
        Corpus("kjv", "retain")  # type: ignore[arg-type]


def test_a_source_may_be_a_path_but_no_list(text_file: Path) -> None:
    assert Corpus(text_file, "far") == Corpus(str(text_file), "far")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"got a list; write texts in memory to a file first"):
        Corpus(["one", "two"], "far")  # type: ignore[arg-type]


def test_a_corpus_has_one_role(text_file: Path, sea_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sea = Corpus(str(sea_file), "forget")
    monkeypatch.chdir(text_file.parent)
    for first, second in ((str(text_file), str(text_file)), ("kjv", "kjv"), (str(text_file), text_file.name)):
        for roles in (("near", "far"), ("far", "neutral"), ("far", "far")):
            with pytest.raises(DataError, match="expected one role for each text"):
                Task((sea, Corpus(first, roles[0]), Corpus(second, roles[1])))  # type: ignore[arg-type]
    Task((sea, Corpus(str(text_file), "far"), Corpus("kjv", "near")))


def test_people_are_either_to_forget_or_to_keep() -> None:
    for other in ("facts:forget:known", "facts:forget/3:known"):
        with pytest.raises(
            DataError, match=r"expected other people to keep than to forget, got .* in facts:forget/8:known and in facts:forget"
        ):
            Task((Corpus("facts:forget/8:known", "forget"), Corpus(other, "near"), Corpus("sotu", "far")))
    Task((Corpus("facts:forget/8:known", "forget"), Corpus("facts:retain/8:known", "near"), Corpus("sotu", "far")))


def test_questions_that_are_the_same_on_every_split_choose_nothing() -> None:
    """Their templates are too few to share out, so a result on TEST would be one on the questions that chose the edit."""
    unseen, others = "facts:forget/8:unseen", [Corpus("kjv", "forget"), Corpus("sotu", "far")]
    Task((*others, Corpus(unseen, "neutral")))
    for role in ("near", "far"):
        with pytest.raises(
            DataError, match=r"the same on SELECT, TUNE and TEST, got '.*'; give it as neutral, or give facts:forget/8:known"
        ):
            Task((*others, Corpus(unseen, role)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the same on SELECT, TUNE and TEST"):
        Task((Corpus(unseen, "forget"), Corpus("sotu", "far")))


@pytest.mark.parametrize(("share", "n_far"), [(1.0, 8), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_of_far_and_neutral_text_a_share_is_read(
    share: float, n_far: int, cutter: ContextCutter, text_file: Path, sea_file: Path
) -> None:
    corpora = (
        Corpus(str(sea_file), "forget"),
        Corpus("kjv", "near"),
        Corpus(str(text_file), "far"),
        Corpus("austen", "neutral"),
    )
    tables = Task(corpora, 8, far_share=share).tables("select", cutter)
    assert list(tables) == [corpus.source for corpus in corpora]
    assert [len(table) for table in tables.values()] == [8, 8, n_far, n_far]


def test_contexts_are_those_of_split_and_seed(cutter: ContextCutter, text_file: Path, sea_file: Path) -> None:
    corpora = (Corpus(str(sea_file), "forget"), Corpus(str(text_file), "far"))
    task = Task(corpora, 5, seed=3)
    for split in ("select", "tune", "test"):
        for source in (str(sea_file), str(text_file)):
            assert task.table(source, split, cutter).tokens.equal(read_tokens(source, split, cutter, 5, seed=3).tokens)
    assert not task.table("kjv", "tune", cutter).tokens.equal(Task(corpora, 5, seed=4).table("kjv", "tune", cutter).tokens)


def test_only_the_corpora_of_the_wanted_roles_are_read(cutter: ContextCutter, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(module, "read_tokens", lambda source, *args, **settings: read.append(source))
    made("far", "forget", "neutral", "near").tables("tune", cutter, ("forget", "near"))
    assert read == ["forget1", "near3"]


def test_of_questions_all_are_for_select_and_so_many_a_context_for_other_splits(cutter: ContextCutter) -> None:
    task = Task((Corpus(FACTS, "forget"), Corpus("facts:retain:known", "far")), 2, seed=1, far_share=0.5)
    assert len(task.table(FACTS, "select", cutter)) == 40 * 10 * 2
    for source in task.sources("forget", "far"):
        for split in ("tune", "test"):
            table = task.table(source, split, cutter)
            assert len(table) == 2 * QUESTIONS_PER_CONTEXT
            assert table.tokens.equal(read_questions(source, split, cutter, 2 * QUESTIONS_PER_CONTEXT, seed=1).tokens)


def test_a_source_is_checked_before_any_work(text_file: Path) -> None:
    for source in (str(text_file), "kjv", FACTS):
        check_corpus(source)
    with pytest.raises(DataError, match="expected a file, a folder, an embedded domain"):
        check_corpus("no-such-text")


@pytest.mark.parametrize(
    ("source", "role"),
    [
        ("facts:forget/20:known", "forget"),
        ("facts:retain/20:known", "near"),
        ("facts:retain/20:known", "far"),
        ("facts:strangers/20:known", "neutral"),
        ("facts:retain/20:unseen", "neutral"),
    ],
)
def test_the_longest_question_of_any_role_fits_into_a_context(source: str, role: Role, cutter: ContextCutter) -> None:
    others = [Corpus(of, r) for of, r in (("kjv", "forget"), ("sotu", "far")) if r == "far" or role != "forget"]  # type: ignore[arg-type]
    task = Task((*others, Corpus(source, role)))
    splits: tuple[Split, ...] = ("test",) if role == "neutral" else ("select", "tune", "test")
    longest = max(task.table(source, split, cutter).tokens.shape[1] for split in splits)
    Task(task.corpora).check_questions(replace(cutter, context_size=longest))
    with pytest.raises(
        DataError,
        match=f"{source}: expected questions of at most {longest - 1} tokens, got {longest}; give context_size={longest}",
    ):
        Task(task.corpora).check_questions(replace(cutter, context_size=longest - 1))


def test_a_task_without_questions_has_none_to_check(cutter: ContextCutter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_tokens", lambda *args, **settings: pytest.fail("it read a text"))
    made("forget", "far").check_questions(replace(cutter, context_size=2))


def test_questions_that_do_not_exist_are_no_corpus() -> None:
    with pytest.raises(DataError, match=r"Did you mean 'facts:forget:known'"):
        check_corpus("facts:forget:knwn")


def test_every_text_is_read_once(
    cutter: ContextCutter, text_file: Path, sea_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def read(source: str, split: Any, *rest: Any, **how: Any) -> Any:
        asked.append((source, split))
        return read_tokens(source, split, *rest, **how)

    monkeypatch.setattr(module, "read_tokens", read)
    task = Task((Corpus(str(sea_file), "forget"), Corpus(str(text_file), "far")), contexts_per_split=4)
    for _ in range(2):
        for split in ("select", "tune", "test"):
            tables = task.tables(split, cutter)
            assert tables[task.forget] is task.table(task.forget, split, cutter)
    assert len(asked) == len(set(asked)) == 6
    other = task.table(task.forget, "test", replace(cutter, context_size=16))  # another tokenization is another table
    assert other.tokens.shape[1] == 16
    assert task == Task(task.corpora, contexts_per_split=4)


def test_select_reads_at_most_so_many_questions(cutter: ContextCutter, text_file: Path) -> None:
    source = "facts:forget/2:known"
    corpora = (Corpus(source, "forget"), Corpus(str(text_file), "far"))
    whole = Task(corpora, contexts_per_split=1)
    few = replace(whole, max_select_questions=5)
    assert len(few.table(source, "select", cutter).tokens) == 5
    assert len(whole.table(source, "select", cutter).tokens) > 5
    assert len(few.table(source, "tune", cutter).tokens) == len(whole.table(source, "tune", cutter).tokens)
