"""Many small experiments, each kept as soon as it is done: a grid that is stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mtsae_lens.errors import ConfigError, TrainingInterrupted
from mtsae_lens.files import prepare_output_dir, write_json


def run_trials(
    folder: Path, settings: Mapping[str, Any], trials: Mapping[str, Callable[[], Mapping[str, Any]]], description: str
) -> dict[str, dict[str, Any]]:
    """Run what is not yet in `folder`, one JSON file per trial, and return all results by name.

    Args:
        folder: kept between runs.
        settings: what the results depend on, as JSON; results of other settings are refused.
        trials: name and computation of each; names become file names, `/` becoming `__`.
        description: what the progress bar says.

    Raises:
        ConfigError: the folder holds results of other settings.
        TrainingInterrupted: a signal came; what is done is kept, and the trial that was stopped is made again.
    """
    prepare_output_dir(folder)
    settings = json.loads(json.dumps(settings))
    record = folder / "settings.json"
    if record.exists():
        kept = json.loads(record.read_text())
        if kept != settings:
            differ = sorted(name for name in kept.keys() | settings.keys() if kept.get(name) != settings.get(name))
            raise ConfigError(
                f"{folder} holds results made with other settings ({', '.join(differ)}); give another --out, or delete that folder"
            )
    else:
        write_json(record, settings)
    results: dict[str, dict[str, Any]] = {}
    with tqdm(trials.items(), desc=description, unit="trial") as progress:
        for name, compute in progress:
            progress.set_postfix_str(name)
            path = folder / f"{name.replace('/', '__')}.json"
            if not path.exists():
                try:
                    write_json(path, dict(compute()))
                except TrainingInterrupted as stop:
                    kept = f"{len(results)} of {len(trials)} trials are done and kept in {folder}; the same command goes on from there"
                    raise TrainingInterrupted(stop.signal_number, kept) from stop
            results[name] = json.loads(path.read_text())
    return results
