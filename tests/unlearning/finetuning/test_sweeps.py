"""Test that every loss is tried on text and on questions, with valid settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.experiments.benchmark.planning import _losses
from mtsae_lens.experiments.benchmark.settings import BenchmarkSettings
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings, finetune
from mtsae_lens.unlearning.finetuning.loss_interface import Step
from mtsae_lens.unlearning.finetuning.losses import GradientAscent, OfAllWeights, mean_nll
from mtsae_lens.unlearning.finetuning.sweeps import LOSSES, SWEEPS, Sweep, register_loss, sweeps_of


@pytest.mark.parametrize("kind", SWEEPS)
def test_every_loss_is_tried_and_can_run(kind: Any, tiny_model: Any, cutter: Any, text_file: Path, sea_file: Path) -> None:
    forget, retain = (read_tokens(str(path), "train", cutter, 2) for path in (sea_file, text_file))
    assert set(SWEEPS[kind]) == set(LOSSES)
    for name, sweeps in SWEEPS[kind].items():
        for sweep in sweeps:
            assert type(sweep.loss) is type(LOSSES[name]())
            finetune(tiny_model, sweep.loss, forget, [retain], cutter, sweep.settings)  # refuses at once what cannot be
            short = dataclasses.replace(sweep.settings, n_steps=1, batch_size=1, snapshots=(1,))
            assert len(list(finetune(tiny_model, sweep.loss, forget, [retain], cutter, short))) == 1
            assert len(sweep.settings.snapshots) > 1


@dataclasses.dataclass(frozen=True)
class BoundedAscent(OfAllWeights):
    """A loss of a user's own: ascent that stops at a bound."""

    bound: float = 8.0
    uses_retain = False

    def value(self, step: Step) -> Any:
        return (self.bound - mean_nll(step.model, step.forget)).clamp(min=0)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in (LOSSES, *SWEEPS.values()):
        for name in ("bounded_ascent", "tuned"):
            monkeypatch.setitem(names, name, None)
            del names[name]  # type: ignore[attr-defined]
    register_loss("bounded_ascent")(BoundedAscent)


@pytest.mark.usefixtures("registered")
def test_a_loss_of_ones_own_takes_one_file(tiny_model: Any, cutter: Any, text_file: Path, sea_file: Path) -> None:
    settings = BenchmarkSettings(losses=("bounded_ascent",))
    assert _losses(settings) == ("bounded_ascent",)
    assert _losses(BenchmarkSettings())[-1] == "bounded_ascent"
    forget = read_tokens(str(sea_file), "train", cutter, 2)
    for sweep in sweeps_of("bounded_ascent", "text"):
        short = dataclasses.replace(sweep.settings, n_steps=1, batch_size=1, snapshots=(1,))
        assert len(list(finetune(tiny_model, sweep.loss, forget, [], cutter, short))) == 1


@pytest.mark.usefixtures("registered")
def test_a_registered_loss_may_bring_its_own_settings_and_no_name_is_taken_twice() -> None:
    own = Sweep(BoundedAscent(2.0), FinetuneSettings(1e-3, 3))
    register_loss("tuned", questions=[own])(BoundedAscent)
    assert sweeps_of("tuned", "questions") == (own,)
    assert [sweep.loss for sweep in sweeps_of("tuned", "text")] == [BoundedAscent()] * 2
    with pytest.raises(ConfigError, match=r"expected a new name for BoundedAscent, got 'npo'.*choose another name"):
        register_loss("npo")(BoundedAscent)
    known = {kind: SWEEPS[kind]["gradient_ascent"] for kind in SWEEPS}
    assert register_loss("gradient_ascent", **known)(GradientAscent) is GradientAscent
    with pytest.raises(ConfigError, match=r"got 'bounded_ascend'.*Did you mean 'bounded_ascent'"):
        sweeps_of("bounded_ascend", "text")
