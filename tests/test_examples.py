"""Every example configuration is one that the command line takes."""

from pathlib import Path

import pytest

from mtsae_lens.commands.train import TrainSettings, runner_config

CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_is_valid(path: Path) -> None:
    settings = TrainSettings.build(path, {"out": Path("runs/x")})
    cfg = runner_config(settings, d_in=512)
    assert cfg.total_training_steps == 4 if path.stem == "paper" else cfg.total_training_steps > 1000
    assert cfg.train_batch_size_tokens % cfg.context_size == 0


def test_there_are_configurations() -> None:
    assert CONFIGS
