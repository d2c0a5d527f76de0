"""Test firing statistics on a case small enough to count by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mtsae_lens.data.people import make_people, make_questions
from mtsae_lens.data.questions import question_table
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.unlearning.selection.statistics import document_halves, firing_statistics, first_contexts

# token 0 is special; token t fires feature 0 by t, feature 1 by 1 if t is even; feature 2 never; feature 3 is -1 (as in abstopk)
ACTS = torch.tensor([[9.0, 9, 9, 9], [1, 0, 0, -1], [2, 1, 0, -1], [3, 0, 0, -1], [4, 1, 0, -1]])


def stub_lm(batch_size: int) -> SimpleNamespace:
    return SimpleNamespace(
        sae=SimpleNamespace(cfg=SimpleNamespace(d_sae=4), device="cpu"),
        batches=lambda table: list(table.tokens.split(batch_size)),
        masked=lambda tokens: tokens == 0,
        feature_acts=lambda tokens: ACTS[tokens],
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_rates_and_means_leave_special_tokens_out(batch_size: int) -> None:
    table = TokenTable("corpus", torch.tensor([[0, 1, 2], [0, 0, 4], [0, 3, 3]]), ("a", "b", "c"))
    statistics = firing_statistics(stub_lm(batch_size), table)  # type: ignore[arg-type]
    assert statistics.corpus == "corpus"
    assert statistics.n_tokens == 5  # 1 2 4 3 3
    assert statistics.rate.tolist() == pytest.approx([1.0, 0.4, 0.0, 0.0])
    assert statistics.mean_activation.tolist() == pytest.approx([13 / 5, 1.0, 0.0, 0.0])
    assert statistics.mean.tolist() == pytest.approx([13 / 5, 2 / 5, 0.0, 0.0])


def test_nothing_but_special_tokens_gives_zeros() -> None:
    statistics = firing_statistics(stub_lm(2), TokenTable("c", torch.zeros(2, 3, dtype=torch.long), ("a", "b")))  # type: ignore[arg-type]
    assert statistics.n_tokens == 0
    assert statistics.rate.tolist() == [0, 0, 0, 0]


def test_on_a_real_sae_the_rates_sum_to_k(lm, text_file) -> None:
    statistics = firing_statistics(lm, read_tokens(str(text_file), "select", lm.cutter, 8))
    assert statistics.rate.sum().item() == pytest.approx(4, abs=0.1)  # fewer where the k-th is negative
    assert statistics.n_tokens == 8 * 31


def test_of_questions_all_but_padding_counts(lm, cutter) -> None:
    table = question_table("facts", list(make_questions(make_people()[:2]))[:9], cutter)
    statistics = firing_statistics(lm, table)
    assert statistics.n_tokens == int((table.tokens != 0).sum())  # BOS, EOS and padding are token 0
    assert table.answers is not None
    assert statistics.n_tokens > int(table.answers.sum())


@pytest.fixture
def five_documents() -> TokenTable:
    """Contexts of a document are not neighbours; token ids tell contexts apart."""
    tokens = torch.arange(1, 5).repeat_interleave(3)[:9, None].expand(9, 4).contiguous()
    return TokenTable("c", tokens, tuple("abcdeabcd"), torch.arange(36).view(9, 4) % 2 == 0)


@pytest.mark.parametrize("seed", range(5))
def test_halves_share_no_document_and_lose_none(five_documents: TokenTable, seed: int) -> None:
    halves = document_halves(five_documents, torch.Generator().manual_seed(seed))
    first, second = (set(half.documents) for half in halves)
    assert not first & second
    assert (len(first), len(second)) == (2, 3)
    whole = {(d, tuple(t.tolist()), tuple(a.tolist())) for d, t, a in rows(five_documents)}
    assert {(d, tuple(t.tolist()), tuple(a.tolist())) for half in halves for d, t, a in rows(half)} == whole


def rows(table: TokenTable):
    assert table.answers is not None
    return zip(table.documents, table.tokens, table.answers, strict=True)


def test_halves_differ_by_seed(five_documents: TokenTable) -> None:
    firsts = {document_halves(five_documents, torch.Generator().manual_seed(seed))[0].documents for seed in range(10)}
    assert len(firsts) > 1


def test_one_document_cannot_be_halved() -> None:
    with pytest.raises(DataError, match="two documents, got one"):
        document_halves(TokenTable("c", torch.zeros(2, 3, dtype=torch.long), ("a", "a")), torch.Generator())


def test_statistics_of_halves_make_up_those_of_the_whole(lm, text_file) -> None:
    table = read_tokens(str(text_file), "select", lm.cutter, 12)
    whole = firing_statistics(lm, table)
    one, other = (firing_statistics(lm, half) for half in document_halves(table, torch.Generator().manual_seed(0)))
    assert one.n_tokens + other.n_tokens == whole.n_tokens
    assert not torch.equal(one.rate, other.rate)
    for name in ("rate", "mean"):
        parts = sum(getattr(half, name) * half.n_tokens for half in (one, other))
        torch.testing.assert_close(parts / whole.n_tokens, getattr(whole, name))


def test_first_contexts_are_those_that_come_first(five_documents: TokenTable) -> None:
    few = first_contexts(five_documents, 3)
    assert few.documents == ("a", "b", "c")
    assert few.answers is not None
    assert five_documents.answers is not None
    assert torch.equal(few.tokens, five_documents.tokens[:3])
    assert torch.equal(few.answers, five_documents.answers[:3])
    assert len(first_contexts(five_documents, 100)) == 9
