"""The numbers that the paper publishes, each with the section that it comes from.

"Temporal feature disentanglement: multi-scale sparse autoencoders for selective model unlearning", anonymous, under review.
"""

from __future__ import annotations

from dataclasses import dataclass

N_SEEDS = 5  # section 6: "multiple runs (n=5)"
GRAD_NORM_RANGE = (0.01, 0.03)  # abstract, sections 1, 4, 5, 6.1

SCALE_MEAN: dict[int, float] = {1: 0.0012, 2: 0.0009, 4: 0.0007, 8: 0.0005}  # table 1, by dilation
SCALE_STD: dict[int, float] = {1: 0.0891, 2: 0.0867, 4: 0.0842, 8: 0.0819}  # table 1, by dilation
STD_RATIO = SCALE_STD[8] / SCALE_STD[1]  # last standard deviation of table 1 divided by the first

METRICS: dict[str, float] = {  # section 6.2, under SAELens's names
    "l2_loss": 47.25,
    "explained_variance": -0.78515625,
    "l0": 0.0,
    "l1": 0.0,
    "kl_div_score": -0.5279,
    "ce_loss_score": -0.5855,
    "relative_reconstruction_bias": -1.0,
}


@dataclass(frozen=True)
class PublishedSettings:
    """The paper's training settings, from sections 4 and 5. Losses and padding are in `MTTrainingSAEConfig.paper`."""

    training_tokens: int = 10_000
    """Section 5: "10,000 training tokens"."""

    context_size: int = 128
    """Section 5: "fixed context window of 128 tokens"."""

    lm_batch_size_sequences: int = 32
    """Section 5: "Batch sizes: 32 (LLM inference)"."""

    batch_size_tokens: int = 2048
    """Section 5: "2048 (SAE training)"; read as tokens."""

    buffer_size_sequences: int = 2048
    """Section 5: "Activation buffer: 2048 sequences"."""

    lr: float = 3e-4
    """Section 5."""

    weight_decay: float = 0.01
    """Section 5, AdamW."""

    lr_warm_up_steps: int = 1000
    """Section 4: "cosine learning rate warmup over 1000 steps"; read as a linear rise over 1,000 steps, then a cosine."""

    @property
    def n_steps(self) -> int:
        """Return the number of whole batches in the token budget: 10,000 // 2,048 = 4."""
        return self.training_tokens // self.batch_size_tokens


SETTINGS = PublishedSettings()
D_SAE_PER_D_IN = 4  # the paper gives no width; 4 * d_in is ours
