"""Cut documents into contexts: rows of tokens, all of one length."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice, starmap
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtsae_lens.data.documents import Document, Split, read_documents, shuffle_stream, source_name
from mtsae_lens.data.notices import tell_once
from mtsae_lens.data.packing import Context, DrawnDocuments, Packer, Spans
from mtsae_lens.errors import DataError
from mtsae_lens.machine_paths import shorten
from mtsae_lens.progress import track

_DOCUMENTS_AT_ONCE = 64  # tokenized in one call: fast tokenizers work in parallel
_MOST_LEFT_OUT = 0.1  # a warning is printed if contexts leave out a larger share of the tokens


@dataclass(frozen=True)
class ContextCutter:
    """Cut documents into contexts of `context_size` tokens.

    With `packed`, documents are joined with a separator between them, so no token is lost and one context may hold several documents.
    Otherwise every context holds one document, and the tokens left at the end of a document are dropped.

    Args:
        tokenizer: the language model's tokenizer.
        context_size: tokens per context, the BOS token included.
        prepend_bos: whether every context begins with a BOS token.
        packed: whether a context may hold several documents.

    Raises:
        DataError: `prepend_bos` is set and the tokenizer has no BOS token.
    """

    tokenizer: PreTrainedTokenizerBase
    context_size: int
    prepend_bos: bool = True
    packed: bool = True

    def __post_init__(self) -> None:
        if self.prepend_bos and self.tokenizer.bos_token_id is None:
            raise DataError("expected a tokenizer with a BOS token, got one without; pass prepend_bos=False (--no-prepend-bos)")

    @property
    def special_token_ids(self) -> Int[Tensor, " n"]:
        """Return the ids of the special tokens (BOS, EOS, padding, SEP, CLS), which are masked wherever they occur."""
        ids = {getattr(self.tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad", "sep", "cls")}
        return torch.tensor(sorted(i for i in ids if i is not None), dtype=torch.long)

    def special_positions(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Return a mask that is True at special tokens.

        Args:
            tokens: contexts or prompts, `(batch, pos)`.

        Returns:
            The mask, `(batch, pos)`.
        """
        return torch.isin(tokens, self.special_token_ids.to(tokens.device))

    def masked(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Find the positions that no SAE reads in training: special tokens and position 0, whose activations are alike in every text."""
        masked = self.special_positions(tokens)
        masked[:, 0] = True
        return masked

    @property
    def start_tokens(self) -> list[int]:
        """The tokens before the text of a context: the BOS, or none."""
        return [self.tokenizer.bos_token_id] if self.prepend_bos else []

    def left_padding(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Find the padding on the left of prompts of different lengths. If padding and BOS are the same token, the last such token is
        the BOS.

        A context that was cut from text may begin with one separator, which may be the same token as padding. In a batch of whole contexts
        (`context_size` positions), one such token is therefore read as text, as in training, unless the tokenizer pads on the left.

        Args:
            tokens: prompts or contexts, `(batch, pos)`.

        Returns:
            A mask `(batch, pos)`, True where a position is padding. A row of nothing but padding tokens has no padding.
        """
        pad, padding = self.tokenizer.pad_token_id, torch.zeros_like(tokens, dtype=torch.bool)
        if pad is None:
            return padding
        leading = (tokens == pad).long().cumprod(dim=1).bool()
        if self.prepend_bos and pad == self.tokenizer.bos_token_id:
            padding[:, :-1] = leading[:, 1:]
        else:
            padding = leading & ~leading.all(dim=1, keepdim=True)
        if pad == self._separator and tokens.shape[1] == self.context_size and self.tokenizer.padding_side != "left":
            padding = padding & (padding.sum(dim=1, keepdim=True) > 1)
        return padding

    @property
    def _separator(self) -> int | None:
        """Return the id of the token that stands between documents."""
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.tokenizer.eos_token_id

    def token_ids(self, documents: Iterable[Document]) -> Iterator[tuple[str, list[int]]]:
        """Yield the name and the token ids of every document, tokenizing several documents in one call.

        Args:
            documents: the documents.
        """
        iterator = iter(documents)
        while chunk := list(islice(iterator, _DOCUMENTS_AT_ONCE)):
            encoded = self.tokenizer(
                [d.text for d in chunk], add_special_tokens=False, return_attention_mask=False, verbose=False
            )
            yield from zip((d.name for d in chunk), encoded["input_ids"], strict=True)

    @property
    def packer(self) -> Packer:
        """Return the packer that builds contexts of this size."""
        start = self.start_tokens
        return Packer(start, self.context_size - len(start), self._separator)

    def cut(self, documents: Iterable[Document]) -> Iterator[tuple[str, list[int]]]:
        """Yield every context as a pair: the name of the document in which it begins, and its tokens.

        Args:
            documents: the documents.
        """
        yield from ((context.document, context.tokens) for context in self.contexts(documents))

    def contexts(self, documents: Iterable[Document]) -> Iterator[Context]:
        """Yield the contexts of documents, in the order of the documents.

        Args:
            documents: the documents.
        """
        ids, packer = self.token_ids(documents), self.packer
        return packer.pack(ids) if self.packed else chain.from_iterable(starmap(packer.fill, ids))


@dataclass(frozen=True)
class ContextStream:
    """Stream contexts without end. Every epoch has its own order, which depends on the seed alone.

    Args:
        read: returns the documents of one epoch, such as `partial(read_documents, source, "train")`.
        cutter: cuts the documents into contexts.
        seed: seed of the order.

    Raises:
        DataError: the documents are too short for a single context (raised on iteration).
    """

    read: Callable[[], Iterable[Document]]
    cutter: ContextCutter
    seed: int = 0

    def __iter__(self) -> Iterator[list[int]]:
        epoch = 0
        while True:
            n_contexts = 0
            for context in self.cutter.contexts(shuffle_stream(self.read(), seed=f"{self.seed} {epoch}")):
                n_contexts += 1
                yield context.tokens
            if not n_contexts:
                raise DataError(
                    f"expected training documents that fill a context of {self.cutter.context_size} tokens, got none; "
                    "give more text or a smaller context_size"
                )
            epoch += 1


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
