"""Log a run to Weights & Biases with the keys, histograms and artifacts of SAELens; `WANDB_MODE=offline` needs no network.

Unlike in SAELens, a run that is stopped or fails is closed as failed, and `resume=True` continues the same wandb run. Checkpoints stay on
disk; the final SAE is uploaded (`log_weights_to_wandb`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from sae_lens import LanguageModelSAERunnerConfig

from mtsae_lens.errors import ConfigError
from mtsae_lens.files import write_text
from mtsae_lens.machine_paths import shorten_settings

RUN_ID_FILE = "wandb_id.txt"


@contextmanager
def wandb_run(cfg: LanguageModelSAERunnerConfig[Any], run_dir: Path | None, *, resume: bool = False) -> Iterator[None]:
    """Open a run if `cfg.logger.log_to_wandb` is set, and close it as finished, or as failed if the block raises.

    Args:
        cfg: SAELens's configuration; `cfg.logger` has project, entity, name and id of the run.
        run_dir: the folder in which the id of the run is stored for `resume`; None stores it nowhere.
        resume: whether to continue the run whose id is stored there, unless `cfg.logger.wandb_id` is set.

    Returns:
        A context manager.

    Raises:
        ConfigError: wandb refuses the run, such as without a login.
    """
    logger = cfg.logger
    if not logger.log_to_wandb:
        yield
        return
    kept = run_dir / RUN_ID_FILE if run_dir else None
    run_id = logger.wandb_id or (kept.read_text().strip() if resume and kept and kept.is_file() else None)
    try:
        run = wandb.init(
            project=logger.wandb_project,
            entity=logger.wandb_entity,
            config=shorten_settings(cfg.to_dict()),  # it is sent to another machine
            name=logger.run_name,
            id=run_id,
            resume="allow",
        )
    except wandb.Error as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"expected a run of wandb, got an error ({reason}); log in with 'wandb login', or set WANDB_MODE=offline"
        ) from error
    if kept:
        write_text(kept, run.id + "\n")
    try:
        yield
    except BaseException:
        wandb.finish(exit_code=1)
        raise
    wandb.finish()


def histogram(values: np.ndarray) -> wandb.Histogram:
    """Make a histogram of 64 bins.

    `wandb.Histogram(values)` fails for values that are almost equal, such as the norms of a unit-norm decoder; this does not.

    Args:
        values: numbers of any shape.

    Returns:
        The histogram.
    """
    margin = 1e-3 * float(np.abs(values).max()) or 1.0
    edges = (float(values.min()) - margin, float(values.max()) + margin)
    return wandb.Histogram(np_histogram=np.histogram(values, bins=64, range=edges))
