"""What one change of a model did to its losses and predictions on one corpus, document by document."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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
