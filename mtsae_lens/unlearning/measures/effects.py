"""Measure how a change of a model affects its predictions, document by document.

A change is an edit at a hook or another set of weights; both are measured on the same tokens relative to the same clean model. All
measures of a token come from one teacher-forced pass: greedy decoding reproduces a text exactly if every token is the most likely one
after those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel, is_causal
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.lazy_logits import LazyLogits, LazyModel, Logits, in_chunks, lazily, lazy_logits
from mtsae_lens.data.padding import attention_options
from mtsae_lens.data.precision import in_float32
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError
from mtsae_lens.progress import advance, track
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.sae_state import SAEState
from mtsae_lens.splice.splicing import open_positions
from mtsae_lens.unlearning.measures.predictions import CleanPredictions, Selected, sum_losses, sum_measures
from mtsae_lens.unlearning.measures.results import EditEffect, EditLoss

_Compare = Callable[[CleanPredictions, LazyLogits | None, Selected], Tensor]


def _columns(rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.cat(list(rows)).double().unbind(dim=1)


def measure_edits(lm: HookedLM, table: TokenTable, edits: Sequence[Edit], *, answers_only: bool = False) -> list[EditEffect]:
    """Measure the effect of each edit.

    The model runs to the hook once for all edits. Contexts that an edit leaves unchanged are not run again, and in a causal model only
    the predictions from the first changed position of a context on are compared: those before it are the clean model's.

    Args:
        lm: the model with its SAE.
        table: the text; predictions of special tokens are not counted.
        edits: the edits.
        answers_only: whether edits apply only at the positions from which counted tokens are predicted.

    Returns:
        One effect per edit.

    Raises:
        ConfigError: `edits` is not a sequence.
    """
    return _run_edits(lm, table, edits, (), answers_only=answers_only)[0]


def edit_losses(lm: HookedLM, table: TokenTable, edits: Sequence[Edit]) -> list[EditLoss]:
    """Measure only the losses of each edit, for sweeps; this takes less time than `measure_edits`.

    Args:
        lm: the model with its SAE.
        table: the text.
        edits: the edits.

    Returns:
        One loss per edit.
    """
    return _run_edits(lm, table, (), edits)[1]


def measure_with_controls(
    lm: HookedLM, table: TokenTable, edits: Sequence[Edit], controls: Sequence[Edit]
) -> tuple[list[EditEffect], list[EditLoss]]:
    """Measure the effect of each edit, and the losses of other edits, with one run of the model to the hook.

    Args:
        lm: the model with its SAE.
        table: the text.
        edits: the edits.
        controls: the edits of which only the losses are measured.

    Returns:
        One effect per edit, and one loss per control.
    """
    return _run_edits(lm, table, edits, controls)


@torch.no_grad()
def _run_edits(
    lm: HookedLM, table: TokenTable, edits: Sequence[Edit], controls: Sequence[Edit], *, answers_only: bool = False
) -> tuple[list[EditEffect], list[EditLoss]]:
    """Measure the effects of edits and the losses of controls, batch by batch."""
    for given in (edits, controls):
        if not isinstance(given, Sequence):
            raise ConfigError(f"expected a list of edits, got a {type(given).__name__}; give [edit]")
    everything = [*edits, *controls]
    compares: list[_Compare] = [*(sum_measures for _ in edits), *(sum_losses for _ in controls)]
    rows: list[list[Tensor]] = [[] for _ in everything]
    n_open = [0] * len(everything)
    n_positions = 0
    for batch in track(lm.counted_batches(table), f"measuring edits on {table.corpus}", "batch"):
        tokens, counted, _ = batch
        masked = lm.masked(tokens)
        n_positions += int((~masked).sum())
        h = lm.activations(tokens)
        sae_state = lm.splice.sae_state(h, lm.feature_acts(tokens, h))
        clean = CleanPredictions.of(batch, lm.lazy_logits_from(tokens, h))
        unchanged = {compare: compare(clean, None, slice(None)) for compare in set(compares)}
        for index, (edit, opened) in enumerate(zip(everything, open_positions(sae_state, everything, masked), strict=True)):
            open_at = opened & _before(counted) if answers_only else opened
            n_open[index] += int(open_at.sum())
            edited, selected = _rerun(lm, tokens, h, sae_state, edit, open_at, counted)
            compare = compares[index]
            rows[index].append(unchanged[compare] if edited is None else compare(clean, edited, selected))
            advance()
    open_share = [n / max(n_positions, 1) for n in n_open]
    corpus, documents, n_edits = table.corpus, table.pieces.documents, len(edits)
    return (
        [
            EditEffect(corpus, documents, share, *_columns(r))
            for share, r in zip(open_share[:n_edits], rows[:n_edits], strict=True)
        ],
        [
            EditLoss(corpus, documents, share, *_columns(r))
            for share, r in zip(open_share[n_edits:], rows[n_edits:], strict=True)
        ],
    )


def _rerun(
    lm: HookedLM,
    tokens: Int[Tensor, "batch pos"],
    h: Tensor,
    sae_state: SAEState,
    edit: Edit,
    open_at: Bool[Tensor, "batch pos"],
    counted: Bool[Tensor, "batch pred"],
) -> tuple[LazyLogits | None, Selected]:
    """Run the contexts that an edit changes, and return the logits of the counted predictions that may differ from the clean model's, and
    which of all counted predictions these are; None if there are none.
    """
    touched = open_at.any(dim=1)
    if not bool(touched.any()):
        return None, slice(None)
    edited_h = lm.splice.apply_to_state(h[touched], sae_state.rows(touched), edit, open_at[touched])
    differs = (edited_h != h[touched]).flatten(2).any(dim=-1)
    changed = differs.any(dim=1)
    kept = touched.clone()
    kept[touched] = changed
    affected = torch.zeros_like(open_at)
    affected[kept] = differs[changed].cumsum(dim=1) > 0 if is_causal(lm.model) else True
    affected = affected[:, :-1] & counted
    if not bool(affected.any()):
        return None, slice(None)
    edited = lm.lazy_logits_from(tokens[kept], edited_h[changed])[:, :-1][affected[kept]]
    return edited, slice(None) if bool(affected.sum() == counted.sum()) else affected[counted]


def _before(counted: Bool[Tensor, "batch pred"]) -> Bool[Tensor, "batch pos"]:
    """Return the positions from which counted predictions are made."""
    return torch.cat([counted, torch.zeros_like(counted[:, :1])], dim=1)


def as_logits(model: AnyHookedModel, cutter: ContextCutter | None = None) -> Logits:
    """Turn a hooked model into a function from tokens to logits, as `measure_model` takes it.

    Args:
        model: a `HookedTransformer` or a bridge.
        cutter: says which tokens are padding; None if there is no padding on the left. Tokens include their BOS token.
    """

    def lazy(tokens: Int[Tensor, "batch pos"]) -> LazyLogits:
        padding = torch.zeros_like(tokens, dtype=torch.bool) if cutter is None else cutter.left_padding(tokens)
        return lazy_logits(model, tokens, prepend_bos=False, **attention_options(model, padding))

    return LazyModel(lazy)


def edited_logits(lm: HookedLM, edit: Edit | None) -> Logits:
    """Return a function from tokens to the logits of a model with an edit at its hook.

    Args:
        lm: the model with its SAE; for a model with other weights, pass `dataclasses.replace(lm, model=other)`.
        edit: the edit, which leaves masked positions unchanged; None for the model without an edit.

    Returns:
        A function as `measure_model` takes it.
    """
    if edit is None:
        return as_logits(lm.model, lm.cutter)

    def lazy(tokens: Int[Tensor, "batch pos"]) -> LazyLogits:
        tokens = tokens.to(lm.model.cfg.device)
        return lm.lazy_logits_from(tokens, lm.splice.edited(lm.activations(tokens), edit, lm.masked(tokens)))

    return LazyModel(lazy)


def measure_model(
    model: Logits, clean_model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> EditEffect:
    """Measure another model in the same way as an edit, such as one with other weights or one trained without the text.

    Args:
        model: the model, as a function from tokens to logits.
        clean_model: the model to compare with.
        cutter: says which predictions are counted.
        table: the text.
        batch_size: contexts per forward pass.
    """
    (rows,) = _run_models([model], clean_model, cutter, table, batch_size, sum_measures)
    return EditEffect(table.corpus, table.pieces.documents, 1.0, *_columns(rows))


def model_losses(
    models: Sequence[Logits], clean_model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> list[EditLoss]:
    """Measure only the losses of several models, for sweeps; the clean model runs once.

    Args:
        models: the models, as functions from tokens to logits.
        clean_model: the model to compare with.
        cutter: says which predictions are counted.
        table: the text.
        batch_size: contexts per forward pass.

    Returns:
        One loss per model.
    """
    of_models = _run_models(models, clean_model, cutter, table, batch_size, sum_losses)
    return [EditLoss(table.corpus, table.pieces.documents, 1.0, *_columns(rows)) for rows in of_models]


@torch.no_grad()
def mean_loss(model: Logits, cutter: ContextCutter, table: TokenTable, batch_size: int = 16) -> float:
    """Measure the mean loss of a model, in nats per counted token; NaN if no token is counted.

    Args:
        model: the model, as a function from tokens to logits.
        cutter: says which predictions are counted.
        table: the text.
        batch_size: contexts per forward pass.
    """
    losses = []
    for tokens, counted, _ in track(table.batches(cutter, batch_size), f"measuring a model on {table.corpus}", "batch"):
        logits = lazily(model, tokens)[:, :-1]
        losses.append(logits[counted.to(logits.states.device)].nll(tokens[:, 1:][counted]).cpu().double())
    return torch.cat(losses).mean().item()


@torch.no_grad()
def _run_models(
    models: Sequence[Logits],
    clean_model: AnyHookedModel,
    cutter: ContextCutter,
    table: TokenTable,
    batch_size: int,
    compare: _Compare,
) -> list[list[Tensor]]:
    rows: list[list[Tensor]] = [[] for _ in models]
    batches = table.batches(cutter, batch_size, clean_model.cfg.device)
    for batch in track(batches, f"measuring models on {table.corpus}", "batch"):
        tokens, counted, _ = batch
        clean = CleanPredictions.of(batch, lazily(as_logits(clean_model, cutter), tokens))
        for of_model, model in zip(rows, models, strict=True):
            of_model.append(compare(clean, lazily(model, tokens)[:, :-1][counted], slice(None)))
    return rows


@torch.no_grad()
def max_identity_error(lm: HookedLM, table: TokenTable) -> float:
    """Measure the largest difference of a logit between the clean model and the splice without an edit, on the first batch.

    Args:
        lm: the model with its SAE.
        table: the text.
    """
    tokens = lm.batches(table)[0]
    nothing = FeatureEdit(features=(), multiplier=0.0)
    options = {"prepend_bos": False} | lm.attention_options(tokens)
    with lm.splice.attached(lm.model, nothing, lm.masked(tokens)):
        spliced = lazy_logits(lm.model, tokens, **options)
    clean = lazy_logits(lm.model, tokens, **options)
    return in_chunks(lambda a, b: (in_float32(a) - in_float32(b)).abs().amax(dim=-1), [spliced, clean]).max().item()
