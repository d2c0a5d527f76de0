"""Test that `run_evals` gets float32 from a model in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtsae_lens.data.contexts import TokenTable, read_tokens
from mtsae_lens.evaluation import fidelity
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.evaluation.readout import Float32Readout
from mtsae_lens.splice.hooked_lm import HookedLM


@pytest.fixture(scope="module")
def table(half_lm: HookedLM, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "test", half_lm.cutter, 8)


def evaluated(lm: HookedLM, table: TokenTable) -> dict[str, float]:
    return evaluate_fidelity(lm.sae, lm.model, lm.cutter, table, batch_size=4)


@torch.no_grad()
def test_losses_and_norms_are_those_of_what_the_model_gives_in_float32(
    half_lm: HookedLM, table: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, kept = half_lm.model(table.tokens, prepend_bos=False).float(), ~half_lm.cutter.special_positions(table.tokens)
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), table.tokens[:, 1:], reduction="none")
    norms = half_lm.activations(table.tokens).float().norm(dim=-1)[kept]
    expected = pytest.approx((nll[kept[:, :-1]].mean().item(), norms.mean().item()), abs=1e-4)

    def measured() -> tuple[float, float]:
        metrics = evaluated(half_lm, table)
        return metrics["ce_loss_without_sae"], metrics["l2_norm_in"]

    assert measured() == expected
    monkeypatch.setattr(fidelity, "Float32Readout", lambda model: model)
    assert measured() != expected


def test_metrics_are_near_those_of_the_float32_model(lm: HookedLM, half_lm: HookedLM, table: TokenTable) -> None:
    full, half = evaluated(lm, table), evaluated(half_lm, table)
    assert full.keys() == half.keys()
    for name in ("ce_loss_without_sae", "ce_loss_with_sae", "explained_variance", "l2_ratio", "l0", "future_leak"):
        assert half[name] == pytest.approx(full[name], rel=0.01, abs=0.01), name


def test_a_float32_model_reads_itself(lm: HookedLM, table: TokenTable) -> None:
    """Which is what `evaluate_fidelity` uses there: the readout gives the same, bit for bit."""
    readout = Float32Readout(lm.model)
    options = {"return_type": "both", "loss_per_token": True}
    for got, expected in zip(readout(table.tokens, **options), lm.model(table.tokens, **options), strict=True):
        assert torch.equal(got, expected)
    name = lm.splice.hook_name
    _, cache = readout.run_with_cache(table.tokens, names_filter=[name], prepend_bos=False)
    assert torch.equal(cache[name], lm.activations(table.tokens))


def test_a_large_vocabulary_takes_smaller_batches(lm: HookedLM, table: TokenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of the batches asked for: `run_evals` holds about ten copies of the logits of a batch."""
    expected, sizes, original = evaluated(lm, table), set(), lm.model.forward

    def forward(tokens: torch.Tensor, *arguments: object, **options: object) -> object:
        sizes.add(len(tokens))
        return original(tokens, *arguments, **options)

    monkeypatch.setattr(fidelity, "_MAX_BYTES", 4 * table.tokens.shape[1] * lm.model.cfg.d_vocab)
    monkeypatch.setattr(lm.model, "forward", forward)
    found = evaluated(lm, table)
    assert sizes == {1}
    for name in ("ce_loss_without_sae", "ce_loss_with_sae", "kl_div_with_sae", "explained_variance", "l0", "n_tokens"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
