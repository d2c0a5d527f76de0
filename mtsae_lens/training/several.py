"""Train several SAEs in one pass of a language model, or of a cache: a grid, several seeds, several hooks.

Each SAE has its own folder, log and checkpoints, and ends in the very weights that it has when it is trained alone with its settings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from sae_lens import TrainingSAE

from mtsae_lens.data.activation_cache import CachedActivations
from mtsae_lens.data.activations import ActivationReader, HooksReader, SequenceActivations
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.context_blocks import ContextBlocks
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.shared_pass import SharedBlocks, SharedPass
from mtsae_lens.errors import ConfigError
from mtsae_lens.output_folders import hold_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.training.cached import adopt_cache
from mtsae_lens.training.recipe import make_runner
from mtsae_lens.training.runner import SequenceSAETrainingRunner
from mtsae_lens.training.settings import TrainSettings
from mtsae_lens.training.steps import train_side_by_side
from mtsae_lens.training.transcoding import hook_names_of, widths_of

MAY_DIFFER = frozenset(
    "out hook_name hook_name_out architecture d_sae sae seed lr lr_warm_up_fraction lr_warm_up_steps lr_end_fraction weight_decay "
    "normalize_activations b_dec_init frozen dead_feature_window log_every_n_steps checkpoint_every_n_steps".split()
)
"""Settings in which SAEs of one pass may differ; all others decide what is read."""
_NOT_IN_A_NAME = re.compile(r"[^\w.,=+-]+")


def settings_of_each(settings: TrainSettings) -> list[TrainSettings]:
    """Return the settings of every SAE in `settings.saes`: the common ones with those of its entry.

    The order of the text is that of the common seed, so that SAEs of several seeds can share it.

    Args:
        settings: the common settings, with one entry or more.

    Raises:
        ConfigError: an unknown setting, one that must be the same for all, or two SAEs of the same name.
    """
    common = {name: getattr(settings, name) for name in settings.model_fields_set - {"saes"}}
    text_seed = settings.seed if settings.text_seed is None else settings.text_seed
    found: dict[str, TrainSettings] = {}
    for entry in settings.saes:
        changes = {name: value for name, value in entry.items() if name != "name"}
        for key in changes:
            if key in TrainSettings.model_fields and (key not in MAY_DIFFER or key == "out"):
                raise ConfigError(
                    f"saes: expected settings that may differ within one pass, got {key}; give it once, beside saes"
                )
        if not isinstance(changes.get("sae", {}), dict):
            raise ConfigError(f"saes: expected a mapping under sae, got {changes['sae']!r}; give such as {{k: 16}}")
        name = str(entry.get("name") or _name_of(changes))
        if name in found or not name or name.startswith(".") or _NOT_IN_A_NAME.search(name):
            raise ConfigError(
                f"saes: expected a different folder name for each entry, got {name!r}; give it a name, such as name: k16"
            )
        if "sae" in changes:
            changes["sae"] = settings.sae | changes["sae"]
        found[name] = TrainSettings(**(common | changes | {"out": settings.out / name, "text_seed": text_seed}))
    return list(found.values())


def _name_of(changes: dict[str, Any]) -> str:
    """Name an SAE by what is its own, such as `seed=1,k=16`."""
    flat = {name: value for name, value in changes.items() if name != "sae"} | dict(changes.get("sae") or {})
    return _NOT_IN_A_NAME.sub("-", ",".join(f"{name}={value}" for name, value in flat.items())).strip("-.")[:100]


def train_saes(
    settings: Sequence[TrainSettings], model: AnyHookedModel | None = None, *, resume: bool = False
) -> list[TrainingSAE[Any]]:
    """Train several SAEs in one pass, and save each in its folder.

    Args:
        settings: of each SAE; they may differ in what does not decide which text is read (`MAY_DIFFER`). SAEs of several seeds need the same
            `text_seed`.
        model: a hooked language model; None to load the one that the settings name. A cache needs none.
        resume: whether to continue the runs in the output folders, each from its newest checkpoint.

    Returns:
        The SAEs in the order of the settings.

    Raises:
        ConfigError: the settings differ in what all must share, or no run can follow them.
        OutputError: a folder holds another run, and `resume` is False.
        TrainingInterrupted: Ctrl-C or SIGTERM came; the states are saved.
    """
    settings = [adopt_cache(each) for each in settings]
    check_shared(settings)
    first = settings[0]
    with ExitStack() as held:
        for each in settings:
            held.enter_context(hold_output_folder(each.out))
        if model is None and first.cache is None:
            model = load_language_model(first.model, device=first.device, dtype=first.dtype)
        return _train_together([make_runner(each, model, resume=resume) for each in settings], resume=resume)


def check_shared(settings: Sequence[TrainSettings]) -> None:
    """Check that one pass can feed all SAEs.

    Raises:
        ConfigError: there are none, two share a folder, or they differ in what decides which text is read.
    """
    if not settings:
        raise ConfigError("expected the settings of at least one SAE, got none")
    if not current_ranks().is_alone:
        raise ConfigError(
            f"expected one SAE with {current_ranks().size} ranks, got {len(settings)} in one pass; leave out saes, or train without torchrun"
        )
    if len({each.out.absolute() for each in settings}) < len(settings):
        raise ConfigError("expected a folder for each SAE, got one twice; give each its own out")
    if any(each.compile_sae or each.compile_llm for each in settings) and len(settings) > 1:
        raise ConfigError(
            f"expected one SAE with compile_sae or compile_llm, got {len(settings)} in one pass; leave them out, or train one SAE"
        )
    if settings[0].wandb and len(settings) > 1:
        raise ConfigError(f"expected one SAE with wandb, got {len(settings)} in one pass; leave wandb out, or train one SAE")

    def shared(each: TrainSettings) -> dict[str, Any]:
        values = {name: value for name, value in each.model_dump().items() if name not in MAY_DIFFER}
        return values | {"text_seed": each.seed if each.text_seed is None else each.text_seed}

    expected = shared(settings[0])
    for each in settings[1:]:
        for name, value in shared(each).items():
            if value != expected[name]:
                raise ConfigError(
                    f"expected the same {name} for all SAEs of one pass, got {expected[name]!r} and {value!r}; make them equal"
                )


def _train_together(runners: Sequence[SequenceSAETrainingRunner], *, resume: bool) -> list[TrainingSAE[Any]]:
    shared = _share(runners)
    trainers = [runner.prepare(resume=resume)[0] for runner in runners]
    first_step = min(trainer.n_training_steps for trainer in trainers)
    shared.begin(first_step // shared.source.block_size_batches)
    try:
        train_side_by_side(trainers)
    finally:
        shared.close()
    for trainer in trainers:
        trainer.finish()
    return [runner.save(trainer) for runner, trainer in zip(runners, trainers, strict=True)]


def _share(runners: Sequence[SequenceSAETrainingRunner]) -> SharedPass:
    """Put streams of one shared pass in the place of the runners' own."""
    widths: dict[str, int] = {}
    for runner in runners:
        for name, width in zip(hook_names_of(runner.cfg), widths_of(runner.cfg), strict=True):
            widths.setdefault(name, width)
    ends = [sum(list(widths.values())[: place + 1]) for place in range(len(widths))]
    columns = {name: slice(end - widths[name], end) for name, end in zip(widths, ends, strict=True)}
    shared = SharedPass(_read_all(runners[0].stream, tuple(widths)), len(runners))
    for place, runner in enumerate(runners):
        own = runner.stream
        runner.stream = SharedBlocks(
            shared,
            place,
            tuple(columns[name] for name in hook_names_of(runner.cfg)),
            own.batch_size_sequences,
            own.block_size_batches,
            own.seed,
        )
    return shared


def _read_all(stream: ContextBlocks | SharedBlocks, hook_names: tuple[str, ...]) -> ContextBlocks:
    """Return the stream of one runner with the activations of all hooks side by side."""
    if isinstance(stream, CachedActivations):
        return replace(stream, hook_names=hook_names, read_already=[])
    assert isinstance(stream, SequenceActivations)
    if len(hook_names) == 1 and isinstance(stream.reader, ActivationReader):
        return replace(stream, read_already=[])
    own = stream.reader
    return replace(stream, reader=HooksReader(own.model, hook_names, own.autocast, own.compiled_run), read_already=[])
