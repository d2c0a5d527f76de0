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
from mtsae_lens.data.lazy_logits import LazyLogits, LazyModel, Logits, in_chunks, lazily, lazy_logits
from mtsae_lens.data.padding import attention_options
from mtsae_lens.data.precision import in_float32
from mtsae_lens.errors import ConfigError
from mtsae_lens.progress import advance, track
from mtsae_lens.splice.edits import Edit, FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import open_positions
from mtsae_lens.unlearning.measures.predictions import CleanPredictions, sum_losses, sum_measures


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


_Compare = Callable[[CleanPredictions, LazyLogits | None], Tensor]


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
    rows, gate_open = _run_edits(lm, table, edits, sum_measures, answers_only=answers_only)
    return [
        EditEffect(table.corpus, table.pieces.documents, opened, *_columns(of_edit))
        for of_edit, opened in zip(rows, gate_open, strict=True)
    ]


def edit_losses(lm: HookedLM, table: TokenTable, edits: Sequence[Edit]) -> list[EditLoss]:
    """Measure the losses of each edit alone, for sweeps: about half the work of `measure_edits`."""
    rows, gate_open = _run_edits(lm, table, edits, sum_losses)
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
    for batch in track(lm.counted_batches(table), f"measuring edits on {table.corpus}", "batch"):
        tokens, counted, _ = batch
        masked = lm.masked(tokens)
        n_positions += int((~masked).sum())
        h = lm.activations(tokens)
        feature_acts = lm.feature_acts(tokens, h)
        clean = CleanPredictions.of(batch, lm.lazy_logits_from(tokens, h))
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
    (rows,) = _run_models([model], clean_model, cutter, table, batch_size, sum_measures)
    return EditEffect(table.corpus, table.pieces.documents, 1.0, *_columns(rows))


def model_losses(
    models: Sequence[Logits], clean_model: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> list[EditLoss]:
    """Measure the losses alone of several models, for sweeps; the clean model runs once."""
    of_models = _run_models(models, clean_model, cutter, table, batch_size, sum_losses)
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
    batches = table.batches(cutter, batch_size, clean_model.cfg.device)
    for batch in track(batches, f"measuring models on {table.corpus}", "batch"):
        tokens, counted, _ = batch
        clean = CleanPredictions.of(batch, lazily(as_logits(clean_model, cutter), tokens))
        for of_model, model in zip(rows, models, strict=True):
            of_model.append(compare(clean, lazily(model, tokens)[:, :-1][counted]))
    return rows


@torch.no_grad()
def max_identity_error(lm: HookedLM, table: TokenTable) -> float:
    """Measure the largest difference in logits between the clean model and the splice without an edit, on the first batch."""
    tokens = lm.batches(table)[0]
    nothing = FeatureEdit(features=(), multiplier=0.0)
    options = {"prepend_bos": False} | lm.attention_options(tokens)
    with lm.splice.attached(lm.model, nothing, lm.masked(tokens)):
        spliced = lazy_logits(lm.model, tokens, **options)
    clean = lazy_logits(lm.model, tokens, **options)
    return in_chunks(lambda a, b: (in_float32(a) - in_float32(b)).abs().amax(dim=-1), [spliced, clean]).max().item()
