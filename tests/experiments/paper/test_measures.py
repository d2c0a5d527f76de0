import pytest
import torch
from stored import position_0

from mtsae_lens.evaluation.recovery import explained_variance
from mtsae_lens.experiments.paper.measures import finite, mean_scale_cosine, row_metrics
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.training import MTTrainingSAE


def test_cosine_of_scales() -> None:
    z = torch.randn(7, 1, 5)
    assert mean_scale_cosine(z.expand(7, 4, 5)) == pytest.approx(1, abs=1e-5)
    assert mean_scale_cosine(torch.cat([z, -z], dim=1)) == pytest.approx(-1, abs=1e-5)
    assert mean_scale_cosine(torch.eye(4).unsqueeze(0)) == pytest.approx(0, abs=1e-6)


def test_masked_positions_leave_every_number() -> None:
    sae = MTTrainingSAE(MTTrainingSAEConfig(d_in=6, d_sae=12, k=3, context_size=10, padding="zero"))
    h = torch.randn(3, 10, 6)
    masked = position_0(h)
    masked[:, -4:] = True
    h[masked] = 0.0
    metrics = row_metrics(sae, h, masked)
    kept = h[:, 1:-4].flatten(0, 1)
    out = sae.decode(sae.encode(h))[:, 1:-4].flatten(0, 1).detach()
    assert metrics["explained_variance"] == pytest.approx(explained_variance(kept, out), rel=1e-4)
    assert metrics["l2_loss"] == pytest.approx(float((kept - out).norm(dim=-1).mean()), rel=1e-4)
    assert metrics["l0"] is not None
    assert 0 < metrics["l0"] <= 3


def test_what_is_not_a_number_is_none() -> None:
    assert finite({"a": float("nan"), "b": 1.0}) == {"a": None, "b": 1.0}
