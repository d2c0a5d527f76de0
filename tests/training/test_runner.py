"""What the runner is given instead of a source of its own."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from mtsae_lens import MTTrainingSAEConfig
from mtsae_lens.errors import DataError
from mtsae_lens.training.runner import SequenceSAETrainingRunner


def test_rows_without_text_are_refused(tiny_model: Any) -> None:
    cfg = LanguageModelSAERunnerConfig(
        sae=MTTrainingSAEConfig(d_in=tiny_model.cfg.d_model, d_sae=32, k=4, dilations=(0, 1), context_size=16),
        model_name="tiny",
        hook_name="blocks.1.hook_resid_pre",
        context_size=16,
        training_tokens=256,
        train_batch_size_tokens=64,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
    )
    for rows in ({"content": ["the sea"]}, {"text": [3]}):
        runner = SequenceSAETrainingRunner(cfg, override_model=tiny_model, override_dataset=Dataset.from_dict(rows))
        with pytest.raises(DataError, match=f"string under 'text'; its columns: {next(iter(rows))}"):
            runner.run()
