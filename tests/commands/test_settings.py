"""Settings written in Python are checked as those of the command line are."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mtsae_lens.commands.train import TrainSettings
from mtsae_lens.errors import ConfigError


def test_a_misspelt_setting_is_told_with_the_nearest_one() -> None:
    with pytest.raises(ValidationError, match=r"unknown setting 'd_seae'\. Did you mean 'd_sae'"):
        TrainSettings(out="runs/x", d_seae=4)  # type: ignore[call-arg,arg-type]
    with pytest.raises(ConfigError, match=r"unknown setting 'd_seae'\. Did you mean 'd_sae'"):
        TrainSettings.build(None, {"out": "runs/x", "d_seae": 4})
