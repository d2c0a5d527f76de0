"""Imitate an edit in the weights by a low-rank fine-tune towards the model with the edit at its hook.

    minimize  mean over tokens of KL(model with the edit || student),    W -> W + A B / rank,   A (out, rank), B (rank, in)

for every matrix W of the layers from the hook's layer on (LoRA, Hu et al. 2021, arXiv 2106.09685). B is initialized at random and A
with zeros, so the student starts as the clean model. At the end A B is added to W, and the result is an ordinary model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from mtsae_lens.data.padding import hugging_face_options
from mtsae_lens.data.precision import log_probs_of
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.export.base_models import BaseModel, hooked_layer
from mtsae_lens.progress import track
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True)
class LowRankSettings:
    """How the student is trained.

    Raises:
        ConfigError: a value is out of range.
    """

    rank: int = 16
    n_steps: int = 200
    batch_size: int = 8
    """Contexts per step; half of them are forget text."""
    lr: float = 1e-2
    """Peak learning rate of AdamW, with cosine decay to zero. On the embedded model, a third of this value was worse on every text."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.n_steps < 1 or self.batch_size < 2 or not self.lr > 0:
            raise ConfigError(
                f"expected positive rank, n_steps and lr, and batch_size of at least 2, got {self.rank}, {self.n_steps}, {self.lr} and "
                f"{self.batch_size}; change them"
            )


class LowRank(nn.Module):
    """A parametrization that replaces W by `W + A B / rank`.

    Args:
        weight: W.
        rank: rank of the change.
        generator: source of randomness of B.
    """

    def __init__(self, weight: Float[Tensor, "rows columns"], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        n_rows, n_columns = weight.shape
        noise = torch.randn(rank, n_columns, generator=generator) / math.sqrt(n_columns)
        self.A = nn.Parameter(torch.zeros(n_rows, rank, device=weight.device))
        self.B = nn.Parameter(noise.to(weight.device))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Return the changed matrix.

        Args:
            weight: W.
        """
        return weight + (self.A @ self.B).to(weight.dtype) / self.A.shape[1]


def train_low_rank(
    base: BaseModel, lm: HookedLM, edit: Edit, forget: TokenTable, retain: Sequence[TokenTable], settings: LowRankSettings
) -> list[float]:
    """Train a model in place to imitate `lm` with the edit, and merge the change into its weights.

    Args:
        base: the Hugging Face model under `lm.model`, with weights in float32.
        lm: the model with its SAE.
        edit: the edit to imitate.
        forget: forget text; half of every batch.
        retain: near and far texts; each is drawn with the same probability.
        settings: rank, steps, learning rate and seed.

    Returns:
        The loss of every step, in nats per token.

    Raises:
        DataError: there is no text to retain.
    """
    if not retain:
        raise DataError("expected text to retain for a low-rank fine-tune, got none; give --retain")
    layer, _ = hooked_layer(lm.splice.hook_name)
    generator = torch.Generator().manual_seed(settings.seed)
    base.model.requires_grad_(False)
    matrices = [
        module for part in list(base.layers)[layer:] for module in part.modules() if isinstance(module, nn.Linear | Conv1D)
    ]
    for module in matrices:
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, settings.rank, generator))
    parameters = [parameter for parameter in base.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.n_steps)
    losses = []
    for _ in track(range(settings.n_steps), "training the low-rank change", "step"):
        losses.append(_step(base, lm, edit, _draw(forget, retain, settings.batch_size, generator), optimizer))
        schedule.step()
    for module in matrices:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    base.model.requires_grad_(False)
    return losses


def _step(base: BaseModel, lm: HookedLM, edit: Edit, batches: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Make one update; contexts of different lengths are run in separate batches."""
    loss = torch.zeros((), device=lm.model.cfg.device)
    n_tokens = sum(int((~lm.cutter.special_positions(tokens)[:, 1:]).sum()) for tokens in batches)
    for batch in batches:
        tokens = batch.to(lm.model.cfg.device)
        counted = ~lm.cutter.special_positions(tokens)[:, 1:]
        with torch.no_grad():
            edited = lm.splice.edited(lm.activations(tokens), edit, lm.masked(tokens))
            target = log_probs_of(lm.logits_from(tokens, edited)[:, :-1])
        options = hugging_face_options(lm.left_padding(tokens))
        logits = base.model(tokens, use_cache=False, **options).logits[:, :-1, : target.shape[-1]]
        divergence = nn.functional.kl_div(log_probs_of(logits), target, reduction="none", log_target=True).sum(dim=-1)
        loss = loss + (divergence * counted).sum() / max(n_tokens, 1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _draw(
    forget: TokenTable, retain: Sequence[TokenTable], batch_size: int, generator: torch.Generator
) -> list[Int[Tensor, "batch pos"]]:
    """Draw contexts at random, and group them by length."""
    n_forget = batch_size // 2
    tables = [forget] * n_forget
    tables += [retain[int(torch.randint(len(retain), (1,), generator=generator))] for _ in range(batch_size - n_forget)]
    rows = [table.tokens[int(torch.randint(len(table), (1,), generator=generator))] for table in tables]
    lengths = sorted({len(row) for row in rows})
    return [torch.stack([row for row in rows if len(row) == length]) for length in lengths]
