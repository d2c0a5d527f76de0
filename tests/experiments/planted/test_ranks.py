"""Several ranks share the trials of `mtsae planted`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from several_ranks import on_ranks

from mtsae_lens.experiments.planted.run import run_planted
from mtsae_lens.experiments.planted.settings import PlantedCommandSettings


def test_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    planted = {"d_in": 16, "context_size": 72, "n_features_per_duration": 2, "n_patterns_per_lags": 1, "n_cues": 4}
    sizes: dict[str, Any] = {"n_seeds": 1, "n_direction_seeds": 0, "n_steps": 2, "d_sae": 24, "n_test_sequences": 16}

    def settings(name: str) -> PlantedCommandSettings:
        return PlantedCommandSettings(planted=planted, n_workers=1, out=tmp_path / name, **sizes)

    run_planted(settings("alone"))
    assert on_ranks(2, tmp_path / "ranks", lambda: run_planted(settings("together"))) == [(0, "")] * 2
    alone, together = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("alone", "together"))
    assert together["planted"] == alone["planted"]
    assert (tmp_path / "together" / "report.html").exists()
