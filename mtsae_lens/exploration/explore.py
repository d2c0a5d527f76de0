"""Make a folder of facts from model, SAE and text; a run that was stopped continues where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mtsae_lens.checksums import check_checksums, write_checksums
from mtsae_lens.data.batch_sizes import contexts_at_once
from mtsae_lens.data.origins import display_name
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError, TrainingInterrupted
from mtsae_lens.exploration.ablation import measure_ablation
from mtsae_lens.exploration.cofiring import choose_sampling_interval
from mtsae_lens.exploration.columns import TokenTexts
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.example_table import get_encoder_biases, write_examples
from mtsae_lens.exploration.feature_table import Effects, write_features
from mtsae_lens.exploration.memory import measure_carried_variance
from mtsae_lens.exploration.model_attribution import attribute_to_tokens
from mtsae_lens.exploration.peaks import Peaks, find_strongest_peaks
from mtsae_lens.exploration.plan import IMPULSE_LAGS, PERSISTENCE_LAGS, Plan
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.exploration.text_table import write_texts
from mtsae_lens.facts.folder import ABOUT_FILE, EXAMPLES_FILE, FEATURES_FILE, FORMAT, N_STRONGEST, TEXTS_FILE
from mtsae_lens.files import create_folder
from mtsae_lens.interruption import interrupt_on_signal, stop_on_signal
from mtsae_lens.machine_paths import shorten
from mtsae_lens.output_folders import hold_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.records import Stopwatch
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.sealed import read_json, read_tensors, write_sealed_json, write_tensors
from mtsae_lens.splice.attribution import attribution
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.trials import check_settings

_SAVE_EVERY_SECONDS = 60.0
_MAX_BYTES = 2**27  # size of a tensor with gradients; about eight are in memory at once
STATE_FOLDER = "state"
_REMEDY = "delete it; the same command makes it again"


def _kept(state: Path, name: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return a result that is computed once and kept in the folder of the state. Several ranks compute it together."""
    path, ranks = state / f"{name}.safetensors", current_ranks()
    if not ranks.tell(path.exists()):
        values = compute()
        if ranks.is_first:
            write_tensors(path, {name: values})
        return values
    tensors, _ = read_tensors(path, _REMEDY)
    if name not in tensors:
        raise DataError(f"{path}: expected a tensor {name!r} in this file, got none (damaged); {_REMEDY}")
    return tensors[name]


def explore(
    lm: HookedLM,
    corpora: Corpora,
    out: Path,
    plan: Plan,
    *,
    settings: Mapping[str, Any],
    about: Callable[[float], Mapping[str, Any]],
) -> dict[str, Any]:
    """Measure what every feature does, and write `explore.json`, `features.parquet`, `examples.parquet` and `texts.parquet`.

    Several ranks (`mtsae_lens.ranks`) share the text and the peaks. The first one writes, and all return.

    Args:
        lm: model and SAE, of any architecture.
        corpora: text to explore; `selectivity` compares the first corpus with the others.
        out: folder for the facts; complete facts in it are kept.
        plan: how much is measured, and how examples are shown.
        settings: everything that the facts depend on, as JSON; a folder with other settings is refused.
        about: returns further content of `explore.json` (`sae`, `provenance`), given the seconds that the run took.

    Returns:
        The content of `explore.json`.

    Raises:
        ConfigError: the folder holds facts that were made with other settings.
        DataError: a corpus has no text, or a file in the folder is damaged.
        OutputError: the folder cannot be written, or another process writes to it.
        TrainingInterrupted: a signal arrived; the same call resumes the work.
    """
    with hold_output_folder(out):
        return _explore(lm, corpora, out, plan, settings, about)


