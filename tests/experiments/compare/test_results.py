"""Which architecture is ahead, over seeds."""

from dataclasses import replace
from typing import Any

from mtsae_lens.experiments.compare.report import cells_table, search_table
from mtsae_lens.experiments.compare.results import Cell, Coded, Measured, Searched, judge
from mtsae_lens.experiments.compare.search import Trained
from mtsae_lens.experiments.compare.summary import summarize, warn_of_noise, warn_of_rates_at_an_end
from mtsae_lens.records import Interval


def cell(name: str, role: str, number: int, ev: float, ce: float, l0: float = 8.0, **changes: Any) -> Cell:
    metrics = {
        "explained_variance_without_massive": ev,
        "ce_loss_score": ce,
        "l0": l0,
        "dead_features": 1.0,
        "kl_div_with_sae": 0.1,
    }
    measured = Measured(architecture=name, hook_name="a.hook", d_sae=16, n_parameters=100, flops_per_token=600, metrics=metrics)
    trained = Trained(lr=1e-3, coefficient=None, l0=l0, explained_variance=ev, seconds=2.0)
    return Cell(
        **{
            "name": name,
            "role": role,
            "hook_name": "a.hook",
            "target_l0": 8,
            "seed": number,
            "trained": trained,
            "n_training_tokens": 1000,
            "measured": measured,
            "coded": Coded(bits_per_token=50.0, support_bits=30.0, value_bits=20.0, explained_variance_coded=ev - 0.01),
        }
        | changes
    )


def grid(*rows: tuple[str, str, list[tuple[float, float]], float]) -> list[Cell]:
    return [cell(name, role, seed, *values, l0=l0) for name, role, by_seed, l0 in rows for seed, values in enumerate(by_seed)]


def test_ahead_is_every_seed_above_every_seed() -> None:
    cells = grid(
        ("mtsae_memory", "ours", [(0.80, 0.90), (0.82, 0.91)], 8.0),
        ("mtsae", "ours", [(0.74, 0.80), (0.76, 0.81)], 8.0),
        ("topk", "saelens", [(0.74, 0.92), (0.75, 0.93)], 8.0),
        ("jumprelu", "saelens", [(0.60, 0.50), (0.70, 0.99)], 8.0),
        ("batchtopk", "saelens", [(0.99, 0.99), (0.99, 0.99)], 9.0),  # more features than asked for
        ("topk_wider", "control", [(0.99, 0.99)], 8.0),
    )
    found = {(v.name, v.metric): v for v in judge(cells, 0.05)}
    memory = found["mtsae_memory", "explained_variance_without_massive"]
    assert (memory.best, memory.outcome) == ("topk", "ahead")
    assert memory.difference is not None
    assert [round(x, 3) for x in (memory.difference.mean, memory.difference.low, memory.difference.high)] == [0.065, 0.06, 0.07]
    assert found["mtsae_memory", "ce_loss_score"].outcome == "behind"
    assert found["mtsae", "explained_variance_without_massive"].outcome == "within the spread"
    loose = {(v.name, v.metric): v for v in judge(cells, 0.2)}
    assert loose["mtsae_memory", "explained_variance_without_massive"].best == "batchtopk"
    first, second = summarize(list(found.values()), cells, 2)
    assert first == (
        "mtsae_memory (decoder with memory) beside the best SAE of SAELens. a.hook, L0 8: ahead in explained variance, behind in "
        "ce_loss_score, nothing to compare with in kl_div_score; explained variance +6.5 points over topk, for 50.0 bits per token "
        "instead of 50.0."
    )
    assert "a.hook, L0 8: behind in ce_loss_score, within the spread of the seeds in explained variance" in second
    assert summarize(list(found.values()), cells, 1)[2:] == ["There is one seed, so the differences have no spread."]


