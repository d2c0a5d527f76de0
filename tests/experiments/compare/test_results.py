"""Which architecture is ahead, over seeds."""

from typing import Any

from mtsae_lens.experiments.compare.report import (
    cells_table,
    list_rates_at_an_end,
    search_table,
    summarize,
    summarize_bits,
    warn_of_noise,
)
from mtsae_lens.experiments.compare.results import Cell, Coded, Measured, Searched, judge
from mtsae_lens.experiments.compare.search import Trained
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
    sentences = summarize(list(found.values()), 2)
    assert sentences[1].startswith("mtsae (") or sentences[0].startswith("mtsae_memory (")
    assert "ahead: explained variance at a.hook L0 8 (+6.5 points to topk)" in sentences[0]
    assert (
        "50.0 bits (0.800 [0.790, 0.810]) against 50.0 bits (0.735 [0.730, 0.740]) of topk"
        in summarize_bits(list(found.values()), cells)[0]
    )
    assert "behind: ce_loss_score at a.hook L0 8 (-2.0 points to topk)" in sentences[0]


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
    assert list_rates_at_an_end([search], (1e-3, 2e-3, 4e-3)) == []
    assert "topk at a.hook L0 8 (0.002)" in list_rates_at_an_end([search], (1e-3, 2e-3))[0]
    assert list_rates_at_an_end([search], (2e-3,)) == []
