"""Test the separation losses: known values, laws with their broken variants, and names."""

from __future__ import annotations

from collections.abc import Callable

import laws
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.separation import SEPARATIONS, Scales, cosine_separation, register_separation, separation_loss


def scales(*vectors: list[float], pos: int = 2) -> Tensor:
    return torch.tensor([[vectors] * pos], dtype=torch.float64)


def everywhere(z: Tensor) -> Tensor:
    return torch.ones(z.shape[:2], dtype=torch.bool)


def cosine(z: Tensor, keep: Tensor) -> Tensor:
    return separation_loss("cosine", z, torch.zeros(z.shape[2], 1, z.shape[3], dtype=z.dtype), keep)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        (([1.0, 0.0], [3.0, 0.0]), 1.0),
        (([1.0, 0.0], [0.0, 2.0]), 0.0),
        (([1.0, 0.0], [-1.0, 0.0]), 0.0),
        (([1.0, 0.0], [1.0, 1.0]), 0.5**0.5),
        (([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]), 1 / 3),
        (([1.0, 0.0], [-2.0, 0.0], [5.0, 0.0]), 1 / 3),
        (([1.0, 0.0],), 0.0),
        (([0.0, 0.0], [1.0, 0.0]), 0.0),
    ],
    ids=["one", "orthogonal", "opposed", "half", "two-of-three", "opposition-does-not-pay", "single", "silent"],
)
def test_known_values(vectors: tuple[list[float], ...], expected: float) -> None:
    z = scales(*vectors)
    assert_close(cosine(z, everywhere(z)), torch.tensor(expected, dtype=torch.float64))


def test_masked_positions_do_not_count() -> None:
    z = torch.cat([scales([1.0, 0.0], [1.0, 0.0], pos=3), scales([1.0, 0.0], [0.0, 1.0], pos=1)], dim=1)
    keep = torch.tensor([[True, False, False, True]])
    assert_close(cosine(z, everywhere(z)).item(), 0.75)
    assert_close(cosine(z, keep).item(), 0.5)
    z[:, 1:3] = torch.nan
    assert_close(cosine(z, keep).item(), 0.5)
    assert cosine(z, torch.zeros_like(keep)).item() == 0


@pytest.mark.parametrize("name", SEPARATIONS)
def test_masked_positions_count_in_no_loss(name: str) -> None:
    torch.manual_seed(0)
    z, filters = torch.randn(2, 6, 3, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    keep = torch.rand(2, 6) < 0.6
    expected = SEPARATIONS[name](Scales(z[keep], filters))
    z[~keep] = torch.nan
    assert_close(separation_loss(name, z, filters, keep), expected)
    assert separation_loss(name, z, filters, torch.zeros_like(keep)).item() == 0


def test_gradient_parts_the_scales() -> None:
    z = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    before = cosine(z, everywhere(z))
    before.backward()
    assert z.grad is not None
    assert cosine(z - z.grad, everywhere(z)) < before


# known values of the others -------------------------------------------------------------------------------------------


def rows_of(*columns: list[float]) -> Tensor:
    """One dimension, a column of values over positions for each scale."""
    return torch.tensor(columns, dtype=torch.float64).T.unsqueeze(-1)


NO_FILTERS = torch.zeros(2, 1, 1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]), 1.0),
        (([1.0, 2.0, 3.0], [5.0, 3.0, 1.0]), 1.0),
        (([1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]), 0.0),
        (([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]), 1 / 3),
    ],
    ids=["one", "opposed", "uncorrelated", "some"],
)
@pytest.mark.parametrize("name", ["decorrelation", "cka"])
def test_squared_correlation_in_one_dimension(name: str, columns: tuple[list[float], ...], expected: float) -> None:
    assert SEPARATIONS[name](Scales(rows_of(*columns), NO_FILTERS)).item() == pytest.approx(expected, abs=1e-6)


def test_only_cka_sees_one_scale_in_another_dimension_of_another() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.zeros(50, 2, 2, dtype=torch.float64)
    z[:, 0, 0] = z[:, 1, 1] = values
    found = {name: SEPARATIONS[name](Scales(z, torch.zeros(2, 1, 2))).item() for name in ("cosine", "decorrelation", "cka")}
    assert found == pytest.approx({"cosine": 0.0, "decorrelation": 0.0, "cka": 1.0})


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (([1.0, 0.0], [2.0, 0.0]), 1.0),
        (([1.0, 0.0], [-1.0, 0.0]), 1.0),
        (([1.0, 0.0], [0.0, 1.0]), 0.0),
        (([1.0, 0.0], [1.0, 1.0]), 0.5),
        (([0.0, 0.0], [1.0, 1.0]), 0.0),
    ],
)
def test_squared_cosine_of_filters(filters: tuple[list[float], ...], expected: float) -> None:
    laid_out = torch.tensor(filters, dtype=torch.float64).unsqueeze(-1)
    assert SEPARATIONS["taps"](Scales(torch.ones(3, 2, 1, dtype=torch.float64), laid_out)).item() == pytest.approx(expected)


