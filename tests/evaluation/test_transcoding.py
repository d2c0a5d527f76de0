"""Test what is measured of a transcoder, on a planted model: the other hook holds what the first one held a position before."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONTEXT, Outcome
from torch import Tensor

from mtsae_lens import MTSAETranscoder, MTSAETranscoderConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ModelError
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.evaluation.token_means import TokenMeans
from mtsae_lens.evaluation.transcoding import evaluate_transcoder, fit_token_means

D = 32
READ, DECODED = "blocks.0.hook_resid_pre", "blocks.1.hook_attn_out"


def make(dilation: int, **metadata: Any) -> MTSAETranscoder:
    """Return a transcoder that gives exactly what its only scale reads: at the token, or one position before it."""
    cfg = MTSAETranscoderConfig(
        d_in=D,
        d_out=D,
        d_sae=2 * D,
        dilations=(dilation,),
        kernel_size=2 if dilation else 1,
        scale_norm="none",
        activation="relu",
        context_size=CONTEXT,
    )
    sae = MTSAETranscoder(cfg)
    sae.taps.data[0, -1] = 1.0
    sae.W_enc.data = torch.cat([torch.eye(D), -torch.eye(D)], dim=1)
    sae.W_dec.data = torch.cat([torch.eye(D), -torch.eye(D)])
    for name, value in ({"hook_name": READ, "hook_name_out": DECODED} | metadata).items():
        setattr(sae.cfg.metadata, name, value)
    return sae


@pytest.fixture(scope="module")
def planted(tiny_model_dir: Path) -> Iterator[Any]:
    """A model in which the decoded hook holds what the other one held a position before; nothing at the first two positions."""
    model = load_language_model(str(tiny_model_dir))
    seen: list[Tensor] = []

    def keep(h: Tensor, hook: Any) -> None:
        seen.append(h)

    def put(h: Tensor, hook: Any) -> Tensor:
        before = seen[-1].roll(1, dims=1)
        before[:, :2] = 0.0
        return before

    model.add_perma_hook(READ, keep)
    model.add_perma_hook(DECODED, put)
    yield model
    model.reset_hooks(including_permanent=True)


@pytest.fixture(scope="module")
def table() -> TokenTable:
    tokens = torch.randint(10, 60, (24, CONTEXT), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return TokenTable("random tokens", tokens, tuple(() for _ in range(24)))


def test_what_only_the_past_says_is_found_by_the_temporal_one_alone(
    planted: Any, table: TokenTable, cutter: ContextCutter
) -> None:
    means = fit_token_means(make(1), planted, cutter, table)
    temporal = evaluate_transcoder(make(1), planted, cutter, table, means, batch_size=8)
    pointwise = evaluate_transcoder(make(0), planted, cutter, table, means, batch_size=8)
    assert temporal["explained_variance"] == pytest.approx(1.0, abs=1e-5)
    assert temporal["explained_variance_without_massive"] == pytest.approx(1.0, abs=1e-5)
    assert temporal["mse"] == pytest.approx(0.0, abs=1e-6)
    assert temporal["ce_loss_score"] == pytest.approx(1.0, abs=1e-4)
    assert temporal["ce_loss_with_sae"] == pytest.approx(temporal["ce_loss_without_sae"], abs=1e-5)
    assert temporal["kl_div_with_sae"] == pytest.approx(0.0, abs=1e-5)
    assert temporal["ce_loss_with_ablation"] != temporal["ce_loss_without_sae"]
    assert abs(temporal["explained_variance_of_token_table"]) < 0.05
    assert temporal["explained_variance_with_another_past"] < 0.05
    assert temporal["future_leak"] == 0.0
    assert temporal["n_tokens"] == 24 * (CONTEXT - 1)
    assert temporal["dead_features"] == 0
    assert 25 < temporal["l0"] <= D
    assert pointwise["explained_variance"] < 0.05
    assert pointwise["explained_variance_with_another_past"] == pytest.approx(pointwise["explained_variance"], abs=1e-5)
    assert pointwise["ce_loss_score"] < 0.9


def test_a_table_of_tokens_explains_all_that_the_token_says(planted: Any, table: TokenTable, cutter: ContextCutter) -> None:
    identity = make(0, hook_name_out="hook_embed")
    means = fit_token_means(identity, planted, cutter, table)
    measured = evaluate_transcoder(identity, planted, cutter, table, means, batch_size=8)
    assert measured["explained_variance_of_token_table"] == pytest.approx(1.0, abs=1e-4)
    assert measured["explained_variance"] == pytest.approx(1.0, abs=1e-4)


def test_token_means_are_shrunk_as_far_as_the_text_says() -> None:
    generator = torch.Generator().manual_seed(0)
    between, within, n_tokens = 1.0, 2.0, 400
    true = between * torch.randn(n_tokens, 3, generator=generator) + 5.0
    tokens = torch.arange(n_tokens).repeat_interleave(torch.randint(1, 9, (n_tokens,), generator=generator))
    means = TokenMeans(torch.arange(n_tokens), 3)
    means.add(tokens, true[tokens] + within * torch.randn(len(tokens), 3, generator=generator))
    assert means.weight_of_mean == pytest.approx(within**2 / between**2, rel=0.15)

    def error(guess: Tensor) -> float:
        return float((guess - true).pow(2).mean())

    plain = means._sums.float() / means._n.float().unsqueeze(-1)
    assert error(means.predict(torch.arange(n_tokens))) < 0.7 * error(plain)
    unseen = means.predict(torch.tensor([n_tokens + 7]))[0]
    torch.testing.assert_close(unseen, (means._sums.sum(dim=0) / means._n.sum()).float())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"hook_name_out": None}, "expected a transcoder that names the hook that it decodes"),
        ({"hook_name_out": "blocks.9.hook_attn_out"}, "blocks.9.hook_attn_out"),
        ({"hook_name_out": "blocks.1.mlp.hook_pre"}, "expected a transcoder with d_out=64"),
    ],
    ids=["none", "unknown", "of another width"],
)
def test_a_hook_that_does_not_fit_is_refused(
    planted: Any, table: TokenTable, cutter: ContextCutter, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        evaluate_transcoder(make(0, **metadata), planted, cutter, table)


def test_what_measures_at_one_hook_refuses_a_transcoder(planted: Any, table: TokenTable, cutter: ContextCutter) -> None:
    with pytest.raises(ModelError, match="evaluate_transcoder"):
        evaluate_fidelity(make(0), planted, cutter, table)


def test_the_command_lines_evaluate_and_explore_one(
    mtsae: Callable[..., Outcome], tiny_model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    make(1, model_name=str(tiny_model_dir), dataset_path=str(text_file), context_size=CONTEXT).save_model(tmp_path / "sae")
    few = ("--n-contexts", 8, "--n-scale-contexts", 8, "--n-table-contexts", 16)
    done = mtsae("evaluate", tmp_path / "sae", *few, "--out", tmp_path / "evaluate")
    assert done.code == 0, done.err
    assert "explained_variance_of_token_table" in done.out
    assert "explained_variance_with_another_past" in done.out
    report = (tmp_path / "evaluate" / "report.html").read_text()
    assert f"from {READ} to {DECODED}" in report
    assert "run_evals" not in report
    done = mtsae("explore", tmp_path / "sae", "--n-tokens", 1000, "--out", tmp_path / "explore")
    assert done.code == 0, done.err
    assert DECODED in (tmp_path / "explore" / "explore.json").read_text()
