"""Run the main job on the embedded model: train, evaluate next to a TopK SAE, unlearn, explore the features, report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from sae_lens import SAE

from mtsae_lens import __version__
from mtsae_lens.commands.evaluate_results import fidelity_summary, finite_or_none, metrics_table
from mtsae_lens.commands.explore import run_explore
from mtsae_lens.commands.unlearn import unlearn
from mtsae_lens.commands.unlearn_report import BEFORE_AND_AFTER, effects_table, unlearning_sections, unlearning_summary
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.experiments.demo_settings import DemoSettings
from mtsae_lens.exploration.examples import FeatureExamples, top_examples
from mtsae_lens.interruption import GOES_ON, interrupt_on_signal
from mtsae_lens.opening import load_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Record, Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.explorer.page import INDEX_FILE
from mtsae_lens.reporting.features import feature_cards
from mtsae_lens.reporting.figures import scale_curves, training_curves
from mtsae_lens.reporting.page import Section, Table, write_report
from mtsae_lens.sae.config import ARCHITECTURE
from mtsae_lens.splice.edit_files import weights_digest
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.training.log import read_log
from mtsae_lens.training.several import train_saes
from mtsae_lens.trials import Trial, run_trials
from mtsae_lens.unlearning.results import UnlearningResult

BASELINE = "topk"
ARCHITECTURES = (ARCHITECTURE, BASELINE)
_EDITED = "Features that were edited"


@dataclass(frozen=True)
class DemoResult(Record):
    """What the demo measured."""

    fidelity: dict[str, dict[str, int | float | None]]
    """By architecture, SAELens's metrics and those of `evaluate_fidelity`; None where one is not finite."""
    unlearning: UnlearningResult


@interrupt_on_signal(GOES_ON)
@in_output_folder
def run_demo(settings: DemoSettings) -> tuple[DemoResult, list[Table]]:
    """Run the demo, and write `metrics.json` (`fidelity` by architecture, `unlearning`, `provenance`), `report.html` and the page
    `explore/`.

    Trainings, evaluations and the unlearning experiment are saved in the folder as soon as they are done; the same call resumes the work.

    Args:
        settings: what to run.

    Returns:
        What was measured, and the tables to print.

    Raises:
        ConfigError: the folder holds results of other settings.
        TrainingInterrupted: a signal arrived; the same call resumes the work.
    """
    watch = Stopwatch()
    model = load_language_model("embedded")
    assert model.tokenizer is not None
    cutter = ContextCutter(model.tokenizer, settings.training(ARCHITECTURE).context_size)
    train_saes([settings.training(architecture) for architecture in ARCHITECTURES], model, resume=True)
    saes = {architecture: load_sae(settings.training(architecture).out) for architecture in ARCHITECTURES}
    lm = HookedLM(model, Splice(saes[ARCHITECTURE]), cutter)
    trials: dict[str, Trial] = {name: partial(_fidelity, settings, sae, model, cutter) for name, sae in saes.items()}
    trials["unlearning"] = partial(_unlearning, settings, lm)
    digests = {name: weights_digest(sae) for name, sae in saes.items()}
    done = run_trials(settings.out / "trials", _depends_on(settings) | {"sae_sha256": digests}, trials, "Demo")
    result = DemoResult.from_json({"fidelity": {name: done[name] for name in ARCHITECTURES}, "unlearning": done["unlearning"]})

    forget_table = read_tokens(settings.forget, "tune", cutter, settings.contexts_per_split, seed=settings.seed)
    features = top_examples(lm, forget_table, result.unlearning.chosen.features[: settings.n_shown_features], n_examples=3)
    explored = run_explore(settings.exploration())[0] if settings.n_explored_tokens else None

    made = provenance(settings.seed, watch.seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, result.to_json() | {"provenance": made})
    _write_report(settings, result, made, (features, explored), lm.sae.cfg)
    return result, [metrics_table(result.fidelity), effects_table(result.unlearning)]


def _fidelity(settings: DemoSettings, sae: SAE[Any], model: AnyHookedModel, cutter: ContextCutter) -> dict[str, Any]:
    held_out = read_tokens("embedded", "test", cutter, settings.n_eval_contexts, seed=settings.seed)
    return finite_or_none(evaluate_fidelity(sae, model, cutter, held_out))


