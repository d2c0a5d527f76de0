"""Remove a topic from a model by editing features, and measure what that did."""

from __future__ import annotations

from typing import Any

from sae_lens import HookedSAETransformer

from mtsae_lens.commands.unlearn_report import unlearning_sections, unlearning_summary
from mtsae_lens.commands.unlearn_settings import UnlearnSettings
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.precision import dtype_name
from mtsae_lens.data.vocabularies import check_reference
from mtsae_lens.interruption import STARTS_ANEW, stopped_with
from mtsae_lens.machine_paths import shorten
from mtsae_lens.opening import open_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import write_report
from mtsae_lens.splice.edit_files import save_edit
from mtsae_lens.splice.hooked_lm import HookedLM, fit_batch
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS
from mtsae_lens.unlearning.protocol import Chosen, choose, measure_on_test
from mtsae_lens.unlearning.sweep import outcome_row
from mtsae_lens.unlearning.task import check_corpus

EDIT_FILE = "edit.json"


def unlearn(settings: UnlearnSettings, lm: HookedLM, reference: HookedSAETransformer | None) -> tuple[Chosen, dict[str, Any]]:
    """Choose on SELECT and TUNE, measure on TEST."""
    task = settings.task()
    chosen = choose(lm, task, settings.protocol(), reference)
    measured = measure_on_test(lm, task, settings.protocol(), chosen, reference)
    measured["chosen"] = {
        "setting": chosen.setting,
        "features": list(chosen.candidate.features),
        "n_features": len(chosen.candidate.features),
        "edit": EDIT_KINDS[chosen.setting["edit"]].formula,
        "multiplier": chosen.setting["multiplier"],
    }
    measured["tune_sweep"] = [outcome_row(outcome) for outcome in chosen.sweep]
    return chosen, measured


@stopped_with(STARTS_ANEW)
@in_output_folder
def run_unlearn(settings: UnlearnSettings) -> dict[str, Any]:
    """Run the experiment, and write `metrics.json`, `report.html`, and the chosen edit as `edit.json`.

    `metrics.json`: `corpora` and `random_control`, by corpus (`effect_row`: `nll_clean, nll_edited, nll_delta`, its 95% interval, `kl`,
    `top1_agreement`, `exact_memorisation`, `extraction_strength`, ..., `nll_reference`); `ladder` (zero, clamp, gated_clamp) in the same form;
    `documents` (per-document rows of the edit); `calibrated_nll_delta`, `gate`, `generation`, `samples`, `reference` (`further_measures`);
    `chosen`; `tune_sweep`; `identity_error` (logits); `provenance`.
    """
    watch = Stopwatch()
    for corpus in settings.task().corpora:
        check_corpus(corpus.source)
    lm, _ = open_sae(
        settings.sae, model=settings.model, device=settings.device, batch_size=settings.batch_size, dtype=settings.dtype
    )
    lm = fit_batch(lm)
    lm.check_generates()
    reference = None
    if settings.reference:
        reference = load_language_model(settings.reference, device=settings.device, dtype=dtype_name(lm.model.cfg.dtype))
    if reference is not None:
        check_reference(reference, lm.model, lm.cutter)
    chosen, measured = unlearn(settings, lm, reference)
    measured["provenance"] = provenance(settings.seed, watch.seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, measured)
    save_edit(settings.out / EDIT_FILE, chosen.edit, lm.splice, measured["provenance"], model=lm.model)
    lead = f"{shorten(str(settings.sae))}: forgetting {shorten(settings.forget)} at {lm.splice.hook_name}."
    sections = unlearning_sections(measured, {"near": settings.near_budget, "far": settings.far_budget})
    write_report(settings.out, "Unlearning", lead, sections, measured["provenance"], [unlearning_summary(measured)])
    return measured
