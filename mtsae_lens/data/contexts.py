"""Cut documents into contexts: rows of tokens, all of one length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, starmap

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtsae_lens.data.documents import Document, shuffle_stream
from mtsae_lens.data.packing import Context, Packer
from mtsae_lens.errors import DataError

_DOCUMENTS_AT_ONCE = 64  # tokenized in one call: fast tokenizers work in parallel


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
        reads_prompts: whether the tokens to read are prompts and not contexts that were cut from text (`left_padding`).

    Raises:
        DataError: `prepend_bos` is set and the tokenizer has no BOS token.
    """

    tokenizer: PreTrainedTokenizerBase
    context_size: int
    prepend_bos: bool = True
    packed: bool = True
    reads_prompts: bool = False

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
        (`context_size` positions), one such token is therefore read as text, as in training, unless the tokenizer pads on the left or
        `reads_prompts` is set.

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
        may_be_cut = not self.reads_prompts and self.tokenizer.padding_side != "left" and tokens.shape[1] == self.context_size
        if may_be_cut and pad == self._separator:
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
