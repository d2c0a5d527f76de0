"""Every loss is tried on text and on questions, with settings that can run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.data.contexts import read_tokens
from mtsae_lens.unlearning.finetuning.finetune import finetune
from mtsae_lens.unlearning.finetuning.losses import LOSSES
from mtsae_lens.unlearning.finetuning.sweeps import SWEEPS


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
