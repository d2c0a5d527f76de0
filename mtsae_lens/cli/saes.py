"""Verbs of an SAE: train it, measure it, look at it, share it."""

from __future__ import annotations

from typing import Annotated

import typer

from mtsae_lens.cli.options import (
    BatchSize,
    Config,
    Device,
    HookName,
    Model,
    Out,
    SAEFolder,
    Seed,
    one_text,
    typed,
)
from mtsae_lens.cli.output import print_tables, say, say_aside
from mtsae_lens.commands.evaluate import EvaluateSettings, metrics_table, run_evaluate
from mtsae_lens.commands.explore import ExploreSettings, run_explore
from mtsae_lens.commands.neuronpedia import NeuronpediaSettings, run_export_neuronpedia
from mtsae_lens.commands.train import run_train
from mtsae_lens.commands.upload import UploadSettings, run_upload
from mtsae_lens.settings import parse_assignments
from mtsae_lens.training.recipe import TrainSettings


def train(
    model: Model = None,
    hook_name: HookName = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="embedded, an embedded domain, a hub name, or a .txt, .jsonl, .parquet or folder.")
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="mtsae, or any that SAELens trains: topk, standard, ...")] = None,
    d_sae: Annotated[int | None, typer.Option(help="Features.")] = None,
    training_tokens: Annotated[int | None, typer.Option(help="Tokens to train on.")] = None,
    context_size: Annotated[int | None, typer.Option(help="Positions in a context.")] = None,
    batch_size_tokens: Annotated[int | None, typer.Option(help="Tokens in a batch; a multiple of the context size.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the language model: float32, bfloat16 or float16.")] = None,
    prepend_bos: Annotated[bool | None, typer.Option(help="Begin every context with BOS.")] = None,
    wandb: Annotated[bool | None, typer.Option(help="Log to Weights & Biases too.")] = None,
    wandb_project: Annotated[str | None, typer.Option(help="Log to this project of Weights & Biases.")] = None,
    sae: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the architecture, such as --set k=16; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Train an SAE."""
    given = typed(locals(), dataset=one_text("--dataset", dataset), sae=parse_assignments(sae) if sae else None, resume=None)
    if wandb is None and wandb_project:
        given["wandb"] = True
    settings = TrainSettings.build(config, given)
    if resume and not (settings.out / "checkpoints").is_dir():
        say_aside(f"no checkpoint in {settings.out}: starting anew")
    metrics = run_train(settings, resume=resume)
    final = metrics["final"]
    numbers = [
        _number(value, form)
        for value, form in (
            (final.get("metrics/explained_variance"), ".3f"),
            (final.get("metrics/l0"), ".1f"),
            (metrics["never_fired"], ","),
            (metrics["always_on"], ","),
        )
    ]
    say(
        "trained {:,} steps: on training batches explained variance {}, L0 {}; of {:,} features {} never fired and {} fired on over half "
        "of the tokens; saved in {}".format(
            metrics["n_training_steps"], *numbers[:2], metrics["n_features"], *numbers[2:], settings.out
        )
    )


def _number(value: float | None, form: str) -> str:
    """Format a number; None is one that was not finite, or that an older log does not hold."""
    return "unknown" if value is None else format(value, form)


def evaluate(
    sae: SAEFolder,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Held-out text; the training dataset's own test split if not given.")
    ] = None,
    model: Model = None,
    n_contexts: Annotated[
        int | None, typer.Option(help="Contexts to read of a split, at most, for all that is measured.")
    ] = None,
    batch_size: BatchSize = None,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Measure an SAE on held-out text with SAELens's run_evals."""
    settings = EvaluateSettings.build(config, typed(locals(), dataset=one_text("--dataset", dataset)))
    measured = run_evaluate(settings)
    print_tables(metrics_table({"value": measured}))
    say(f"report: {settings.out / 'report.html'}")


def explore(
    sae: SAEFolder,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to look through; may be repeated, the first is compared with the others. The training dataset if not given."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, select (the default), tune or test.")] = None,
    n_tokens: Annotated[int | None, typer.Option(help="Tokens to look through.")] = None,
    n_examples: Annotated[int | None, typer.Option(help="Strongest examples of each feature.")] = None,
    n_ablated: Annotated[int | None, typer.Option(help="Of those, how many are ablated; 0 leaves that out.")] = None,
    n_attributed: Annotated[
        int | None, typer.Option(help="And how many attributed through the model; 0 leaves that out.")
    ] = None,
    model: Model = None,
    batch_size: BatchSize = None,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Find out what every feature does: examples, time scales, effects. What is done is kept, and goes on when typed again."""
    settings = ExploreSettings.build(config, typed(locals()))
    facts, page = run_explore(settings)
    fewer = facts["n_tokens"] < 0.9 * facts["n_tokens_asked"]  # special tokens are asked for and not counted
    asked = f" (all there were; {facts['n_tokens_asked']:,} were asked for)" if fewer else ""
    say(f"looked at {facts['n_tokens']:,} tokens{asked}")
    say(f"page: {page}")


def upload(
    sae: SAEFolder,
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub; created if there is none.")],
    sae_id: Annotated[str | None, typer.Option(help="Folder of the SAE in the repository; its hook, if not given.")] = None,
    metrics: Annotated[str | None, typer.Option(metavar="FILE", help="metrics.json of 'mtsae evaluate', for the card.")] = None,
    private: Annotated[bool | None, typer.Option("--private", help="Create the repository as a private one.")] = None,
    dry_run: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write the files into this new folder instead of sending them.")
    ] = None,
    config: Config = None,
) -> None:
    """Put an SAE on the Hugging Face hub, in SAELens's layout, with a card."""
    place = run_upload(UploadSettings.build(config, typed(locals())))
    say(f"{'written, not sent' if dry_run else 'uploaded'}: {place}")


def export_neuronpedia(
    facts: Annotated[str, typer.Argument(help="The --out folder of 'mtsae explore'.")],
    out: Out = None,
    model_id: Annotated[str | None, typer.Option(help="Neuronpedia's name of the model.")] = None,
    sae_set: Annotated[str | None, typer.Option(help="Neuronpedia's name of the set of SAEs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Features in a file.")] = None,
    config: Config = None,
) -> None:
    """Write what 'mtsae explore' found in the JSON that Neuronpedia imports."""
    settings = NeuronpediaSettings.build(config, typed(locals()))
    n_batches = run_export_neuronpedia(settings)
    say(f"{n_batches} batches in {settings.out}")
