"""Compare what two models predict for the same counted tokens, and add up the measures by piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.lazy_logits import LazyLogits, in_chunks, token_nll
from mtsae_lens.data.precision import log_probs_of
from mtsae_lens.data.token_tables import TokenBatch


def kl_divergence(clean: Float[Tensor, "*row d_vocab"], edited: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row"]:
    """Compute `KL(clean || edited)` of next-token distributions; 0 if they are equal, without an upper bound.

    Args:
        clean: log-probabilities, `(..., d_vocab)`.
        edited: log-probabilities, `(..., d_vocab)`.

    Returns:
        One value per distribution, in nats. On retain text, lower is better.
    """
    return (clean.exp() * (clean - edited)).sum(dim=-1)


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
    logits: LazyLogits
    nll: Float[Tensor, " n"]

    @staticmethod
    def of(batch: TokenBatch, logits: LazyLogits) -> CleanPredictions:
        """Select the counted predictions from the logits of all positions, and compute their loss.

        Args:
            batch: tokens, counted predictions and pieces.
            logits: logits of every position, `(batch, pos, d_vocab)`.
        """
        kept = logits[:, :-1][batch.counted].remembered()
        return CleanPredictions(batch, kept, kept.nll(batch.tokens[:, 1:][batch.counted]))

    def rows(self, kept: Bool[Tensor, " batch"]) -> CleanPredictions:
        """Return the predictions for some contexts, with pieces numbered from 0 again.

        Args:
            kept: mask of the contexts, `(batch,)`.
        """
        tokens, counted, piece = self.batch
        rows = kept[counted.nonzero()[:, 0]]
        batch = TokenBatch(tokens[kept], counted[kept], piece[kept].unique(return_inverse=True)[1])
        return CleanPredictions(batch, self.logits[rows], self.nll[rows])

    def pieces_of(self, kept: Bool[Tensor, " batch"]) -> Bool[Tensor, " piece"]:
        """Return a mask of the pieces that are in these contexts.

        Args:
            kept: mask of the contexts, `(batch,)`.
        """
        pieces = torch.zeros(self.n_pieces, dtype=torch.bool, device=kept.device)
        pieces[self.batch.piece[kept].flatten()] = True
        return pieces

    @property
    def n_pieces(self) -> int:
        """Return the number of pieces in the batch."""
        return int(self.batch.piece.max()) + 1

    @property
    def targets(self) -> Int[Tensor, " n"]:
        """Return the counted tokens."""
        return self.batch.tokens[:, 1:][self.batch.counted]

    def sums(self, per_token: Float[Tensor, "n column"]) -> Float[Tensor, "piece column"]:
        """Add up values per token by piece.

        Args:
            per_token: one row per counted token, `(n, column)`.
        """
        total = torch.zeros(self.n_pieces, per_token.shape[1], dtype=per_token.dtype, device=per_token.device)
        return total.index_add_(0, self.batch.piece[:, 1:][self.batch.counted], per_token)


def sum_losses(clean: CleanPredictions, edited: LazyLogits | None) -> Float[Tensor, "piece 3"]:
    """Sum tokens, clean NLL and edited NLL over the counted predictions of each piece.

    Args:
        clean: the clean model's predictions.
        edited: the edited model's logits of the same counted predictions; None if it is the clean model.
    """
    nll = clean.nll if edited is None else edited.nll(clean.targets)
    return clean.sums(torch.stack([torch.ones_like(nll), clean.nll, nll], dim=1)).cpu()


def sum_measures(clean: CleanPredictions, edited: LazyLogits | None) -> Float[Tensor, "piece 7"]:
    """Sum the same as `sum_losses`, and also `KL(clean || edited)`, agreements of the likeliest token, hits of the edited model, and the
    length of the right suffix.

    Args:
        clean: the clean model's predictions.
        edited: the edited model's logits of the same counted predictions; None if it is the clean model.
    """
    counted, piece = clean.batch.counted, clean.batch.piece[:, 1:]
    models = [clean.logits, clean.logits if edited is None else edited]
    nll, kl, agree, hits = in_chunks(_compare_tokens, models, clean.targets).unbind(dim=1)
    summed = clean.sums(torch.stack([torch.ones_like(nll), clean.nll, nll, kl, agree, hits], dim=1))
    hit_at = torch.zeros_like(counted).masked_scatter(counted, hits > 0)
    suffix = longest_suffix(hit_at, counted, piece).unsqueeze(1)
    return torch.cat([summed.cpu(), suffix.cpu()], dim=1)


def _compare_tokens(
    clean: Float[Tensor, "n d_vocab"], edited: Float[Tensor, "n d_vocab"], targets: Int[Tensor, " n"]
) -> Float[Tensor, "n 4"]:
    """Compare two models' logits: NLL of the second, KL, whether the likeliest token is the same, and whether it is the target."""
    before, after = log_probs_of(clean), log_probs_of(edited)
    likeliest = after.argmax(dim=-1)
    kl = kl_divergence(before, after)
    agree, hits = likeliest == before.argmax(dim=-1), likeliest == targets
    return torch.stack([token_nll(after, targets), kl, agree.to(kl.dtype), hits.to(kl.dtype)], dim=1)
