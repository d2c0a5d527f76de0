"""Run many small experiments and save each as soon as it is done, so that a stopped grid can be resumed.

Several ranks (`mtsae_lens.ranks`) take turns at the trials that are missing. Each computes its trials alone, and all return all results.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mtsae_lens.digests import digest_json
from mtsae_lens.errors import ConfigError, DataError, MTSAEWarning, TrainingInterrupted
from mtsae_lens.files import write_json
from mtsae_lens.output_folders import SETTINGS_FILE, hold_output_folder
from mtsae_lens.ranks import current_ranks, working_alone
from mtsae_lens.sealed import read_json, write_sealed_json
from mtsae_lens.workers import compute_in_workers

Trial = Callable[[], Mapping[str, Any]]
_NAME = "trial_name"
"""Key of the trial's name in its file."""
_SETTINGS = "trial_settings"
"""Key of the trial's settings in its file, if it does not share them with all others."""
_N_DIGITS = 12  # of the digest in the name of such a file
_DIGEST_AT_END = re.compile(rf"-[0-9a-f]{{{_N_DIGITS}}}$")


def run_trials(
    folder: Path, settings: Mapping[str, Any], trials: Mapping[str, Trial], description: str, *, n_workers: int = 1
) -> dict[str, dict[str, Any]]:
    """Run the trials whose results are not yet in `folder`, with one JSON file per trial, and return all results.

    Args:
        folder: folder of the results, kept between runs.
        settings: what the results depend on, as JSON; results of other settings are refused.
        trials: functions that compute the results, by name. Names become file names, with `/` replaced by `__`.
        description: text of the progress bar.
        n_workers: number of processes. With more than one, trials must be picklable (`functools.partial` of a module's function). The
            processes share the threads: a small model uses one core at a time. Each of several ranks has this number.

    Returns:
        Results by name.

    Raises:
        ConfigError: the folder holds results of other settings.
        DataError: a file in the folder is damaged.
        OutputError: the folder cannot be written, or another process writes to it.
        TrainingInterrupted: a signal arrived; finished trials are kept, and the others are run again by the same call.
    """
    with hold_output_folder(folder):
        if current_ranks().is_first:
            check_settings(folder, settings, has_results=_has_results(folder))
        of_run = json.loads(json.dumps(settings))
        files = {name: _ResultFile(folder / f"{_file_stem(name)}.json", name, of_run, holds_settings=False) for name in trials}
        return _run_missing(folder, files, trials, description, n_workers)


def run_trials_by_settings(
    folder: Path,
    settings: Mapping[str, Mapping[str, Any]],
    trials: Mapping[str, Trial],
    description: str,
    *,
    n_workers: int = 1,
) -> dict[str, dict[str, Any]]:
    """Run the trials whose results with their settings are not yet in `folder`, with one JSON file per result, and return all results.

    Use this in place of `run_trials` if trials depend on different settings. The name of a file has a digest of the settings of its trial, so a
    change of settings computes only the trials that depend on them again. Earlier results are kept, and are used again with their settings. A
    warning says which settings of how many trials have changed.

    Args:
        folder: folder of the results, kept between runs.
        settings: what each result depends on, as JSON, by the name of the trial.
        trials: as in `run_trials`.
        description: text of the progress bar.
        n_workers: as in `run_trials`.

    Returns:
        Results by name.

    Raises:
        DataError: a file in the folder is damaged.
        OutputError: the folder cannot be written, or another process writes to it.
        TrainingInterrupted: a signal arrived; finished trials are kept, and the others are run again by the same call.
    """
    with hold_output_folder(folder):
        files = {}
        for name in trials:
            of_trial = json.loads(json.dumps(settings[name]))
            digest = digest_json(of_trial)[:_N_DIGITS]
            files[name] = _ResultFile(folder / f"{_file_stem(name)}-{digest}.json", name, of_trial, holds_settings=True)
        if current_ranks().is_first:
            _warn_of_other_settings(folder, list(files.values()))
        return _run_missing(folder, files, trials, description, n_workers)


@dataclass(frozen=True)
class _ResultFile:
    """The file of the result of one trial."""

    path: Path
    name: str
    settings: dict[str, Any]
    """What the result depends on, as JSON."""
    holds_settings: bool

    def write(self, result: Mapping[str, Any]) -> None:
        of_trial = {_SETTINGS: self.settings} if self.holds_settings else {}
        write_sealed_json(self.path, dict(result) | {_NAME: self.name} | of_trial)

    def read(self) -> dict[str, Any]:
        remedy = "delete this file and run the same command again"
        result = read_json(self.path, dict[str, Any], remedy, sealed_with=_NAME)
        if result == self.settings:  # which have no digest, as the results of version 0.1.0
            raise DataError(f"{self.path}: expected the result of a trial, got the settings of the run (damaged); {remedy}")
        if not result:
            raise DataError(f"{self.path}: expected the result of a trial, got an empty file (damaged); {remedy}")
        written_for = result.pop(_NAME, self.name)  # earlier versions did not write the name
        if written_for != self.name:
            raise DataError(
                f"{self.path}: expected the result of {self.name!r}, got that of {written_for!r} (damaged); {remedy}"
            )
        if self.holds_settings and result.pop(_SETTINGS, None) != self.settings:
            raise DataError(
                f"{self.path}: expected the result with the settings of its name, got one with other settings (damaged); {remedy}"
            )
        return result


