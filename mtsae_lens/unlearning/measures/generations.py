"""Measure what a model writes: how varied it is, how likely it is to the clean model, and how it reads before and after a change.

Losses are measured on given text; an edit can leave them unchanged and still send generation into a loop. Read three numbers together:
a text that repeats one phrase has a low perplexity, and random words are all distinct.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.lazy_logits import lazy_logits
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.progress import track
from mtsae_lens.records import Record
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.generation import continue_tokens
from mtsae_lens.splice.hooked_lm import HookedLM

REPEATED_N = 4
"""Length of the n-grams whose repetition is counted; shorter ones repeat in any good text (Welleck et al. 2019, arXiv 1908.04319)."""


@dataclass(frozen=True)
class Decoding:
    """How texts are continued.

    Raises:
        ConfigError: a value is out of range.
    """

    n_prompt_tokens: int = 16
    """Tokens taken from the start of each context, BOS included."""
    n_new_tokens: int = 48
    temperature: float = 0.0
    """0 for greedy decoding, otherwise the temperature of sampling from the whole vocabulary."""
    seed: int = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        if self.n_prompt_tokens < 1 or self.n_new_tokens < 1 or self.temperature < 0:
            raise ConfigError(
                f"expected n_prompt_tokens >= 1, n_new_tokens >= 1 and temperature >= 0, got {self.n_prompt_tokens}, "
                f"{self.n_new_tokens} and {self.temperature}; change them"
            )


@dataclass(frozen=True, eq=False)
class Continuations:
    """Prompts of one length, and what a model wrote after each of them, up to the first special token."""

    prompts: Int[Tensor, "n prompt"]
    texts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class GenerationHealth(Record):
    """How varied and how likely the continuations of one model are; compare with those of the clean model on the same prompts."""

    distinct_1: float  # share of distinct tokens (pairs, triples) among all continuations together (Li et al. 2016)
    distinct_2: float  # low if the same words occur everywhere; depends on the amount of text
    distinct_3: float
    repeated: float  # mean share of a continuation's 4-grams that occurred in it before: 0 for none, near 1 for a loop
    log_prob: float  # mean log-probability of a token under the clean model, nats
    perplexity: float  # exp(-log_prob): high if the clean model finds the text unlikely; very low may be a loop
    empty: float  # share of continuations that are empty
    n_texts: int
    n_tokens: int


def continue_texts(
    lm: HookedLM,
    table: TokenTable,
    decoding: Decoding,
    *,
    edit: Edit | None = None,
    model: AnyHookedModel | None = None,
) -> Continuations:
    """Continue the first tokens of every context, with the clean model, with an edit, or with another model.

    Args:
        lm: the model with its SAE.
        table: contexts that begin with the prompts. Prompts that contain a separator or padding are left out.
        decoding: lengths and sampling.
        edit: an edit with a causal gate; None for no edit.
        model: another model in place of `lm.model`, without an SAE.

    Raises:
        ConfigError: both an edit and another model are given, prompt and continuation are longer than the model's context, prompts are
            longer than the contexts of the table, or the edit cannot be used in generation.
        DataError: every prompt contains a separator or padding.
    """
    if edit is not None and model is not None:
        raise ConfigError(
            "expected an edit or another model, got both; give one of them, since an edit belongs to the SAE's model"
        )
    writer = model or lm.model
    length = decoding.n_prompt_tokens + decoding.n_new_tokens
    if length > writer.cfg.n_ctx or decoding.n_prompt_tokens > table.tokens.shape[1]:
        raise ConfigError(
            f"expected at most {writer.cfg.n_ctx} tokens of prompt and continuation, and {table.tokens.shape[1]} of prompt "
            f"({table.corpus}), got {length} and {decoding.n_prompt_tokens}; lower n_prompt_tokens or n_new_tokens"
        )
    prompts = table.tokens[:, : decoding.n_prompt_tokens]
    prompts = prompts[~lm.cutter.special_positions(prompts)[:, 1:].any(dim=1)]
    if not len(prompts):
        raise DataError(
            f"{table.corpus}: expected prompts without separators and padding, got none of {decoding.n_prompt_tokens} tokens; "
            "lower n_prompt_tokens"
        )
    options: dict[str, Any] = {
        "max_new_tokens": decoding.n_new_tokens,
        "do_sample": decoding.temperature > 0,
        "temperature": decoding.temperature or 1.0,
        "stop_at_eos": False,
    }
    written = []
    with torch.random.fork_rng():  # TransformerLens samples from the global generator
        torch.manual_seed(decoding.seed)
        for batch in track(prompts.split(lm.batch_size), f"continuing {table.corpus}", "batch"):
            tokens = lm.generate(batch, edit, **options) if model is None else continue_tokens(model, batch, **options)
            written.append(tokens[:, decoding.n_prompt_tokens :].cpu())
    special = set(lm.cutter.special_token_ids.tolist())
    return Continuations(prompts, tuple(_until_special(row, special) for row in torch.cat(written).tolist()))


def _until_special(tokens: Sequence[int], special: set[int]) -> tuple[int, ...]:
    end = next((place for place, token in enumerate(tokens) if token in special), len(tokens))
    return tuple(tokens[:end])


def generation_health(lm: HookedLM, continuations: Continuations) -> GenerationHealth:
    """Measure how varied continuations are, and how likely they are to the clean model.

    Args:
        lm: the clean model.
        continuations: the prompts and what was written after them.

    Raises:
        DataError: every continuation is empty.
    """
    texts = [text for text in continuations.texts if text]
    if not texts:
        raise DataError("expected continuations, got only empty ones; give longer prompts or another edit")
    log_prob = clean_log_prob(lm, continuations)
    return GenerationHealth(
        distinct_1=distinct_share(texts, 1),
        distinct_2=distinct_share(texts, 2),
        distinct_3=distinct_share(texts, 3),
        repeated=repeated_share(texts, REPEATED_N),
        log_prob=log_prob,
        perplexity=math.exp(-log_prob),
        empty=1 - len(texts) / len(continuations.texts),
        n_texts=len(continuations.texts),
        n_tokens=sum(map(len, texts)),
    )


def _ngrams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[place : place + n]) for place in range(len(text) - n + 1)]


def distinct_share(texts: Sequence[Sequence[int]], n: int) -> float:
    """Compute the number of distinct n-grams divided by the number of n-grams of all texts (distinct-n, Li et al. 2016, arXiv 1510.03055).

    Args:
        texts: token ids of each text.
        n: length of the n-grams, in tokens.

    Returns:
        A share; 1 if there are no n-grams.
    """
    ngrams = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def repeated_share(texts: Sequence[Sequence[int]], n: int) -> float:
    """Compute `1 - distinct n-grams / n-grams`, averaged over texts (seq-rep-n, Welleck et al. 2019, arXiv 1908.04319).

    Args:
        texts: token ids of each text; a text shorter than `n` counts as 0.
        n: length of the n-grams, in tokens.
    """
    shares = [1 - len(set(ngrams)) / len(ngrams) if (ngrams := _ngrams(text, n)) else 0.0 for text in texts]
    return sum(shares) / len(shares)


@torch.no_grad()
def clean_log_prob(lm: HookedLM, continuations: Continuations) -> float:
    """Compute the mean log-probability of the tokens of continuations under the model without an edit, in nats.

    Args:
        lm: the model.
        continuations: the prompts and what was written after them.
    """
    n_prompt = continuations.prompts.shape[1]
    longest = max(map(len, continuations.texts))
    written = torch.zeros(len(continuations.texts), longest, dtype=torch.long)  # short texts are padded on the right
    counted = torch.zeros_like(written, dtype=torch.bool)
    for row, text in enumerate(continuations.texts):
        written[row, : len(text)] = torch.tensor(text, dtype=torch.long)
        counted[row, : len(text)] = True
    total = 0.0
    tokens = torch.cat([continuations.prompts, written], dim=1)
    batches = list(zip(tokens.split(lm.batch_size), counted.split(lm.batch_size), strict=True))
    for batch, kept in track(batches, "reading what was written", "batch"):
        on_device = batch.to(lm.model.cfg.device)
        logits = lazy_logits(lm.model, on_device, prepend_bos=False, **lm.attention_options(on_device))[:, :-1]
        nll = logits[:, n_prompt - 1 :].nll(on_device[:, n_prompt:]).cpu()
        total -= nll.double()[kept].sum().item()
    return total / int(counted.sum())


@dataclass(frozen=True)
class Sample(Record):
    """One prompt and its continuations before and after the change."""

    prompt: str
    clean: str
    edited: str


def decode_samples(lm: HookedLM, clean: Continuations, edited: Continuations, n_samples: int = 8) -> tuple[Sample, ...]:
    """Decode the first texts, to read them side by side.

    Args:
        lm: the model, for its tokenizer.
        clean: continuations by the clean model.
        edited: continuations of the same prompts by the changed model.
        n_samples: number of texts.

    Raises:
        DataError: the continuations have different prompts.
    """
    if not torch.equal(clean.prompts, edited.prompts):
        raise DataError(
            "expected continuations of the same prompts, got different ones; continue the same table with the same Decoding"
        )
    special = set(lm.cutter.special_token_ids.tolist())

    def decode(tokens: Sequence[int]) -> str:
        return str(lm.cutter.tokenizer.decode([token for token in tokens if token not in special]))

    rows = list(zip(clean.prompts.tolist(), clean.texts, edited.texts, strict=True))[:n_samples]
    return tuple(Sample(decode(prompt), decode(before), decode(after)) for prompt, before, after in rows)
