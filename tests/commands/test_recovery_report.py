"""Test the tables of recovery attacks with made-up numbers that are all different, and the settings of the attack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filled import filled

from mtsae_lens.commands.recovery_report import recovery_section, recovery_summary, recovery_table
from mtsae_lens.commands.unlearn_settings import UnlearnSettings
from mtsae_lens.errors import ConfigError
from mtsae_lens.unlearning.recovery.results import Recovery


def share(mean: float) -> dict[str, Any]:
    return {"nll": 4.0, "share": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}}


@pytest.fixture
def recovery() -> Recovery:
    near = {
        "n_directions": 114,
        "attacked": share(0.51),
        "gate_held": share(0.52),
        "random": share(0.03),
        "beyond_control": share(0.54)["share"],
        "drift": 0.081,
        "gate_open": [0.92, 0.9],
        "others": {"milton": 0.21, "sotu": 0.31},
        "parts": {"error": share(0.11), "untouched features": share(0.22), "edited features": share(0.05)},
    }
    every = {"n_directions": 128, "attacked": share(0.81)}
    content = {
        "epsilon": 0.5,
        "d_in": 128,
        "nll_clean": 3.0,
        "nll_edited": 4.25,
        "gains": {"unedited": -0.03, "reference": 0.12},
        "by_subspace": {"blind": {"n_directions": 0}, "nearly blind": near, "any direction": every},
        "by_context": {"nll_clean": 3.0, "nll_edited": 4.5, "attacked": share(0.33), "gains": {}},
    }
    return filled(Recovery, content)


def test_every_subspace_has_its_row(recovery: Recovery) -> None:
    table = recovery_table({"MTSAE": recovery})
    blind, near, every, context = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert (blind["directions"], blind["attacked"]) == ("blind (0)", "no such direction")
    assert near == {
        "method": "MTSAE",
        "nats forgotten": "+1.250",
        "directions": "nearly blind (114)",
        "attacked": "51% [50%, 52%]",
        "gate held": "52% [51%, 53%]",
        "random": "3% [2%, 4%]",
        "beyond the unedited model": "54% [53%, 55%]",
        "error part": "11% [10%, 12%]",
        "untouched features": "22% [21%, 23%]",
        "edited features": "5% [4%, 6%]",
        "drift": "8.1%",
        "gate open": "92% -> 90%",
        "worst other text": "+0.310",
    }
    assert (every["attacked"], every["gate held"], every["gate open"]) == ("81% [80%, 82%]", None, None)
    assert (context["nats forgotten"], context["attacked"]) == ("+1.500", "33% [32%, 34%]")


def test_an_edit_without_features_has_no_parts_of_features(recovery: Recovery) -> None:
    result = recovery.by_subspace["nearly blind"]
    projection = replace(
        result, parts={"error": result.parts["error"], "all features": result.parts["edited features"]}, drift=None
    )
    table = recovery_table({"difference of means": replace(recovery, by_subspace={"nearly blind": projection})})
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert (cells["error part"], cells["untouched features"], cells["edited features"]) == ("11% [10%, 12%]", None, None)
    text = recovery_section("Attack", {"difference of means": recovery}).text
    assert "a projection, such as one of a difference of means, reads the directions that it removes" in text


def test_results_of_earlier_versions_are_read(recovery: Recovery) -> None:
    """They have all parts for any edit."""
    content = recovery.to_json()
    assert set(content["by_subspace"]["nearly blind"]["parts"]) == {"error", "untouched features", "edited features"}
    assert Recovery.from_json(content) == recovery


def test_the_summary_is_the_worst_subspace(recovery: Recovery) -> None:
    assert "brings back 81% of the forgetting (95% interval 80% to 82%)" in recovery_summary(recovery)
    section = recovery_section("Attack", {"MTSAE": recovery})
    assert "-0.030 (unedited), +0.120 (reference)" in section.text
    nothing = filled(Recovery, {"by_subspace": {"any direction": {"n_directions": 8, "attacked": {"nll": 1.0}}}})
    assert "too little was forgotten" in recovery_summary(nothing)


def test_settings_reach_the_protocol() -> None:
    given = {"sae": Path("runs/sae"), "forget": "kjv", "retain": ("sotu",), "seed": 4}
    settings = UnlearnSettings(**given, recovery=True, epsilon=0.25, error_ranks=(0, 16)).protocol()  # type: ignore[arg-type]
    assert settings.recovery is not None
    assert (settings.recovery.epsilon, settings.recovery.seed) == (0.25, 4)
    assert settings.grid.error_ranks == (0, 16)
    assert UnlearnSettings(**given).protocol().recovery is None  # type: ignore[arg-type]
    with pytest.raises((ConfigError, ValueError), match="error_ranks"):
        UnlearnSettings(**given, error_ranks=(-1,))  # type: ignore[arg-type]
