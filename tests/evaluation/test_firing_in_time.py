"""Test when features fire, on features with known answers and against a loop over positions and contexts."""

from __future__ import annotations

import math

import pytest
import torch

from mtsae_lens.errors import DataError
from mtsae_lens.evaluation.firing_in_time import FiringInTime, FiringSummary, PairCounts, measure_firing

N, POS = 400, 64


def measure(active: torch.Tensor, counted: torch.Tensor | None = None) -> FiringInTime:
    """Measure in two batches of different sizes."""
    counted = torch.ones(active.shape[:2], dtype=torch.bool) if counted is None else counted
    counts = PairCounts(active.shape[1], active.shape[2])
    third = len(active) // 3
    for part in (slice(None, third), slice(third, None)):
        counts.add(active[part], counted[part])
    return counts.measure()


def chain(stay: float, start: float) -> torch.Tensor:
    """Make contexts of a Markov chain that stays on with probability `stay` and begins with probability `start`, in its steady state."""
    generator = torch.Generator().manual_seed(1)
    on, found = torch.rand(N, generator=generator) < start / (1 - stay + start), []
    for _ in range(POS):
        found.append(on)
        on = torch.rand(N, generator=generator) < torch.where(on, stay, start)
    return torch.stack(found, dim=1).unsqueeze(-1)


def test_independent_firings_persist_at_their_rate() -> None:
    rates = torch.tensor([0.5, 0.1])
    active = torch.rand(N, POS, 2, generator=torch.Generator().manual_seed(0)) < rates
    measured = measure(active)
    for values in (measured.persistence, measured.persistence_control):
        torch.testing.assert_close(values.float(), rates, atol=0.02, rtol=0)
    torch.testing.assert_close(measured.mean_run_length.float(), 1 / (1 - rates), atol=0.04, rtol=0)
    assert measured.autocorrelation.abs().max() < 0.03
    assert measured.autocorrelation_control.abs().max() < 0.03
    torch.testing.assert_close(measured.rate.float(), rates.expand(8, 2), atol=0.05, rtol=0)


def test_a_markov_chain_persists_with_its_own_probability_and_the_control_with_its_rate() -> None:
    stay, start = 0.8, 0.05
    rate = start / (1 - stay + start)
    measured = measure(chain(stay, start))
    assert measured.persistence.item() == pytest.approx(stay, abs=0.01)
    assert measured.persistence_control.item() == pytest.approx(rate, abs=0.01)
    assert measured.mean_run_length_control.item() == pytest.approx(1 / (1 - rate), abs=0.02)
    assert 4 < measured.mean_run_length.item() < 1 / (1 - stay)  # the ends of contexts cut runs
    expected = [(stay - start) ** lag for lag in measured.lags]
    assert measured.autocorrelation[:, 0].tolist() == pytest.approx(expected, abs=0.03)
    assert measured.autocorrelation_control[:, 0].tolist() == pytest.approx([0] * 5, abs=0.01)


def test_a_feature_of_fixed_positions_has_nothing_beyond_the_control() -> None:
    active = torch.zeros(9, POS, 1, dtype=torch.bool)
    active[:, [3, 4, 5, 20, 40, 41]] = True
    measured = measure(active)
    assert measured.persistence.item() == pytest.approx(0.5)
    assert measured.persistence_control.item() == pytest.approx(0.5)
    assert measured.mean_run_length.item() == measured.mean_run_length_control.item() == pytest.approx(2)
    torch.testing.assert_close(measured.autocorrelation, measured.autocorrelation_control)
    assert measured.autocorrelation[0].item() > 0.4  # a shuffle within contexts would have called it structure
    assert measured.first_positions == (0, 8, 16, 24, 32, 40, 48, 56)
    assert measured.rate[:, 0].tolist() == pytest.approx([3 / 8, 0, 1 / 8, 0, 0, 2 / 8, 0, 0])
    assert measured.relative_rate[0, 0].item() == pytest.approx(3 / 8 / (6 / 64))


