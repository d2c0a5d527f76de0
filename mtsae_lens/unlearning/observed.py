"""What a gate would read in the contexts of a corpus, gathered once so that a gate can be fitted on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.splice.evidence_gates import Source
from mtsae_lens.splice.hooked_lm import HookedLM

MAX_FEATURES = 256  # that a gate reads
SMALLEST_STD = 1e-3
MAX_POSITIONS = 48  # of each context: a gate has to be sure early, and the filter carries on from there


@dataclass(frozen=True, eq=False)
class Observed:
    """What a gate would read in the contexts of one corpus.

    Args:
        rows: features or activations, zero where nothing is read.
        is_step: False where nothing is read.
        at: the position at which each context is judged; None to judge it everywhere.
        features: the feature of each column of `rows`; None if the columns are all features, or coordinates of activations.
    """

    rows: Float[Tensor, "context pos d"]
    is_step: Bool[Tensor, "context pos"]
    at: Int[Tensor, " context"] | None = None
    features: Int[Tensor, " d"] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def padded(self, length: int) -> Observed:
        """Return the same contexts, padded on the right with positions where nothing is read.

        Args:
            length: number of positions.
        """
        n_more = length - self.rows.shape[1]
        return replace(self, rows=pad(self.rows, (0, 0, 0, n_more)), is_step=pad(self.is_step, (0, n_more)))


Read = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos d"]]


def reader(lm: HookedLM, reads: Source) -> Read:
    """Return the function from tokens to what a gate reads.

    Args:
        lm: the model with its SAE.
        reads: features, or activations at the hook of edits.
    """
    if reads == "features":
        return lm.feature_acts
    return lambda tokens: lm.target(tokens).flatten(2)


@torch.no_grad()
def observe_table(lm: HookedLM, table: TokenTable, read: Read, max_positions: int | None = MAX_POSITIONS) -> Observed:
    """Read the contexts of a corpus. Questions are judged where their answer begins, other text at every position.

    Args:
        lm: the model with its SAE.
        table: the contexts.
        read: what is read (`reader`).
        max_positions: number of positions to read in each context of text; None for all.
    """
    batches = list(_read_batches(lm, table, read, max_positions))
    rows, is_step, at = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Observed(rows, is_step, None if table.answers is None else at)


def _read_batches(
    lm: HookedLM, table: TokenTable, read: Read, max_positions: int | None
) -> Iterator[tuple[Float[Tensor, "batch pos d"], Bool[Tensor, "batch pos"], Int[Tensor, " batch"]]]:
    """Yield, batch by batch, what is read, where it is read, and where each context is judged."""
    for whole, counted, _ in track(lm.counted_batches(table), f"reading {table.corpus}", "batch"):
        tokens = whole if table.answers is not None else whole[:, :max_positions]
        kept = ~lm.masked(tokens)
        yield read(tokens).masked_fill(~kept.unsqueeze(-1), 0.0).float(), kept, counted.float().argmax(dim=1)


@dataclass(frozen=True, eq=False)
class _Firings:
    """The features of one corpus, of which most are zero, as a list of those that are not."""

    place: Int[Tensor, " firing"]  # context * n_positions + position
    feature: Int[Tensor, " firing"]
    value: Float[Tensor, " firing"]
    is_step: Bool[Tensor, "context pos"]
    at: Int[Tensor, " context"] | None
    d_sae: int

    @classmethod
    def read(cls, lm: HookedLM, table: TokenTable, max_positions: int | None) -> _Firings:
        """Read the contexts of a corpus, and keep no batch of dense features."""
        found, steps, places = list[tuple[Tensor, Tensor, Tensor]](), list[Tensor](), list[Tensor]()
        n_before = 0
        for rows, is_step, at in _read_batches(lm, table, lm.feature_acts, max_positions):
            flat = rows.flatten(0, 1)
            place, feature = flat.nonzero().unbind(dim=1)
            found.append((place + n_before, feature, flat[place, feature]))
            n_before += len(flat)
            steps.append(is_step)
            places.append(at)
        place, feature, value = (torch.cat(parts) for parts in zip(*found, strict=True))
        judged = None if table.answers is None else torch.cat(places)
        return cls(place, feature, value, torch.cat(steps), judged, lm.sae.cfg.d_sae)

    def sums(self) -> tuple[int, Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
        """Return the number of positions that are read, and the sum and the sum of squares of each feature there."""
        value = self.value.cpu().double()
        each = [
            torch.zeros(self.d_sae, dtype=torch.double).index_add_(0, self.feature.cpu(), of) for of in (value, value.square())
        ]
        return int(self.is_step.sum()), each[0], each[1]

    def of_features(self, features: Int[Tensor, " d"]) -> Observed:
        """Return chosen features alone, as a dense matrix."""
        column = torch.full((self.d_sae,), -1, device=features.device)
        column[features] = torch.arange(len(features), device=features.device)
        kept = column[self.feature] >= 0
        rows = torch.zeros(self.is_step.numel(), len(features), device=self.value.device)
        rows[self.place[kept], column[self.feature[kept]]] = self.value[kept]
        return Observed(rows.unflatten(0, self.is_step.shape), self.is_step, self.at, features)


def _moments(*sums: tuple[int, Tensor, Tensor]) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Return mean and variance from the sums of several corpora."""
    n, total, squares = (sum(of[1:], of[0]) for of in zip(*sums, strict=True))
    mean = total / n
    return mean, ((squares - n * mean.square()) / (n - 1)).clamp(min=0)


def measure_gap(
    ours: tuple[Float[Tensor, " d"], Float[Tensor, " d"]], theirs: tuple[Float[Tensor, " d"], Float[Tensor, " d"]]
) -> Float[Tensor, " d"]:
    """Compute how far the mean of each feature on forget text is from that on retain text, in standard deviations.

    Args:
        ours: mean and variance on forget text.
        theirs: mean and variance on retain text; a variance near zero counts as `SMALLEST_STD` squared.
    """
    spread = (theirs[1].clamp(min=SMALLEST_STD**2) + ours[1]).sqrt()
    return (ours[0] - theirs[0]).abs() / spread


@torch.no_grad()
def observe_features(
    lm: HookedLM, forget: TokenTable, retain: Sequence[TokenTable], max_positions: int | None = MAX_POSITIONS
) -> tuple[Observed, list[Observed]]:
    """Read the features of corpora, and keep those that differ most between forget and retain text, `MAX_FEATURES` at most.

    A wide SAE has far more features than a gate uses, so all others are kept only until the choice, and as a list of those that fire.

    Args:
        lm: the model with its SAE.
        forget: the text that a gate is to open on.
        retain: the texts that it is to stay closed on.
        max_positions: as for `observe_table`.

    Returns:
        The forget text, and the retain texts.

    Raises:
        DataError: there is no retain text.
    """
    if not retain:
        raise DataError("expected retain text for the gate to stay closed on, got none; give a retain corpus")
    first, *others = (_Firings.read(lm, table, max_positions) for table in (forget, *retain))
    gap = measure_gap(_moments(first.sums()), _moments(*(firings.sums() for firings in others)))
    features = gap.topk(min(MAX_FEATURES, len(gap))).indices.sort().values.to(first.value.device)
    return first.of_features(features), [firings.of_features(features) for firings in others]
