"""Edits of what the SAE does not explain, and sums of edits.

An SAE splits an activation into its reconstruction and an error, `h = decode(e) + error`. An edit of features keeps the error, so whatever the
error says about the forget text passes unchanged, and a perturbation that the edited features do not read brings the text back (arXiv
2606.18322). `ErrorEdit` changes the error alone; `CombinedEdit` applies it together with an edit of features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, Self

from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.splice import edits  # noqa: F401  # registers its edits
from mtsae_lens.splice.direction_edits import EditOfDirections
from mtsae_lens.splice.edit_interface import EDITS, Edit, register_edit
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen
from mtsae_lens.splice.sae_state import SAEState


@register_edit("error")
@dataclass(frozen=True)
class ErrorEdit(EditOfDirections):
    """Remove directions from the error part: `h' = h - (1 + multiplier) * B^T B (error - center)`, with `error = h - decode(e)`.

    With all `d_in` directions and `multiplier=0`, nothing of the error is left where the gate is open.

    Args:
        basis: B, with orthonormal rows (`orthonormal_rows`).
        center: the point towards which the error is projected, such as its mean over near text.
        multiplier: strength of the edit, as in `EditOfDirections`.
        gate: says where the edit applies.

    Raises:
        ConfigError: the rows are not orthonormal, the center has another width, or numbers are not finite.
    """

    def delta(self, sae_state: SAEState) -> Float[Tensor, "batch pos *d_in"]:
        """Compute the change of the error part along the directions, in the shape of the activations.

        Args:
            sae_state: the SAE, its input and its features.

        Raises:
            ConfigError: the directions have another width than the activations.
        """
        return self.change_along(sae_state.target - sae_state.sae_out)

    def describe(self) -> str:
        """Describe what the edit does."""
        return f"{len(self.basis)} directions are projected out of the SAE's error, {1 + self.multiplier:g} times"

    def as_projection(self, sae: SAE[Any]) -> NoReturn:
        """Refuse, because weights before the hook do not know the SAE's error.

        Args:
            sae: not used.

        Raises:
            ModelError: always.
        """
        raise _no_projection(self)


@register_edit("combined")
@dataclass(frozen=True)
class CombinedEdit(Edit):
    """Apply several edits behind one gate: the change is the sum of their changes, each computed from the activations before any edit.

    The change of an edit of features and that of an `ErrorEdit` do not overlap: one changes `decode(e)`, the other `h - decode(e)`. A
    `DirectionEdit` overlaps with an `ErrorEdit` where their directions do.

    Args:
        parts: the edits, of registered classes; their gates are not used.
        gate: says where all of them apply.

    Raises:
        ConfigError: there are no parts, a part is not an edit, or a part is combined itself.
    """

    parts: tuple[Edit, ...]
    gate: Gate = field(default_factory=AlwaysOpen)

    stored_elsewhere: ClassVar[frozenset[str]] = frozenset({"gate", "parts"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        wrong = [type(part).__name__ for part in self.parts if not isinstance(part, Edit) or isinstance(part, CombinedEdit)]
        if wrong or not self.parts:
            raise ConfigError(
                f"expected edits to combine, got {wrong[0] if wrong else 'none'}; give such as CombinedEdit((FeatureEdit((3,)), error_edit))"
            )

    def delta(self, sae_state: SAEState) -> Float[Tensor, "batch pos *d_in"]:
        """Compute the sum of the changes of the parts.

        Args:
            sae_state: the SAE, its input and its features.
        """
        first, *others = (part.delta(sae_state) for part in self.parts)
        return sum(others, start=first)

    def change(self, sae_state: SAEState, open_at: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos *d_in"]:
        """Compute the sum of the changes of the parts, each of which may be carried on to later positions.

        Args:
            sae_state: the SAE, its input and its features.
            open_at: True where the edit applies.
        """
        return self.change_from(sae_state, open_at, None)[0]

    def change_from(
        self, sae_state: SAEState, open_at: Bool[Tensor, "batch pos"], state: tuple[Any, ...] | None
    ) -> tuple[Float[Tensor, "batch pos *d_in"], tuple[Any, ...]]:
        """Compute what `change` does at positions that continue a context.

        Args:
            sae_state: the SAE, its input and its features.
            open_at: True where the edit applies.
            state: the states of the parts, which the call for the positions before returned; None at the start of a context.

        Returns:
            The change, and the states of the parts.
        """
        states = state or (None,) * len(self.parts)
        moved = [part.change_from(sae_state, open_at, own) for part, own in zip(self.parts, states, strict=True)]
        (first, *others), after = zip(*moved, strict=True)
        return sum(others, start=first), after

    def describe(self) -> str:
        """Describe what the edit does."""
        return ", and ".join(part.describe() for part in self.parts)

    def as_projection(self, sae: SAE[Any]) -> NoReturn:
        """Refuse, because a sum of edits is not one projection.

        Args:
            sae: not used.

        Raises:
            ModelError: always.
        """
        raise _no_projection(self)

    def to_json(self) -> dict[str, Any]:
        """Return the kind and the parts, in the types of JSON.

        Raises:
            DataError: the class of a part is not registered.
        """
        return super().to_json() | {"parts": [part.to_json() for part in self.parts]}

    @classmethod
    def from_json(cls, content: dict[str, Any], **others: Any) -> Self:
        """Build an edit from what `to_json` returned.

        Args:
            content: the fields, without the kind.
            others: the gate.

        Raises:
            ConfigError: a part is of an unknown kind, or has a field that its class does not accept.
        """
        records = content.get("parts")
        if content.keys() != {"parts"} or not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise ConfigError(f"parts: expected a list of edits alone, got the fields {', '.join(map(str, content)) or 'none'}")
        return cls(tuple(_part_from_json(record) for record in records), **others)

    def check_fits(self, d_sae: int, d_in: int) -> None:
        """Check that every part fits the SAE.

        Args:
            d_sae: number of features of the SAE.
            d_in: width of its input.

        Raises:
            ConfigError: a part does not fit.
        """
        for part in self.parts:
            part.check_fits(d_sae, d_in)


def parts_of(edit: Edit) -> Iterator[Edit]:
    """Yield the edits that an edit consists of: its parts, or itself.

    Args:
        edit: any edit.
    """
    yield from edit.parts if isinstance(edit, CombinedEdit) else (edit,)


def _part_from_json(record: dict[str, Any]) -> Edit:
    fields = {name: value for name, value in record.items() if name not in ("kind", "class")}
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in EDITS or kind == CombinedEdit.kind:
        raise ConfigError(
            f"parts: expected edits out of {', '.join(sorted(EDITS.keys() - {CombinedEdit.kind}))}, got {str(kind)[:60]!r}"
        )
    return EDITS[kind].from_json(fields, gate=AlwaysOpen())


def _no_projection(edit: Edit) -> ModelError:
    return ModelError(
        f"expected an edit that weights before the hook can carry out, got a {type(edit).__name__}, which needs the SAE's error; export it "
        "with --form hooked or --form low-rank"
    )
