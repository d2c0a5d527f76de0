"""What a change of a model does to its predictions, document by document.

A change is an edit at a hook or another set of weights; both are measured on the same tokens against the same clean model. All
measures of a token come from one teacher-forced pass: greedy decoding gives a text exactly if every token of it is the likeliest after
those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.data.lazy_logits import LazyLogits, LazyModel, Logits, in_chunks, lazily, lazy_logits, token_nll
from mtsae_lens.data.padding import attention_options
from mtsae_lens.data.precision import in_float32, log_probs_of
from mtsae_lens.errors import ConfigError
from mtsae_lens.progress import advance, track
from mtsae_lens.splice.edits import Edit, FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import open_positions


@dataclass(frozen=True, repr=False, eq=False)
class EditLoss:
    """Losses before and after one change on one corpus, by piece: sums over counted predictions, `n_tokens` of each piece.

    A piece is what of a context belongs to one document: all of it, but in packed contexts; or a question whose answer is counted.
    `documents` names what each belongs to (a document, a person), the unit that intervals resample.
    """

    corpus: str
    documents: tuple[str, ...]  # of each piece
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
        """Divide sums over pieces by the number of tokens."""
        return (sums.sum() / self.n_tokens.sum()).item()

    @property
    def nll_delta(self) -> float:
        """Nats added per token; for forget text higher is more forgetting, for retain text 0 is best.

        0: no change. What a model that never saw the text adds is the goal; what guessing every token alike adds, `log d_vocab` less the
        clean loss, is the most that is not damage.
        """
        return self.mean(self.nll_edited - self.nll_clean)

    def by_document(self, sums: Float[Tensor, " piece"]) -> Float[Tensor, " document"]:
        """Add up sums of pieces by document, in the order in which documents first occur."""
        names = tuple(dict.fromkeys(self.documents))
        place = {name: number for number, name in enumerate(names)}
        index = torch.tensor([place[name] for name in self.documents], dtype=torch.long)
        return torch.zeros(len(names), dtype=sums.dtype).index_add_(0, index, sums)


@dataclass(frozen=True, repr=False, eq=False)
class EditEffect(EditLoss):
    """The losses, and what else changed."""

    kl: Float[Tensor, " piece"]  # KL(clean || edited)
    agreements: Float[Tensor, " piece"]  # tokens at which both models' likeliest token is the same
    hits: Float[Tensor, " piece"]  # tokens that are the edited model's likeliest
    suffix: Float[Tensor, " piece"]  # length of the longest end of the text that greedy decoding gives

    @property
    def top1_agreement(self) -> float:
        """Share of tokens at which the likeliest token stayed the same: 1 if nothing changed; on retain text higher is better.

        Chance, were the likeliest token drawn anew: 1 / d_vocab. Two models of one language agree on far more: the reference's is the
        value to compare with.
        """
        return self.mean(self.agreements)

    @property
    def exact_memorisation(self) -> float:
        """Share of tokens that the changed model predicts exactly; on forget text lower is more forgetting.

        A guess is right once in d_vocab, but a model that never saw the text still predicts its commoner tokens: that is the value to fall
        to, not 0.
        """
        return self.mean(self.hits)

    @property
    def extraction_strength(self) -> float:
        """Mean share of a text that greedy decoding gives from the rest before it (Carlini et al. 2021; Wang et al. 2025).

        1: all of it from the first token on; 0: not even the last token. On forget text lower is more forgetting. Chance is about
        exact memorization over the number of tokens.
        """
        counted = self.n_tokens > 0
        return (self.suffix[counted] / self.n_tokens[counted]).mean().item()

    @property
    def exact_recall(self) -> float:
        """Share of pieces whose counted tokens greedy decoding gives all: of questions, the share answered exactly.

        On forget text lower is more forgetting. Chance: of text 0; of a question one over the number of possible answers.
        """
        counted = self.n_tokens > 0
        return (self.hits[counted] == self.n_tokens[counted]).double().mean().item()


def kl_divergence(clean: Float[Tensor, "*row d_vocab"], edited: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row"]:
    """Compute `KL(clean || edited)` of next-token distributions given as log-probabilities, in nats; 0 if equal, without an upper bound.

    On text to keep lower is better.
    """
    return (clean.exp() * (clean - edited)).sum(dim=-1)


def kl_of_logits(clean: Float[Tensor, "*row d_vocab"], edited: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row"]:
    """Compute `kl_divergence` from logits."""
    return kl_divergence(log_probs_of(clean), log_probs_of(edited))


def longest_suffix(
    hits: Bool[Tensor, "batch pred"], counted: Bool[Tensor, "batch pred"], piece: Int[Tensor, "batch pred"] | None = None
) -> Float[Tensor, " piece"]:
    """Return how many counted predictions at the end of each piece are right without a miss after them.

    Args:
        hits: the predictions that are right.
        counted: those that count.
        piece: the piece of each prediction, from 0 on; None: each row is one.
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
    """The clean model's predictions of a batch, counted ones alone."""

    tokens: Int[Tensor, "batch pos"]
    counted: Bool[Tensor, "batch pred"]
    logits: LazyLogits
    piece: Int[Tensor, "batch pos"]
    """The piece of each token, numbered from 0 in this batch."""
    nll: Float[Tensor, " n"]

    @staticmethod
    def of(tokens: Tensor, counted: Tensor, logits: LazyLogits, piece: Tensor) -> _Clean:
        """Take the counted predictions of a batch, and their loss."""
        kept = logits[:, :-1][counted].remembered()
        return _Clean(tokens, counted, kept, piece, kept.nll(tokens[:, 1:][counted]))

    def rows(self, kept: Bool[Tensor, " batch"]) -> _Clean:
        context_of = self.counted.nonzero()[:, 0]
        piece = self.piece[kept].unique(return_inverse=True)[1]
        rows = kept[context_of]
        return _Clean(self.tokens[kept], self.counted[kept], self.logits[rows], piece, self.nll[rows])

    def pieces_of(self, kept: Bool[Tensor, " batch"]) -> Bool[Tensor, " piece"]:
        """Return which pieces are in these contexts."""
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
        """Add up by piece."""
        total = torch.zeros(self.n_pieces, per_token.shape[1], dtype=per_token.dtype, device=per_token.device)
        return total.index_add_(0, self.piece[:, 1:][self.counted], per_token)


