"""The best that a map of the current token alone can do: the mean activations of each token."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TokenMeans:
    """The mean activations of each token, shrunk toward the mean of all tokens by empirical Bayes.

        m_v = (sum_{t: token v} y_t + w m) / (n_v + w),        w = variance within tokens / variance between tokens

    Both variances are estimated from the text that the means are fitted on (analysis of variance of one random factor; Searle, Casella and
    McCulloch 1992, chapter 3), so nothing is tuned. A token that does not occur there has the mean m of all.

    Args:
        tokens: the tokens that may occur, in any order and shape.
        width: width of the activations.
    """

    def __init__(self, tokens: Int[Tensor, "*token"], width: int) -> None:
        self._known = tokens.cpu().unique()
        self._n = torch.zeros(len(self._known), dtype=torch.float64)
        self._sums = torch.zeros(len(self._known), width, dtype=torch.float64)
        self._squares = 0.0

    @property
    def n_rows(self) -> int:
        """The number of rows that the means are fitted on."""
        return int(self._n.sum())

    def add(self, tokens: Int[Tensor, " row"], y: Float[Tensor, "row width"]) -> None:
        """Add rows to fit on.

        Args:
            tokens: the token of each row, one of those that may occur.
            y: the activations of each row.
        """
        place, rows = torch.searchsorted(self._known, tokens.cpu()), y.cpu().double()
        self._n.index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
        self._sums.index_add_(0, place, rows)
        self._squares += float(rows.pow(2).sum())

    @property
    def weight_of_mean(self) -> float:
        """The weight w of the mean of all tokens, in rows; infinity where tokens do not differ."""
        seen = self._n > 0
        n, sums = self._n[seen], self._sums[seen]
        n_rows, n_tokens = float(n.sum()), len(n)
        if n_tokens < 2 or n_rows <= n_tokens:
            return float("inf")
        means, mean = sums / n.unsqueeze(-1), sums.sum(dim=0) / n_rows
        within = (self._squares - float((n * means.pow(2).sum(dim=-1)).sum())) / (n_rows - n_tokens)
        spread = float((n * (means - mean).pow(2).sum(dim=-1)).sum()) / (n_tokens - 1)
        between = (spread - within) / ((n_rows - float(n.pow(2).sum()) / n_rows) / (n_tokens - 1))
        return within / between if between > 0 else float("inf")

    def predict(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row width"]:
        """Return the shrunk means of some tokens.

        Args:
            tokens: any tokens.
        """
        tokens = tokens.cpu()
        mean, weight = self._sums.sum(dim=0) / max(self.n_rows, 1), self.weight_of_mean
        place = torch.searchsorted(self._known, tokens).clamp(max=len(self._known) - 1)
        n = torch.where(self._known[place] == tokens, self._n[place], 0.0).unsqueeze(-1)
        if weight == float("inf"):
            return mean.expand(len(tokens), -1).float()
        own = (self._sums[place] * (n > 0) + weight * mean) / (n + weight).clamp(min=1e-12)
        return torch.where(n + weight > 0, own, mean).float()
