"""Parts of token tables, and endless batches of them to train on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.errors import DataError


@dataclass(frozen=True, eq=False)
class Batch:
    """Contexts, which predictions of them count (`counted[:, t]` is that of the token at `t + 1`), and padding on the left, if any."""

    tokens: Int[Tensor, "*batch pos"]
    counted: Bool[Tensor, "*batch pred"]
    left_padding: Bool[Tensor, "*batch pos"] | None = None

    @property
    def padding(self) -> Bool[Tensor, "*batch pos"]:
        """True where a position is padding on the left."""
        return torch.zeros_like(self.tokens, dtype=torch.bool) if self.left_padding is None else self.left_padding

    def to(self, device: torch.device | str | None) -> Batch:
        """Return a copy on another device."""
        return Batch(self.tokens.to(device), self.counted.to(device), self.padding.to(device))


def mixed_batches(tables: Sequence[TokenTable], cutter: ContextCutter, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield batches without end, with contexts of the tables in turn, each table in an order of its own that is new in every epoch.

    Shorter contexts are padded at the end; padding is not counted, and a causal model does not see it.

    Raises:
        DataError: a table without a counted token.
    """
    padded = [_padded(table, cutter, max(t.tokens.shape[1] for t in tables)) for table in tables]
    generator = torch.Generator().manual_seed(seed)
    turns = cycle([_endless(batch, generator) for batch in padded])
    while True:
        rows = [next(next(turns)) for _ in range(batch_size)]
        yield Batch(*(torch.stack(parts) for parts in zip(*((r.tokens, r.counted, r.padding) for r in rows), strict=True)))


def _endless(contexts: Batch, generator: torch.Generator) -> Iterator[Batch]:
    while True:
        for index in torch.randperm(len(contexts.tokens), generator=generator):
            yield Batch(contexts.tokens[index], contexts.counted[index], contexts.padding[index])


def _padded(table: TokenTable, cutter: ContextCutter, width: int) -> Batch:
    counted = table.counted(cutter)
    kept = counted.any(dim=1)
    if not bool(kept.any()):
        raise DataError(f"{table.corpus}: no token counts, so there is nothing to train on")
    missing = width - table.tokens.shape[1]
    rows = (table.tokens[kept], counted[kept], cutter.left_padding(table.tokens[kept]))
    return Batch(*(F.pad(of_row, (0, missing)) for of_row in rows))


def sample_documents(table: TokenTable, n_documents: int, seed: int = 0) -> TokenTable:
    """Return the text of documents drawn at random; for one seed a smaller sample is part of a larger one.

    Of packed contexts, the tokens of other documents stay in place and do not count.

    Raises:
        DataError: the table has fewer.
    """
    names = sorted(set(table.pieces.documents))
    if n_documents > len(names):
        raise DataError(f"{table.corpus}: {n_documents} documents were asked for, there are {len(names)}")
    random.Random(seed).shuffle(names)
    drawn = set(names[:n_documents])
    return table.only(drawn)


def split_by_document(table: TokenTable, share: float = 0.5, seed: int = 0) -> tuple[TokenTable, TokenTable]:
    """Split a table in two with no document (of questions: no person) in both; the first has this share of the documents.

    To relearn some and test others (Deeb and Roger 2024, arXiv 2410.08827): what comes back of the second side was not taught.
    The same documents go to the same side whatever contexts of them a table holds, if both tables name the same documents.

    Raises:
        DataError: one side would be empty.
    """
    names = sorted(set(table.pieces.documents))
    random.Random(seed).shuffle(names)
    first = set(names[: round(share * len(names))])
    if not 0 < len(first) < len(names):
        raise DataError(
            f"{table.corpus}: {len(names)} documents cannot be split with a share of {share:g}; each side needs one"
        )
    return table.only(first), table.only(set(names) - first)
