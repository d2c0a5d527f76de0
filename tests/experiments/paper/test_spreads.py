from mtsae_lens.experiments.paper.spreads import compute_spread, show_difference, show_number


def test_a_spread_has_mean_deviation_and_range() -> None:
    assert str(compute_spread([1.0, 2.0, None, 3.0])) == "2 ± 1 (1 to 3)"
    assert str(compute_spread([0.5, 0.5])) == "0.5"
    assert compute_spread([None]) is None


def test_numbers_are_short() -> None:
    assert [show_number(value) for value in (0.0, 0.12345, 12345.6, 0.0000123)] == ["0", "0.123", "12,346", "1.2e-05"]


def test_seeds_that_agree_and_seeds_that_do_not() -> None:
    assert show_difference([2.0, 3.0], [1.0, 1.0]) == "+1.5 (+1 to +2; higher in 2 of 2 seeds)"
    assert show_difference([0.5, 0.5], [1.0, 1.0]) == "-0.5 (-0.5 to -0.5; lower in 2 of 2 seeds)"
    assert "no clear sign: higher in 1, lower in 1" in show_difference([0.0, 2.0], [1.0, 1.0])
    assert "the same in 2 of 2 seeds" in show_difference([1.0, 1.0], [1.0, 1.0])
    assert show_difference([None], [1.0]) == "not defined"
