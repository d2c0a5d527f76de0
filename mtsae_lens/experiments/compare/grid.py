"""Lay out the grid: every combination of hook, architecture and L0, and the settings of its trainings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtsae_lens import __version__
from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.experiments.compare.arms import MEMORY, CompareArm, sae_settings
from mtsae_lens.experiments.compare.cells import TuneText, n_features, train_cell
from mtsae_lens.experiments.compare.held_out import HeldOutText
from mtsae_lens.experiments.compare.settings import CompareSettings
from mtsae_lens.experiments.parts import as_json
from mtsae_lens.training.cached import adopt_cache
from mtsae_lens.training.settings import TrainSettings

_N_START_BATCHES = 20
"""Batches that set the scale and `b_dec`: what a floor that is not trained reads."""
_NOT_IN_A_NAME = re.compile(r"[^\w.=+-]+")

Key = tuple[str, str, int]
"""Hook, name of the arm, wanted L0."""


@dataclass(frozen=True)
class Grid:
    """What is trained and measured: the settings, and the cache that all trainings read."""

    settings: CompareSettings
    cache: ActivationCache
    folder: Path
    """Folder of the cache."""

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hooks that are compared."""
        if self.settings.cache is not None and "hook_name" not in self.settings.model_fields_set:
            return tuple(self.cache.contents.hooks)
        return self.settings.hook_name

    @property
    def text(self) -> HeldOutText:
        """The text as the language model of the cache reads it."""
        contents = self.cache.contents
        return HeldOutText(
            contents.model_name,
            contents.model_dtype,
            contents.dataset_path,
            contents.context_size,
            contents.prepend_bos,
            not contents.disable_concat_sequences,
            self.settings.device,
        )

    @property
    def tune(self) -> TuneText:
        """What trainings are measured on to choose among them."""
        return TuneText(self.text, self.settings.n_tune_contexts)

    def places(self) -> list[Key]:
        """Return every combination of hook, arm and L0."""
        size, arms = self.settings.size(), self.settings.arms()
        return [(hook_name, name, l0) for hook_name in self.hook_names for l0 in size.l0 for name in arms]

    def arm(self, key: Key) -> CompareArm:
        """Return the arm of a key."""
        return self.settings.arms()[key[1]]

    def training_tokens(self, arm: CompareArm, *, search: bool) -> int:
        """Return the number of tokens that an arm is trained on.

        A sparsity coefficient is searched at full length, because L0 after a short training is not that after a long one.

        Args:
            arm: the arm.
            search: whether this is a training of the search.
        """
        if arm.frozen == "all":
            return self.settings.batch_tokens(self.cache.contents.context_size) * _N_START_BATCHES
        return self.settings.size().search_tokens if search and arm.sparsity == "k" else self.settings.size().training_tokens

    def training(self, key: Key, lr: float, coefficient: float | None, seed: int, *, search: bool) -> TrainSettings:
        """Return the settings of one training.

        Args:
            key: hook, arm and wanted L0.
            lr: learning rate.
            coefficient: the sparsity coefficient, for an arm that has one.
            seed: seed of the SAE. All seeds read the cache in the same order of contexts.
            search: whether this is a training of the search, whose SAE is not kept.
        """
        hook_name, name, l0 = key
        arm, size, contents = self.arm(key), self.settings.size(), self.cache.contents
        d_sae = n_features(arm, contents.hooks[hook_name], size.d_sae, self.settings.sae.get(MEMORY, {}))
        batch = self.settings.batch_tokens(contents.context_size)
        n_tokens = self.training_tokens(arm, search=search)
        return adopt_cache(
            TrainSettings(
                **self.settings.given_text(),
                cache=self.folder,
                hook_name=hook_name,
                architecture=arm.architecture,
                frozen=arm.frozen,
                d_sae=d_sae,
                training_tokens=n_tokens,
                batch_size_tokens=batch,
                lr=lr,
                seed=seed,
                text_seed=contents.seed,
                device=self.settings.device,
                sae=sae_settings(arm, self.settings.sae.get(name, {}), l0, coefficient, d_sae, n_tokens // batch),
                out=self.settings.out / ("searched" if search else "saes") / file_name(trial_name(key, lr, coefficient, seed)),
            )
        )

    def trial(self, key: Key, lr: float, coefficient: float | None, seed: int, *, search: bool) -> Callable[[], Any]:
        """Return the computation of one training, as `run_trials` takes it; arguments as of `training`."""
        settings = self.training(key, lr, coefficient, seed, search=search)
        return as_json(partial(train_cell, settings, coefficient, self.tune, keep=not search))

    def record(self) -> dict[str, Any]:
        """Return what every result depends on besides its name, as JSON."""
        names = {"sae", "n_tune_contexts"}
        size = self.settings.size()
        return {
            "version": __version__,
            "cache": self.cache.digest,
            "d_sae": size.d_sae,
            "training_tokens": size.training_tokens,
            "batch_size_tokens": self.settings.batch_tokens(self.cache.contents.context_size),
            **self.settings.model_dump(mode="json", include=names),
            **model_stamps(self.text.model),
            **text_stamps(self.text.dataset),
        }


def trial_name(key: Key, lr: float, coefficient: float | None, seed: int) -> str:
    """Return the name of a training, which holds all in which two trainings of a grid differ.

    Args:
        key: hook, arm and wanted L0.
        lr: learning rate.
        coefficient: the sparsity coefficient, for an arm that has one.
        seed: seed of the SAE.
    """
    hook_name, name, l0 = key
    sparsity = "" if coefficient is None else f",coefficient={coefficient:g}"
    return f"{hook_name}/{name}/l0={l0},lr={lr:g}{sparsity}/seed_{seed}"


def file_name(name: str) -> str:
    """Return the name of a training as that of a folder."""
    return _NOT_IN_A_NAME.sub("__", name)
