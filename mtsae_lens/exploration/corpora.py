"""The text that is looked through: batches of contexts, corpus by corpus, the same ones whenever they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from jaxtyping import Int
from torch import Tensor

from mtsae_lens.data.contexts import ContextCutter, TokenTable, make_table
from mtsae_lens.data.documents import Split, read_documents, shuffle_stream
from mtsae_lens.data.packing import Context, Spans
from mtsae_lens.errors import DataError


@dataclass(frozen=True)
class TextBatch:
    """Contexts of one corpus."""

    number: int  # over all corpora
    corpus: int
    first_context: int  # number of its first context, over all corpora
    tokens: Int[Tensor, "batch pos"]
    spans: tuple[Spans, ...]  # the documents of each context, and where they begin

    def part(self, start: int, size: int) -> TextBatch:
        """Some of its contexts, under the same number."""
        rows = slice(start, start + size)
        return replace(self, first_context=self.first_context + start, tokens=self.tokens[rows], spans=self.spans[rows])


@dataclass(frozen=True)
class Corpora:
    """Named texts, of each the same number of tokens where it has that many.

    Nothing is held but the documents of the shuffling buffer, so the text may be larger than memory. Documents come in an order drawn with
    the seed; a corpus that ends early gives less: it is not read twice.
    """

    sources: tuple[str, ...]
    split: Split
    cutter: ContextCutter
    n_tokens: int  # of all corpora together, special ones included
    seed: int = 0

    @property
    def n_contexts_each(self) -> int:
        """Contexts of each corpus, at most."""
        return max(1, round(self.n_tokens / len(self.sources) / self.cutter.context_size))

    def contexts(self, corpus: int, n_contexts: int | None = None) -> Iterator[tuple[str, list[int]]]:
        """Return the document and the tokens of the first contexts of a corpus; None for all that are looked through."""
        return ((context.document, context.tokens) for context in self._contexts(corpus, n_contexts))

    def _contexts(self, corpus: int, n_contexts: int | None = None) -> Iterator[Context]:
        documents = shuffle_stream(read_documents(self.sources[corpus], self.split), self.seed)
        return islice(self.cutter.contexts(documents), self.n_contexts_each if n_contexts is None else n_contexts)

    @property
    def n_tokens_there(self) -> int:
        """Of the tokens asked for, how many there are; reads the text once."""
        n_contexts = [sum(1 for _ in self.contexts(corpus)) for corpus in range(len(self.sources))]
        whole = all(n == self.n_contexts_each for n in n_contexts)
        return self.n_tokens if whole else sum(n_contexts) * self.cutter.context_size

    def batches(self, batch_size: int, start: int = 0) -> Iterator[TextBatch]:
        """Batches from number `start` on; a batch never mixes corpora.

        Raises:
            DataError: a corpus without a single context in this split.
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
                    f"{source}: split {self.split!r} gives no context of {self.cutter.context_size} tokens (of every ten documents one is "
                    f"for each of select, tune and test); give more text{'' if self.split == 'train' else ', or --split train'}"
                )

    def tables(self, n_contexts: int) -> list[TokenTable]:
        """The first contexts of every corpus, about `n_contexts` in all."""
        each = -(-n_contexts // len(self.sources))
        tables = []
        for corpus, source in enumerate(self.sources):
            tables.append(make_table(source, list(self._contexts(corpus, min(each, self.n_contexts_each)))))
        return tables
