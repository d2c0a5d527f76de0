"""SAELens's `run_evals` on held-out text, and two checks that it does not make: dead features and causality."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from sae_lens import SAE, run_evals
from torch import Tensor

from mtsae_lens.data.batch_sizes import contexts_at_once
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.data.language_models import resolve_hook
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.evaluation.massive import explain_without_massive
from mtsae_lens.evaluation.memory import measure_memory
from mtsae_lens.evaluation.readout import ChunkedReadout
from mtsae_lens.progress import advance, phase
from mtsae_lens.sae.collapse import firing_counts
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.upstream import ActivationScaler, EvalConfig, extract_stop_at_layer_from_tlens_hook_name

_MAX_BYTES = 2**27  # of the feature activations of a batch, of which `run_evals` holds several copies at once


@dataclass
class HeldOutTokens:
    """A token table in the place of SAELens's `ActivationsStore`: fixed batches, from the start again after each pass."""

    table: TokenTable
    store_batch_size_prompts: int
    _next: int = 0

    @property
    def n_batches(self) -> int:
        """Batches in a pass; a last, smaller one is left out, because `run_evals` gives every batch the same weight."""
        return max(1, len(self.table) // self.store_batch_size_prompts)

    @property
    def context_size(self) -> int:
        """Tokens in a context."""
        return self.table.tokens.shape[1]

    @property
    def current(self) -> Tensor:
        """The batch given last."""
        start = (self._next - 1) * self.store_batch_size_prompts
        return self.table.tokens[start : start + self.store_batch_size_prompts]

    def get_batch_tokens(self, batch_size: int | None = None) -> Tensor:
        """Return the next batch; the size asked for must be the one it was made with."""
        if batch_size not in (None, self.store_batch_size_prompts):
            raise ValueError(f"batches have {self.store_batch_size_prompts} contexts, not {batch_size}")
        if self._next == self.n_batches:
            self._next = 0
        self._next += 1
        advance()  # SAELens's loops show no progress of their own
        return self.current

    def reset_input_dataset(self) -> None:
        """Start over."""
        self._next = 0


@contextmanager
def special_tokens_as_walls(sae: SAE[Any], cutter: ContextCutter, held_out: HeldOutTokens) -> Iterator[None]:
    """Let a temporal SAE see special tokens as it saw them in training: as walls. A pointwise SAE does not care."""
    if not isinstance(sae, TemporalEncoder):
        yield
        return

    def wall(h: Tensor, hook: Any) -> Tensor:
        return zero_rows(h, cutter.special_positions(held_out.current))

    with sae.hooks(fwd_hooks=[("hook_sae_input", wall)]):
        yield


def evaluate_fidelity(
    sae: SAE[Any], model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, *, batch_size: int = 16
) -> dict[str, float]:
    """Measure with SAELens's `run_evals`: its metrics under its own names, special tokens left out, plus:

    - `dead_features`: features that fire on none of the `n_tokens` tokens seen; few tokens make it read too high;
    - `always_on_features`: features that fire on over half of these tokens; many of them are the sign of a collapsed SAE;
    - `massive_tokens`: tokens whose activations are over ten times as long as the median, as those of attention sinks are;
    - `explained_variance_without_massive`: the explained variance of all other tokens;
    - `future_leak`: share of feature activation (L1) at positions <= t that changes when only activations after t change; 0 if causal.

    A batch has fewer contexts than asked for where the SAE is large (`contexts_at_once`). Losses and KL divergences are those of
    `run_evals`, computed in chunks of positions (`ChunkedReadout`).

    Raises:
        ModelError: the SAE's hook does not exist in the model, or has another width.
        DataError: too few contexts for one batch, or contexts that are padded on the left.
    """
    check_fits(sae, model)
    table = replace(table, tokens=table.tokens.to(model.cfg.device))
    if not len(table):
        raise DataError(f"{table.corpus}: no context to evaluate on")
    n_padding = cutter.left_padding(table.tokens).sum(dim=1)
    if int(n_padding.max()) > 1:  # one such token may be a separator at the start of a context
        raise DataError(
            f"{table.corpus}: contexts are padded on the left, and SAELens's run_evals gives the model no attention mask; pad on the right"
        )
    batch_size = contexts_at_once(min(batch_size, len(table)), table.tokens.shape[1], sae.cfg.d_sae, _MAX_BYTES)
    held_out = HeldOutTokens(table, batch_size)
    config = EvalConfig(
        batch_size_prompts=batch_size,
        n_eval_reconstruction_batches=held_out.n_batches,
        n_eval_sparsity_variance_batches=held_out.n_batches,
        compute_kl=False,  # needs whole logits; the readout does it
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    n_passes = 2  # one for losses, one for what is read off the activations
    bar = phase(f"evaluating {sae.cfg.architecture()}", "batch", n_passes * held_out.n_batches)
    readout = ChunkedReadout(model)
    with bar, special_tokens_as_walls(sae, cutter, held_out):
        groups, feature_metrics = run_evals(
            sae=sae,
            activation_store=held_out,  # type: ignore[arg-type]
            model=readout,  # type: ignore[arg-type]
            activation_scaler=ActivationScaler(),
            eval_config=config,
            exclude_special_tokens=cutter.special_token_ids.tolist(),
        )
    metrics = {name: float(value) for name, group in groups.items() if name != "token_stats" for name, value in group.items()}
    seen = table.tokens[: held_out.n_batches * batch_size]
    kept = ~cutter.special_positions(seen)
    metrics |= readout.divergences(kept.split(batch_size))
    counts = firing_counts(feature_metrics["feature_density"])
    metrics["dead_features"] = counts.n_silent
    metrics["always_on_features"] = counts.n_always_on
    metrics["n_features"] = sae.cfg.d_sae

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for tokens, mask in zip(*(t.split(batch_size) for t in (seen, kept)), strict=True):
            yield _at_hook(sae, model, tokens), mask

    metrics["explained_variance_without_massive"], metrics["massive_tokens"] = explain_without_massive(sae, batches())
    if isinstance(sae, TemporalEncoder) and sae.has_memory:
        metrics |= measure_memory(sae, batches())
    metrics["n_tokens"] = int(kept.sum())
    metrics["future_leak"] = future_leak(sae, model, table.tokens[:batch_size])
    return metrics


def check_fits(sae: SAE[Any], model: AnyHookedModel) -> None:
    """Raise `ModelError` unless the SAE's hook exists in the model and has the SAE's width."""
    hook_name = sae.cfg.metadata.hook_name
    if hook_name is None:
        raise ModelError("the SAE does not say which hook it belongs to (metadata.hook_name)")
    width = resolve_hook(model, hook_name, sae.cfg.metadata.hook_head_index)
    if width != sae.cfg.d_in:
        raise ModelError(f"{hook_name} of {model.cfg.model_name} has width {width}, but the SAE has d_in={sae.cfg.d_in}")


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

    Half of a context's activations are replaced by another context's: `sum |e - e'| / sum |e|` over positions before the change.
    """
    h = _at_hook(sae, model, tokens)
    half = h.shape[1] // 2
    changed = torch.cat([h[:, :half], h[:, half:].roll(1, dims=0) + 1.0], dim=1)
    before, after = sae.encode(h)[:, :half], sae.encode(changed)[:, :half]
    return ((before - after).abs().sum() / before.abs().sum().clamp(min=1e-12)).item()
