"""Firing statistics on a case small enough to count by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.unlearning.statistics import firing_statistics

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


def test_nothing_but_special_tokens_gives_zeros() -> None:
    statistics = firing_statistics(stub_lm(2), TokenTable("c", torch.zeros(2, 3, dtype=torch.long), ("a", "b")))  # type: ignore[arg-type]
    assert statistics.n_tokens == 0
    assert statistics.rate.tolist() == [0, 0, 0, 0]


def test_on_a_real_sae_the_rates_sum_to_k(lm, text_file) -> None:
    from mtsae_lens.data.contexts import read_tokens

    statistics = firing_statistics(lm, read_tokens(str(text_file), "select", lm.cutter, 8))
    assert statistics.rate.sum().item() == pytest.approx(4, abs=0.1)  # fewer where the k-th is negative
    assert statistics.n_tokens == 8 * 31
