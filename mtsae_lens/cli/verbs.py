"""Define the verbs. Each imports what it runs when it runs, so that its help does not load torch."""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mtsae_lens.cli.output import print_tables, say, say_aside
from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.commands.evaluate_settings import EvaluateSettings
from mtsae_lens.commands.explore_settings import ExploreSettings
from mtsae_lens.commands.export_settings import ExportSettings
from mtsae_lens.commands.generate_settings import GenerateSettings
from mtsae_lens.commands.neuronpedia_settings import NeuronpediaSettings
from mtsae_lens.commands.unlearn_settings import UnlearnSettings
from mtsae_lens.commands.upload_settings import UploadSettings
from mtsae_lens.experiments.benchmark.settings import BenchmarkSettings
from mtsae_lens.experiments.compare.settings import CompareSettings
from mtsae_lens.experiments.demo_settings import DemoSettings
from mtsae_lens.experiments.paper.settings import PaperSettings
from mtsae_lens.experiments.planted.settings import PlantedCommandSettings
from mtsae_lens.training.settings import TrainSettings

if TYPE_CHECKING:
    from mtsae_lens.commands.train import TrainResult


def train(
    settings: TrainSettings, *, resume: Annotated[bool, Parameter(help="Continue the run in `--out`.", negative="")] = False
) -> None:
    """Train an SAE on the activations of a language model."""
    from mtsae_lens.commands.train import run_train, run_train_saes
    from mtsae_lens.ranks import joined_ranks

    with joined_ranks(settings.device):
        if settings.saes:
            for name, result in run_train_saes(settings, resume=resume).items():
                _say_what_was_trained(settings.out / name, result)
            return
        if resume and not (settings.out / "checkpoints").is_dir():
            say_aside(f"no checkpoint in {settings.out}: starting from the beginning")
        trained = run_train(settings, resume=resume)
        if trained is not None:
            _say_what_was_trained(settings.out, trained)


def _say_what_was_trained(out: Path, result: TrainResult) -> None:
    final, waits = result.final, result.waits
    for_activations, for_sae = waits["time/wait_for_activations_s"], waits["time/wait_for_sae_s"]
    explained_variance = _format(final.get("metrics/explained_variance"), ".3f")
    l0 = _format(final.get("metrics/l0"), ".1f")
    never_fired, always_on = _format(result.never_fired, ","), _format(result.always_on, ",")
    say(
        f"trained {result.n_training_steps:,} steps: on training batches explained variance {explained_variance}, L0 {l0}; "
        f"of {result.n_features:,} features {never_fired} never fired and {always_on} fired on over half of the tokens; "
        f"the SAE waited {for_activations:.1f} s for activations, and their reader {for_sae:.1f} s for the SAE; saved in {out}"
    )


def _format(value: float | None, form: str) -> str:
    """Format a number; None stands for a value that was not finite, or that an older log does not contain."""
    return "unknown" if value is None else format(value, form)


def cache(settings: CacheSettings) -> None:
    """Keep the activations of a language model on disk, for `mtsae train --cache`.

    Finished work is kept. Run the same command again to resume.
    """
    from mtsae_lens.commands.cache import run_cache
    from mtsae_lens.ranks import joined_ranks

    with joined_ranks(settings.device):
        contents = run_cache(settings).contents
        say(
            f"{contents.n_tokens:,} tokens of {len(contents.hooks)} hooks in {settings.out}; train with mtsae train --cache "
            f"{settings.out}"
        )


def evaluate(settings: EvaluateSettings) -> None:
    """Measure an SAE on held-out text with SAELens's `run_evals`."""
    from mtsae_lens.commands.evaluate import run_evaluate
    from mtsae_lens.commands.evaluate_results import metrics_table

    measured = run_evaluate(settings)
    print_tables(metrics_table({"value": measured.metrics}))
    _name_report(settings)


def unlearn(settings: UnlearnSettings) -> None:
    """Suppress what a model knows about a text by editing features, and compare the edit with random features."""
    from mtsae_lens.commands.unlearn import run_unlearn
    from mtsae_lens.commands.unlearn_report import effects_table

    measured = run_unlearn(settings)
    print_tables(effects_table(measured))
    _name_report(settings)


