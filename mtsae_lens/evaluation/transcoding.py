"""Measure a transcoder on held-out text, beside what the token alone says and what is left with the past of another context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import Transcoder
from torch import Tensor

from mtsae_lens.data.activations import read_hooks
from mtsae_lens.data.batch_sizes import contexts_at_once
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.massive import massive_positions, norm_limit
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.evaluation.fidelity import check_contexts, check_fits, future_leak
from mtsae_lens.evaluation.massive import ExplainedVariance
from mtsae_lens.evaluation.readout import ChunkedReadout
from mtsae_lens.evaluation.token_means import TokenMeans
from mtsae_lens.progress import track
from mtsae_lens.sae.collapse import firing_counts
from mtsae_lens.sae.temporal import normalize_scales, sequence_reads
from mtsae_lens.sae.temporal_encoder import TemporalEncoder

TRANSCODING_MEANINGS: dict[str, str] = {
    "explained_variance_of_token_table": "explained variance of the mean of every token: the most that a map of the token alone can reach",
    "explained_variance_with_another_past": "explained variance if every context is given the past of another one at the same positions",
}
_MAX_BYTES = 2**27  # for the feature activations of a batch


@dataclass(frozen=True, eq=False)
class Pairs:
    """A batch of contexts at both hooks."""

    tokens: Int[Tensor, "batch pos"]
    x: Float[Tensor, "batch pos d_in"]
    """What the transcoder reads, zero at masked positions."""
    y: Float[Tensor, "batch pos d_out"]
    """What it decodes."""
    kept: Bool[Tensor, "batch pos"]
    """The positions that count: neither special tokens nor position 0."""


def read_pairs(
    sae: Transcoder, model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int
) -> Iterator[Pairs]:
    """Read the activations at both hooks of a transcoder, in one pass of the language model.

    Args:
        sae: the transcoder.
        model: the language model.
        cutter: knows the special tokens.
        table: the contexts.
        batch_size: contexts in a batch.
    """
    names = [sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out]
    for tokens in table.tokens.to(model.cfg.device).split(batch_size):
        x, y = read_hooks(model, names, tokens)
        masked = cutter.masked(tokens)
        yield Pairs(tokens, x.masked_fill(masked.unsqueeze(-1), 0.0), y, ~masked)


@torch.no_grad()
def fit_token_means(
    sae: Transcoder, model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, *, batch_size: int = 16
) -> TokenMeans:
    """Fit the mean of every token at the hook that a transcoder decodes, massive activations left out.

    Args:
        sae: the transcoder.
        model: the language model.
        cutter: knows the special tokens.
        table: contexts of training text.
        batch_size: contexts in a batch.
    """
    means, limit = TokenMeans(table.tokens, sae.cfg.d_out), None
    pairs = read_pairs(sae, model, cutter, table, batch_size)
    for batch in track(pairs, "reading training text", "batch", -(-len(table) // batch_size)):
        limit = norm_limit(batch.y[batch.kept]) if limit is None else limit
        kept = batch.kept & ~massive_positions(batch.y, limit)
        means.add(batch.tokens[kept], batch.y[kept])
    return means


class _Sums:
    """Sums over the kept positions of batches."""

    def __init__(self, d_sae: int) -> None:
        self.explained = {name: ExplainedVariance() for name in ("all", "typical", "token", "elsewhere")}
        self.counts = torch.zeros(d_sae)
        self.n, self.n_massive, self.error, self.cosine = 0, 0, 0.0, 0.0
        self.limits: tuple[float, float] | None = None

    def add(self, sae: Transcoder, batch: Pairs, feature_acts: Tensor, out: Tensor, means: TokenMeans | None) -> None:
        """Add a batch."""
        kept = batch.kept
        self.limits = self.limits or (norm_limit(batch.x[kept]), norm_limit(batch.y[kept]))
        massive = massive_positions(batch.x, self.limits[0]) | massive_positions(batch.y, self.limits[1])
        typical = kept & ~massive
        y, y_out = batch.y[kept], out[kept]
        self.explained["all"].add(y, y_out)
        self.explained["typical"].add(batch.y[typical], out[typical])
        if means is not None:
            self.explained["token"].add(batch.y[typical], means.predict(batch.tokens[typical]))
        if isinstance(sae, TemporalEncoder) and len(batch.tokens) > 1:  # a lone context has no other
            elsewhere = sae.decode(encode_with_another_past(sae, batch.x))
            self.explained["elsewhere"].add(batch.y[typical], elsewhere[typical])
        self.counts += (feature_acts[kept] != 0).sum(dim=0).cpu()
        self.n += len(y)
        self.n_massive += int((massive & kept).sum())
        self.error += float((y - y_out).pow(2).sum())
        self.cosine += float(torch.nn.functional.cosine_similarity(y, y_out, dim=-1).sum())

    def metrics(self) -> dict[str, float]:
        """Return the metrics of all batches by name."""
        firing, n = firing_counts(self.counts / max(self.n, 1)), max(self.n, 1)
        found: dict[str, float] = {
            "explained_variance": self.explained["all"].value,
            "explained_variance_without_massive": self.explained["typical"].value,
            "massive_tokens": self.n_massive,
            "l0": float(self.counts.sum()) / n,
            "mse": self.error / n,
            "cossim": self.cosine / n,
            "dead_features": firing.n_silent,
            "always_on_features": firing.n_always_on,
            "n_features": len(self.counts),
            "n_tokens": self.n,
        }
        for name, of in zip(TRANSCODING_MEANINGS, ("token", "elsewhere"), strict=True):
            if self.explained[of].n_rows:
                found[name] = self.explained[of].value
        return found


@torch.no_grad()
def evaluate_transcoder(
    sae: Transcoder,
    model: AnyHookedModel,
    cutter: ContextCutter,
    table: TokenTable,
    means: TokenMeans | None = None,
    *,
    batch_size: int = 16,
) -> dict[str, float]:
    """Measure a transcoder, special tokens and position 0 left out, under the names of `evaluate_fidelity`.

    Explained variance and errors are of the hook that is decoded. The losses are those of the model with its activations there replaced by
    what the transcoder computes from the other hook. `TRANSCODING_MEANINGS` names what is measured beside them, over the positions that are not
    massive at either hook, as `explained_variance_without_massive` is.

    Args:
        sae: a transcoder of SAELens or of this package.
        model: the language model.
        cutter: the tokenizer and the special tokens.
        table: held-out contexts.
        means: the mean of every token, from `fit_token_means`; None leaves them out.
        batch_size: largest number of contexts per batch.

    Returns:
        Metrics by name.

    Raises:
        ModelError: a hook does not exist in the model, or has another width.
        DataError: there is no context, or contexts are padded on the left.
    """
    check_fits(sae, model)
    check_contexts(table, cutter)
    batch_size = contexts_at_once(min(batch_size, len(table)), table.tokens.shape[1], sae.cfg.d_sae, _MAX_BYTES)
    sums, readout, kept = _Sums(sae.cfg.d_sae), ChunkedReadout(model), []
    losses, n_predictions = torch.zeros(3, dtype=torch.float64), 0
    pairs = read_pairs(sae, model, cutter, table, batch_size)
    for batch in track(pairs, f"evaluating {sae.cfg.architecture()}", "batch", -(-len(table) // batch_size)):
        feature_acts = sae.encode(batch.x)
        out = sae(batch.x)
        sums.add(sae, batch, feature_acts, out, means)
        losses += _losses(readout, sae.cfg.metadata.hook_name_out, batch, out)
        n_predictions += int(batch.kept[:, :-1].sum())
        kept.append(batch.kept)
    clean, replaced, ablated = (losses / max(n_predictions, 1)).tolist()
    metrics = sums.metrics() | {
        "n_contexts": len(table),
        "ce_loss_score": (ablated - replaced) / (ablated - clean) if ablated != clean else float("nan"),
        "ce_loss_without_sae": clean,
        "ce_loss_with_sae": replaced,
        "ce_loss_with_ablation": ablated,
    }
    metrics |= readout.divergences(kept)
    return metrics | {"future_leak": future_leak(sae, model, table.tokens[:batch_size].to(model.cfg.device))}


def _losses(readout: ChunkedReadout, hook_name: str, batch: Pairs, out: Tensor) -> Float[Tensor, " 3"]:
    """Sum the loss at kept positions: of the model as it is, with the output in place of the activations, and with zeros there."""

    def replace_(h: Tensor, hook: Any) -> Tensor:
        chosen = batch.kept.view(*batch.kept.shape, *(1,) * (h.ndim - 2))
        return torch.where(chosen, out.view(h.shape).to(h.dtype), h)

    options: dict[str, Any] = {"return_type": "both", "loss_per_token": True, "prepend_bos": False}
    of_passes = [readout(batch.tokens, **options)[1]]
    for change in (replace_, lambda h, hook: torch.zeros_like(h)):
        of_passes.append(readout.run_with_hooks(batch.tokens, fwd_hooks=[(hook_name, change)], **options)[1])
    counted = batch.kept[:, :-1]
    return torch.stack([nll[counted].double().sum().cpu() for nll in of_passes])


def encode_with_another_past(sae: Any, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_sae"]:
    """Compute the features of each position when the encoder reads everything but the position itself in another context.

    The other context is the one before it in the batch, read at the same positions, so that what a position alone says stays the same.

    Args:
        sae: an MTSAE or a transcoder of this package, without memory.
        h: activations of at least two contexts, zero at masked positions.

    Returns:
        Feature activations.
    """
    x, walls = sae.read_contexts(h)
    read, padding = sae.read_offsets, sae.cfg.padding
    own = sequence_reads(x, walls, read, padding)
    other = sequence_reads(x.roll(1, dims=0), walls.roll(1, dims=0), read, padding)
    z = normalize_scales(sae.convolve(other | {0: own[0]}), x, sae.cfg.scale_norm, sae.cfg.context_gain)
    return sae.features_from_scales(z, walls)[0]
