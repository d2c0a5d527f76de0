"""Cut the tokens of documents into contexts of one document each, or pack several documents, and trace every token to its document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Spans = tuple[tuple[str, int], ...]
"""The documents of one context, each with the position at which it begins in the context; the first begins at 0."""


@dataclass(frozen=True)
class Context:
    """The tokens of one context, and the documents that they come from."""

    tokens: list[int]
    spans: Spans

    @property
    def document(self) -> str:
        """Return the document in which the context begins."""
        return self.spans[0][0]


@dataclass(frozen=True)
class Packer:
    """Build contexts out of the tokens of documents.

    Args:
        start: tokens at the beginning of every context.
        room: number of text tokens after them.
        separator: token between two documents; None for no separator.
    """

    start: list[int]
    room: int
    separator: int | None

    def fill(self, name: str, ids: Sequence[int]) -> Iterator[Context]:
        """Yield the contexts that the tokens of one document fill; fewer than `room` tokens at its end are dropped.

        Args:
            name: name of the document.
            ids: its token ids.
        """
        for place in range(0, len(ids) - self.room + 1, self.room):
            yield Context([*self.start, *ids[place : place + self.room]], ((name, 0),))

    def pack(self, parts: Iterable[tuple[str, Sequence[int]]]) -> Iterator[Context]:
        """Yield contexts of concatenated documents with a separator between them, in time linear in the number of tokens.

        Args:
            parts: name and tokens of each document. Tokens at the very end that do not fill a context are dropped.
        """
        pending: list[int] = []
        begins: list[tuple[str, int]] = []  # documents in `pending`, and where
        for name, ids in parts:
            if pending and self.separator is not None:
                pending.append(self.separator)
            begins.append((name, len(pending)))
            pending.extend(ids)
            place = 0
            while len(pending) - place >= self.room:
                end = place + self.room
                yield Context(self.start + pending[place:end], self._spans(begins, place, end))
                place = end
            if place:
                begins = [(name, 0)] if place < len(pending) else []
                del pending[:place]

    def _spans(self, begins: Sequence[tuple[str, int]], place: int, end: int) -> Spans:
        """Return the documents between two positions of the packed tokens; a separator belongs to the document before it."""
        inside = [(name, begin) for name, begin in begins if begin < end]
        first = max(number for number, (_, begin) in enumerate(inside) if begin <= place)
        later = ((name, begin - place + len(self.start)) for name, begin in inside[first + 1 :])
        return ((inside[first][0], 0), *later)


class DrawnDocuments:
    """The contexts that each of some documents fills, and the tokens left at the end of each."""

    def __init__(self, packer: Packer, wanted: int) -> None:
        self.packer, self.wanted = packer, wanted
        self.whole: list[Context] = []
        self.rests: list[tuple[str, Sequence[int]]] = []
        self.n_documents = self.n_rest_tokens = 0
        self.some_are_short = False

    def add(self, name: str, ids: Sequence[int]) -> None:
        """Add one document.

        Args:
            name: name of the document.
            ids: its token ids.
        """
        n_whole = len(ids) // self.packer.room
        self.whole.extend(self.packer.fill(name, ids))
        rest = ids[n_whole * self.packer.room :]
        if rest:
            self.rests.append((name, rest))
        self.n_documents += 1
        self.n_rest_tokens += len(rest)
        self.some_are_short |= not n_whole

    @property
    def are_enough(self) -> bool:
        """Return whether there are at least as many documents, and as many contexts, as contexts are wanted."""
        n_packed = self.n_rest_tokens // self.packer.room if self.some_are_short else 0
        return self.n_documents >= self.wanted and len(self.whole) + n_packed >= self.wanted

    @property
    def _are_packed(self) -> bool:
        """Return whether the ends of documents are packed: some document fills no context, or there are too few contexts without them."""
        return self.some_are_short or len(self.whole) < self.wanted

    @property
    def contexts(self) -> list[Context]:
        """Return the contexts to draw from."""
        return [*self.whole, *self.packer.pack(self.rests)] if self._are_packed else list(self.whole)

    @property
    def share_left_out(self) -> float:
        """Return the share of the tokens that are in no context because the ends of documents are left out."""
        n_whole = len(self.whole) * self.packer.room
        return 0.0 if self._are_packed else self.n_rest_tokens / (n_whole + self.n_rest_tokens)