def _losses(clean: _Clean, edited: LazyLogits | None) -> Float[Tensor, "piece 3"]:
    """Sum over counted predictions: tokens, NLL clean and edited; None: the edited model is the clean one."""
    nll = clean.nll if edited is None else edited.nll(clean.targets)
    return clean.sums(torch.stack([torch.ones_like(nll), clean.nll, nll], dim=1)).cpu()


def _measures(clean: _Clean, edited: LazyLogits | None) -> Float[Tensor, "piece 7"]:
    """Sum the same, and KL, agreements, hits, length of the right suffix."""
    models = [clean.logits, clean.logits if edited is None else edited]
    nll, kl, agree, hits = in_chunks(_by_token, models, clean.targets).unbind(dim=1)
    summed = clean.sums(torch.stack([torch.ones_like(nll), clean.nll, nll, kl, agree, hits], dim=1))
    hit_at = torch.zeros_like(clean.counted).masked_scatter(clean.counted, hits > 0)
    suffix = longest_suffix(hit_at, clean.counted, clean.piece[:, 1:]).unsqueeze(1)
    return torch.cat([summed.cpu(), suffix.cpu()], dim=1)


def _by_token(
    clean: Float[Tensor, "n d_vocab"], edited: Float[Tensor, "n d_vocab"], targets: Int[Tensor, " n"]
) -> Float[Tensor, "n 4"]:
    """Compare two models' logits: NLL of the second, KL, whether the likeliest token is the same, and whether it is the target."""
    before, after = log_probs_of(clean), log_probs_of(edited)
    likeliest = after.argmax(dim=-1)
    kl = kl_divergence(before, after)
    agree, hits = likeliest == before.argmax(dim=-1), likeliest == targets
    return torch.stack([token_nll(after, targets), kl, agree.to(kl.dtype), hits.to(kl.dtype)], dim=1)


_Compare = Callable[[_Clean, LazyLogits | None], Tensor]


