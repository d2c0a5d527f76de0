"""Compare what two models predict for the same counted tokens, and add up the measures by piece."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.lazy_logits import LazyLogits, in_chunks, kl_divergence, token_nll
from mtsae_lens.data.precision import log_probs_of
from mtsae_lens.data.token_tables import TokenBatch


def kl_of_logits(clean: Float[Tensor, "*row d_vocab"], edited: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row"]:
    """Compute `kl_divergence` from logits.

    Args:
        clean: logits, `(..., d_vocab)`.
        edited: logits, `(..., d_vocab)`.
    """
    return kl_divergence(log_probs_of(clean), log_probs_of(edited))


def longest_suffix(
    hits: Bool[Tensor, "batch pred"], counted: Bool[Tensor, "batch pred"], piece: Int[Tensor, "batch pred"] | None = None
) -> Float[Tensor, " piece"]:
    """Count the counted predictions at the end of each piece that are right, up to the last miss.

    Args:
        hits: mask `(batch, pos - 1)` of the predictions that are right.
        counted: mask of the predictions that are counted.
        piece: index of the piece of each prediction, from 0 on; None if each row is one piece.

    Returns:
        One length per piece, in tokens.
    """
    if piece is None:
        piece = torch.arange(len(hits), device=hits.device).unsqueeze(1).expand(hits.shape)
    misses = ~hits & counted
    from_here = misses.flip(-1).cumsum(-1).flip(-1)  # up to the end of the row
    after = torch.full((int(piece.max()) + 1,), hits.shape[1], dtype=from_here.dtype, device=hits.device)
    after.scatter_reduce_(0, piece.flatten(), (from_here - misses.long()).flatten(), "amin")
    right = counted & (from_here == after[piece])
    return torch.zeros(len(after), device=hits.device).index_add_(0, piece.flatten(), right.flatten().float())


@dataclass(frozen=True, eq=False)
class CleanPredictions:
    """The clean model's predictions for a batch, counted ones only."""

    batch: TokenBatch
    log_probs: LazyLogits
    nll: Float[Tensor, " n"]

    @staticmethod
    def of(batch: TokenBatch, logits: LazyLogits) -> CleanPredictions:
        """Select the counted predictions from the logits of all positions, and compute their loss.

        Args:
            batch: tokens, counted predictions and pieces.
            logits: logits of every position, `(batch, pos, d_vocab)`.
        """
        log_probs = logits[:, :-1][batch.counted].as_log_probs().remembered()
        return CleanPredictions(batch, log_probs, in_chunks(token_nll, [log_probs], batch.tokens[:, 1:][batch.counted]))

    @property
    def n_pieces(self) -> int:
        """Return the number of pieces in the batch."""
        return int(self.batch.piece.max()) + 1

    @property
    def targets(self) -> Int[Tensor, " n"]:
        """Return the counted tokens."""
        return self.batch.tokens[:, 1:][self.batch.counted]

    @cached_property
    def likeliest(self) -> Int[Tensor, " n"]:
        """Return the most likely token of each prediction."""
        return in_chunks(lambda log_probs: log_probs.argmax(dim=-1), [self.log_probs])

    def sums(self, per_token: Float[Tensor, "n column"]) -> Float[Tensor, "piece column"]:
        """Add up values per token by piece.

        Args:
            per_token: one row per counted token, `(n, column)`.
        """
        total = torch.zeros(self.n_pieces, per_token.shape[1], dtype=per_token.dtype, device=per_token.device)
        return total.index_add_(0, self.batch.piece[:, 1:][self.batch.counted], per_token)


Selected = Bool[Tensor, " n"] | slice
"""Which of the counted predictions an edited model makes anew; at the others it predicts what the clean model does."""


def sum_losses(
    clean: CleanPredictions, edited: LazyLogits | None, selected: Selected = slice(None)
) -> Float[Tensor, "piece 3"]:
    """Sum tokens, clean NLL and edited NLL over the counted predictions of each piece.

    Args:
        clean: the clean model's predictions.
        edited: the edited model's logits of the selected predictions; None if it is the clean model.
        selected: the predictions that may differ from the clean model's; all by default.
    """
    nll = clean.nll
    if edited is not None:
        nll = nll.clone()
        nll[selected] = edited.nll(clean.targets[selected])
    return clean.sums(torch.stack([torch.ones_like(nll), clean.nll, nll], dim=1)).cpu()


def sum_measures(
    clean: CleanPredictions, edited: LazyLogits | None, selected: Selected = slice(None)
) -> Float[Tensor, "piece 7"]:
    """Sum the same as `sum_losses`, and also `KL(clean || edited)`, agreements of the likeliest token, hits of the edited model, and the
    length of the right suffix.

    Args:
        clean: the clean model's predictions.
        edited: the edited model's logits of the selected predictions; None if it is the clean model.
        selected: the predictions that may differ from the clean model's; all by default.
    """
    counted, piece, targets = clean.batch.counted, clean.batch.piece[:, 1:], clean.targets
    nothing = torch.zeros_like(clean.nll)
    of_clean = [torch.ones_like(nothing), clean.nll, clean.nll, nothing, nothing + 1, (clean.likeliest == targets).to(nothing)]
    values = torch.stack(of_clean, dim=1)
    if edited is not None:
        models = [clean.log_probs[selected], edited]
        values[selected, 2:] = in_chunks(_compare_tokens, models, clean.likeliest[selected], targets[selected])
    hit_at = torch.zeros_like(counted).masked_scatter(counted, values[:, 5] > 0)
    suffix = longest_suffix(hit_at, counted, piece).unsqueeze(1)
    return torch.cat([clean.sums(values).cpu(), suffix.cpu()], dim=1)


def _compare_tokens(
    clean: Float[Tensor, "n d_vocab"],
    edited: Float[Tensor, "n d_vocab"],
    likeliest: Int[Tensor, " n"],
    targets: Int[Tensor, " n"],
) -> Float[Tensor, "n 4"]:
    """Compare a model's logits with the clean log-probabilities: NLL, KL, whether the likeliest token is the same, and whether it is the
    target.
    """
    after = log_probs_of(edited)
    nll, kl, now = token_nll(after, targets), kl_divergence(clean, after), after.argmax(dim=-1)
    return torch.stack([nll, kl, (now == likeliest).to(kl.dtype), (now == targets).to(kl.dtype)], dim=1)
