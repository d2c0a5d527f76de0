"""Run SAELens's `run_evals` on held-out text, with two additional checks: dead features and causality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from sae_lens import SAE, Transcoder, run_evals
from torch import Tensor
from typing_extensions import override

from mtsae_lens.data.batch_sizes import contexts_at_once
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import resolve_hook
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.evaluation.massive import explain_without_massive
from mtsae_lens.evaluation.memory import measure_memory
from mtsae_lens.evaluation.readout import ChunkedReadout
from mtsae_lens.progress import advance, phase
from mtsae_lens.sae.collapse import firing_counts
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.upstream import ActivationScaler, EvalConfig, extract_stop_at_layer_from_tlens_hook_name

_MAX_BYTES = 2**27  # for the feature activations of a batch; `run_evals` holds several copies of them at once
_MASKED = -1  # no token has this id


@dataclass
class HeldOutTokens:
    """A token table in place of SAELens's `ActivationsStore`: fixed batches, which start again after each pass.

    A pass reads every context. Batches have equal sizes, or differ by one context, because `run_evals` gives every batch the same weight in
    some metrics.

    Args:
        table: the contexts.
        store_batch_size_prompts: largest number of contexts per batch.
    """

    table: TokenTable
    store_batch_size_prompts: int
    _next: int = 0

    @property
    def n_batches(self) -> int:
        """Return the number of batches per pass."""
        return max(1, -(-len(self.table) // self.store_batch_size_prompts))

    @property
    def context_size(self) -> int:
        """Return the number of tokens per context."""
        return self.table.tokens.shape[1]

    @property
    def batches(self) -> tuple[Tensor, ...]:
        """Return the batches of a pass."""
        return self.table.tokens.tensor_split(self.n_batches)

    @property
    def current(self) -> Tensor:
        """Return the batch that was returned last."""
        return self.batches[self._next - 1]

    def get_batch_tokens(self, batch_size: int | None = None) -> Tensor:
        """Return the next batch.

        Args:
            batch_size: the size that the object was created with, or None.

        Raises:
            ValueError: another batch size is asked for.
        """
        if batch_size not in (None, self.store_batch_size_prompts):
            raise ValueError(
                f"expected batch_size={self.store_batch_size_prompts}, got {batch_size}; create HeldOutTokens with the size you need"
            )
        if self._next == self.n_batches:
            self._next = 0
        self._next += 1
        advance()  # SAELens's loops do not report progress
        return self.current

    def reset_input_dataset(self) -> None:
        """Start a new pass."""
        self._next = 0


@dataclass
class _MarkedTokens(HeldOutTokens):
    """Held-out tokens with the id `_MASKED` at every masked position, because `run_evals` leaves out token ids and not positions.

    `current` has the tokens themselves, which the language model reads.
    """

    cutter: ContextCutter = field(kw_only=True)

    @override
    def get_batch_tokens(self, batch_size: int | None = None) -> Tensor:
        tokens = super().get_batch_tokens(batch_size)
        return tokens.masked_fill(self.cutter.masked(tokens), _MASKED)


@contextmanager
def masked_as_walls(sae: SAE[Any], cutter: ContextCutter, held_out: HeldOutTokens) -> Iterator[None]:
    """Let a temporal SAE read masked positions as walls within this context, as in training. A pointwise SAE is not affected.

    Args:
        sae: the SAE.
        cutter: knows which positions are masked.
        held_out: the batches that are evaluated.
    """
    if not isinstance(sae, TemporalEncoder):
        yield
        return

    def wall(h: Tensor, hook: Any) -> Tensor:
        return zero_rows(h, cutter.masked(held_out.current))

    with sae.hooks(fwd_hooks=[("hook_sae_input", wall)]):
        yield


def evaluate_fidelity(
    sae: SAE[Any], model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, *, batch_size: int = 16
) -> dict[str, float]:
    """Measure the reconstruction with SAELens's `run_evals`, masked positions left out: special tokens and position 0.

    No SAE is trained on these positions. They enter no statistic, and the model keeps its own activations there when the others are replaced
    by their reconstructions.

    The result has SAELens's metrics under SAELens's names, and five more:

    - `dead_features`: features that fire on none of the `n_tokens` tokens; with few tokens, this number is too high;
    - `always_on_features`: features that fire on more than half of the tokens; many of them indicate a collapsed SAE;
    - `massive_tokens`: tokens whose activations are more than ten times as long as the median, such as those of attention sinks;
    - `explained_variance_without_massive`: the explained variance of all other tokens;
    - `future_leak`: share of the feature activations (L1) at positions <= t that changes when only activations after t change; 0 if causal.

    All contexts are measured, in batches of nearly equal size. A batch has fewer contexts than `batch_size` if the SAE is large
    (`contexts_at_once`). Losses and KL divergences are those of
    `run_evals`, computed in chunks of positions (`ChunkedReadout`).

    Args:
        sae: the SAE.
        model: the language model.
        cutter: the tokenizer, and which positions are masked.
        table: held-out contexts.
        batch_size: largest number of contexts per batch.

    Returns:
        Metrics by name.

    Raises:
        ModelError: the SAE's hook does not exist in the model, or has another width.
        DataError: there is no context, or contexts are padded on the left.
    """
    check_fits(sae, model)
    if isinstance(sae, Transcoder):
        raise ModelError(
            f"expected an SAE, got a {sae.cfg.architecture()}, which decodes another hook; measure it with "
            "mtsae_lens.evaluation.transcoding.evaluate_transcoder, as mtsae evaluate does"
        )
    table = replace(table, tokens=table.tokens.to(model.cfg.device))
    check_contexts(table, cutter)
    batch_size = contexts_at_once(min(batch_size, len(table)), table.tokens.shape[1], sae.cfg.d_sae, _MAX_BYTES)
    held_out = _MarkedTokens(table, batch_size, cutter=cutter)
    kept = [~cutter.masked(tokens) for tokens in held_out.batches]
    metrics = _measure_with_saelens(sae, model, held_out, kept)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for tokens, mask in zip(held_out.batches, kept, strict=True):
            yield _at_hook(sae, model, tokens), mask

    metrics["explained_variance_without_massive"], metrics["massive_tokens"] = explain_without_massive(sae, batches())
    if isinstance(sae, TemporalEncoder) and sae.has_memory:
        metrics |= measure_memory(sae, batches())
    metrics["n_tokens"] = sum(int(mask.sum()) for mask in kept)
    metrics["n_contexts"] = len(table)
    metrics["future_leak"] = future_leak(sae, model, table.tokens[:batch_size])
    return metrics


def _measure_with_saelens(
    sae: SAE[Any], model: AnyHookedModel, held_out: _MarkedTokens, kept: Sequence[Bool[Tensor, "batch pos"]]
) -> dict[str, float]:
    """Compute the metrics of `run_evals`, with losses and divergences in chunks of positions, and count features by how often they fire."""
    config = EvalConfig(
        batch_size_prompts=held_out.store_batch_size_prompts,
        n_eval_reconstruction_batches=held_out.n_batches,
        n_eval_sparsity_variance_batches=held_out.n_batches,
        compute_kl=False,  # needs whole logits; the readout does it
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    n_passes = 2  # one for losses, one for statistics of the activations
    bar = phase(f"evaluating {sae.cfg.architecture()}", "batch", n_passes * held_out.n_batches)
    readout = ChunkedReadout(model, lambda marked: held_out.current)
    with bar, masked_as_walls(sae, held_out.cutter, held_out):
        groups, feature_metrics = run_evals(
            sae=sae,
            activation_store=held_out,  # type: ignore[arg-type]
            model=readout,  # type: ignore[arg-type]
            activation_scaler=ActivationScaler(),
            eval_config=config,
            exclude_special_tokens=[_MASKED],
        )
    metrics = {name: float(value) for name, group in groups.items() if name != "token_stats" for name, value in group.items()}
    metrics |= readout.divergences(kept)
    counts = firing_counts(feature_metrics["feature_density"])
    return metrics | {
        "dead_features": counts.n_silent,
        "always_on_features": counts.n_always_on,
        "n_features": sae.cfg.d_sae,
    }


def check_contexts(table: TokenTable, cutter: ContextCutter) -> None:
    """Check that there are contexts to measure on, and that none is padded on the left.

    Args:
        table: held-out contexts.
        cutter: the tokenizer and the special tokens.

    Raises:
        DataError: there is no context, or one is padded on the left.
    """
    if not len(table):
        raise DataError(f"{table.corpus}: expected contexts to evaluate on, got none; give more text")
    n_padding = cutter.left_padding(table.tokens).sum(dim=1)
    if int(n_padding.max()) > 1:  # one such token may be a separator at the start of a context
        raise DataError(
            f"{table.corpus}: expected contexts without padding on the left, for which SAELens's run_evals has no attention mask, got padded "
            "ones; pad on the right"
        )


def check_fits(sae: SAE[Any], model: AnyHookedModel) -> None:
    """Check that the SAE's hook exists in the model and has the width of the SAE, and that which a transcoder decodes likewise.

    Args:
        sae: the SAE.
        model: the language model.

    Raises:
        ModelError: the SAE names no hook, or the hook does not exist or has another width.
    """
    hook_name = sae.cfg.metadata.hook_name
    if hook_name is None:
        raise ModelError("expected an SAE that names its hook, got one without; set sae.cfg.metadata.hook_name")
    width = resolve_hook(model, hook_name, sae.cfg.metadata.hook_head_index)
    if width != sae.cfg.d_in:
        raise ModelError(
            f"expected an SAE with d_in={width} for {hook_name} of {model.cfg.model_name}, got d_in={sae.cfg.d_in}; give the SAE's model"
        )
    if not isinstance(sae, Transcoder):
        return
    decoded = sae.cfg.metadata.hook_name_out
    if decoded is None:
        raise ModelError(
            "expected a transcoder that names the hook that it decodes, got one without; set sae.cfg.metadata.hook_name_out"
        )
    width = resolve_hook(model, decoded)
    if width != sae.cfg.d_out:
        raise ModelError(
            f"expected a transcoder with d_out={width} for {decoded} of {model.cfg.model_name}, got d_out={sae.cfg.d_out}; give the "
            "transcoder's model"
        )


@torch.no_grad()
def _at_hook(sae: SAE[Any], model: AnyHookedModel, tokens: Tensor) -> Tensor:
    """Read the activations that the SAE reads, with heads where it takes them apart itself."""
    hook_name = sae.cfg.metadata.hook_name
    stop = extract_stop_at_layer_from_tlens_hook_name(hook_name)
    _, cache = model.run_with_cache(tokens, names_filter=[hook_name], prepend_bos=False, stop_at_layer=stop)
    h = cache[hook_name]
    if sae.cfg.metadata.hook_head_index is not None:
        return h[:, :, sae.cfg.metadata.hook_head_index]
    return h.flatten(2) if h.ndim == 4 and sae.cfg.reshape_activations != "hook_z" else h


@torch.no_grad()
def future_leak(sae: SAE[Any], model: AnyHookedModel, tokens: Tensor) -> float:
    """Measure how much of the feature activations in the first half of a context depends on its second half.

    The activations in the second half are replaced by those of another context; the leak is `sum |e - e'| / sum |e|` over the first half.

    Args:
        sae: the SAE.
        model: the language model.
        tokens: contexts, `(batch, pos)`.

    Returns:
        The leak; 0 for a causal encoder.
    """
    h = _at_hook(sae, model, tokens)
    half = h.shape[1] // 2
    changed = torch.cat([h[:, :half], h[:, half:].roll(1, dims=0) + 1.0], dim=1)
    before, after = sae.encode(h)[:, :half], sae.encode(changed)[:, :half]
    return ((before - after).abs().sum() / before.abs().sum().clamp(min=1e-12)).item()