# laws -----------------------------------------------------------------------------------------------------------------


def with_itself(scales: Scales) -> Tensor:
    """Counts the pair of a scale with itself."""
    directions = torch.nn.functional.normalize(scales.z, dim=-1)
    return torch.einsum("rid,rjd->rij", directions, directions).clamp(min=0).mean()


def unnormalised(scales: Scales) -> Tensor:
    pairs = torch.einsum("rid,rjd->rij", scales.z, scales.z)
    return pairs[:, ~torch.eye(pairs.shape[-1], dtype=torch.bool)].clamp(min=0).mean()


def not_centred(scales: Scales) -> Tensor:
    return SEPARATIONS["cka"](Scales(torch.cat([scales.z, -scales.z]), scales.filters))


def covariance(scales: Scales) -> Tensor:
    centred = scales.z - scales.z.mean(dim=0)
    pairs = torch.einsum("rid,rjd->dij", centred, centred) / len(centred)
    return pairs[:, ~torch.eye(pairs.shape[-1], dtype=torch.bool)].pow(2).mean()


def filters_as_they_are(scales: Scales) -> Tensor:
    pairs = torch.einsum("ird,jrd->dij", scales.filters, scales.filters)
    return pairs[:, ~torch.eye(pairs.shape[-1], dtype=torch.bool)].pow(2).mean()


def constant(scales: Scales) -> Tensor:
    return 0 * scales.z.sum() + 0.5


@pytest.mark.parametrize("name", SEPARATIONS)
def test_zero_to_one(name: str) -> None:
    laws.check_separation_is_zero_to_one(SEPARATIONS[name])


@pytest.mark.parametrize("broken", [with_itself, unnormalised, covariance, filters_as_they_are, constant])
def test_zero_to_one_catches(broken: Callable[[Scales], Tensor]) -> None:
    with pytest.raises(AssertionError):
        laws.check_separation_is_zero_to_one(broken)


@pytest.mark.parametrize("name", SEPARATIONS)
def test_a_gradient_step_parts_the_scales(name: str) -> None:
    laws.check_separation_falls_along_its_gradient(SEPARATIONS[name])


def test_a_gradient_step_parts_the_scales_catches() -> None:
    for broken in (constant, lambda scales: cosine_separation(Scales(scales.z.detach() + 0 * scales.z, scales.filters))):
        with pytest.raises(AssertionError):
            laws.check_separation_falls_along_its_gradient(broken)


@pytest.mark.parametrize("name", SEPARATIONS)
def test_invariances(name: str) -> None:
    laws.check_separation_invariances(SEPARATIONS[name], name)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("cosine", unnormalised),
        ("cosine", SEPARATIONS["decorrelation"]),
        ("decorrelation", covariance),
        ("decorrelation", cosine_separation),
        ("cka", SEPARATIONS["decorrelation"]),
        ("cka", not_centred),
        ("taps", filters_as_they_are),
        ("taps", cosine_separation),
    ],
)
def test_invariances_catch(name: str, broken: Callable[[Scales], Tensor]) -> None:
    with pytest.raises(AssertionError):
        laws.check_separation_invariances(broken, name)


@pytest.mark.parametrize("name", SEPARATIONS)
def test_a_single_scale_is_apart_from_itself(name: str) -> None:
    z, filters = torch.randn(2, 5, 1, 4), torch.randn(1, 3, 4)
    assert separation_loss(name, z, filters, everywhere(z)).item() == 0


# names ----------------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEPARATIONS, "cosine", SEPARATIONS["cosine"])
    with pytest.raises(ConfigError, match=r"got 'cosine', which mtsae_lens\.sae\.separation\.cosine_separation has"):
        register_separation("cosine")(constant)
    assert SEPARATIONS["cosine"] is cosine_separation


def test_a_loss_may_be_registered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a module is loaded once more."""
    monkeypatch.delitem(SEPARATIONS, "one of my own", raising=False)
    assert register_separation("one of my own")(constant) is constant
    assert register_separation("one of my own")(constant) is constant
    assert SEPARATIONS.pop("one of my own") is constant
