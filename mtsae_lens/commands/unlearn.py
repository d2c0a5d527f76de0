"""Remove a topic from a model by editing features, and measure what that did."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from sae_lens import HookedSAETransformer

from mtsae_lens.commands.unlearn_report import unlearning_sections, unlearning_summary
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.precision import Dtype, dtype_name
from mtsae_lens.data.vocabularies import check_reference
from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.interruption import STARTS_ANEW, stopped_with
from mtsae_lens.machine_paths import shorten
from mtsae_lens.opening import open_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, fields_of, provenance, write_metrics
from mtsae_lens.reporting.page import write_report
from mtsae_lens.settings import Settings
from mtsae_lens.splice.edit_files import save_edit
from mtsae_lens.splice.hooked_lm import HookedLM, fit_batch
from mtsae_lens.unlearning.candidates import Grid
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS, check_edit_kind
from mtsae_lens.unlearning.protocol import Chosen, UnlearningSettings, choose, measure_on_test
from mtsae_lens.unlearning.results import ChosenEdit, UnlearningResult
from mtsae_lens.unlearning.selection.scores import SCORES
from mtsae_lens.unlearning.task import Corpus, Task, check_corpus

EDIT_FILE = "edit.json"


class UnlearnSettings(Settings):
    """Settings of `mtsae unlearn`."""

    sae: Path
    out: Path = Path("runs/unlearn")
    forget: str
    retain: tuple[str, ...] = Field(min_length=1)
    """Text far from the forget text."""
    near: tuple[str, ...] = ()
    """Text near to it, spared by the gate alone."""
    neutral: tuple[str, ...] = ()
    """Text that is only measured: nothing is chosen to spare it."""
    reference: str | None = None
    """A language model that never saw the forget text; the edit then aims at its loss, not beyond."""
    model: str | None = None
    dtype: Dtype | None = None
    """Of the language model and the reference; None for that on which the SAE was trained."""
    scores: tuple[str, ...] = Field(Grid.scores, min_length=1)
    """Ways of choosing features: `mtsae_lens.unlearning.scores.SCORES`."""
    n_features: tuple[int, ...] = Field(Grid.n_features, min_length=1)
    edits: tuple[str, ...] = Field(Grid.edits, min_length=1)
    """What is done to the features: `mtsae_lens.unlearning.edit_kinds.EDIT_KINDS`."""
    multipliers: tuple[float, ...] = Field(Grid.multipliers, min_length=1)
    false_positive_rates: tuple[float | None, ...] = Field(Grid.false_positive_rates, min_length=1)
    """Shares of retain positions at which the gate may open by mistake; null is no gate."""
    scales: tuple[int, ...] = ()
    """Of an MTSAE, edit only features that these dilations drive."""
    min_scale_share: float = Field(Grid.min_scale_share, gt=0, le=1)
    far_budget: float = UnlearningSettings.far_budget
    near_budget: float = UnlearningSettings.near_budget
    min_ratio: float = UnlearningSettings.min_ratio
    n_random_draws: int = Field(UnlearningSettings.n_random_draws, gt=0)
    contexts_per_split: int = Field(Task.contexts_per_split, gt=0)
    batch_size: int = Field(16, gt=0)
    seed: int = Field(0, ge=0, lt=2**32)
    device: str = "cpu"

    @field_validator("scores")
    @classmethod
    def _scores_exist(cls, scores: tuple[str, ...]) -> tuple[str, ...]:
        for score in scores:
            if score not in SCORES:
                raise ConfigError(f"no score {score!r}.{nearest(score, SCORES)}")
        return scores

    @field_validator("edits")
    @classmethod
    def _edits_exist(cls, edits: tuple[str, ...]) -> tuple[str, ...]:
        for edit in edits:
            check_edit_kind(edit)
        return edits

    def protocol(self) -> UnlearningSettings:
        """The part that the protocol reads."""
        return UnlearningSettings(
            grid=Grid(
                self.scores,
                self.n_features,
                self.multipliers,
                self.false_positive_rates,
                self.scales,
                self.min_scale_share,
                self.edits,
            ),
            far_budget=self.far_budget,
            near_budget=self.near_budget,
            min_ratio=self.min_ratio,
            n_random_draws=self.n_random_draws,
            seed=self.seed,
        )

    def task(self) -> Task:
        """Every corpus with its role."""
        corpora = [Corpus(self.forget, "forget")]
        corpora += [Corpus(source, "near") for source in self.near]
        corpora += [Corpus(source, "far") for source in self.retain]
        corpora += [Corpus(source, "neutral") for source in self.neutral]
        return Task(tuple(corpora), self.contexts_per_split, self.seed)


def unlearn(settings: UnlearnSettings, lm: HookedLM, reference: HookedSAETransformer | None) -> tuple[Chosen, UnlearningResult]:
    """Choose an edit on SELECT and TUNE, and measure it on TEST."""
    task = settings.task()
    chosen = choose(lm, task, settings.protocol(), reference)
    edit = ChosenEdit(
        setting=chosen.setting,
        features=chosen.candidate.features,
        n_features=len(chosen.candidate.features),
        edit=EDIT_KINDS[chosen.candidate.kind].formula,
        multiplier=chosen.candidate.multiplier,
    )
    measured = measure_on_test(lm, task, settings.protocol(), chosen, reference)
    return chosen, UnlearningResult(**fields_of(measured), chosen=edit, tune_sweep=chosen.sweep)


@stopped_with(STARTS_ANEW)
@in_output_folder
def run_unlearn(settings: UnlearnSettings) -> UnlearningResult:
    """Run the experiment, and write `metrics.json`, `report.html`, and the chosen edit as `edit.json`.

    `metrics.json` holds the fields of `UnlearningResult` (its `baselines` under the key `ladder`) and `provenance`.
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
    made = provenance(settings.seed, watch.seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, measured.to_json() | {"provenance": made})
    save_edit(settings.out / EDIT_FILE, chosen.edit, lm.splice, made, model=lm.model)
    lead = f"{shorten(str(settings.sae))}: forgetting {shorten(settings.forget)} at {lm.splice.hook_name}."
    sections = unlearning_sections(measured, {"near": settings.near_budget, "far": settings.far_budget})
    write_report(settings.out, "Unlearning", lead, sections, made, [unlearning_summary(measured)])
    return measured
