"""Cut long texts into documents, because splits are made by document."""

from __future__ import annotations

from collections.abc import Iterator

DOCUMENT_CHARS = 3_000  # about 800 tokens: several contexts per document, and enough documents to split
LONGEST_DOCUMENT_CHARS = 100_000  # a longer row of .jsonl, .parquet or a dataset is cut as a .txt file is


def cut_into_documents(text: str) -> Iterator[str]:
    """Yield documents of whole lines with about `DOCUMENT_CHARS` characters, ended at a blank line if one follows soon.

    Args:
        text: the text to cut.
    """
    kept: list[str] = []
    length = 0
    for line in _lines(text):
        kept.append(line.rstrip())
        length += len(line) + 1
        if length >= DOCUMENT_CHARS and (not line.strip() or length >= 1.5 * DOCUMENT_CHARS):
            yield "\n".join(kept).strip("\n")
            kept, length = [], 0
    if any(kept):
        yield "\n".join(kept).strip("\n")


def _lines(text: str) -> Iterator[str]:
    """Yield lines; a line longer than six documents is cut, because a text without line breaks would be a single document otherwise."""
    for line in text.split("\n"):
        if len(line) > 6 * DOCUMENT_CHARS:
            yield from _cut_line(line)
        else:
            yield line


def _cut_line(line: str) -> Iterator[str]:
    """Yield pieces of at most `DOCUMENT_CHARS` characters, cut at a space where possible, in time linear in the line."""
    start = 0
    while start < len(line):
        end = start + DOCUMENT_CHARS
        if end < len(line):
            space = line.rfind(" ", start, end + 1)
            end = space if space > start else end
        piece = line[start:end].strip()
        if piece:
            yield piece
        start = end
