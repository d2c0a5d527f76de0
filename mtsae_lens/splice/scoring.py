"""Score continuations of texts with an edit: how likely they are, and whether the model would choose them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.lazy_logits import in_chunks, token_nll
from mtsae_lens.data.precision import log_probs_of
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hooked_lm import HookedLM, fit_batch


@dataclass(frozen=True)
class Score:
    """How likely a continuation is.

    Args:
        log_likelihood: sum of the log-probabilities of its tokens, in nats.
        is_greedy: whether every token is the likeliest one.
    """

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class _PaddedOnTheRight(ContextCutter):
    """A cutter for texts that nothing stands before: a leading token that is also the padding token is text."""

    def left_padding(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Return that no position is padding on the left.

        Args:
            tokens: the texts.
        """
        return torch.zeros_like(tokens, dtype=torch.bool)


@torch.no_grad()
def score_continuations(
    lm: HookedLM, edit: Edit | None, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int | None = None
) -> list[Score]:
    """Score continuations after their contexts. The gate of the edit starts anew with each context.

    Requests of similar lengths are read together, padded on the right, which changes nothing before the padding. Long ones are read in smaller
    batches than `lm.batch_size` if the vocabulary or the SAE is large (`batches_by_length`). If the encoder or the gate
    reads later positions, only requests of one length are read together.

    Args:
        lm: the model with its SAE.
        edit: the edit; None for the model without an edit.
        pairs: tokens of each context, at least one, and of its continuation.
        max_length: number of tokens to read; a longer request is cut on the left. None for the model's context.

    Returns:
        The score of each continuation.

    Raises:
        DataError: a context or a continuation is empty, or a continuation is longer than `max_length`.
    """
    max_length = max_length or lm.model.cfg.n_ctx
    rows = [_row(context, continuation, max_length) for context, continuation in pairs]
    cutter = lm.cutter
    scoring = replace(lm, cutter=_PaddedOnTheRight(cutter.tokenizer, cutter.context_size, cutter.prepend_bos, cutter.packed))
    scores: dict[int, Score] = {}
    for batch in track(_batches(scoring, edit, rows), "scoring", "batch"):
        scores |= zip(batch, _score_batch(scoring, edit, [rows[row] for row in batch]), strict=True)
    return [scores[row] for row in range(len(rows))]


def _row(context: Sequence[int], continuation: Sequence[int], max_length: int) -> tuple[list[int], int]:
    """Return the tokens of a request, cut on the left, and the number of tokens to score at its end.

    The last token is predicted but not read, so one more than `max_length` is kept.
    """
    if not context or not 0 < len(continuation) <= max_length:
        raise DataError(
            f"expected a context of 1 token or more and a continuation of 1 to {max_length} tokens, got {len(context)} and {len(continuation)} "
            "tokens; change the text, or leave it out"
        )
    return [*context, *continuation][-(max_length + 1) :], len(continuation)


def _batches(lm: HookedLM, edit: Edit | None, rows: Sequence[tuple[list[int], int]]) -> list[list[int]]:
    """Group requests of similar lengths; of one length if the encoder or the gate reads later positions, which may be padding."""
    looks_ahead = isinstance(lm.sae, TemporalEncoder) and lm.sae.cfg.padding != "causal"
    causal = edit is None or (edit.gate.causal and not looks_ahead)
    lengths, groups = [len(tokens) for tokens, _ in rows], dict[int, list[int]]()
    for row, length in enumerate(lengths):
        groups.setdefault(0 if causal else length, []).append(row)
    return [batch for group in groups.values() for batch in batches_by_length(lm, group, lengths)]


def batches_by_length(lm: HookedLM, texts: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Group texts of any length into batches that `fit_batch` allows, similar lengths together.

    Args:
        lm: the model with its SAE.
        texts: indices of the texts to group.
        lengths: number of positions of each text, by index.

    Returns:
        The indices of each batch, those of the longest texts first.
    """
    left, batches = sorted(texts, key=lambda text: -lengths[text]), list[list[int]]()
    while left:
        size = fit_batch(lm, lengths[left[0]]).batch_size
        batches.append(left[:size])
        left = left[size:]
    return batches


def _score_batch(lm: HookedLM, edit: Edit | None, rows: Sequence[tuple[list[int], int]]) -> list[Score]:
    """Score requests in one pass, padded on the right with a token of text, which nothing before it reads."""
    special = set(lm.cutter.special_token_ids.tolist())
    filler = next(token for token in range(lm.model.cfg.d_vocab) if token not in special)
    width = max(
        3, *(len(tokens) for tokens, _ in rows)
    )  # a temporal encoder reads two positions or more; the first is never edited
    padded = torch.tensor([tokens + [filler] * (width - len(tokens)) for tokens, _ in rows], device=lm.model.cfg.device)
    read, targets = padded[:, :-1], padded[:, 1:]
    h = lm.activations(read)
    if edit is not None:
        h = lm.splice.edited(h, edit, lm.masked(read))
    scored = _last_of_each([(len(tokens) - 1, n_scored) for tokens, n_scored in rows], width - 1).to(read.device)
    found = in_chunks(_log_prob_and_greedy, [lm.lazy_logits_from(read, h)[scored]], targets[scored])
    parts = found.cpu().double().split([n_scored for _, n_scored in rows])
    return [Score(float(part[:, 0].sum()), bool(part[:, 1].all())) for part in parts]


def _log_prob_and_greedy(logits: Float[Tensor, "n d_vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """Return the log-probability of each target, and 1 where it is the likeliest token."""
    is_greedy = logits.argmax(dim=-1) == targets
    return torch.stack([-token_nll(log_probs_of(logits), targets), is_greedy.float()], dim=-1)


def _last_of_each(rows: Iterable[tuple[int, int]], width: int) -> Bool[Tensor, "batch pos"]:
    """Return a mask of the last positions of each row.

    Args:
        rows: length of each row, and number of its last positions.
        width: positions of the longest row.
    """
    places = torch.arange(width)
    return torch.stack([(places < length) & (places >= length - n) for length, n in rows])