def unlearn_benchmark(settings: BenchmarkSettings) -> None:
    """Compare ways to unlearn at equal cost: SAEs, a dense direction, finetuning and retraining.

    Finished work is kept. Run the same command again to resume.
    """
    from mtsae_lens.experiments.benchmark.run import run_benchmark
    from mtsae_lens.ranks import joined_ranks

    with joined_ranks(settings.device):
        _, report = run_benchmark(settings)
        say("\n\n".join(report.summary) + "\n")
        print_tables(*report.tables)
        _name_report(settings)


def compare(settings: CompareSettings) -> None:
    """Compare SAE architectures at several L0, each tuned by the same search, on one cache of activations.

    Finished work is kept. Run the same command again to resume.
    """
    from mtsae_lens.experiments.compare.run import run_compare
    from mtsae_lens.ranks import joined_ranks

    with joined_ranks(settings.device):
        _, report = run_compare(settings)
        say("\n".join(report.summary) + "\n")
        print_tables(*report.tables)
        _name_report(settings)


def generate(settings: GenerateSettings) -> None:
    """Continue a prompt without and with an edit."""
    from mtsae_lens.commands.generate import run_generate

    clean, edited = run_generate(settings)
    say(f"without the edit:\n{clean}\n\nwith the edit:\n{edited}")


def export(settings: ExportSettings) -> None:
    """Write an edited model as a Hugging Face folder, with the edit attached or imitated by changed weights."""
    from mtsae_lens.commands.export import MODEL_FOLDER, run_export

    result = run_export(settings)
    if result.comparison:
        print_tables(result.table())
    loader = "load_edited of its package edited_model" if settings.form == "hooked" else "AutoModelForCausalLM.from_pretrained"
    say(f"model: {settings.out / MODEL_FOLDER}, opened by {loader}\n{result.caveat}")
    _name_report(settings)


def explore(settings: ExploreSettings) -> None:
    """Find out what every feature does: its examples, time scales and effects.

    Finished work is kept. Run the same command again to resume.
    """
    from mtsae_lens.commands.explore import run_explore
    from mtsae_lens.ranks import joined_ranks

    with joined_ranks(settings.device):
        facts, page = run_explore(settings)
        fewer = facts["n_tokens"] < 0.9 * facts["n_tokens_asked"]  # special tokens are asked for and not counted
        asked = f" (the texts hold no more; {facts['n_tokens_asked']:,} were requested)" if fewer else ""
        say(f"read {facts['n_tokens']:,} tokens{asked}")
        say(f"page: {page}")


def upload(settings: UploadSettings) -> None:
    """Upload an SAE to the Hugging Face hub, in SAELens's layout, with a card."""
    from mtsae_lens.commands.upload import run_upload

    place = run_upload(settings)
    say(f"{'written, not uploaded' if settings.dry_run else 'uploaded'}: {place}")


def export_neuronpedia(settings: NeuronpediaSettings) -> None:
    """Convert the output of `mtsae explore` to the JSON that Neuronpedia imports."""
    from mtsae_lens.commands.neuronpedia import run_export_neuronpedia

    n_batches = run_export_neuronpedia(settings)
    say(f"{n_batches} batches in {settings.out}")


def demo(settings: DemoSettings) -> None:
    """Train, evaluate, unlearn and explore on the embedded model, and write a report.

    Finished work is kept. Run the same command again to resume.
    """
    from mtsae_lens.experiments.demo import run_demo

    _, tables = run_demo(settings)
    print_tables(*tables)
    _name_report(settings)


def planted(settings: PlantedCommandSettings) -> None:
    """Recover planted features with known time scales, with MTSAEs and with SAELens's SAEs.

    Finished work is kept. Run the same command again to resume.
    """
    from mtsae_lens.experiments.planted.run import run_planted
    from mtsae_lens.ranks import joined_ranks

    with joined_ranks():
        _, tables = run_planted(settings)
        print_tables(*tables)
        _name_report(settings)


def paper(settings: PaperSettings) -> None:
    """Repeat the paper that introduced MTSAEs, and show by experiment why its model did not learn.

    Finished work is kept. Run the same command again to resume.
    """
    from mtsae_lens.experiments.paper.run import run_paper

    _, tables = run_paper(settings)
    print_tables(*tables)
    _name_report(settings)


def _name_report(settings: Any) -> None:
    say(f"report: {settings.out / 'report.html'}")


VERBS: tuple[Callable[..., None], ...] = (
    train,
    cache,
    evaluate,
    compare,
    unlearn,
    unlearn_benchmark,
    generate,
    export,
    explore,
    upload,
    export_neuronpedia,
    demo,
    planted,
    paper,
)
