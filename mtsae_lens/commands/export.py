"""Export an edited model as a Hugging Face folder, and compare it with the edit at its hook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.checksums import write_checksums
from mtsae_lens.commands.export_comparison import ExportResult, compare
from mtsae_lens.commands.export_settings import ExportSettings, Form
from mtsae_lens.data.bridges import BRIDGE_PREFIX, HookedBridge
from mtsae_lens.data.choices import Split
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.lazy_logits import Logits
from mtsae_lens.data.origins import find_model
from mtsae_lens.data.padding import hugging_face_options
from mtsae_lens.data.precision import dtype_name
from mtsae_lens.data.questions import is_question_source, read_questions
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.export.base_models import BaseModel, check_family, open_base
from mtsae_lens.export.card import model_card
from mtsae_lens.export.hooked import CHECKED_FILES, export_hooked
from mtsae_lens.export.low_rank import LowRankSettings, train_low_rank
from mtsae_lens.export.persistent import project_weights
from mtsae_lens.export.standalone import load_edited
from mtsae_lens.files import write_text, write_whole_folder
from mtsae_lens.interruption import STARTS_ANEW, interrupt_on_signal
from mtsae_lens.machine_paths import shorten, shorten_settings
from mtsae_lens.opening import load_sae, open_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Section, write_report
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edit_files import load_edit, read_edit_file, save_edit
from mtsae_lens.splice.edit_interface import SUPPRESSION, Edit
from mtsae_lens.splice.hook_checks import check_one_hook
from mtsae_lens.splice.hooked_lm import HookedLM, fit_batch
from mtsae_lens.unlearning.measures.effects import as_logits, edited_logits
from mtsae_lens.unlearning.task import check_corpus

MODEL_FOLDER = "model"

_PROJECTED = """The directions of the edit were projected out of all weights that write to the residual stream before the hook:
embeddings, attention and MLP outputs. There is no hook and no gate, so the projection acts everywhere. It equals a projection at
the hook only if no layer before the hook reads the residual stream."""

_LOW_RANK = """Every matrix from the hook's layer on was changed by a product of rank {rank}, trained for {n_steps} steps toward the
model with the edit at its hook, and merged. There is no hook. Finetuning may restore the old behavior."""


_CAVEATS = {
    "hooked": SUPPRESSION,
    "projected": "The projection acts everywhere: no gate spares the text to keep. Finetuning can restore the weights.",
    "low-rank": "There is no hook and no gate: changed weights imitate the edit. Finetuning may restore the old behavior.",
}
_COMPARED = (
    "Nats added per counted token to the loss of the clean model on TEST (forget text: higher is more forgetting; other text: 0 is best), "
    "and the KL divergence of the exported model's predictions from those with the edit at its hook (0 is best)."
)


def low_rank_settings(settings: ExportSettings) -> LowRankSettings:
    """Return the settings of the training of a low-rank change.

    Args:
        settings: settings of the export.
    """
    return LowRankSettings(settings.rank, settings.n_steps, lr=settings.lr, seed=settings.seed)


@dataclass(frozen=True)
class Exported:
    """An exported model, ready to be measured, and other models to compare it with."""

    model: Logits
    numbers: dict[str, int | float | list[float]]
    hook_projection: Logits | None = None


@interrupt_on_signal(STARTS_ANEW)
@in_output_folder
def run_export(settings: ExportSettings) -> ExportResult:
    """Write the model to `OUT/model` and the comparison to `OUT/metrics.json` and `OUT/report.html`.

    `metrics.json` holds the result and its `provenance`.

    Args:
        settings: what to export.

    Returns:
        What was written, and how far it is from the edit at its hook.

    Raises:
        ConfigError: `low-rank` got no text to forget or to retain, or a text has two roles.
        ModelError: the edit belongs to another SAE, or to another language model and this is not allowed.
    """
    watch = Stopwatch()
    if settings.form == "low-rank" and (settings.forget is None or not settings.retain + settings.near):
        raise ConfigError(
            "expected text to train --form low-rank on, got none to forget or none to retain; give --forget and --retain"
        )
    given = [*([settings.forget] if settings.forget else []), *settings.near, *settings.retain]
    repeated = sorted({source for source in given if given.count(source) > 1})
    if repeated:
        raise ConfigError(
            f"expected one role for each text, got two for {repeated[0]}; give it once, as --forget, --near or --retain"
        )
    for source in settings.corpora():
        check_corpus(source)
    base = settings.model or load_sae(settings.sae, settings.device).cfg.metadata.model_name
    if base is not None:
        check_family(base)  # before the model is loaded
    lm, _ = open_sae(
        settings.sae,
        model=settings.model,
        device=settings.device,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        check=check_one_hook,
    )
    lm = fit_batch(lm)
    edit = load_edit(settings.edit, lm, allow_other_model=settings.allow_other_model)
    exported = _FORMS[settings.form](settings, lm, edit)
    comparison = {
        source: compare(
            lm,
            _read(settings, lm, source, "test", settings.n_contexts),
            edit,
            role,
            exported.model,
            exported.hook_projection,
        )
        for source, role in settings.corpora().items()
    }
    made = provenance(settings.seed, watch.seconds, settings.model_dump(mode="json"))
    result = ExportResult(settings.form, _CAVEATS[settings.form], comparison, exported.numbers)
    write_metrics(settings.out, result.to_json() | {"provenance": made})
    sections = [Section("Comparison with the edit at its hook", _COMPARED, result.table())] if comparison else []
    lead = f"{shorten(str(settings.edit))} as a model, {settings.form}. {result.caveat}"
    write_report(settings.out, "Export", lead, sections, made)
    return result


def _hooked(settings: ExportSettings, lm: HookedLM, edit: Edit) -> Exported:
    folder = settings.out / MODEL_FOLDER
    difference = export_hooked(folder, lm, edit, _base_name(settings, lm), _made(settings))
    model = load_edited(folder, dtype=lm.model.cfg.dtype).to(settings.device)
    d_vocab = lm.model.cfg.d_vocab

    def logits(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        return model(tokens, use_cache=False, **hugging_face_options(lm.left_padding(tokens))).logits[..., :d_vocab]

    return Exported(logits, {"max_log_prob_difference": difference})


def _projected(settings: ExportSettings, lm: HookedLM, edit: Edit) -> Exported:
    projection = edit.as_projection(lm.sae)
    if not isinstance(projection, DirectionEdit):
        raise ModelError(
            f"expected {type(edit).__name__}.as_projection to return a DirectionEdit, got a {type(projection).__name__}; change the method"
        )
    base = open_base(_base_name(settings, lm), device=settings.device)
    project_weights(base, projection, lm.splice.hook_name)
    model = _save(settings, lm, edit, base, _PROJECTED)
    return Exported(model, {"n_directions": len(projection.basis)}, edited_logits(lm, projection))


def _low_rank(settings: ExportSettings, lm: HookedLM, edit: Edit) -> Exported:
    options, watch = low_rank_settings(settings), Stopwatch()
    base = open_base(_base_name(settings, lm), device=settings.device)
    forget, *retain = [_read(settings, lm, source, "train", settings.train_contexts) for source in settings.corpora()]
    losses = train_low_rank(base, lm, edit, forget, retain, options)
    numbers: dict[str, int | float | list[float]] = {
        "rank": options.rank,
        "n_steps": options.n_steps,
        "losses": losses,
        "seconds": watch.seconds,
    }
    what = _LOW_RANK.format(rank=options.rank, n_steps=options.n_steps)
    return Exported(_save(settings, lm, edit, base, what), numbers)


_FORMS: dict[Form, Callable[[ExportSettings, HookedLM, Edit], Exported]] = {
    "hooked": _hooked,
    "projected": _projected,
    "low-rank": _low_rank,
}


def _save(settings: ExportSettings, lm: HookedLM, edit: Edit, base: BaseModel, what: str) -> Logits:
    """Write a model folder, and load it like any other model: as a bridge if `lm.model` is one."""
    folder = settings.out / MODEL_FOLDER
    sections = {
        "What was done to the weights": what,
        "How to load it": "`AutoModelForCausalLM.from_pretrained` on this folder.",
    }
    hook_name = lm.splice.hook_name
    with write_whole_folder(folder) as partial:
        base.save(partial)
        save_edit(partial / "edit.json", edit, lm, _made(settings))
        card = model_card(
            "A language model with an edit in its weights", _base_name(settings, lm), hook_name, edit, sections, _made(settings)
        )
        write_text(partial / "README.md", card)
        write_checksums(partial, CHECKED_FILES)
    prefix = BRIDGE_PREFIX if isinstance(lm.model, HookedBridge) else ""
    model = load_language_model(f"{prefix}{folder}", device=settings.device, dtype=dtype_name(lm.model.cfg.dtype))
    return as_logits(model, lm.cutter)


def _base_name(settings: ExportSettings, lm: HookedLM) -> str:
    name = settings.model or find_model(lm.sae.cfg.metadata, settings.sae)
    assert name is not None  # open_sae has opened the model
    return name


def _made(settings: ExportSettings) -> dict[str, Any]:
    """Return the provenance of an exported model: how it was exported, and what made the edit."""
    of_edit = read_edit_file(settings.edit).provenance
    return {"sae": settings.sae.resolve().name, "form": settings.form, "seed": settings.seed, "edit": shorten_settings(of_edit)}


def _read(settings: ExportSettings, lm: HookedLM, source: str, split: Split, n_contexts: int) -> TokenTable:
    """Read contexts of a text. Questions have no training split; SELECT is read instead."""
    if is_question_source(source):
        return read_questions(source, "select" if split == "train" else split, lm.cutter, n_contexts, seed=settings.seed)
    return read_tokens(source, split, lm.cutter, n_contexts, seed=settings.seed)
