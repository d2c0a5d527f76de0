"""Measure how a change of a model affects its predictions, document by document.

A change is an edit at a hook or another set of weights; both are measured on the same tokens relative to the same clean model. All
measures of a token come from one teacher-forced pass: greedy decoding reproduces a text exactly if every token is the most likely one
after those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.data.padding import attention_options
from mtsae_lens.data.precision import log_probs_of
from mtsae_lens.errors import ConfigError
from mtsae_lens.progress import advance, track
from mtsae_lens.splice.attribution import token_nll
from mtsae_lens.splice.edits import Edit, FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import open_positions

Logits = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos d_vocab"]]
"""A model as a function from tokens `(batch, pos)` to logits `(batch, pos, d_vocab)`."""


@dataclass(frozen=True, repr=False, eq=False)
class EditLoss:
    """Losses before and after one change on one corpus, summed over the counted predictions of each piece.

    A piece is the part of a context that belongs to one document: the whole context, unless contexts are packed. For questions, it is
    one question, of which only the answer is counted. `documents` names what each piece belongs to (a document or a person); intervals
    resample these.
    """

    corpus: str
    documents: tuple[str, ...]  # one for each piece
    gate_open: float  # share of unmasked positions at which the edit applied; 1 for other weights
    n_tokens: Float[Tensor, " piece"]
    nll_clean: Float[Tensor, " piece"]
    nll_edited: Float[Tensor, " piece"]

    def __repr__(self) -> str:
        n_documents = len(set(self.documents))
        return (
            f"{type(self).__name__}({self.corpus}: {self.nll_delta:+.4f} nats per token, {len(self.documents)} pieces of {n_documents} "
            f"documents, open at {self.gate_open:.1%} of positions)"
        )

    def mean(self, sums: Float[Tensor, " piece"]) -> float:
        """Return the mean per token.

        Args:
            sums: sums over the counted tokens of each piece.
        """
        return (sums.sum() / self.n_tokens.sum()).item()

    @property
    def nll_delta(self) -> float:
        """Return the increase of the loss, in nats per token; 0 means no change.

        On forget text, higher means more forgetting, and the increase of a model trained without the text is the goal. An increase to
        more than `log d_vocab`, the loss of a uniform guess, is damage. On retain text, 0 is best.
        """
        return self.mean(self.nll_edited - self.nll_clean)

    def by_document(self, sums: Float[Tensor, " piece"]) -> Float[Tensor, " document"]:
        """Add up sums over pieces by document.

        Args:
            sums: one value per piece.

        Returns:
            One value per document, in the order in which documents first occur.
        """
        names = tuple(dict.fromkeys(self.documents))
        place = {name: number for number, name in enumerate(names)}
        index = torch.tensor([place[name] for name in self.documents], dtype=torch.long)
        return torch.zeros(len(names), dtype=sums.dtype).index_add_(0, index, sums)


@dataclass(frozen=True, repr=False, eq=False)
class EditEffect(EditLoss):
    """The losses before and after one change, and how the predictions changed."""

    kl: Float[Tensor, " piece"]  # KL(clean || edited)
    agreements: Float[Tensor, " piece"]  # tokens at which both models have the same most likely token
    hits: Float[Tensor, " piece"]  # tokens that are the edited model's most likely ones
    suffix: Float[Tensor, " piece"]  # length in tokens of the longest suffix that greedy decoding reproduces

    @property
    def top1_agreement(self) -> float:
        """Return the share of tokens at which the most likely token is unchanged; on retain text, higher is better.

        The chance level is 1 / d_vocab, but two models of one language agree far more often: compare with the reference's value.
        """
        return self.mean(self.agreements)

    @property
    def exact_memorisation(self) -> float:
        """Return the share of tokens that the changed model predicts exactly; on forget text, lower means more forgetting.

        The chance level is 1 / d_vocab, but a model trained without the text still predicts its common tokens: that model's value is
        the goal, not 0.
        """
        return self.mean(self.hits)

    @property
    def extraction_strength(self) -> float:
        """Return the mean share of a text that greedy decoding reproduces from the rest before it (Carlini et al. 2021; Wang et al. 2025).

        1 means all of it from the first token on; 0 means not even the last token. On forget text, lower means more forgetting. The
        chance level is about exact memorization divided by the number of tokens.
        """
        counted = self.n_tokens > 0
        return (self.suffix[counted] / self.n_tokens[counted]).mean().item()

    @property
    def exact_recall(self) -> float:
        """Return the share of pieces whose counted tokens greedy decoding all reproduces; for questions, the share answered exactly.

        On forget text, lower means more forgetting. The chance level is 0 for text, and one over the number of possible answers for a
        question.
        """
        counted = self.n_tokens > 0
        return (self.hits[counted] == self.n_tokens[counted]).double().mean().item()


def kl_divergence(clean: Float[Tensor, "*row d_vocab"], edited: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row"]:
    """Compute `KL(clean || edited)` of next-token distributions; 0 if they are equal, without an upper bound.

    Args:
        clean: log-probabilities, `(..., d_vocab)`.
        edited: log-probabilities, `(..., d_vocab)`.

    Returns:
        One value per distribution, in nats. On retain text, lower is better.
    """
    return (clean.exp() * (clean - edited)).sum(dim=-1)


def longest_suffix(
    hits: Bool[Tensor, "batch pred"], counted: Bool[Tensor, "batch pred"], piece: Int[Tensor, "batch pred"] | None = None
) -> Float[Tensor, " piece"]:
    """Count the counted predictions at the end of each piece that are right, up to the last miss.

    Args:
        hits: mask `(batch, pos - 1)` of the predictions that are right.
        counted: mask of the predictions that are counted.
        piece: index of the piece of each prediction, from 0 on; None if each row is one piece.

    Returns:
        One length per piece, in tokens.
    """
    if piece is None:
        piece = torch.arange(len(hits), device=hits.device).unsqueeze(1).expand(hits.shape)
    misses = ~hits & counted
    from_here = misses.flip(-1).cumsum(-1).flip(-1)  # up to the end of the row
    after = torch.full((int(piece.max()) + 1,), hits.shape[1], dtype=from_here.dtype, device=hits.device)
    after.scatter_reduce_(0, piece.flatten(), (from_here - misses.long()).flatten(), "amin")
    right = counted & (from_here == after[piece])
    return torch.zeros(len(after), device=hits.device).index_add_(0, piece.flatten(), right.flatten().float())


@dataclass(frozen=True, eq=False)
class _Clean:
    """The clean model's predictions for a batch, counted ones only."""

    tokens: Int[Tensor, "batch pos"]
    counted: Bool[Tensor, "batch pred"]
    log_probs: Float[Tensor, "n d_vocab"]
    piece: Int[Tensor, "batch pos"]
    """The piece of each token, numbered from 0 in this batch."""

    def rows(self, kept: Bool[Tensor, " batch"]) -> _Clean:
        context_of = self.counted.nonzero()[:, 0]
        piece = self.piece[kept].unique(return_inverse=True)[1]
        return _Clean(self.tokens[kept], self.counted[kept], self.log_probs[kept[context_of]], piece)

    def pieces_of(self, kept: Bool[Tensor, " batch"]) -> Bool[Tensor, " piece"]:
        """Return a mask of the pieces that are in these contexts."""
        pieces = torch.zeros(self.n_pieces, dtype=torch.bool, device=kept.device)
        pieces[self.piece[kept].flatten()] = True
        return pieces

    @property
    def n_pieces(self) -> int:
        return int(self.piece.max()) + 1

    @property
    def targets(self) -> Int[Tensor, " n"]:
        return self.tokens[:, 1:][self.counted]

    def sums(self, per_token: Float[Tensor, "n column"]) -> Float[Tensor, "piece column"]:
        """Add up values per token by piece."""
        total = torch.zeros(self.n_pieces, per_token.shape[1], dtype=per_token.dtype, device=per_token.device)
        return total.index_add_(0, self.piece[:, 1:][self.counted], per_token)


