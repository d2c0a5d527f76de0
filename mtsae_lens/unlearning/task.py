"""Define an unlearning task: what is to be forgotten, what must be kept, and which split may be read when."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.documents import Split, check_source, source_name
from mtsae_lens.data.questions import (
    SPLITS,
    draw_questions,
    is_question_source,
    is_same_on_every_split,
    is_test_only,
    people_asked_about,
    read_questions,
)
from mtsae_lens.data.sources import local_path
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.progress import track

Role = Literal["forget", "near", "far", "neutral"]
SPARED: tuple[Role, ...] = ("near", "far")
"""Roles that selection, gates and budgets spare."""
ALL_QUESTIONS = 1_000_000  # SELECT is read once, so all questions are used; TUNE is read by every candidate
QUESTIONS_PER_CONTEXT = 16  # a question has about an eighth of a context's tokens, and few of them are counted


@dataclass(frozen=True)
class Corpus:
    """A text and its role in the task: to forget, near, far, or neutral (read on TEST only; nothing is chosen to spare it).

    Raises:
        ConfigError: the role does not exist.
    """

    source: str
    role: Role

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", source_name(self.source))
        if self.role not in get_args(Role):
            raise ConfigError(
                f"expected a role out of {', '.join(get_args(Role))} for {self.source}, got {self.role!r}; give one of them"
            )


@dataclass(frozen=True)
class Task:
    """The corpora of one unlearning experiment. A source is a text (`data.documents`) or questions (`data.questions`).

    Raises:
        DataError: there is not exactly one corpus to forget, no far corpus, a corpus in two roles, people both to forget and to keep, or a
            corpus that is not neutral though it is read on TEST only or is the same on every split.
    """

    corpora: tuple[Corpus, ...]
    contexts_per_split: int = 64
    """Largest number of contexts read per corpus and split."""
    seed: int = 0
    """Seed of the draw of contexts."""
    far_share: float = 1.0
    """Share of these contexts that is read per far or neutral corpus, since there are often many of them."""
    max_select_questions: int = ALL_QUESTIONS
    """Largest number of questions read per corpus on SELECT."""
    _read: dict[tuple[str, Split, ContextCutter], TokenTable] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """The tables that were read, so that no text is read and tokenized twice."""

    def __post_init__(self) -> None:
        roles = [corpus.role for corpus in self.corpora]
        if roles.count("forget") != 1 or "far" not in roles:
            raise DataError(
                "expected exactly one corpus to forget and at least one far corpus to retain, got "
                f"{', '.join(f'{c.source} ({c.role})' for c in self.corpora) or 'none'}; add or remove a corpus"
            )
        paths = [local_path(corpus.source) for corpus in self.corpora]
        sources = [c.source if path is None else str(path.resolve()) for c, path in zip(self.corpora, paths, strict=True)]
        for corpus in self.corpora:
            if corpus.role != "neutral" and is_same_on_every_split(corpus.source):
                raise DataError(
                    f"{corpus.source}: expected role 'neutral', because its questions are the same on SELECT, TUNE and TEST, got "
                    f"{corpus.role!r}; give it as neutral, or give {corpus.source.removesuffix('unseen')}known"
                )
            if corpus.role != "neutral" and is_test_only(corpus.source):
                raise DataError(
                    f"{corpus.source}: expected role 'neutral', because it is read on TEST only, got {corpus.role!r}; give it as neutral"
                )
        asked = {
            c.source: people_asked_about(c.source) for c in self.corpora if c.role != "neutral" and is_question_source(c.source)
        }
        for source, people in asked.items():
            if source != self.forget and (shared := sorted(people & asked.get(self.forget, set()))):
                raise DataError(
                    f"expected other people to keep than to forget, got {shared[0]} in {self.forget} and in {source}; give such as "
                    "facts:retain:known to keep"
                )
        repeated = sorted({source for source in sources if sources.count(source) > 1})
        if repeated:
            raise DataError(
                f"expected one role for each text, got two for {repeated[0]}; give it once, as forget, near, far or neutral"
            )

    @property
    def forget(self) -> str:
        """Return the source of the forget text."""
        return self.sources("forget")[0]

    def sources(self, *roles: Role) -> list[str]:
        """Return the sources with these roles."""
        return [corpus.source for corpus in self.corpora if corpus.role in roles]

    def table(self, source: str, split: Split, cutter: ContextCutter) -> TokenTable:
        """Read the contexts of one corpus, or return the table that was read before.

        Args:
            source: a source of the task.
            split: the split to read.
            cutter: the tokenizer and the length of a context.
        """
        key = (source, split, cutter)
        if key not in self._read:
            self._read[key] = self._read_table(source, split, cutter)
        return self._read[key]

    def _read_table(self, source: str, split: Split, cutter: ContextCutter) -> TokenTable:
        if is_question_source(source):
            on_select, elsewhere = self.max_select_questions, QUESTIONS_PER_CONTEXT * self.contexts_per_split
            n_questions = on_select if split == "select" else elsewhere
            return read_questions(source, split, cutter, n_questions, seed=self.seed)
        share = 1.0 if any(c.source == source and c.role in ("forget", "near") for c in self.corpora) else self.far_share
        return read_tokens(source, split, cutter, max(1, round(share * self.contexts_per_split)), seed=self.seed)

    def tables(self, split: Split, cutter: ContextCutter, roles: Sequence[Role] = get_args(Role)) -> dict[str, TokenTable]:
        """Read the contexts of every corpus with these roles.

        Args:
            split: the split to read.
            cutter: the tokenizer and the length of a context.
            roles: the roles.

        Returns:
            Contexts by source.
        """
        sources = track(self.sources(*roles), f"reading text, {split}", "text")
        return {source: self.table(source, split, cutter) for source in sources}

    def check_questions(self, cutter: ContextCutter) -> None:
        """Check, before any work is done, that the questions of every role fit into a context, on every split that is read.

        Args:
            cutter: the tokenizer and the length of a context.

        Raises:
            DataError: the longest question is longer than a context.
        """
        asked = [
            (corpus.source, split)
            for corpus in self.corpora
            if is_question_source(corpus.source)
            for split in SPLITS
            if corpus.role != "neutral" or split == "test"
        ]
        if not asked:
            return
        roomy = replace(cutter, context_size=sys.maxsize)
        source, split = max(asked, key=lambda of: self._read_table(of[0], of[1], roomy).tokens.shape[1])
        self.table(source, split, cutter)  # raises the error, with the length that is enough for all

    def role(self, source: str) -> Role:
        """Return the role of a corpus.

        Args:
            source: a source of the task.
        """
        return next(corpus.role for corpus in self.corpora if corpus.source == source)


def check_corpus(source: str) -> None:
    """Check, before any work is done, that a source is readable text or existing questions.

    Args:
        source: the source.

    Raises:
        DataError: it is neither.
    """
    if is_question_source(source):
        draw_questions(source, "test", 0)
    else:
        check_source(source)