def _explore(
    lm: HookedLM,
    corpora: Corpora,
    out: Path,
    plan: Plan,
    settings: Mapping[str, Any],
    about: Callable[[float], Mapping[str, Any]],
) -> dict[str, Any]:
    watch, state, ranks = Stopwatch(), out / STATE_FOLDER, current_ranks()
    content = ranks.tell(_finished(out, state, settings) if ranks.is_first else None)
    if content is not None:
        return content
    with interrupt_on_signal(f"finished work is kept in {state}; run the same command to resume"):
        survey = _pass_over_text(lm, corpora, plan, state)
        effects, attributions = _measure(lm, corpora, survey, state)
        if ranks.is_first:
            texts = TokenTexts(lm.cutter.tokenizer, lm.model.cfg.d_vocab)
            write_features(out / FEATURES_FILE, survey, texts, effects)
            write_examples(out / EXAMPLES_FILE, survey, texts, attributions, get_encoder_biases(lm.sae))
            n_text_contexts = write_texts(out / TEXTS_FILE, lm, corpora.tables(plan.n_text_contexts), texts)
            write_checksums(out, ("*.parquet",))
            content = _describe(lm, corpora, survey, n_text_contexts) | dict(about(watch.seconds))
            write_sealed_json(out / ABOUT_FILE, content)
            shutil.rmtree(state, ignore_errors=True)
        ranks.wait_for_all()
    return ranks.tell(content)


