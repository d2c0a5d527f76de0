from mtsae_lens.experiments.paper.verdicts import difference, show, spread, verdict


def test_a_spread_has_mean_deviation_and_range() -> None:
    assert str(spread([1.0, 2.0, None, 3.0])) == "2 ± 1 (1 to 3)"
    assert str(spread([0.5, 0.5])) == "0.5"
    assert spread([None]) is None


def test_numbers_are_short() -> None:
    assert [show(value) for value in (0.0, 0.12345, 12345.6, 0.0000123)] == ["0", "0.123", "12,346", "1.2e-05"]


def test_seeds_that_agree_and_seeds_that_do_not() -> None:
    assert difference([2.0, 3.0], [1.0, 1.0]) == "+1.5 (+1 to +2; higher in 2 of 2 seeds)"
    assert difference([0.5, 0.5], [1.0, 1.0]) == "-0.5 (-0.5 to -0.5; lower in 2 of 2 seeds)"
    assert "no clear sign: higher in 1, lower in 1" in difference([0.0, 2.0], [1.0, 1.0])
    assert "the same in 2 of 2 seeds" in difference([1.0, 1.0], [1.0, 1.0])
    assert difference([None], [1.0]) == "not defined"


def test_a_verdict_names_the_base_and_every_other_arm() -> None:
    sentence = verdict("explained variance", "the base", [0.5, 0.5], {"more": [0.6, 0.7], "less": [0.1, 0.2]})
    assert sentence.startswith("Explained variance, the base: 0.5.")
    assert "more +0.15" in sentence
    assert "less -0.35" in sentence