def _losses(clean: _Clean, edited: Float[Tensor, "n d_vocab"]) -> Float[Tensor, "piece 3"]:
    """Sum tokens, clean NLL and edited NLL over the counted predictions of each piece."""
    nll = [token_nll(log_probs, clean.targets) for log_probs in (clean.log_probs, edited)]
    return clean.sums(torch.stack([torch.ones_like(nll[0]), *nll], dim=1)).cpu()


def _measures(clean: _Clean, edited: Float[Tensor, "n d_vocab"]) -> Float[Tensor, "piece 7"]:
    """Sum the same as `_losses`, and also KL, agreements, hits and the length of the right suffix."""
    likeliest = edited.argmax(dim=-1)
    hits = likeliest == clean.targets
    agree = likeliest == clean.log_probs.argmax(dim=-1)
    kl = kl_divergence(clean.log_probs, edited)
    further = clean.sums(torch.stack([kl, agree.to(kl.dtype), hits.to(kl.dtype)], dim=1))
    hit_at = torch.zeros_like(clean.counted).masked_scatter(clean.counted, hits)
    suffix = longest_suffix(hit_at, clean.counted, clean.piece[:, 1:]).unsqueeze(1)
    return torch.cat([_losses(clean, edited), further.cpu(), suffix.cpu()], dim=1)


