"""Batches take tables in turn and every context once an epoch; no document is on both sides of a split."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.contexts import TokenTable, read_tokens
from mtsae_lens.data.facts import read_facts
from mtsae_lens.errors import DataError
from mtsae_lens.unlearning.finetuning.batches import mixed_batches, sample_contexts, select_contexts, split_by_document


@pytest.fixture(scope="module")
def forget(cutter: Any, sea_file: Path) -> TokenTable:
    return read_tokens(str(sea_file), "train", cutter, 12)


@pytest.fixture(scope="module")
def retain(cutter: Any, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "train", cutter, 8)


@pytest.fixture(scope="module")
def questions(cutter: Any) -> TokenTable:
    return read_facts("facts:forget:known", "tune", cutter, 40)


def test_batches_take_tables_in_turn_and_every_context_once_an_epoch(
    cutter: Any, forget: TokenTable, retain: TokenTable
) -> None:
    short = TokenTable("short", retain.tokens[:4, :20], retain.documents[:4])
    batches = list(islice(mixed_batches([forget, short], cutter, 6, seed=0), 8))
    rows = [(tuple(t.tolist()), c) for batch in batches for t, c in zip(batch.tokens, batch.counted, strict=True)]
    assert [c[19:].any().item() for _, c in rows] == [True, False] * 24  # padding does not count
    for table, times in ((forget, 2), (short, 6)):
        padded = torch.nn.functional.pad(table.tokens, (0, 32 - table.tokens.shape[1]))
        seen = Counter(row for row, _ in rows)
        assert all(seen[tuple(row.tolist())] == times for row in padded)
    orders = [[row for row, _ in rows[1::2]][n : n + 4] for n in (0, 4, 8, 12)]
    assert len({tuple(order) for order in orders}) > 1


def test_a_table_without_counted_tokens_is_refused(cutter: Any, forget: TokenTable) -> None:
    empty = TokenTable("empty", forget.tokens, forget.documents, torch.zeros_like(forget.tokens, dtype=torch.bool))
    with pytest.raises(DataError, match="no token counts"):
        next(mixed_batches([empty], cutter, 2, seed=0))


def test_smaller_samples_are_part_of_larger_ones(questions: TokenTable) -> None:
    small, large = (sample_contexts(questions, n, seed=1) for n in (4, 16))
    assert torch.equal(large.tokens[:4], small.tokens)
    assert large.answers is not None
    for row, name, answers in zip(large.tokens, large.documents, large.answers, strict=True):
        assert any(
            torch.equal(row, questions.tokens[i])
            and name == questions.documents[i]
            and torch.equal(answers, questions.answers[i])
            for i in range(len(questions))
        )
    assert len({tuple(row.tolist()) for row in large.tokens}) == 16
    assert not torch.equal(sample_contexts(questions, 4, seed=2).tokens, small.tokens)
    with pytest.raises(DataError, match="41 contexts were asked for, there are 40"):
        sample_contexts(questions, 41)


def test_no_person_is_on_both_sides_of_a_split(questions: TokenTable) -> None:
    one, other = split_by_document(questions)
    people = set(questions.documents)
    assert set(one.documents) | set(other.documents) == people
    assert not set(one.documents) & set(other.documents)
    assert len(set(one.documents)) == round(len(people) / 2)
    assert len(one) + len(other) == len(questions)
    assert one.answers is not None
    assert one.answers.shape == one.tokens.shape
    assert len(set(split_by_document(questions, 0.25)[0].documents)) == round(len(people) / 4)
    with pytest.raises(DataError, match="cannot be split"):
        split_by_document(select_contexts(questions, [0, 0]))
