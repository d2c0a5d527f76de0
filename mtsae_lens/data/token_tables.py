"""Tables of tokens: a fixed set of contexts of one corpus, with what is needed to measure their predictions."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.documents import Split, read_documents, shuffle_stream, source_name
from mtsae_lens.data.notices import tell_once
from mtsae_lens.data.packing import Context, DrawnDocuments, Spans
from mtsae_lens.errors import DataError
from mtsae_lens.machine_paths import shorten
from mtsae_lens.progress import track

_MOST_LEFT_OUT = 0.1  # a warning is printed if contexts leave out a larger share of the tokens


@dataclass(frozen=True, eq=False)
class Pieces:
    """The parts of contexts that belong to one document each, numbered from left to right and from one context to the next."""

    documents: tuple[str, ...]
    """The document of each piece."""
    of_token: Int[Tensor, "n pos"]
    """The piece of each token. A separator belongs to the piece before it, and the BOS token belongs to the first piece."""

    def sum(self, per_prediction: Float[Tensor, "n pred"]) -> Float[Tensor, " piece"]:
        """Add up per-prediction values within each piece.

        Args:
            per_prediction: values `(n, pos - 1)`; `[:, t]` belongs to the prediction of the token at `t + 1`.

        Returns:
            One sum per piece, `(piece,)`; a value counts for the piece that holds the predicted token.
        """
        total = torch.zeros(len(self.documents), dtype=per_prediction.dtype)
        return total.index_add_(0, self.of_token[:, 1:].flatten(), per_prediction.flatten())


class TokenBatch(NamedTuple):
    """Some contexts of a table, with what is needed to measure their predictions."""

    tokens: Int[Tensor, "batch pos"]
    counted: Bool[Tensor, "batch pred"]
    """The predictions that count: `[:, t]` is that of the token at `t + 1`."""
    piece: Int[Tensor, "batch pos"]
    """The piece of each token, numbered from 0 in this batch."""


@dataclass(frozen=True, eq=False)
class TokenTable:
    """A fixed set of contexts of one corpus.

    Args:
        corpus: the source that the contexts were read from.
        tokens: token ids, `(n, pos)`.
        documents: for each context, the document in which it begins.
        answers: mask `(n, pos)` of the tokens whose prediction is measured; None measures every token that is not special.
        spans: for each context, its documents and where they begin; None if every context holds one document.
    """

    corpus: str
    tokens: Int[Tensor, "n pos"]
    documents: tuple[str, ...]
    answers: Bool[Tensor, "n pos"] | None = None
    """Mask of the tokens whose prediction is measured; None measures every token that is not special."""
    spans: tuple[Spans, ...] | None = None
    """The documents of each context; None if every context holds one document."""

    def __len__(self) -> int:
        return len(self.documents)

    def batches(self, cutter: ContextCutter, batch_size: int, device: torch.device | str | None = None) -> list[TokenBatch]:
        """Split the table into batches, the last of which may be smaller.

        Args:
            cutter: says which tokens are special, and which are padding.
            batch_size: contexts in a batch.
            device: of the batches; None for that of the table.

        Returns:
            Tokens, counted predictions and pieces of each batch.
        """
        parts = (part.to(device).split(batch_size) for part in (self.tokens, self.counted(cutter), self.pieces.of_token))
        return [TokenBatch(tokens, counted, piece - piece.min()) for tokens, counted, piece in zip(*parts, strict=True)]

    def counted(self, cutter: ContextCutter) -> Bool[Tensor, "n pred"]:
        """Return a mask of the predictions that are measured.

        A prediction is left out if its target is a special token, or if it is made from a padding token on the left.

        Args:
            cutter: knows the special tokens and the padding.

        Returns:
            A mask `(n, pos - 1)`; `[:, t]` belongs to the prediction of the token at `t + 1`.
        """
        answers = ~cutter.special_positions(self.tokens)
        answers[:, 1:] &= ~cutter.left_padding(self.tokens)[:, :-1]
        return (answers if self.answers is None else answers & self.answers)[:, 1:]

    @property
    def all_spans(self) -> tuple[Spans, ...]:
        """Return the documents of each context and where they begin, for contexts with one document and with several."""
        return tuple(((name, 0),) for name in self.documents) if self.spans is None else self.spans

    @cached_property
    def pieces(self) -> Pieces:
        """Return the part of each context that belongs to each document."""
        n, n_positions = self.tokens.shape
        if self.spans is None:
            return Pieces(self.documents, torch.arange(n).unsqueeze(1).expand(n, n_positions))
        begins = torch.zeros(n, n_positions, dtype=torch.long)
        for row, spans in enumerate(self.spans):
            begins[row, [begin for _, begin in spans]] = 1
        return Pieces(
            tuple(name for spans in self.spans for name, _ in spans), begins.flatten().cumsum(0).view(n, n_positions) - 1
        )

    def rows(self, rows: Sequence[int] | Int[Tensor, " row"]) -> TokenTable:
        """Select contexts by index.

        Args:
            rows: indices of the contexts, in the order wanted.

        Returns:
            A table of these contexts.
        """
        index = torch.as_tensor(rows, dtype=torch.long)
        return TokenTable(
            self.corpus,
            self.tokens[index],
            tuple(self.documents[row] for row in index.tolist()),
            None if self.answers is None else self.answers[index],
            None if self.spans is None else tuple(self.spans[row] for row in index.tolist()),
        )

    def only(self, documents: Collection[str]) -> TokenTable:
        """Select the contexts that contain text of the given documents.

        Args:
            documents: names of documents.

        Returns:
            A table of these contexts. In a context that also holds other documents, the tokens of the others are not measured.
        """
        pieces = self.pieces
        wanted = torch.tensor([name in documents for name in pieces.documents], dtype=torch.bool)[pieces.of_token]
        table = self.rows(wanted.any(dim=1).nonzero()[:, 0])
        wanted = wanted[wanted.any(dim=1)]
        if bool(wanted.all()):
            return table
        return replace(table, answers=wanted if table.answers is None else wanted & table.answers)


def make_table(corpus: str, contexts: Sequence[Context]) -> TokenTable:
    """Build a table from contexts.

    Args:
        corpus: the source that the contexts were read from.
        contexts: contexts of one length.

    Returns:
        The table; it has `spans` if any context holds several documents.
    """
    packed = any(len(context.spans) > 1 for context in contexts)
    return TokenTable(
        corpus,
        torch.tensor([context.tokens for context in contexts], dtype=torch.long),
        tuple(context.document for context in contexts),
        spans=tuple(context.spans for context in contexts) if packed else None,
    )


def read_tokens(source: str | Path, split: Split, cutter: ContextCutter, max_contexts: int, *, seed: int = 0) -> TokenTable:
    """Draw up to `max_contexts` contexts of one split at random, from at least as many documents as contexts if the text has them.

    A document that fills whole contexts shares them with no other document. Documents shorter than a context are packed, as in training,
    together with the ends of longer documents, and are drawn with equal probability. The ends are packed as well if there are fewer whole
    contexts than asked for. Otherwise the ends are left out, and a warning is printed if they are more than a tenth of the text.

    Args:
        source: the text, see `mtsae_lens.data.documents`.
        split: the split of the documents.
        cutter: the tokenizer and the length of a context.
        max_contexts: largest number of contexts.
        seed: seed of the draw.

    Returns:
        The contexts, in random order.

    Raises:
        DataError: see `read_documents`; or the split has too little text for one context.
    """
    source = source_name(source)
    if max_contexts < 1:
        raise DataError(f"expected max_contexts of at least 1, got {max_contexts}; raise it")
    drawn = DrawnDocuments(cutter.packer, max_contexts)
    documents = track(read_documents(source, split), f"reading {shorten(source)}, {split}", "document")
    for name, ids in cutter.token_ids(shuffle_stream(documents, seed)):
        drawn.add(name, ids)
        if drawn.are_enough:
            break
    contexts = drawn.contexts
    if not contexts:
        raise DataError(
            f"{source}: expected text for at least one context of {cutter.context_size} tokens, got {drawn.n_documents} documents in "
            f"split {split!r} that fill none (select, tune and test each get one document in ten); give more text or a smaller context_size"
        )
    if drawn.share_left_out > _MOST_LEFT_OUT:
        tell_once(
            f"{source}: contexts of {cutter.context_size} tokens leave out the ends of documents, {drawn.share_left_out:.0%} of the "
            "text; a smaller context size leaves out less",
            about=f"ends of {source}",
        )
    random.Random(seed).shuffle(contexts)
    return make_table(source, contexts[:max_contexts])
