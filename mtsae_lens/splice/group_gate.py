"""A gate that recognizes known groups, such as people, and stays closed on groups that it has never seen.

It is the scoring of speaker verification (PLDA: Prince and Elder 2007; in this form Brümmer and de Villiers 2010), with people in place of
speakers. The activation of a group is normal around the group's mean, and the means are normal around the center. So the gate asks not
"is this unlike the groups to keep?", which a classifier learns by heart, but "is this one of the known groups rather than any new one?".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.gate_interface import ThresholdGate, check_threshold, register_gate


@register_gate("known_groups")
@dataclass(frozen=True, repr=False)
class KnownGroupsGate(ThresholdGate):
    """A gate that is open where the activations are more likely from a known group than from a new one, by more than a threshold.

        score_t = log mean_k N(z_t; m_k, diag(v_k)) - log N(z_t; 0, diag(p)),    z_t = P (h_t - mu)

    It has no state: each position is judged alone. A position whose activations are all zeros (a special token, padding) never
    opens it.

    Args:
        projection: P, the directions in which groups differ.
        center: mu, the mean of all groups.
        means: m, where each known group lies, one row for each.
        variances: v, what the activations of each known group vary by.
        prior: p, what those of a new group vary by.
        threshold: score above which the gate is open.

    Raises:
        ConfigError: shapes do not fit each other, a variance is not above 0, or a number is not finite.
    """

    projection: Float[Tensor, "r d_in"]
    center: Float[Tensor, " d_in"]
    means: Float[Tensor, "group r"]
    variances: Float[Tensor, "group r"]
    prior: Float[Tensor, " r"]
    threshold: float

    lowest_threshold = 0.0

    def __post_init__(self) -> None:
        for name in ("projection", "center", "means", "variances", "prior"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).float())
        shapes = {name: tuple(getattr(self, name).shape) for name in ("projection", "center", "means", "variances", "prior")}
        fits = self.projection.ndim == 2 and self.means.ndim == 2 and self.projection.numel() and self.means.numel()
        if not fits or shapes != {
            "projection": (r := self.projection.shape[0], d := self.projection.shape[1]),
            "center": (d,),
            "means": (n := self.means.shape[0], r),
            "variances": (n, r),
            "prior": (r,),
        }:
            raise ConfigError(
                "expected a gate of known groups with a projection (r, d_in), a center (d_in,), means and variances (group, r), and a prior "
                f"(r,), got {', '.join(f'{name} {shape}' for name, shape in shapes.items())}; change them"
            )
        check_threshold(self.threshold)
        if not all(bool(getattr(self, name).isfinite().all()) for name in shapes):
            raise ConfigError("expected finite numbers in a gate of known groups, got NaN or infinity; give finite numbers")
        if not all(bool((of > 0).all() and of.reciprocal().isfinite().all()) for of in (self.variances, self.prior)):
            raise ConfigError(
                "expected variances above 0 in a gate of known groups, got 0, less, or nearly 0; give numbers such as 1.0"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.means)} groups, {len(self.prior)} directions, threshold={self.threshold:.4g})"

    def observe(
        self, sae_in: Float[Tensor, "batch pos *d_in"], feature_acts: Float[Tensor, "batch pos d_sae"]
    ) -> Float[Tensor, "batch pos d_in"]:
        """Return the activations at the hook, which the gate reads.

        Args:
            sae_in: the SAE's input, zero at masked positions; of a transcoder, what is at the hook that it decodes.
            feature_acts: the feature activations.
        """
        return sae_in.flatten(2)

    def score(self, observed: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos"]:
        """Compute the log-likelihood ratio of known groups to a new one at every position.

        Args:
            observed: what `observe` returned.

        Raises:
            ConfigError: the SAE reads activations of another width.
        """
        if observed.shape[-1] != len(self.center):
            raise ConfigError(
                f"expected activations of width {len(self.center)}, as the gate was fitted on, got {observed.shape[-1]}; give the gate's SAE"
            )
        projection, center, means, variances, prior = (
            of.to(observed.device) for of in (self.projection, self.center, self.means, self.variances, self.prior)
        )
        z = (observed.float() - center) @ projection.T
        # sum over r of (z - m)^2 / v, in three products, so that (batch, pos, group, r) never stands in memory
        square = z.square() @ (1 / variances).T - 2 * z @ (means / variances).T + (means.square() / variances).sum(dim=-1)
        known = -0.5 * (square + variances.log().sum(dim=-1))
        new = -0.5 * ((z.square() / prior).sum(dim=-1) + prior.log().sum())
        ratio = known.logsumexp(dim=-1) - torch.tensor(float(len(means))).log().to(z) - new
        return ratio.masked_fill((observed == 0).all(dim=-1), torch.finfo(ratio.dtype).min)

    def open_from(
        self, observed: Float[Tensor, "batch pos d_in"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """Return True where the score exceeds the threshold.

        Args:
            observed: what `observe` returned.
            state: not used.
        """
        return self.score(observed) > self.threshold, None

    def check_fits(self, d_sae: int, d_in: int) -> None:
        """Check that the projection reads activations of this width.

        Args:
            d_sae: number of features of the SAE.
            d_in: width of its input.

        Raises:
            ConfigError: the gate belongs to another SAE.
        """
        super().check_fits(d_sae, d_in)
        if len(self.center) != d_in:
            raise ConfigError(f"center: expected {d_in} numbers, one for each coordinate, got {len(self.center)}")

    def describe(self) -> str:
        """Describe where the gate is open."""
        return f"where the log-likelihood ratio of {len(self.means)} known groups to a new group exceeds {self.threshold:.4g}"