_Compare = Callable[[_Clean, Tensor], Tensor]


def _columns(rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.cat(list(rows)).double().unbind(dim=1)


def measure_edits(lm: HookedLM, table: TokenTable, edits: Sequence[Edit], *, answers_only: bool = False) -> list[EditEffect]:
    """Measure the effect of each edit. The model runs to the hook once for all edits, and contexts that an edit leaves unchanged are
    not run again.

    Args:
        lm: the model with its SAE.
        table: the text; predictions of special tokens are not counted.
        edits: the edits.
        answers_only: whether edits apply only at the positions from which counted tokens are predicted.

    Returns:
        One effect per edit.

    Raises:
        ConfigError: `edits` is not a sequence.
    """
    rows, gate_open = _run_edits(lm, table, edits, _measures, answers_only=answers_only)
    return [
        EditEffect(table.corpus, table.pieces.documents, opened, *_columns(of_edit))
        for of_edit, opened in zip(rows, gate_open, strict=True)
    ]


def edit_losses(lm: HookedLM, table: TokenTable, edits: Sequence[Edit]) -> list[EditLoss]:
    """Measure only the losses of each edit, for sweeps; this takes about half the time of `measure_edits`.

    Args:
        lm: the model with its SAE.
        table: the text.
        edits: the edits.

    Returns:
        One loss per edit.
    """
    rows, gate_open = _run_edits(lm, table, edits, _losses)
    return [
        EditLoss(table.corpus, table.pieces.documents, opened, *_columns(of_edit))
        for of_edit, opened in zip(rows, gate_open, strict=True)
    ]


@torch.no_grad()
def _run_edits(
    lm: HookedLM, table: TokenTable, edits: Sequence[Edit], compare: _Compare, *, answers_only: bool = False
) -> tuple[list[list[Tensor]], list[float]]:
    """Return what `compare` returns for each edit, batch by batch, and the share of positions at which each edit applied."""
    if not isinstance(edits, Sequence):
        raise ConfigError(f"expected a list of edits, got a {type(edits).__name__}; give [edit]")
    rows: list[list[Tensor]] = [[] for _ in edits]
    n_open = [0] * len(edits)
    n_positions = 0
    batches = track(lm.counted_batches(table), f"measuring edits on {table.corpus}", "batch", lm.n_batches(table))
    for (tokens, counted), piece in zip(batches, _pieces(table, lm.batch_size), strict=True):
        masked = lm.masked(tokens)
        n_positions += int((~masked).sum())
        h = lm.activations(tokens)
        feature_acts = lm.feature_acts(tokens, h)
        clean = _Clean(tokens, counted, lm.log_probs_from(tokens, h, counted), piece.to(tokens.device))
        unchanged = compare(clean, clean.log_probs)
        sae_state = lm.splice.sae_state(h, feature_acts)
        for index, (edit, opened) in enumerate(zip(edits, open_positions(feature_acts, edits, masked), strict=True)):
            open_at = opened & _before(counted) if answers_only else opened
            n_open[index] += int(open_at.sum())
            compared = unchanged.clone()
            touched = open_at.any(dim=1)
            if bool(touched.any()):
                delta = edit.delta(sae_state.rows(touched))
                edited_h = lm.splice.add_delta(h[touched], delta, open_at[touched])
                changed = (edited_h != h[touched]).flatten(1).any(dim=1)
                if bool(changed.any()):
                    kept = touched.clone()
                    kept[touched] = changed
                    edited = lm.log_probs_from(tokens[kept], edited_h[changed], counted[kept])
                    compared[clean.pieces_of(kept).cpu()] = compare(clean.rows(kept), edited)
            rows[index].append(compared)
            advance()
    return rows, [n / max(n_positions, 1) for n in n_open]


def _pieces(table: TokenTable, batch_size: int) -> list[Int[Tensor, "batch pos"]]:
    """Return the piece of each token in batches, numbered from 0 in each batch."""
    return [piece - piece.min() for piece in table.pieces.of_token.split(batch_size)]


def _before(counted: Bool[Tensor, "batch pred"]) -> Bool[Tensor, "batch pos"]:
    """Return the positions from which counted predictions are made."""
    return torch.cat([counted, torch.zeros_like(counted[:, :1])], dim=1)


def as_logits(model: AnyHookedModel, cutter: ContextCutter | None = None) -> Logits:
    """Turn a hooked model into a function from tokens to logits, as `measure_model` takes it.

    Args:
        model: a `HookedTransformer` or a bridge.
        cutter: says which tokens are padding; None if there is no padding on the left. Tokens include their BOS token.
    """

    def logits(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        padding = torch.zeros_like(tokens, dtype=torch.bool) if cutter is None else cutter.left_padding(tokens)
        return model(tokens, prepend_bos=False, **attention_options(model, padding))

    return logits


def edited_logits(lm: HookedLM, edit: Edit | None) -> Logits:
    """Return a function from tokens to the logits of a model with an edit at its hook.

    Args:
        lm: the model with its SAE; for a model with other weights, pass `dataclasses.replace(lm, model=other)`.
        edit: the edit, which leaves masked positions unchanged; None for the model without an edit.

    Returns:
        A function as `measure_model` takes it.
    """
    if edit is None:
        return as_logits(lm.model, lm.cutter)

    def logits(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        tokens = tokens.to(lm.model.cfg.device)
        return lm.logits_from(tokens, lm.splice.edited(lm.activations(tokens), edit, lm.masked(tokens)))

    return logits


def measure_model(
    model: Logits, clean_model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> EditEffect:
    """Measure another model in the same way as an edit, such as one with other weights or one trained without the text.

    Args:
        model: the model, as a function from tokens to logits.
        clean_model: the model to compare with.
        cutter: says which predictions are counted.
        table: the text.
        batch_size: contexts per forward pass.
    """
    (rows,) = _run_models([model], clean_model, cutter, table, batch_size, _measures)
    return EditEffect(table.corpus, table.pieces.documents, 1.0, *_columns(rows))


def model_losses(
    models: Sequence[Logits], clean_model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> list[EditLoss]:
    """Measure only the losses of several models, for sweeps; the clean model runs once.

    Args:
        models: the models, as functions from tokens to logits.
        clean_model: the model to compare with.
        cutter: says which predictions are counted.
        table: the text.
        batch_size: contexts per forward pass.

    Returns:
        One loss per model.
    """
    of_models = _run_models(models, clean_model, cutter, table, batch_size, _losses)
    return [EditLoss(table.corpus, table.pieces.documents, 1.0, *_columns(rows)) for rows in of_models]


@torch.no_grad()
def _run_models(
    models: Sequence[Logits],
    clean_model: AnyHookedModel,
    cutter: ContextCutter,
    table: TokenTable,
    batch_size: int,
    compare: _Compare,
) -> list[list[Tensor]]:
    rows: list[list[Tensor]] = [[] for _ in models]
    device = clean_model.cfg.device
    parts = (table.batches(batch_size), table.counted(cutter).split(batch_size), _pieces(table, batch_size))
    batches = [tuple(part.to(device) for part in batch) for batch in zip(*parts, strict=True)]
    for tokens, here, piece in track(batches, f"measuring models on {table.corpus}", "batch"):
        clean = _Clean(tokens, here, log_probs_of(as_logits(clean_model, cutter)(tokens)[:, :-1][here]), piece)
        for of_model, model in zip(rows, models, strict=True):
            of_model.append(compare(clean, log_probs_of(model(tokens)[:, :-1][here])))
    return rows


@torch.no_grad()
def max_identity_error(lm: HookedLM, table: TokenTable) -> float:
    """Measure the largest difference of a logit between the clean model and the splice without an edit, on the first batch.

    Args:
        lm: the model with its SAE.
        table: the text.
    """
    tokens = lm.batches(table)[0]
    nothing = FeatureEdit(features=(), multiplier=0.0)
    options = {"prepend_bos": False} | lm.attention_options(tokens)
    spliced = lm.model.run_with_hooks(tokens, fwd_hooks=[lm.splice.hook(nothing, lm.masked(tokens))], **options)
    return (spliced - lm.model(tokens, **options)).abs().max().item()
