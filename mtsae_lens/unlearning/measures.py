"""What an edit does to a model's loss, document by document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sae_lens import HookedSAETransformer
from torch import Tensor

from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.splice.edits import FeatureEdit, open_positions
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True)
class EditEffect:
    """Per-document effect of one edit on one corpus. Sums over predicted tokens; `n_tokens` of each document."""

    corpus: str
    documents: tuple[str, ...]
    n_tokens: Float[Tensor, " document"]
    nll_clean: Float[Tensor, " document"]
    nll_edited: Float[Tensor, " document"]
    kl: Float[Tensor, " document"]
    gate_open: float  # share of unmasked positions at which the edit applied

    def mean(self, sums: Float[Tensor, " document"]) -> float:
        """Per token, over all documents."""
        return (sums.sum() / self.n_tokens.sum()).item()

    @property
    def nll_delta(self) -> float:
        """Nats added per token; for forget text higher is more forgetting, for retain text 0 is best."""
        return self.mean(self.nll_edited - self.nll_clean)


def token_nll(log_probs: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pred"]:
    """Negative log-likelihood of each next token, in nats."""
    return -log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)


def kl_divergence(
    clean: Float[Tensor, "batch pos d_vocab"], edited: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, "batch pos"]:
    """`KL(clean || edited)` of next-token distributions given as log-probabilities, in nats; 0 if equal."""
    return (clean.exp() * (clean - edited)).sum(dim=-1)


@torch.no_grad()
def measure_edits(lm: HookedLM, table: TokenTable, edits: Sequence[FeatureEdit]) -> list[EditEffect]:
    """The effect of each edit, all from one run to the hook. Predictions of special tokens are not counted."""
    rows: list[list[Tensor]] = [[] for _ in edits]  # per edit and batch: (context, [n, clean, edited, kl])
    n_open = [0] * len(edits)
    n_positions = 0
    for tokens in lm.batches(table):
        masked = lm.masked(tokens)
        counted = (~lm.cutter.special_positions(tokens))[:, 1:].float()
        n_positions += int((~masked).sum())
        h = lm.activations(tokens)
        feature_acts = lm.feature_acts(tokens, h)
        clean = lm.logits_from(tokens, h).log_softmax(dim=-1)
        clean_nll = token_nll(clean, tokens)
        opened = open_positions(feature_acts, edits)
        edited_hs = lm.splice.edited_from_features(h, feature_acts, edits, opened)
        for index, edited_h in enumerate(edited_hs):
            n_open[index] += int((opened[index] & ~masked).sum())
            edited = lm.logits_from(tokens, edited_h).log_softmax(dim=-1)
            kl = kl_divergence(clean, edited)[:, :-1]
            per_token = torch.stack([torch.ones_like(counted), clean_nll, token_nll(edited, tokens), kl])
            rows[index].append((per_token * counted).sum(dim=-1).T.cpu())
    documents, document_of = _documents(table)
    effects = []
    for index in range(len(edits)):
        sums = torch.zeros(len(documents), 4, dtype=torch.float64).index_add_(0, document_of, torch.cat(rows[index]).double())
        n_tokens, clean, edited, kl = sums.unbind(dim=1)
        effects.append(EditEffect(table.corpus, documents, n_tokens, clean, edited, kl, n_open[index] / max(n_positions, 1)))
    return effects


@torch.no_grad()
def document_nll(
    model: HookedSAETransformer, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood and number of predicted tokens of each document, for a model as it is."""
    rows = []
    for batch in table.batches(batch_size):
        tokens = batch.to(model.cfg.device)
        counted = (~cutter.special_positions(tokens))[:, 1:].float()
        nll = token_nll(model(tokens, prepend_bos=False).log_softmax(dim=-1), tokens)
        rows.append(torch.stack([(nll * counted).sum(-1), counted.sum(-1)], dim=1).cpu())
    documents, document_of = _documents(table)
    sums = torch.zeros(len(documents), 2, dtype=torch.float64).index_add_(0, document_of, torch.cat(rows).double())
    return sums[:, 0], sums[:, 1]


def _documents(table: TokenTable) -> tuple[tuple[str, ...], Tensor]:
    documents = tuple(dict.fromkeys(table.documents))
    number = {name: place for place, name in enumerate(documents)}
    return documents, torch.tensor([number[name] for name in table.documents])


@torch.no_grad()
def max_identity_error(lm: HookedLM, table: TokenTable) -> float:
    """Largest difference in logits between the clean model and the splice with nothing edited; 0 up to rounding."""
    tokens = lm.batches(table)[0]
    nothing = FeatureEdit(features=(), multiplier=0.0)
    spliced = lm.model.run_with_hooks(tokens, fwd_hooks=[lm.splice.hook(nothing, lm.masked(tokens))], prepend_bos=False)
    return (spliced - lm.model(tokens, prepend_bos=False)).abs().max().item()
