"""Split token tables, and draw endless training batches from them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError


@dataclass(frozen=True, eq=False)
class Batch:
    """Contexts with a mask of the predictions that are measured, and of the padding on the left.

    Args:
        tokens: token ids, `(batch, pos)`, or one row of them.
        counted: mask `(batch, pos - 1)`; `[:, t]` belongs to the prediction of the token at `t + 1`.
        left_padding: mask `(batch, pos)`, True at padding; None if there is no padding on the left.
    """

    tokens: Int[Tensor, "*batch pos"]
    counted: Bool[Tensor, "*batch pred"]
    left_padding: Bool[Tensor, "*batch pos"] | None = None

    @property
    def padding(self) -> Bool[Tensor, "*batch pos"]:
        """Return a mask that is True where a position is padding on the left."""
        return torch.zeros_like(self.tokens, dtype=torch.bool) if self.left_padding is None else self.left_padding

    def to(self, device: torch.device | str | None) -> Batch:
        """Return a copy on another device.

        Args:
            device: the device.
        """
        return Batch(self.tokens.to(device), self.counted.to(device), self.padding.to(device))


def mixed_batches(tables: Sequence[TokenTable], cutter: ContextCutter, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield batches without end. Contexts are taken from the tables in turn; each table is in a random order, new in every epoch.

    Shorter contexts are padded at the end. Padding is not measured, and a causal model does not attend to it.

    Args:
        tables: the texts.
        cutter: says which predictions are measured.
        batch_size: contexts per batch.
        seed: seed of the orders.

    Raises:
        DataError: a table has no token that is measured.
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
        raise DataError(f"{table.corpus}: expected tokens to train on, got only tokens that are not counted; give another text")
    missing = width - table.tokens.shape[1]
    rows = (table.tokens[kept], counted[kept], cutter.left_padding(table.tokens[kept]))
    return Batch(*(F.pad(of_row, (0, missing)) for of_row in rows))


def sample_documents(table: TokenTable, n_documents: int, seed: int = 0) -> TokenTable:
    """Return the text of documents drawn at random. With the same seed, a smaller sample is a subset of a larger one.

    In packed contexts, the tokens of other documents stay in place and are not measured.

    Args:
        table: the contexts.
        n_documents: number of documents to draw.
        seed: seed of the draw.

    Raises:
        DataError: the table has fewer documents.
    """
    names = sorted(set(table.pieces.documents))
    if n_documents > len(names):
        raise DataError(f"{table.corpus}: expected at least {n_documents} documents, got {len(names)}; lower n_documents")
    random.Random(seed).shuffle(names)
    drawn = set(names[:n_documents])
    return table.only(drawn)


def split_by_document(table: TokenTable, share: float = 0.5, seed: int = 0) -> tuple[TokenTable, TokenTable]:
    """Split a table in two such that no document (for questions: no person) is in both parts.

    Use it to relearn one part and measure the other (Deeb and Roger 2024, arXiv 2410.08827): what comes back on the other part was not
    taught. Two tables that name the same documents are split in the same way, whatever contexts of them they hold.

    Args:
        table: the contexts.
        share: share of the documents that go to the first part.
        seed: seed of the split.

    Returns:
        The two parts.

    Raises:
        DataError: one part would be empty.
    """
    names = sorted(set(table.pieces.documents))
    random.Random(seed).shuffle(names)
    first = set(names[: round(share * len(names))])
    if not 0 < len(first) < len(names):
        raise DataError(
            f"{table.corpus}: expected a share that leaves a document on each side, got {share:g} of {len(names)} documents; give another "
            "share or more documents"
        )
    return table.only(first), table.only(set(names) - first)
