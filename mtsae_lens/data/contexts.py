"""Contexts: rows of tokens of one length, cut from documents."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtsae_lens.data.documents import Document, Split, read_documents, shuffle_stream, source_name
from mtsae_lens.errors import DataError

_DOCUMENTS_AT_ONCE = 64  # tokenised in one call: fast tokenizers work in parallel


@dataclass(frozen=True)
class ContextCutter:
    """How documents become contexts.

    `packed`: documents follow each other with a separator between them, so no token is lost and a context may hold several; else a
    context holds one document, and what is left of a document at its end is dropped.
    """

    tokenizer: PreTrainedTokenizerBase
    context_size: int
    prepend_bos: bool = True
    packed: bool = True

    def __post_init__(self) -> None:
        if self.prepend_bos and self.tokenizer.bos_token_id is None:
            raise DataError("this tokenizer has no BOS token; pass prepend_bos=False (--no-prepend-bos)")

    @property
    def special_token_ids(self) -> Int[Tensor, " n"]:
        """BOS, EOS, padding and their kind: masked wherever they stand."""
        ids = {getattr(self.tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad", "sep", "cls")}
        return torch.tensor(sorted(i for i in ids if i is not None), dtype=torch.long)

    def special_positions(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Where special tokens stand."""
        return torch.isin(tokens, self.special_token_ids.to(tokens.device))

    def left_padding(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Find the padding of prompts of several lengths: the padding tokens at the left, but for the last of them where it is the BOS.

        A context that was cut from text may begin with one separator, which may be the padding token too. In a batch of whole contexts
        (`context_size` positions) a single such token is read as text, as in training, unless the tokenizer pads on the left.

        Args:
            tokens: prompts or contexts.

        Returns:
            True where a position is padding. A row of padding tokens alone has none.
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
        """The token between documents."""
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.tokenizer.eos_token_id

    def _token_ids(self, documents: Iterable[Document]) -> Iterator[tuple[str, list[int]]]:
        iterator = iter(documents)
        while chunk := list(islice(iterator, _DOCUMENTS_AT_ONCE)):
            encoded = self.tokenizer(
                [d.text for d in chunk], add_special_tokens=False, return_attention_mask=False, verbose=False
            )
            yield from zip((d.name for d in chunk), encoded["input_ids"], strict=True)

    def cut(self, documents: Iterable[Document]) -> Iterator[tuple[str, list[int]]]:
        """Name of the document in which it begins, and tokens, of every context."""
        start = [self.tokenizer.bos_token_id] if self.prepend_bos else []
        room = self.context_size - len(start)
        separator = self._separator
        pending: list[int] = []
        pending_name = ""
        for name, ids in self._token_ids(documents):
            if not self.packed:
                for place in range(0, len(ids) - room + 1, room):
                    yield name, start + ids[place : place + room]
                continue
            if pending and separator is not None:
                pending.append(separator)
            pending_name = pending_name if pending else name
            pending.extend(ids)
            while len(pending) >= room:
                yield pending_name, start + pending[:room]
                pending = pending[room:]
                pending_name = name


@dataclass(frozen=True)
class ContextStream:
    """An endless stream of contexts: epoch after epoch, each in its own order, the same for the same seed.

    `read` gives the documents of one epoch, such as `partial(read_documents, source, "train")`.
    """

    read: Callable[[], Iterable[Document]]
    cutter: ContextCutter
    seed: int = 0

    def __iter__(self) -> Iterator[list[int]]:
        epoch = 0
        while True:
            n_contexts = 0
            for _, tokens in self.cutter.cut(shuffle_stream(self.read(), seed=f"{self.seed} {epoch}")):
                n_contexts += 1
                yield tokens
            if not n_contexts:
                raise DataError(
                    f"the training documents give no context of {self.cutter.context_size} tokens; give more text or a smaller context size"
                )
            epoch += 1


@dataclass(frozen=True)
class TokenTable:
    """A fixed set of contexts of one corpus: `tokens (n, pos)` and, for each, the document it begins in."""

    corpus: str
    tokens: Int[Tensor, "n pos"]
    documents: tuple[str, ...]
    answers: Bool[Tensor, "n pos"] | None = None
    """The tokens whose prediction is measured; None: all but special ones."""

    def __len__(self) -> int:
        return len(self.documents)

    def batches(self, batch_size: int) -> Sequence[Int[Tensor, "batch pos"]]:
        """Tokens in batches, the last one as large as it comes."""
        return self.tokens.split(batch_size)

    def counted(self, cutter: ContextCutter) -> Bool[Tensor, "n pred"]:
        """Which predictions count: `[:, t]` is that of the token at `t + 1`; none that is made from padding on the left."""
        answers = ~cutter.special_positions(self.tokens)
        answers[:, 1:] &= ~cutter.left_padding(self.tokens)[:, :-1]
        return (answers if self.answers is None else answers & self.answers)[:, 1:]


def read_tokens(source: str | Path, split: Split, cutter: ContextCutter, max_contexts: int, *, seed: int = 0) -> TokenTable:
    """Up to `max_contexts` contexts of a split, drawn at random from as many documents as there may be contexts.

    Contexts of one document each where the documents are long enough for that, packed ones otherwise.

    Raises:
        DataError: see `read_documents`; or too little text for one context.
    """
    source = source_name(source)
    if max_contexts < 1:
        raise DataError(f"max_contexts must be at least 1; got {max_contexts}")
    documents = list(islice(shuffle_stream(read_documents(source, split), seed), max_contexts))
    contexts = list(replace(cutter, packed=False).cut(documents))
    if len(contexts) < min(max_contexts, len(documents)):
        stream = shuffle_stream(read_documents(source, split), seed)
        contexts = list(islice(replace(cutter, packed=True).cut(stream), max_contexts))
    if not contexts:
        raise DataError(
            f"{source}: split {split!r} has {len(documents)} documents and gives no context of {cutter.context_size} tokens (of every "
            "ten documents one is for each of select, tune and test); give more text or a smaller context size"
        )
    random.Random(seed).shuffle(contexts)
    names, tokens = zip(*contexts[:max_contexts], strict=True)
    return TokenTable(source, torch.tensor(tokens, dtype=torch.long), names)
