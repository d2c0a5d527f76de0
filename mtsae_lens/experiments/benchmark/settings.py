"""Settings of `mtsae unlearn-benchmark`. This module loads pydantic alone; validators and methods load what they need."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, field_validator, model_validator

from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.settings import Settings
from mtsae_lens.training.settings import TrainSettings

if TYPE_CHECKING:
    from mtsae_lens.experiments.benchmark.arms import BenchmarkSize, BenchmarkTask

_NAME = re.compile(r"[\w-]+")
_OTHER_CELLS = ("reference", "stability")
"""Names of cells that no SAE may have."""

BATCH_SIZE_TOKENS: int = TrainSettings.model_fields["batch_size_tokens"].default  # rounded down to whole contexts


def _default_saes() -> dict[str, dict[str, Any]]:
    from mtsae_lens.experiments.benchmark.arms import SAES

    return dict(SAES)


class BenchmarkSettings(Settings):
    """Settings of `mtsae unlearn-benchmark`."""

    out: Path = Path("runs/unlearn-benchmark")
    """Folder for everything that the benchmark trains and measures, and its report."""
    tasks: tuple[str, ...] = Field(("domain", "people"), min_length=1, json_schema_extra={"option": "--task"})
    """Task on the embedded model: `domain` (scripture) or `people`. Your own task, which `forget` defines, replaces both."""
    forget: str | None = None
    """Text to forget in your own task."""
    near: tuple[str, ...] = ()
    """Text to keep in your own task that resembles its forget text."""
    retain: tuple[str, ...] = ()
    """Unrelated text to keep in your own task."""
    neutral: tuple[str, ...] = ()
    """Text of your own task that is only measured, on `test`. Nothing is chosen to spare it."""
    model: str = "embedded"
    """Language model: `embedded`, a name that TransformerLens knows, or a local Hugging Face folder. The model and the reference are loaded
    in float32, because most methods train the weights."""
    reference: str | None = "embedded-retrained"
    """Language model that never saw the forget text. Give `null` if there is no such model."""
    dataset: str = "embedded+biographies"
    """Text to train the SAEs on."""
    hook_name: str = "blocks.3.hook_resid_post"
    """TransformerLens hook whose activations the SAEs read, such as `blocks.3.hook_resid_post`."""
    saes: dict[str, dict[str, Any]] = Field(default_factory=_default_saes, min_length=1)
    """SAE to compare: a name with the settings of the SAE, such as `topk={k: 32}`. The name is the architecture, unless `architecture` stands
    beside the settings. `frozen`, `hook_name` and `hook_name_out` may stand there too, as of `mtsae train`; the last makes it a transcoder. By
    default five architectures are compared."""
    losses: tuple[str, ...] | None = None
    """Method that changes weights, such as `npo`. By default all are compared, or three of them with `quick`."""
    n_seeds: int | None = Field(None, gt=0)
    """Number of seeds of every SAE and every method. By default it is 5, or 1 with `quick`."""
    n_attacked_seeds: int = Field(1, ge=0)
    """Number of seeds for which the chosen edit is measured in full and attacked."""
    quick: bool = False
    """Use short training runs and few candidates, and by default one seed, to check that everything runs."""
    training_tokens: int | None = Field(None, gt=0)
    """Number of tokens to train every SAE on. By default it is 600,000, or 120,000 with `quick`."""
    d_sae: int | None = Field(None, gt=0)
    """Number of features of every SAE. By default it is 1,024."""
    contexts_per_split: int | None = Field(None, gt=0)
    """Maximum number of contexts to read from each split of each text. By default it is 24, or 6 with `quick`."""
    context_size: int = Field(TrainSettings.model_fields["context_size"].default, gt=1)
    """Number of positions in a context. The model's own context size is the maximum."""
    prepend_bos: bool = True
    """Begin every context with the BOS token."""
    cache: Path | None = None
    """Folder that `mtsae cache` wrote. The SAEs are trained from its activations, so the language model does not run for them."""
    first_trained_layer: int = Field(0, ge=0)
    """First layer that methods which change weights and the relearning attack may train. Above 0, a large model costs less. RMU trains
    the same layers as always."""
    n_workers: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), gt=0)
    """Number of processes. Each process trains or measures one thing at a time."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        from mtsae_lens.experiments.benchmark.arms import TASKS

        for task in tasks:
            if task not in TASKS:
                raise ConfigError(f"expected a known task, got {task!r}.{nearest(task, TASKS)}")
        return tasks

    @field_validator("saes")
    @classmethod
    def _check_saes(cls, saes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        from mtsae_lens.training.options import TrainerOptions
        from mtsae_lens.unlearning.finetuning.sweeps import LOSSES

        for name, given in saes.items():
            if not _NAME.fullmatch(name) or name in (*_OTHER_CELLS, *LOSSES):
                raise ConfigError(
                    f"expected a name of letters, digits, '_' and '-' that no method has, got {name!r}; give such as "
                    "memory: {architecture: mtsae, memory: predictive, k: 32}"
                )
            if not isinstance(architecture := given.get("architecture", name), str):
                raise ConfigError(f"saes: expected the name of an architecture, got {architecture!r}; give such as topk")
            TrainerOptions(frozen=given.get("frozen"))
        return saes

    @field_validator("losses")
    @classmethod
    def _check_losses(cls, losses: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from mtsae_lens.unlearning.finetuning.sweeps import check_loss

        for loss in losses or ():
            check_loss(loss)
        return losses

    @model_validator(mode="after")
    def _check_own_task(self) -> Self:
        if self.forget is None and (self.near or self.retain or self.neutral):
            raise ConfigError("expected --forget with --near, --retain or --neutral, got none; give --forget")
        return self

    def size(self) -> BenchmarkSize:
        """Return how much work to do."""
        from mtsae_lens.experiments.benchmark.arms import QUICK, BenchmarkSize

        given = {
            name: value
            for name in ("training_tokens", "d_sae", "contexts_per_split")
            if (value := getattr(self, name)) is not None
        }
        return replace(QUICK if self.quick else BenchmarkSize(), **given)

    def seeds(self) -> range:
        """Return the seeds of the SAEs and of the order in which methods that change weights read text."""
        return range(self.n_seeds or (1 if self.quick else 5))

    def benchmark_tasks(self) -> dict[str, BenchmarkTask]:
        """Return the tasks by name."""
        from mtsae_lens.experiments.benchmark.arms import TASKS, BenchmarkTask
        from mtsae_lens.unlearning.task import Corpus

        if self.forget is None:
            return {name: TASKS[name] for name in self.tasks}
        corpora = [Corpus(self.forget, "forget")]
        corpora += [Corpus(source, "near") for source in self.near]
        corpora += [Corpus(source, "far") for source in self.retain]
        corpora += [Corpus(source, "neutral") for source in self.neutral]
        return {"own": BenchmarkTask("own", tuple(corpora), self.forget, (*self.near, *self.retain))}

    def training(self, name: str, seed: int) -> TrainSettings:
        """Return the settings of one SAE. All SAEs share text, width, schedule and number of tokens.

        Args:
            name: name of the SAE in `saes`.
            seed: seed of the SAE.
        """
        size, given = self.size(), dict(self.saes[name])
        return TrainSettings(
            model=self.model,
            hook_name=given.pop("hook_name", self.hook_name),
            hook_name_out=given.pop("hook_name_out", None),
            dataset=self.dataset,
            architecture=given.pop("architecture", name),
            frozen=given.pop("frozen", None),
            d_sae=size.d_sae,
            training_tokens=size.training_tokens,
            context_size=self.context_size,
            batch_size_tokens=max(1, BATCH_SIZE_TOKENS // self.context_size) * self.context_size,
            prepend_bos=self.prepend_bos,
            out=self.out / "saes" / f"{name}-{seed}",
            seed=seed,
            sae=given,
            device=self.device,
            cache=self.cache,
        )