def _file_stem(name: str) -> str:
    return name.replace("/", "__")


def _run_missing(
    folder: Path, files: Mapping[str, _ResultFile], trials: Mapping[str, Trial], description: str, n_workers: int
) -> dict[str, dict[str, Any]]:
    ranks = current_ranks()
    present = _names_in(folder) if ranks.is_first else set()
    missing: list[str] = ranks.tell([name for name, file in files.items() if file.path.name not in present])
    done = {name: file.read() for name, file in files.items() if name not in missing}
    own = {name: trials[name] for name in ranks.deal(missing)}
    compute = _one_by_one(own) if n_workers == 1 else compute_in_workers(own, n_workers)
    if not ranks.is_alone:
        description = f"{description}, first of {ranks.size} ranks"
    with tqdm(total=len(done) + len(own), initial=len(done), desc=description, unit="trial") as progress:
        try:
            for name, result in compute:
                files[name].write(result)
                done[name] = files[name].read()
                progress.update()
            ranks.wait_for_all()
        except TrainingInterrupted as stop:
            kept = f"{_n_kept(folder, files)} of {len(trials)} trials are finished and kept in {folder}; run the same command to resume"
            raise TrainingInterrupted(stop.signal_number, kept) from stop
    return {name: done[name] if name in done else files[name].read() for name in trials}


def _names_in(folder: Path) -> set[str]:
    """Return the names of the files of a folder. A listing, unlike `exists`, does not make a network file system remember what is absent."""
    return {path.name for path in folder.iterdir()}


def _n_kept(folder: Path, files: Mapping[str, _ResultFile]) -> int:
    return len(_names_in(folder) & {file.path.name for file in files.values()})


def _warn_of_other_settings(folder: Path, files: Sequence[_ResultFile]) -> None:
    """Warn if trials that are computed now have results with other settings, or from versions that did not write settings."""
    kept: dict[str, list[Path]] = {}
    present = _names_in(folder)
    for path in sorted(folder.glob("*.json")):
        kept.setdefault(_DIGEST_AT_END.sub("", path.stem), []).append(path)
    differ: list[set[str]] = []
    for file in files:
        others = kept.get(_file_stem(file.name), [])
        if others and file.path.name not in present:
            differ.append(min((_changed(other, file.settings) for other in others), key=len))
    if differ:
        names = _first_five(sorted(set().union(*differ)))
        warnings.warn(
            f"{folder}: {len(differ)} of {len(files)} trials have results with other settings only ({names}); they are computed again, and "
            "the earlier results are kept",
            MTSAEWarning,
            stacklevel=3,
        )


def _changed(path: Path, settings: Mapping[str, Any]) -> set[str]:
    """Return the names of the settings of a result that differ from the given ones."""
    try:
        of_result = read_json(path, dict[str, Any], "").get(_SETTINGS)
    except DataError:  # it is not used, so it may be damaged
        of_result = None
    if of_result is None:
        return {"those of an earlier version"}
    kept, new = _leaves(of_result), _leaves(settings)
    return {name for name in kept.keys() | new.keys() if kept.get(name) != new.get(name)}


def _first_five(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], "..."] if len(names) > 5 else names)


def _has_results(folder: Path) -> bool:
    return any(path.name != SETTINGS_FILE for path in folder.glob("*.json"))


def check_settings(folder: Path, settings: Mapping[str, Any], *, has_results: bool) -> None:
    """Check that the results in a folder were made with the given settings; a folder without results gets these settings as
    `settings.json`.

    Args:
        folder: the folder.
        settings: the settings, as JSON.
        has_results: whether the folder holds results.

    Raises:
        ConfigError: the settings differ; the message names them.
        DataError: `settings.json` is damaged.
    """
    record, settings = folder / SETTINGS_FILE, json.loads(json.dumps(settings))
    if not has_results:
        write_json(record, settings)
        return
    kept, new = _leaves(_read_settings(record) if record.exists() else {}), _leaves(settings)
    if kept != new:
        differ = sorted(name for name in kept.keys() | new.keys() if kept.get(name) != new.get(name))
        raise ConfigError(
            f"{folder}: expected results of the same settings, got results made with other settings ({_first_five(differ)}); give another "
            "--out, or delete that folder"
        )


def _read_settings(record: Path) -> dict[str, Any]:
    remedy = f"delete the folder {record.parent}, whose settings it records, and run the command again"
    return read_json(record, dict[str, Any], remedy)


def _leaves(settings: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names, so that an error can name a difference."""
    if not isinstance(settings, dict):
        return {name: settings}
    return {
        key: value
        for part, inner in settings.items()
        for key, value in _leaves(inner, f"{name}.{part}" if name else part).items()
    }


def _one_by_one(trials: Mapping[str, Trial]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, trial in trials.items():
        with working_alone():
            result = trial()
        yield name, result
