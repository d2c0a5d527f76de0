"""How much of the forgetting some losses bring back, as a share with an interval over documents."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mtsae_lens.records import Interval
from mtsae_lens.unlearning.measures.bootstrap import ratio_interval
from mtsae_lens.unlearning.measures.results import EditLoss
from mtsae_lens.unlearning.recovery.results import Recovered

MIN_FORGOTTEN = 0.01
"""If a change adds fewer nats per token than this to the forget text, no share of them is reported."""


def recovered(edited: EditLoss, attacked: EditLoss, seed: int) -> Recovered:
    """Return the loss under an attack, and the share of the forgetting that the attack brings back.

    Args:
        edited: the losses with the change.
        attacked: those with the change and the attack.
        seed: seed of the interval.
    """
    share = share_of_forgetting(edited, edited.nll_edited - attacked.nll_edited, seed)
    return Recovered(nll=attacked.mean(attacked.nll_edited), share=share)


def share_of_forgetting(edited: EditLoss, undone: Float[Tensor, " piece"], seed: int) -> Interval | None:
    """Return the share of the forgetting that some nats are, with an interval over documents.

    Args:
        edited: the losses with the change.
        undone: the nats, one sum for each piece.
        seed: seed of the interval.

    Returns:
        The share; None if the change adds fewer than `MIN_FORGOTTEN` nats per token.
    """
    if not edited.nll_delta > MIN_FORGOTTEN:
        return None
    forgotten = edited.by_document(edited.nll_edited - edited.nll_clean)
    undone = edited.by_document(undone)
    return Interval((undone.sum() / forgotten.sum()).item(), *ratio_interval(undone, forgotten, seed))