def _unlearning(settings: DemoSettings, lm: HookedLM) -> dict[str, Any]:
    unlearning = settings.unlearning()
    assert unlearning.reference is not None
    return unlearn(unlearning, lm, load_language_model(unlearning.reference))[1].to_json()


def _depends_on(settings: DemoSettings) -> dict[str, Any]:
    """Return what the saved results depend on, besides the SAEs."""
    unlearning = settings.unlearning().model_dump(mode="json", exclude={"sae", "out"})
    return {"version": __version__, "n_eval_contexts": settings.n_eval_contexts, "unlearning": unlearning}


def _write_report(
    settings: DemoSettings,
    result: DemoResult,
    made: dict[str, Any],
    features: tuple[Sequence[FeatureExamples], dict[str, Any] | None],
    config: Any,
) -> None:
    edited, explored = features
    logs = {name: read_log(settings.training(name).out / "training_log.jsonl") for name in ARCHITECTURES}
    fidelity_text = (
        f"SAELens's run_evals on {result.fidelity[ARCHITECTURE]['n_tokens']:,.0f} held-out tokens. Both SAEs were trained on the same "
        "rows in the same order, with the same width, L0, steps and schedule."
    )
    unlearning = settings.unlearning()
    budgets = {"near": unlearning.near_budget, "far": unlearning.far_budget}
    sections = [
        Section("How good is the SAE?", fidelity_text, table=metrics_table(result.fidelity)),
        *unlearning_sections(result.unlearning, budgets),
        Section(
            _EDITED,
            f"The places in held-out text of {settings.forget} where they fire most. Darker is stronger, and the frame marks the peak.",
            html=feature_cards(edited),
        ),
        *([_exploration_section(explored)] if explored else []),
        Section("Training", "Measured on training batches, masked positions left out.", figure=training_curves(logs)),
        Section(
            "Time scales",
            "Norm of the encoder rows of each dilation, over training: how much weight the encoder gives it.",
            figure=scale_curves(logs[ARCHITECTURE], config.dilations),
        ),
    ]
    lead = (
        f"A Multi-Scale Temporal SAE ({config.d_sae:,} features, L0 {config.k}, dilations {', '.join(map(str, config.dilations))}) on the "
        f"embedded language model, and what the model forgets when features of {settings.forget!r} are edited."
    )
    places = {section.title: f"section-{number}" for number, section in enumerate(sections, start=1)}
    summary = _summary(settings, result, places, explored)
    write_report(settings.out, "mtsae-lens demo", lead, sections, made, summary)


def _summary(
    settings: DemoSettings,
    result: DemoResult,
    places: Mapping[str, str],
    explored: dict[str, Any] | None,
) -> list[str]:
    """Return sentences on what was trained and how good it is, what was unlearned and at what cost, and where to look next."""
    own, baseline = (result.fidelity[name] for name in ARCHITECTURES)
    beside = baseline["explained_variance"]
    trained = (
        f"Trained: an MTSAE on {settings.training_tokens:,} tokens. It {fidelity_summary(own)}. A TopK SAE with the same training explains "
        f"{'an unknown share' if beside is None else f'{beside:.1%}'}."
    )
    links = [Markup('the <a href="#{}">features that were edited</a>').format(places[_EDITED])]
    if BEFORE_AND_AFTER in places:
        links.append(Markup('the <a href="#{}">texts before and after</a>').format(places[BEFORE_AND_AFTER]))
    if explored:
        links.append(Markup('the <a href="explore/{}">page of every feature</a>').format(INDEX_FILE))
    look = Markup(
        "Look next at {}; then give your own text: <code>mtsae unlearn {} --forget FILE --retain FILE</code>."
    ).format(Markup(", at ").join(links), shlex.quote(str(_shared_path(settings.out) / ARCHITECTURE)))
    return [trained, unlearning_summary(result.unlearning), look]


def _shared_path(out: Path) -> Path:
    """Return the folder for a report, without a path of this machine."""
    return Path(out.name) if out.is_absolute() else out


def _exploration_section(explored: dict[str, Any]) -> Section:
    link = Markup('<p><a href="explore/{}">All {:,} features</a></p>').format(INDEX_FILE, explored["d_sae"])
    text = (
        f"For each feature, from {explored['n_tokens']:,} tokens of {len(explored['corpora'])} texts: where it fires, which scale and which "
        "earlier tokens drive it, which tokens it promotes, and what the model loses without it."
    )
    return Section("All features", text, html=link)
