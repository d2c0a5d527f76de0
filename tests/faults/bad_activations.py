"""Try activations that cannot be trained on: constant, zero, not finite, of wrong shapes and types."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from stored import stored

from faults.findings import Finding, attempt
from faults.runner import Family
from faults.workplace import CONTEXT, Workplace
from mtsae_lens.opening import load_sae
from mtsae_lens.training.fit import fit
from mtsae_lens.upstream import SAE_TRAINING_CLASS_REGISTRY

_SECONDS = 20.0
_N, _D_IN = 8, 8
_VALUES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "normal": lambda x: x,
    "zero": torch.zeros_like,
    "constant": torch.ones_like,
    "one row again and again": lambda x: x[:1, 1:2].expand_as(x).clone(),
    "tiny": lambda x: x * 1e-30,
    "denormal": lambda x: x * 1e-42,
    "huge": lambda x: x * 1e30,
    "near the largest number": lambda x: x.sign() * 3e38,
    "one NaN": lambda x: x.index_put((torch.tensor(1), torch.tensor(3)), torch.tensor(float("nan"))),
    "all NaN": lambda x: torch.full_like(x, float("nan")),
    "one infinity": lambda x: x.index_put((torch.tensor(1), torch.tensor(3)), torch.tensor(float("inf"))),
    "one dimension": lambda x: torch.cat([x[..., :1], torch.zeros_like(x[..., 1:])], dim=-1),
    "an outlier dimension": lambda x: torch.cat([1e6 + x[..., :1], x[..., 1:]], dim=-1),
    "one token": lambda x: torch.cat([torch.zeros_like(x[:, :-1]), x[:, -1:]], dim=1),
    "bfloat16": lambda x: x.bfloat16(),
    "float64": lambda x: x.double(),
    "whole numbers": lambda x: (10 * x).long(),
    "booleans": lambda x: x > 0,
    "complex": lambda x: torch.complex(x, x),
    "not contiguous": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "needing gradients": lambda x: x.clone().requires_grad_(),
}
_SHAPES: tuple[tuple[int, ...], ...] = (
    (2, CONTEXT, -1), (2, 0, -1), (0, CONTEXT, -1), (CONTEXT, -1), (1, -1), (-1,), (), (2, CONTEXT, 3), (2, CONTEXT, 1, -1),
    (2, 3, -1), (2, 5 * CONTEXT, -1), (2, CONTEXT, 0), (3 * CONTEXT, -1), (CONTEXT + 1, -1), (1, 1, -1),
)  # fmt: skip


@cache
def _sae(workplace: Workplace) -> Any:
    return load_sae(workplace.sae)


def _changed(kind: str, given: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The tensor with these values, and their name; as it is where its shape has no room for them."""
    try:
        return kind, _VALUES[kind](given)
    except (IndexError, RuntimeError):
        return "normal", given


@torch.no_grad()
def encoded(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """Odd activations into `encode` and `decode`."""
    sae = _sae(workplace)
    shape = tuple(sae.cfg.d_in if size == -1 else size for size in rng.choice(_SHAPES))
    kind = rng.choice(sorted(_VALUES))
    given = torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    kind, given = _changed(kind, given)

    def use() -> str:
        feature_acts = sae.encode(given)
        decoded = sae.decode(feature_acts)
        must_be_finite = given.is_floating_point() and given.abs().max().item() < 1e20 if given.numel() else False
        return "not finite" if must_be_finite and not torch.isfinite(decoded).all() else "done"

    outcome, detail = attempt(use, _SECONDS)
    return Finding(outcome, f"encode({kind}, {shape})", detail)


def trained(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """Odd activations into `fit`."""
    architecture = rng.choice(("mtsae", "mtsae", "topk", "standard", "batchtopk"))
    kind, context = rng.choice(sorted(_VALUES)), rng.choice((1, 2, 12, 12, 12))
    width = rng.choice((_D_IN,) * 6 + (_D_IN + 1, 1))
    normalize = rng.choice(("none", "expected_average_only_in"))
    h = torch.randn(
        rng.choice((_N, _N, 2, 1, 0)), context, width, generator=torch.Generator().manual_seed(rng.randrange(2**31))
    )
    kind, h = _changed(kind, h)

    def use() -> str:
        trainer_class, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
        own = {"context_size": 12, "k": 3} if architecture == "mtsae" else {"k": 3} if "topk" in architecture else {}
        sae = trainer_class(config_class(d_in=_D_IN, d_sae=16, normalize_activations=normalize, **own))
        stream = stored(h, batch_size_sequences=2, block_size_batches=2)
        fit(sae, stream, n_steps=4, batch_size_tokens=2 * context, lr=1e-3)
        return "done" if all(torch.isfinite(parameter).all() for parameter in sae.parameters()) else "not finite"

    outcome, detail = attempt(use, _SECONDS)
    return Finding(outcome, f"fit({architecture}, {kind}, {tuple(h.shape)}, {normalize})", detail)


FAMILIES = [
    Family(
        name="input/encode",
        promise="`encode` refuses in one line what it cannot encode.",
        method=f"{len(_VALUES)} kinds of values in {len(_SHAPES)} shapes; finite in, finite out",
        trial=encoded,
        count=800,
        quick=60,
        injects=False,
        prepare=lambda workplace: workplace.sae,
        seconds=_SECONDS,
        per_process=200,
    ),
    Family(
        name="input/fit",
        promise="Training on activations that nothing can be learned from ends with an error of one line. Weights are always finite.",
        method="the same values in training of five architectures",
        trial=trained,
        count=400,
        quick=20,
        injects=False,
        seconds=_SECONDS,
        per_process=50,
    ),
]