def test_against_a_loop_with_walls() -> None:
    generator = torch.Generator().manual_seed(3)
    n, n_positions, n_features = 5, 20, 3
    active = torch.rand(n, n_positions, n_features, generator=generator) < 0.4
    counted = torch.rand(n, n_positions, generator=generator) < 0.8
    counted[:, 0] = False
    measured = measure(active, counted)
    a = (active & counted.unsqueeze(-1)).double()
    for feature in range(n_features):
        runs = sum(
            int(a[c, t, feature]) and not (t + 1 < n_positions and a[c, t + 1, feature])
            for c in range(n)
            for t in range(n_positions)
        )
        assert measured.mean_run_length[feature].item() == pytest.approx(a[..., feature].sum().item() / runs)
        for number, lag in enumerate(measured.lags):
            first, second, elsewhere, products, control = [], [], [], [], []
            for c in range(n):
                for t in range(n_positions - lag):
                    if not counted[c, t : t + lag + 1].all():
                        continue
                    now, later = a[c, t, feature].item(), a[c, t + lag, feature].item()
                    others = [a[o, t + lag, feature].item() for o in range(n) if o != c and counted[o, t + lag]]
                    other = sum(others) / max(len(others), 1)
                    first.append(now)
                    second.append(later)
                    elsewhere.append(other)
                    products.append(now * later)
                    control.append(now * other)
            if not first:
                assert measured.autocorrelation[number, feature].isnan()
                continue

            def correlation(both: list[float], one: list[float], two: list[float]) -> float:
                p, q = sum(one) / len(one), sum(two) / len(two)
                spread = p * (1 - p) * q * (1 - q)
                return (sum(both) / len(both) - p * q) / math.sqrt(spread) if spread > 0 else math.nan

            found = (measured.autocorrelation[number, feature].item(), measured.autocorrelation_control[number, feature].item())
            expected = (correlation(products, first, second), correlation(control, first, elsewhere))
            assert found == pytest.approx(expected, nan_ok=True)
            if lag == 1:
                assert measured.persistence[feature].item() == pytest.approx(sum(products) / sum(first))
                assert measured.persistence_control[feature].item() == pytest.approx(sum(control) / sum(first))


def test_the_summary_weights_by_firings_and_is_read_back() -> None:
    always = torch.ones(20, POS, 1, dtype=torch.bool)
    alternating = (torch.arange(POS) % 2 == 0).expand(20, POS).unsqueeze(-1)
    silent = torch.zeros_like(always)
    summary = measure(torch.cat([always, alternating, silent], dim=-1)).summary()
    pairs = POS - 1
    assert summary.persistence == pytest.approx(POS / (POS + POS / 2))
    assert (summary.n_features, summary.n_frequent) == (3, 2)
    assert summary.persistence_quantiles["50%"] == pytest.approx(0.5)
    assert summary.mean_run_length == pytest.approx((POS + POS / 2) / (1 + POS / 2))
    assert summary.autocorrelation[0] == pytest.approx(-1, abs=1 / pairs)
    assert FiringSummary.from_json(summary.to_json()) == summary
    assert len(summary.relative_rate_quantiles["50%"]) == len(summary.first_positions) == 8


def test_features_of_an_sae_are_measured_without_masked_positions(lm: object) -> None:
    sae = lm.sae  # type: ignore[attr-defined]
    h = torch.randn(6, 32, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    counted = torch.ones(6, 32, dtype=torch.bool)
    counted[:, 0] = counted[2, 9] = False
    features = torch.tensor([3, 0, 17])
    measured = measure_firing(sae, zip(h.split(4), counted.split(4), strict=True), features)
    acts = sae.encode(h.masked_fill(~counted.unsqueeze(-1), 0.0))[..., features]
    assert measured.n_active.tolist() == ((acts != 0) & counted.unsqueeze(-1)).sum(dim=(0, 1)).tolist()
    with pytest.raises(DataError, match="expected at least 2 contexts"):
        measure_firing(sae, [(h[:1], counted[:1])], features)
    with pytest.raises(DataError, match="expected lags with 1 among them"):
        PairCounts(8, 2, (2, 4))
