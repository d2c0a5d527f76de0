"""Keep the state of an edit in the KV cache of transformers, so that generation with a cache edits as without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class EditState(DynamicLayer):
    """State of an edit between calls, stored as a layer of the KV cache, so that both are reordered and copied together.

    Args:
        owner: digest of the edit that the state belongs to.
    """

    is_compileable = True  # like the layers of a static cache; a layer that is not would change the masks that the model makes
    supports_early_init = False

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner, self.tensors = owner, dict[str, Tensor]()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows, as beam search does.

        Args:
            beam_idx: the new order.
        """
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows.

        Args:
            indices: the rows to keep.
        """
        self._replace(lambda rows: rows[indices.to(rows.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row.

        Args:
            repeats: copies of each row.
        """
        self._replace(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def _replace(self, change: Callable[[Tensor], Tensor]) -> None:
        self.tensors = {name: value if name == "n_seen" else change(value) for name, value in self.tensors.items()}

    def reset(self) -> None:
        """Delete the state."""
        self.tensors = {}

    def crop(self, tokens_to_remove: int) -> None:
        """Delete the state if tokens are removed, because the past that the encoder needs is not kept; the next call then raises an error.

        Args:
            tokens_to_remove: number of tokens to remove.
        """
        if tokens_to_remove != 0:
            self.tensors = {}


def find_cache(values: Any) -> Any:
    """Return the KV cache among the arguments or the outputs of a model, or None.

    It is found by its methods, because its name is `past_key_values` in transformers up to 5.23, and `cache` from 5.24 on.

    Args:
        values: the arguments or outputs by name, or a tuple of outputs.
    """
    found = values.values() if isinstance(values, Mapping) else values or ()
    return next((value for value in found if hasattr(value, "get_seq_length")), None)
