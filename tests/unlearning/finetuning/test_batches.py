"""Test that batches take tables in turn and every context once per epoch, and that no document is on both sides of a split."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.questions import read_questions
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.unlearning.finetuning.batches import mixed_batches, sample_documents, split_by_document


@pytest.fixture(scope="module")
def forget(cutter: Any, sea_file: Path) -> TokenTable:
    return read_tokens(str(sea_file), "train", cutter, 12)


@pytest.fixture(scope="module")
def retain(cutter: Any, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "train", cutter, 8)


@pytest.fixture(scope="module")
def questions(cutter: Any) -> TokenTable:
    return read_questions("facts:forget:known", "tune", cutter, 40)


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
    with pytest.raises(DataError, match="expected tokens to train on"):
        next(mixed_batches([empty], cutter, 2, seed=0))


def test_a_sample_has_all_contexts_of_its_documents_and_is_part_of_a_larger_one(questions: TokenTable) -> None:
    names = set(questions.documents)
    small, large = (sample_documents(questions, n, seed=1) for n in (2, 5))
    assert (len(set(small.documents)), len(set(large.documents))) == (2, 5)
    assert set(small.documents) < set(large.documents) < names
    for sample in (small, large):
        rows = [row for row, name in enumerate(questions.documents) if name in sample.documents]
        assert torch.equal(sample.tokens, questions.tokens[rows])
        assert questions.answers is not None
        assert sample.answers is not None
        assert torch.equal(sample.answers, questions.answers[rows])
    assert {sample_documents(questions, 2, seed=seed).documents for seed in range(5)} != {small.documents}
    with pytest.raises(DataError, match=f"at least {len(names) + 1} documents, got {len(names)}"):
        sample_documents(questions, len(names) + 1)


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
    with pytest.raises(DataError, match="expected a share that leaves a document on each side"):
        split_by_document(questions.rows([0, 0]))
