"""Remove a topic from a model by editing features, and measure the effects."""

from __future__ import annotations

from mtsae_lens.commands.unlearn_report import unlearning_sections, unlearning_summary
from mtsae_lens.commands.unlearn_settings import UnlearnSettings
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.precision import dtype_name
from mtsae_lens.data.vocabularies import check_reference
from mtsae_lens.interruption import STARTS_ANEW, interrupt_on_signal
from mtsae_lens.machine_paths import shorten
from mtsae_lens.opening import open_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, fields_of, provenance, write_metrics
from mtsae_lens.reporting.page import write_report
from mtsae_lens.splice.edit_files import save_edit
from mtsae_lens.splice.hooked_lm import HookedLM, fit_batch
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS
from mtsae_lens.unlearning.protocol import Chosen, choose, measure_on_test
from mtsae_lens.unlearning.results import ChosenEdit, UnlearningResult
from mtsae_lens.unlearning.task import check_corpus

EDIT_FILE = "edit.json"


def unlearn(settings: UnlearnSettings, lm: HookedLM, reference: AnyHookedModel | None) -> tuple[Chosen, UnlearningResult]:
    """Choose an edit on SELECT and TUNE, and measure it on TEST.

    Args:
        settings: corpora, candidates and budgets.
        lm: the model with its SAE.
        reference: the model trained without the forget text; None without one.

    Returns:
        The chosen edit, and the results.
    """
    task = settings.task()
    chosen = choose(lm, task, settings.protocol(), reference)
    edit = ChosenEdit(
        setting=chosen.setting,
        features=chosen.candidate.features,
        n_features=len(chosen.candidate.features),
        edit=EDIT_KINDS[chosen.candidate.kind].formula,
        multiplier=chosen.candidate.multiplier,
        error_rank=chosen.candidate.error_rank,
        gate=chosen.edit.gate.describe(),
    )
    measured = measure_on_test(lm, task, settings.protocol(), chosen, reference)
    return chosen, UnlearningResult(**fields_of(measured), chosen=edit, tune_sweep=chosen.sweep)


@interrupt_on_signal(STARTS_ANEW)
@in_output_folder
def run_unlearn(settings: UnlearnSettings) -> UnlearningResult:
    """Run the experiment, and write `metrics.json`, `report.html`, and the chosen edit as `edit.json`.

    `metrics.json` has the fields of `UnlearningResult` (its `baselines` under the key `ladder`) and `provenance`.

    Args:
        settings: what to run.

    Returns:
        The results.

    Raises:
        DataError: a text does not exist, or a question is longer than a context.
    """
    watch = Stopwatch()
    task = settings.task()
    for corpus in task.corpora:
        check_corpus(corpus.source)
    lm, _ = open_sae(
        settings.sae, model=settings.model, device=settings.device, batch_size=settings.batch_size, dtype=settings.dtype
    )
    task.check_questions(lm.cutter)
    lm = fit_batch(lm)
    lm.check_generates()
    reference = None
    if settings.reference:
        reference = load_language_model(settings.reference, device=settings.device, dtype=dtype_name(lm.model.cfg.dtype))
    if reference is not None:
        check_reference(reference, lm.model, lm.cutter)
    chosen, measured = unlearn(settings, lm, reference)
    made = provenance(settings.seed, watch.seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, measured.to_json() | {"provenance": made})
    save_edit(settings.out / EDIT_FILE, chosen.edit, lm, made)
    lead = f"{shorten(str(settings.sae))}: forgetting {shorten(settings.forget)} {lm.splice.place}."
    sections = unlearning_sections(measured, {"near": settings.near_budget, "far": settings.far_budget})
    write_report(settings.out, "Unlearning", lead, sections, made, [unlearning_summary(measured)])
    return measured
