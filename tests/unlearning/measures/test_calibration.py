"""Test that the calibrated loss ignores a shift of logits, but not other changes of predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.unlearning.measures.calibration import calibrated_loss, fit_output_bias, with_bias
from mtsae_lens.unlearning.measures.effects import Logits

N_VOCAB = 40


def bigram(seed: int = 0) -> Tensor:
    return 2 * torch.randn(N_VOCAB, N_VOCAB, generator=torch.Generator().manual_seed(seed))


def model_of(table: Tensor) -> Logits:
    """Make a language model of 40 words whose logits depend only on the last token."""
    return lambda tokens: table[tokens]


def text(n: int, seed: int, table: Tensor | None = None) -> TokenTable:
    """Text of a bigram model that uses words as the clean one does, but for their frequencies."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.randn(N_VOCAB, generator=torch.Generator().manual_seed(99))
    probabilities = ((bigram() if table is None else table) + frequencies).softmax(dim=-1)
    probabilities[:, 0] = 0  # the special token
    tokens = torch.zeros(n, 25, dtype=torch.long)
    for position in range(1, 25):
        tokens[:, position] = torch.multinomial(probabilities[tokens[:, position - 1]], 1, generator=generator)[:, 0]
    return TokenTable("words", tokens, tuple(f"d{row // 4}" for row in range(n)))


CLEAN = model_of(bigram())
SHIFT = 3 * torch.randn(N_VOCAB, generator=torch.Generator().manual_seed(1))
MODELS = {
    "clean": CLEAN,
    "shifted": with_bias(CLEAN, SHIFT),
    "other": model_of(bigram(5)),
    "hotter": model_of(3 * bigram()),
    "knows nothing": model_of(torch.zeros(N_VOCAB, N_VOCAB)),
}


def raw_nll(model: Logits, table: TokenTable) -> float:
    return -model(table.tokens).log_softmax(dim=-1)[:, :-1].gather(-1, table.tokens[:, 1:, None]).mean().item()


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_on_the_fitting_text_a_bias_only_helps(name: str, anchored: bool, cutter: ContextCutter) -> None:
    table = text(40, seed=2)
    clean = fit_output_bias(CLEAN, cutter, table) if anchored else None
    fitted = fit_output_bias(MODELS[name], cutter, table, clean=clean)
    assert fitted.n_tokens == 40 * 24
    assert fitted.nll_before == pytest.approx(raw_nll(MODELS[name], table), abs=1e-5)
    assert fitted.nll_after == pytest.approx(raw_nll(with_bias(MODELS[name], fitted.bias), table), abs=1e-5)
    assert fitted.nll_after < fitted.nll_before - 0.05
    assert raw_nll(with_bias(MODELS[name], -fitted.bias), table) > fitted.nll_before  # a bias the wrong way does not