def _columns(rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.cat(list(rows)).double().unbind(dim=1)


def measure_edits(lm: HookedLM, table: TokenTable, edits: Sequence[Edit], *, answers_only: bool = False) -> list[EditEffect]:
    """Measure the effect of each edit, all from one run to the hook; contexts that an edit leaves alone are not run again.

    Args:
        lm: the model with its SAE.
        table: the text; predictions of special tokens are not counted.
        edits: any number.
        answers_only: apply edits only at the positions from which counted tokens are predicted.
    """
    rows, gate_open = _run_edits(lm, table, edits, _measures, answers_only=answers_only)
    return [
        EditEffect(table.corpus, table.pieces.documents, opened, *_columns(of_edit))
        for of_edit, opened in zip(rows, gate_open, strict=True)
    ]


def edit_losses(lm: HookedLM, table: TokenTable, edits: Sequence[Edit]) -> list[EditLoss]:
    """Measure the losses of each edit alone, for sweeps: about half the work of `measure_edits`."""
    rows, gate_open = _run_edits(lm, table, edits, _losses)
    return [
        EditLoss(table.corpus, table.pieces.documents, opened, *_columns(of_edit))
        for of_edit, opened in zip(rows, gate_open, strict=True)
    ]


@torch.no_grad()
def _run_edits(
    lm: HookedLM, table: TokenTable, edits: Sequence[Edit], compare: _Compare, *, answers_only: bool = False
) -> tuple[list[list[Tensor]], list[float]]:
    """Return what `compare` gives for each edit, batch by batch, and the share of positions at which each applied."""
    if not isinstance(edits, Sequence):
        raise ConfigError(f"edits are measured together: give a list of them, such as [edit]; got a {type(edits).__name__}")
    rows: list[list[Tensor]] = [[] for _ in edits]
    n_open = [0] * len(edits)
    n_positions = 0
    batches = track(lm.counted_batches(table), f"measuring edits on {table.corpus}", "batch", lm.n_batches(table))
    for (tokens, counted), piece in zip(batches, _pieces(table, lm.batch_size), strict=True):
        masked = lm.masked(tokens)
        n_positions += int((~masked).sum())
        h = lm.activations(tokens)
        feature_acts = lm.feature_acts(tokens, h)
        clean = _Clean.of(tokens, counted, lm.lazy_logits_from(tokens, h), piece.to(tokens.device))
        unchanged = compare(clean, None)
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
                    edited = lm.lazy_logits_from(tokens[kept], edited_h[changed])[:, :-1][counted[kept]]
                    compared[clean.pieces_of(kept).cpu()] = compare(clean.rows(kept), edited)
            rows[index].append(compared)
            advance()
    return rows, [n / max(n_positions, 1) for n in n_open]


def _pieces(table: TokenTable, batch_size: int) -> list[Int[Tensor, "batch pos"]]:
    """Return the piece of each token in batches, numbered from 0 in each."""
    return [piece - piece.min() for piece in table.pieces.of_token.split(batch_size)]


def _before(counted: Bool[Tensor, "batch pred"]) -> Bool[Tensor, "batch pos"]:
    """Return the positions from which counted predictions are made."""
    return torch.cat([counted, torch.zeros_like(counted[:, :1])], dim=1)


def as_logits(model: AnyHookedModel, cutter: ContextCutter | None = None) -> Logits:
    """Turn a hooked model into what `measure_model` takes.

    Args:
        model: a `HookedTransformer` or a bridge.
        cutter: says which tokens are padding; None where none is on the left. Tokens are given with their BOS.
    """

    def lazy(tokens: Int[Tensor, "batch pos"]) -> LazyLogits:
        padding = torch.zeros_like(tokens, dtype=torch.bool) if cutter is None else cutter.left_padding(tokens)
        return lazy_logits(model, tokens, prepend_bos=False, **attention_options(model, padding))

    return LazyModel(lazy)


def edited_logits(lm: HookedLM, edit: Edit | None) -> Logits:
    """Make a function from tokens to the logits of a model with an edit at its hook.

    Args:
        lm: the model with its SAE; for a model with other weights, `dataclasses.replace(lm, model=other)`.
        edit: the edit, which leaves masked positions alone; None for the model as it is.

    Returns:
        What `measure_model` takes.
    """
    if edit is None:
        return as_logits(lm.model, lm.cutter)

    def lazy(tokens: Int[Tensor, "batch pos"]) -> LazyLogits:
        tokens = tokens.to(lm.model.cfg.device)
        return lm.lazy_logits_from(tokens, lm.splice.edited(lm.activations(tokens), edit, lm.masked(tokens)))

    return LazyModel(lazy)


def measure_model(
    model: Logits, clean_model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> EditEffect:
    """Measure another model in the same way, such as one with other weights or one that never saw the text."""
    (rows,) = _run_models([model], clean_model, cutter, table, batch_size, _measures)
    return EditEffect(table.corpus, table.pieces.documents, 1.0, *_columns(rows))


def model_losses(
    models: Sequence[Logits], clean_model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> list[EditLoss]:
    """Measure the losses alone of several models, for sweeps; the clean model runs once."""
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
        clean = _Clean.of(tokens, here, lazily(as_logits(clean_model, cutter), tokens), piece)
        for of_model, model in zip(rows, models, strict=True):
            of_model.append(compare(clean, lazily(model, tokens)[:, :-1][here]))
    return rows


@torch.no_grad()
def max_identity_error(lm: HookedLM, table: TokenTable) -> float:
    """Measure the largest difference in logits between the clean model and the splice without an edit, on the first batch."""
    tokens = lm.batches(table)[0]
    nothing = FeatureEdit(features=(), multiplier=0.0)
    options = {"prepend_bos": False} | lm.attention_options(tokens)
    spliced = lazy_logits(lm.model, tokens, fwd_hooks=[lm.splice.hook(nothing, lm.masked(tokens))], **options)
    clean = lazy_logits(lm.model, tokens, **options)
    return in_chunks(lambda a, b: (in_float32(a) - in_float32(b)).abs().amax(dim=-1), [spliced, clean]).max().item()