def test_one_outcome_in_every_metric_is_said_once() -> None:
    cells = [
        replace(one, measured=replace(one.measured, metrics=one.measured.metrics | {"kl_div_score": value}))
        for name, role, value in (("mtsae_memory", "ours", 0.9), ("topk", "saelens", 0.7))
        for one in grid((name, role, [(value, value)], 8.0))
    ]
    (line,) = summarize(judge(cells, 0.05), cells, 2)
    assert "a.hook, L0 8: ahead in every metric; explained variance +20.0 points over topk" in line


def test_an_sae_with_too_many_features_active_is_not_compared() -> None:
    cells = grid(("mtsae_memory", "ours", [(0.9, 0.9)], 10.0), ("topk", "saelens", [(0.7, 0.7)], 8.0))
    assert {v.outcome for v in judge(cells, 0.05)} == {"no comparison"}
    assert judge([cells[0]], 0.5)[0].best is None


def test_a_hook_that_hardly_matters_to_the_loss_is_named() -> None:
    def at(cost: float) -> Cell:
        one = cell("topk", "saelens", 0, 0.7, 0.9)
        one.measured.metrics.update({"ce_loss_without_sae": 3.0, "ce_loss_with_ablation": 3.0 + cost})
        return one

    (sentence,) = warn_of_noise([at(0.06), at(0.06)])
    assert sentence.startswith("At a.hook the loss rises by only 0.060 nats")
    assert "0.05 there is 0.0030 nats" in sentence
    assert warn_of_noise([at(5.0)]) == warn_of_noise([cell("topk", "saelens", 0, 0.7, 0.9)]) == []


def test_the_table_has_the_spread_over_seeds() -> None:
    cells = grid(("topk", "saelens", [(0.74, 0.92), (0.76, 0.94)], 8.0))
    given = cell("my-sae", "given", 0, 0.5, 0.6, l0=3.0, target_l0=None, seed=None, trained=None, n_training_tokens=None)
    table = cells_table([*cells, given])
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["explained variance"] == "0.750 [0.740, 0.760]"
    assert (row["L0"], row["seeds"], row["tokens"], row["seconds"]) == ("8.0", 2, 1000, 2.0)
    assert row["training FLOPs"] == "6.00e+05"
    other = dict(zip(table.header, table.rows[1], strict=True))
    assert (other["wanted L0"], other["training FLOPs"], other["L0"]) == (None, None, "3.0")


def test_a_cell_is_read_back_as_it_was_written() -> None:
    one = cell("topk", "saelens", 0, 0.7, 0.9)
    assert Cell.from_json(one.to_json()) == one
    verdict = judge(grid(("mtsae", "ours", [(0.9, 0.9)], 8.0), ("topk", "saelens", [(0.7, 0.7)], 8.0)), 0.05)[0]
    assert verdict.ours == Interval(0.9, 0.9, 0.9)


def test_the_search_is_shown_and_an_end_of_the_list_is_told() -> None:
    def trained(lr: float, ev: float) -> Trained:
        return Trained(lr=lr, coefficient=None, l0=8.0, explained_variance=ev, seconds=1.0)

    search = Searched(
        hook_name="a.hook",
        name="topk",
        target_l0=8,
        trials=(trained(1e-3, 0.5), trained(2e-3, 0.6), trained(4e-3, 0.7)),
        finals=(trained(2e-3, 0.8), trained(4e-3, 0.75)),
    )
    stages = [row[3] for row in search_table([search]).rows]
    assert stages == ["search"] * 3 + ["final", "chosen"]
    assert warn_of_rates_at_an_end([search], (1e-3, 2e-3, 4e-3)) == []
    assert warn_of_rates_at_an_end([search], (1e-3, 2e-3)) == [
        "For every SAE the highest learning rate that was tried, 0.002, is the best. A higher one may be better still; the search on TUNE "
        "below has them all."
    ]
    other = replace(search, finals=search.finals[1:])
    assert "For 1 of 2 SAEs the lowest" in warn_of_rates_at_an_end([search, other], (2e-3, 4e-3))[0]
    assert warn_of_rates_at_an_end([search], (2e-3,)) == []