def _finished(out: Path, state: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of `explore.json` if the facts are complete; otherwise create the folder of the state."""
    check_settings(out, dict(settings), has_results=(out / ABOUT_FILE).exists() or any(state.glob("*.safetensors")))
    if not (out / ABOUT_FILE).exists():
        create_folder(state)
        return None
    shutil.rmtree(state, ignore_errors=True)  # left by a run that was killed after it wrote its last file
    remedy = f"delete {out / ABOUT_FILE}; the same command makes the facts again"
    content = read_json(out / ABOUT_FILE, dict[str, Any], remedy)
    check_checksums(out, remedy)
    return content


def _pass_over_text(lm: HookedLM, corpora: Corpora, plan: Plan, state: Path) -> Survey:
    """Pass over the text, continuing from a saved state if there is one.

    Ranks take turns at the batches. After each round, in which every rank has read one batch, they agree whether to save and whether to
    stop, so a saved state is that of all batches up to some number, and any number of ranks can continue it.
    """
    ranks, survey = current_ranks(), Survey(lm, plan, len(corpora.sources), _cofiring_interval(corpora))
    path, saved_at = state / "survey.safetensors", Stopwatch()
    if ranks.is_first and path.exists():
        survey.load(path)
    survey.n_batches = start = ranks.tell(survey.n_batches)
    n_expected = len(corpora.sources) * corpora.n_contexts_each * corpora.cutter.context_size
    done = min(
        n_expected, survey.n_batches * lm.batch_size * corpora.cutter.context_size
    )  # with special tokens, as `update` counts them
    bar = tqdm(total=n_expected, initial=done, desc="exploring text", unit="tok", unit_scale=True)
    with bar as progress, stop_on_signal() as stop:
        for batch in corpora.batches(lm.batch_size, start):
            turn = (batch.number - start) % ranks.size
            if turn == ranks.rank:
                survey.add(batch)
            if batch.number == start:
                ranks.copy_from_first_([survey.counts.edges])  # which the first batch determines
            survey.n_batches = batch.number + 1
            progress.update(batch.tokens.numel())
            if turn < ranks.size - 1:
                continue
            signal_number = ranks.agree_to_stop(stop.signal_number)
            if signal_number is not None or ranks.tell(saved_at.seconds > _SAVE_EVERY_SECONDS):
                survey = _save(survey, path)
                saved_at = Stopwatch()
            if signal_number is not None:
                raise TrainingInterrupted(signal_number, f"saved in {state}")
        survey = _save(survey, path)
        signal_number = ranks.agree_to_stop(stop.signal_number)
        if signal_number is not None:
            raise TrainingInterrupted(signal_number, f"saved in {state}")
    if not ranks.is_first:
        survey.load(path)
    return survey


def _save(survey: Survey, path: Path) -> Survey:
    """Save the state of the pass, and return the survey that goes on.

    Each rank but the first writes what it has read since the last time to a file, and starts from nothing. The first one merges these files
    into its survey, and saves it.
    """
    ranks = current_ranks()
    parts = [path.with_name(f"batches_{survey.n_batches}_rank_{rank}.safetensors") for rank in range(1, ranks.size)]
    if not ranks.is_first:
        survey.save(parts[ranks.rank - 1])
        survey = survey.emptied()
    ranks.wait_for_all()
    if ranks.is_first:
        for part in parts:
            other = survey.emptied()
            other.load(part)
            survey.merge(other)
        survey.save(path)
        for part in parts:
            part.unlink()
    ranks.wait_for_all()  # the next save may have the same files, if the text has ended
    return survey


def _cofiring_interval(corpora: Corpora) -> int:
    """Return the interval of the co-firing sample, computed from the tokens that exist: a short text would get a very small sample
    otherwise.
    """
    interval = choose_sampling_interval(corpora.n_tokens)
    return interval if interval == 1 else choose_sampling_interval(corpora.n_tokens_available)


def _measure(lm: HookedLM, corpora: Corpora, survey: Survey, state: Path) -> tuple[Effects, Tensor]:
    """Run the measurements that need the model again: ablations, attribution to the loss, attribution to earlier tokens."""
    plan, d_sae = survey.plan, lm.sae.cfg.d_sae

    def lay_out(peaks: Peaks, values: Tensor, n: int) -> Tensor:
        """Lay out values by feature and rank, with NaN where there is no example."""
        out = torch.full((d_sae, n, values.shape[1]), torch.nan)
        out[peaks.feature, peaks.rank] = values
        return out

    def ablation() -> Tensor:
        peaks = find_strongest_peaks(survey, plan.n_ablated)
        return lay_out(peaks, measure_ablation(lm, peaks), plan.n_ablated)

    def model_attribution() -> Tensor:
        peaks = find_strongest_peaks(survey, plan.n_attributed)
        values = attribute_to_tokens(lm, peaks, plan.before, plan.after)
        return lay_out(peaks, values, plan.n_attributed)

    def loss_attribution() -> Tensor:
        if not plan.n_attribution_contexts:
            return torch.full((d_sae,), torch.nan)
        tables = corpora.tables(plan.n_attribution_contexts)
        documents = tuple(document for table in tables for document in table.documents)
        everything = TokenTable("all texts", torch.cat([table.tokens for table in tables]), documents)
        batch_size = contexts_at_once(lm.batch_size, lm.cutter.context_size, d_sae, _MAX_BYTES)
        return attribution(replace(lm, batch_size=batch_size), everything, shared=True).float().cpu()

    effects = Effects(_kept(state, "ablation", ablation), _kept(state, "attribution", loss_attribution))
    return effects, _kept(state, "model_attribution", model_attribution)


def _describe(lm: HookedLM, corpora: Corpora, survey: Survey, n_text_contexts: int) -> dict[str, Any]:
    sae, counts, plan = lm.sae, survey.counts, survey.plan
    temporal = sae if isinstance(sae, TemporalEncoder) else None
    return {
        "format": FORMAT,
        "architecture": sae.cfg.architecture(),
        "model": display_name(sae.cfg.metadata.model_name or lm.model.cfg.model_name),
        "hook_name": lm.splice.hook_name,
        "decoded_hook_name": lm.splice.decoded_hook_name,
        "d_sae": sae.cfg.d_sae,
        "d_in": sae.cfg.d_in,
        "context_size": lm.cutter.context_size,
        "dilations": temporal.dilations if temporal is not None else [],
        "offsets": temporal.read_offsets if temporal is not None else [0],
        "n_tokens": int(counts.n_tokens.sum()),
        "corpora": [
            {"name": shorten(name), "n_tokens": n} for name, n in zip(corpora.sources, counts.n_tokens.tolist(), strict=True)
        ],
        "split": corpora.split,
        "n_tokens_asked": corpora.n_tokens,
        "histogram_edges": counts.edges.tolist(),
        "persistence_lags": list(PERSISTENCE_LAGS),
        "impulse_lags": list(IMPULSE_LAGS) if temporal is not None and temporal.has_memory else [],
        "carried_variance": measure_carried_variance(lm, corpora.tables(plan.n_text_contexts)),
        "before": plan.before,
        "after": plan.after,
        "n_examples": plan.n_examples,
        "n_sampled": plan.n_sampled,
        "n_text_contexts": n_text_contexts,
        "n_strongest": N_STRONGEST,
        "n_cofiring_tokens": survey.cofiring.n_tokens,
    }