def test_the_bias_is_the_optimum_that_autograd_finds(cutter: ContextCutter) -> None:
    table, std = text(20, seed=2), 0.7
    bias = torch.zeros(N_VOCAB, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_probs = (CLEAN(table.tokens).double() + bias).log_softmax(dim=-1)[:, :-1]
        nll = -log_probs.gather(-1, table.tokens[:, 1:, None]).sum()
        loss = nll + bias.square().sum() / (2 * std**2)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    fitted = fit_output_bias(CLEAN, cutter, table, prior_std=std)
    torch.testing.assert_close(fitted.bias, bias.detach(), atol=5e-3, rtol=1e-2)
    assert fitted.bias.abs().max() > 0.3
    assert torch.equal(fitted.bias, fit_output_bias(CLEAN, cutter, table, prior_std=std).bias)  # nothing is random
    assert fit_output_bias(CLEAN, cutter, table, prior_std=0.01).bias.abs().max() < 0.02


@pytest.mark.parametrize("n_fitting", [2, 40])
def test_a_shift_of_logits_is_no_forgetting(n_fitting: int, cutter: ContextCutter) -> None:
    """However large, and however little text there is to learn it from."""
    fitting, table = text(n_fitting, seed=2), text(40, seed=3)
    shifted = MODELS["shifted"]
    assert raw_nll(shifted, table) - raw_nll(CLEAN, table) > 1
    effect = calibrated_loss(shifted, CLEAN, cutter, fitting, table)
    assert effect.nll_delta == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(effect.nll_edited, effect.nll_clean, atol=0.05, rtol=1e-3)
    not_anchored = fit_output_bias(shifted, cutter, fitting)  # a prior that is not anchored does not take it all back
    assert (
        raw_nll(with_bias(shifted, not_anchored.bias), table) > raw_nll(with_bias(CLEAN, effect.clean_bias.bias), table) + 0.02
    )


def test_a_change_of_what_is_predicted_where_stays(cutter: ContextCutter) -> None:
    fitting, table = text(40, seed=2), text(40, seed=3)
    nothing = calibrated_loss(MODELS["knows nothing"], CLEAN, cutter, fitting, table)
    assert nothing.nll_delta > 0.5
    both = calibrated_loss(with_bias(MODELS["other"], SHIFT), CLEAN, cutter, fitting, table)
    alone = calibrated_loss(MODELS["other"], CLEAN, cutter, fitting, table)
    assert both.nll_delta == pytest.approx(alone.nll_delta, abs=1e-3)
    assert alone.nll_delta > 1


def test_losses_are_sums_by_context_of_the_other_text(cutter: ContextCutter) -> None:
    fitting, table = text(30, seed=2), text(10, seed=3)
    effect = calibrated_loss(MODELS["other"], CLEAN, cutter, fitting, table, batch_size=3)
    assert (effect.corpus, effect.documents) == (table.corpus, table.documents)
    assert effect.n_tokens.tolist() == [24.0] * 10
    model = with_bias(MODELS["other"], effect.edited_bias.bias)
    for row in range(10):
        one = TokenTable("one", table.tokens[row : row + 1], ("d",))
        assert effect.nll_edited[row].item() == pytest.approx(24 * raw_nll(model, one), abs=1e-3)
    overfit = calibrated_loss(CLEAN, CLEAN, cutter, table, table)
    assert overfit.nll_clean.sum() < effect.nll_clean.sum()  # fitted on itself it would be lower


def test_only_counted_tokens_are_fitted_and_read(cutter: ContextCutter) -> None:
    table = text(12, seed=2)
    tokens = table.tokens.clone()
    tokens[:, 15:] = 0  # padding
    padded = TokenTable("padded", tokens, table.documents)
    short = TokenTable("short", tokens[:, :15], table.documents)
    one, other = (calibrated_loss(MODELS["other"], CLEAN, cutter, t, t) for t in (padded, short))
    torch.testing.assert_close(one.nll_edited, other.nll_edited)
    assert one.edited_bias.n_tokens == 12 * 14
    answers = torch.zeros_like(table.tokens, dtype=torch.bool)
    answers[:, 5] = True
    assert fit_output_bias(CLEAN, cutter, replace(table, answers=answers)).n_tokens == 12


def test_no_more_tokens_than_allowed(cutter: ContextCutter) -> None:
    table = text(40, seed=2)
    seen: list[Any] = []

    def counting(tokens: Tensor) -> Tensor:
        seen.append(len(tokens))
        return CLEAN(tokens)

    few = fit_output_bias(counting, cutter, table, max_tokens=100, batch_size=4)
    assert few.n_tokens == 100
    assert sum(seen) == 8  # contexts of 24 tokens, in fours
    assert few.nll_before == fit_output_bias(CLEAN, cutter, table, max_tokens=100, batch_size=40).nll_before


def test_a_text_without_counted_tokens_is_refused(cutter: ContextCutter) -> None:
    empty = TokenTable("empty", torch.zeros(2, 5, dtype=torch.long), ("a", "b"))
    with pytest.raises(DataError, match="empty: expected tokens whose prediction is counted, got none; give text to fit"):
        calibrated_loss(CLEAN, CLEAN, cutter, empty, text(2, seed=0))
    with pytest.raises(DataError, match="empty: expected tokens whose prediction is counted"):
        calibrated_loss(CLEAN, CLEAN, cutter, text(2, seed=0), empty)
