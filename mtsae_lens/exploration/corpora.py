"""Read the text to explore: batches of contexts, corpus by corpus, the same ones every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.documents import Split, read_documents, shuffle_stream
from mtsae_lens.data.packing import Context, Spans
from mtsae_lens.data.token_tables import TokenTable, make_table
from mtsae_lens.errors import DataError


class ContextTokens(NamedTuple):
    """The tokens of one context, and the document in which it begins."""

    document: str
    tokens: list[int]


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Some contexts of one corpus."""

    number: int  # over all corpora
    corpus: int
    first_context: int  # number of its first context, over all corpora
    tokens: Int[Tensor, "batch pos"]
    spans: tuple[Spans, ...]  # the documents of each context, and where they begin

    def part(self, start: int, size: int) -> TextBatch:
        """Return some contexts of the batch, as a batch with the same number.

        Args:
            start: the first context to return.
            size: how many contexts to return, at most.
        """
        rows = slice(start, start + size)
        return replace(self, first_context=self.first_context + start, tokens=self.tokens[rows], spans=self.spans[rows])


@dataclass(frozen=True)
class Corpora:
    """Texts to explore, each with an equal share of the tokens.

    Only the documents of the shuffling buffer are in memory, so the text may be larger than memory. The seed determines the order of the
    documents. A corpus that has fewer tokens than its share gives what it has, and is not read twice.

    Args:
        sources: names of texts, as `read_documents` takes them.
        split: the split to read.
        cutter: cuts documents into contexts.
        n_tokens: tokens of all corpora together, with special tokens.
        seed: seed of the order of documents.
    """

    sources: tuple[str, ...]
    split: Split
    cutter: ContextCutter
    n_tokens: int
    seed: int = 0

    @property
    def n_contexts_each(self) -> int:
        """Return the largest number of contexts per corpus."""
        return max(1, round(self.n_tokens / len(self.sources) / self.cutter.context_size))

    def contexts(self, corpus: int, n_contexts: int | None = None) -> Iterator[ContextTokens]:
        """Return the document and the tokens of the first contexts of a corpus.

        Args:
            corpus: number of the corpus in `sources`.
            n_contexts: how many contexts; None for all that are explored.
        """
        return (ContextTokens(context.document, context.tokens) for context in self._contexts(corpus, n_contexts))

    def _contexts(self, corpus: int, n_contexts: int | None = None) -> Iterator[Context]:
        documents = shuffle_stream(read_documents(self.sources[corpus], self.split), self.seed)
        return islice(self.cutter.contexts(documents), self.n_contexts_each if n_contexts is None else n_contexts)

    @property
    def n_tokens_available(self) -> int:
        """Return the number of tokens that the corpora really have, at most `n_tokens`; this reads the text once."""
        n_contexts = [sum(1 for _ in self.contexts(corpus)) for corpus in range(len(self.sources))]
        whole = all(n == self.n_contexts_each for n in n_contexts)
        return self.n_tokens if whole else sum(n_contexts) * self.cutter.context_size

    def batches(self, batch_size: int, start: int = 0) -> Iterator[TextBatch]:
        """Yield batches; a batch never mixes corpora.

        Args:
            batch_size: contexts per batch.
            start: number of the first batch to yield.

        Raises:
            DataError: a corpus has no context in this split.
        """
        number = n_contexts = 0
        for corpus, source in enumerate(self.sources):
            contexts, before = self._contexts(corpus), n_contexts
            while rows := list(islice(contexts, batch_size)):
                if number >= start:
                    table = make_table(source, rows)
                    yield TextBatch(number, corpus, n_contexts, table.tokens, table.all_spans)
                number, n_contexts = number + 1, n_contexts + len(rows)
            if n_contexts == before:
                raise DataError(
                    f"{source}: expected at least one context of {self.cutter.context_size} tokens in split {self.split!r}, got none (select, "
                    f"tune and test have one document in ten each); give more text{'' if self.split == 'train' else ', or --split train'}"
                )

    def tables(self, n_contexts: int) -> list[TokenTable]:
        """Return the first contexts of every corpus.

        Args:
            n_contexts: about how many contexts, over all corpora.
        """
        each = -(-n_contexts // len(self.sources))
        tables = []
        for corpus, source in enumerate(self.sources):
            tables.append(make_table(source, list(self._contexts(corpus, min(each, self.n_contexts_each)))))
        return tables
