"""Test against the real SAELens and TransformerLens: trainer, splice, `run_evals`, saving, edits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardSAE,
    StandardSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

from mtsae_lens import MTSAE, MTSAEConfig, MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.evaluation.fidelity import evaluate_fidelity, future_leak
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice

CONTEXT, D_MODEL, D_SAE, D_VOCAB = 16, 16, 48, 50
RESIDUAL, HOOK_Z = "blocks.1.hook_resid_pre", "blocks.0.attn.hook_z"
BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=D_MODEL,
        n_heads=2,
        d_head=8,
        n_ctx=32,
        d_vocab=D_VOCAB,
        act_fn="relu",
        seed=0,
        device="cpu",
        model_name="tiny",
    )
    model = HookedSAETransformer(cfg).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def cutter() -> ContextCutter:
    words = {"<bos>": BOS, "<eos>": EOS} | {f"w{i}": i for i in range(2, D_VOCAB)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words)), bos_token="<bos>", eos_token="<eos>")
    return ContextCutter(tokenizer, CONTEXT)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """6 contexts: BOS first, ends of documents inside."""
    tokens = torch.randint(2, D_VOCAB, (6, CONTEXT), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = BOS
    tokens[[0, 3, 4], [7, 5, 12]] = EOS
    return tokens


def random_sae(hook_name: str = RESIDUAL, **settings: Any) -> MTSAE:
    defaults = {"d_in": D_MODEL, "d_sae": D_SAE, "k": 8, "dilations": (1, 2), "context_size": CONTEXT}
    sae = MTSAE(MTSAEConfig(**(defaults | settings), metadata=SAEMetadata(hook_name=hook_name)))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return sae.requires_grad_(False)


@torch.no_grad()
def activations(model: HookedSAETransformer, tokens: Tensor, hook_name: str = RESIDUAL) -> Tensor:
    _, cache = model.run_with_cache(tokens, names_filter=[hook_name])
    return cache[hook_name]


# training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "topk", "k": 8, "separation_coefficient": 0.1},
        {"activation": "topk", "k": 8, "training_step": "sparse", "context_rank": 6},
        {"activation": "topk", "k": 8, "padding": "circular", "normalize_activations": "expected_average_only_in"},
        {
            "activation": "relu",
            "l1_coefficient": 0.01,
            "l1_warm_up_steps": 5,
            "normalize_activations": "expected_average_only_in",
        },
    ],
    ids=["topk", "topk-sparse-narrow", "topk-scaled-circular", "relu-scaled"],
)
def test_stock_trainer(settings: dict[str, Any], model: HookedSAETransformer, tokens: Tensor, tmp_path: Path) -> None:
    def batches() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        while True:
            text = torch.randint(2, D_VOCAB, (8, CONTEXT), generator=generator)
            yield activations(model, text).flatten(0, 1)

    torch.manual_seed(0)
    sae = MTTrainingSAE(
        MTTrainingSAEConfig(
            d_in=D_MODEL,
            d_sae=D_SAE,
            dilations=(1, 2),
            context_size=CONTEXT,
            metadata=SAEMetadata(hook_name=RESIDUAL),
            **settings,
        )
    )
    batch_size = 8 * CONTEXT
    cfg = SAETrainerConfig(
        total_training_samples=80 * batch_size,
        train_batch_size_samples=batch_size,
        lr=1e-2,
        lr_end=1e-2,
        dead_feature_window=10,
        n_batches_for_norm_estimate=3,
        checkpoint_path=str(tmp_path / "checkpoints"),
        save_final_checkpoint=True,
    )
    trainer: SAETrainer[Any, Any] = SAETrainer(cfg=cfg, sae=sae, data_provider=batches())
    h = activations(model, tokens)

    def unexplained() -> float:
        kept = h[:, 1:]
        return ((sae(h)[:, 1:] - kept).pow(2).sum() / (kept - kept.mean(dim=(0, 1))).pow(2).sum()).item()

    before = unexplained()
    trainer.fit()
    assert trainer.n_training_steps == 80
    assert trainer.n_training_samples == 80 * batch_size
    assert unexplained() < 0.25 < before
    if sae.cfg.activation == "topk":
        assert trainer.feature_sparsity.sum().item() == pytest.approx(8 * (CONTEXT - 1) / CONTEXT, rel=0.2)
    assert 0 < trainer.feature_sparsity.max() <= 1
    if settings["activation"] == "topk":
        assert 0 < sae.cfg.metadata.l0 <= 8
    assert sae.cfg.normalize_activations == "none"
    assert trainer.activation_scaler.scaling_factor is None

    sae.save_inference_model(tmp_path / "sae")
    loaded = SAE.load_from_disk(tmp_path / "sae")
    assert type(loaded) is MTSAE
    assert loaded.cfg.metadata.hook_name == RESIDUAL
    assert torch.equal(loaded(h), sae(h))
    assert model.run_with_saes(tokens, saes=[loaded]).shape == (6, CONTEXT, D_VOCAB)


def stock_runner(model: HookedSAETransformer, out: Path, mixing: float, way: Any = "auto") -> LanguageModelSAETrainingRunner:
    torch.manual_seed(0)
    texts = Dataset.from_dict({"text": [f"w{i} and the sea and the land " * 40 for i in range(40)]})
    cfg = LanguageModelSAERunnerConfig(
        sae=MTTrainingSAEConfig(d_in=model.cfg.d_model, d_sae=32, k=4, dilations=(0, 1), context_size=16, training_step=way),
        model_name="tiny",
        hook_name="blocks.1.hook_resid_pre",
        dataset_path="unused",
        context_size=16,
        training_tokens=512,
        train_batch_size_tokens=64,
        store_batch_size_prompts=4,
        n_batches_in_buffer=8,
        activations_mixing_fraction=mixing,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        n_eval_batches=0,
        output_path=str(out),
        device="cpu",
        verbose=False,
    )
    return LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=texts)


def test_stock_runner_needs_whole_contexts(tiny_model: HookedSAETransformer, tmp_path: Path) -> None:
    """SAELens's runner mixes single positions by default, and training on those would learn noise."""
    with pytest.raises(DataError, match="activations_mixing_fraction=0"):
        stock_runner(tiny_model, tmp_path, mixing=0.5).run()


def test_stock_runner_trains_alike_with_sparse_and_dense_steps(tiny_model: HookedSAETransformer, tmp_path: Path) -> None:
    trained = {}
    for way in ("sparse", "dense"):
        stock_runner(tiny_model, tmp_path / way, mixing=0.0, way=way).run()
        trained[way] = SAE.load_from_disk(tmp_path / way)
        assert type(trained[way]) is MTSAE
    for name, weights in trained["sparse"].named_parameters():
        assert_close(weights, trained["dense"].get_parameter(name), atol=1e-4, rtol=1e-3)


# splicing by SAELens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["causal", "circular"])
@pytest.mark.parametrize("hook_name", [RESIDUAL, HOOK_Z])
def test_run_with_saes(hook_name: str, padding: str, model: HookedSAETransformer, tokens: Tensor) -> None:
    sae = random_sae(hook_name, padding=padding, reshape_activations="hook_z" if hook_name == HOOK_Z else "none")
    clean = model(tokens)
    spliced = model.run_with_saes(tokens, saes=[sae])
    h = activations(model, tokens, hook_name)
    by_hand = model.run_with_hooks(tokens, fwd_hooks=[(hook_name, lambda *_, **__: sae.decode(sae.encode(h)))])
    assert_close(spliced, by_hand)
    assert (spliced - clean).abs().max() > 1e-2
    assert_close(model.run_with_saes(tokens, saes=[sae], use_error_term=True), clean, atol=1e-5, rtol=1e-4)
    assert torch.equal(model(tokens), clean)
    assert model.acts_to_saes == {}


def test_add_sae(model: HookedSAETransformer, tokens: Tensor) -> None:
    sae, clean = random_sae(), model(tokens)
    model.add_sae(sae, use_error_term=True)
    try:
        assert_close(model(tokens), clean, atol=1e-5, rtol=1e-4)
        # with the error term, an intervention on a feature moves the output by just that feature
        feature = int(sae.encode(activations(model, tokens, f"{RESIDUAL}.hook_sae_input")).sum(dim=(0, 1)).argmax())
        ablated = model.run_with_hooks(
            tokens, fwd_hooks=[(f"{RESIDUAL}.hook_sae_acts_post", lambda e, hook: _without(e, feature))]
        )
    finally:
        model.reset_saes()
    with model.hooks(fwd_hooks=[Splice(sae).hook(FeatureEdit((feature,)))]):
        assert_close(ablated, model(tokens), atol=1e-5, rtol=1e-4)
    assert (ablated - clean).abs().max() > 1e-3
    assert torch.equal(model(tokens), clean)


def _without(feature_acts: Tensor, feature: int) -> Tensor:
    feature_acts = feature_acts.clone()
    feature_acts[..., feature] = 0
    return feature_acts


def test_run_with_cache_with_saes(model: HookedSAETransformer, tokens: Tensor) -> None:
    sae = random_sae()
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
    assert cache[f"{RESIDUAL}.hook_sae_acts_post"].shape == (6, CONTEXT, D_SAE)
    h = activations(model, tokens)
    assert_close(cache[f"{RESIDUAL}.hook_sae_acts_post"], sae.encode(h))
    assert_close(cache[f"{RESIDUAL}.hook_sae_output"], sae(h))


def test_generation_needs_the_whole_context(
    model: HookedSAETransformer, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_padding = SimpleNamespace(bos_token_id=-2, eos_token_id=None, pad_token_id=-1, padding_side="left")
    monkeypatch.setattr(model, "tokenizer", no_padding)  # without a tokenizer older versions refuse to generate
    model.add_sae(random_sae())
    generate = {"max_new_tokens": 3, "do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
    try:
        assert model.generate(tokens[:, :8], use_past_kv_cache=False, **generate).shape == (6, 11)
        with pytest.raises(DataError, match="use_past_kv_cache=False"):
            model.generate(tokens[:, :8], use_past_kv_cache=True, **generate)
    finally:
        model.reset_saes()


def test_hook_z(model: HookedSAETransformer, tokens: Tensor) -> None:
    sae = random_sae(HOOK_Z, reshape_activations="hook_z")
    z = activations(model, tokens, HOOK_Z)
    assert z.shape == (6, CONTEXT, 2, 8)
    feature_acts = sae.encode(z)
    assert feature_acts.shape == (6, CONTEXT, D_SAE)
    assert sae(z).shape == z.shape
    flat = random_sae(HOOK_Z)
    assert torch.equal(flat.encode(z.flatten(2)), feature_acts)
    assert torch.equal(flat(z.flatten(2)), sae(z).flatten(2))


# run_evals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook_name", [RESIDUAL, HOOK_Z])
@pytest.mark.parametrize("padding", ["causal", "circular", "zero"])
def test_evaluate_fidelity(
    padding: str, hook_name: str, model: HookedSAETransformer, cutter: ContextCutter, tokens: Tensor
) -> None:
    sae = random_sae(
        hook_name, padding=padding, activation="relu", reshape_activations="hook_z" if hook_name == HOOK_Z else "none"
    )
    sae.b_enc.data[:5] = -100  # never fire
    sae.b_enc.data[5:8] = 100  # always
    table = TokenTable("random", tokens, tuple("abcdef"))
    metrics = evaluate_fidelity(sae, model, cutter, table, batch_size=3)

    special = (tokens == BOS) | (tokens == EOS)
    h = activations(model, tokens, hook_name).flatten(2)
    feature_acts = random_sae_features(sae, h.masked_fill(special.unsqueeze(-1), 0.0))
    kept = feature_acts[~special]
    reconstructed = kept @ sae.W_dec + sae.b_dec
    assert metrics["l0"] == pytest.approx((kept > 0).sum(dim=-1).float().mean().item(), rel=1e-5)
    assert metrics["mse"] == pytest.approx((reconstructed - h[~special]).pow(2).sum(dim=-1).mean().item(), rel=1e-4)
    assert metrics["dead_features"] == int((kept > 0).any(dim=0).logical_not().sum())
    assert 5 <= metrics["dead_features"] < D_SAE == metrics["n_features"]
    assert metrics["always_on_features"] == int(((kept > 0).float().mean(dim=0) > 0.5).sum())
    assert 3 <= metrics["always_on_features"] < D_SAE
    assert metrics["n_tokens"] == int((~special).sum())
    assert metrics["ce_loss_with_sae"] != metrics["ce_loss_without_sae"]
    assert {"ce_loss_score", "kl_div_score", "explained_variance", "l2_ratio"} <= set(metrics)
    assert all(not isinstance(value, Tensor) for value in metrics.values())
    assert (metrics["future_leak"] == 0) == (padding == "causal")
    assert not any(hook.fwd_hooks for hook in sae.hook_dict.values())
    assert sae.hook_z_reshaping_mode == (hook_name == HOOK_Z)


def random_sae_features(sae: MTSAE, h: Tensor) -> Tensor:
    """Compute the features of flattened activations, for any activation shape of the SAE."""
    flat = random_sae(padding=sae.cfg.padding, activation=sae.cfg.activation)
    flat.load_state_dict(sae.state_dict())
    return flat.encode(h)


def test_a_perfect_sae_loses_nothing(model: HookedSAETransformer, cutter: ContextCutter, tokens: Tensor) -> None:
    sae = random_sae(d_sae=2 * D_MODEL, dilations=(1,), kernel_size=1, scale_norm="none", activation="relu")
    eye = torch.eye(D_MODEL)
    for parameter, value in (
        (sae.taps, torch.ones(1, 1, D_MODEL)),
        (sae.W_enc, torch.cat([eye, -eye], dim=1)),
        (sae.W_dec, torch.cat([eye, -eye])),
        (sae.b_enc, torch.zeros(2 * D_MODEL)),
    ):
        parameter.data.copy_(value)
    metrics = evaluate_fidelity(sae, model, cutter, TokenTable("random", tokens, tuple("abcdef")))
    expected = {
        "explained_variance": 1,
        "ce_loss_score": 1,
        "kl_div_score": 1,
        "l2_ratio": 1,
        "mse": 0,
        "l0": D_MODEL,
        "future_leak": 0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_future_leak(model: HookedSAETransformer, tokens: Tensor) -> None:
    assert future_leak(random_sae(), model, tokens) == 0
    assert 0.01 < future_leak(random_sae(padding="circular"), model, tokens) < 2
    assert future_leak(random_sae(padding="circular", kernel_size=1, dilations=(1,)), model, tokens) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hook_name": "blocks.1.hook_resid_prr"}, "blocks.1.hook_resid_pre"), ({"d_in": 8}, "d_in=8")],
)
def test_evaluation_of_a_misfit(
    settings: dict[str, Any], message: str, model: HookedSAETransformer, cutter: ContextCutter, tokens: Tensor
) -> None:
    with pytest.raises(ModelError, match=message):
        evaluate_fidelity(random_sae(**settings), model, cutter, TokenTable("random", tokens, tuple("abcdef")))


# folding and refusals -------------------------------------------------------------------------------------------------


def test_fold_W_dec_norm(model: HookedSAETransformer, tokens: Tensor) -> None:
    h = activations(model, tokens)
    sae = random_sae(activation="relu")
    feature_acts, out, norms = sae.encode(h), sae(h), sae.W_dec.norm(dim=-1)
    assert norms.max() > 1.2 * norms.min()
    sae.fold_W_dec_norm()
    assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    assert_close(sae.encode(h), feature_acts * norms)
    assert_close(sae(h), out)


def test_fold_W_dec_norm_with_topk(model: HookedSAETransformer, tokens: Tensor) -> None:
    h = activations(model, tokens)
    sae = random_sae()
    with pytest.raises(NotImplementedError, match="expected decoder rows of the same norm, got norms from"):
        sae.fold_W_dec_norm()
    sae.W_dec.data *= 3 / sae.W_dec.norm(dim=-1, keepdim=True)
    out = sae(h)
    sae.fold_W_dec_norm()
    assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    assert_close(sae(h), out)


def test_whitening_is_refused() -> None:
    eye = torch.eye(D_MODEL)
    with pytest.raises(NotImplementedError, match="depth-wise taps"):
        random_sae().fold_activation_whitening(torch.zeros(D_MODEL), eye, eye)
    with pytest.raises(ConfigError, match="covariance_whitening"):
        random_sae(normalize_activations="covariance_whitening")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, D_MODEL), "got a single position"),
        ((CONTEXT + 1, D_MODEL), f"expected a multiple of {CONTEXT} rows, .*, got {CONTEXT + 1} rows"),
        ((1, D_MODEL), f"expected a multiple of {CONTEXT} rows, .*, got 1 rows"),
        ((2, CONTEXT, 2, 8), "got shape"),
        ((D_MODEL,), "got shape"),
    ],
    ids=str,
)
def test_inputs_without_a_meaning_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        random_sae().encode(torch.randn(shape))


def test_a_single_position_is_fine_without_a_past() -> None:
    assert random_sae(kernel_size=1, dilations=(1,)).encode(torch.randn(2, 1, D_MODEL)).shape == (2, 1, D_SAE)


# edits ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(
    params=[
        pytest.param(RESIDUAL),
        "blocks.0.hook_resid_post",
        HOOK_Z,
        "hook_z with heads",
    ]
)
def lm(request: pytest.FixtureRequest, model: HookedSAETransformer, cutter: ContextCutter) -> HookedLM:
    with_heads = request.param == "hook_z with heads"
    hook_name = HOOK_Z if with_heads else request.param
    sae = random_sae(hook_name, reshape_activations="hook_z" if with_heads else "none")
    return HookedLM(model, Splice(sae), cutter)


def spliced(lm: HookedLM, tokens: Tensor, edit: FeatureEdit, masked: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return lm.model.run_with_hooks(tokens, fwd_hooks=[lm.splice.hook(edit, masked)])


def busiest(feature_acts: Tensor) -> int:
    """The feature nearest to firing at half of the positions."""
    return int(((feature_acts > 0).float().mean(dim=(0, 1)) - 0.5).abs().argmin())


@pytest.mark.parametrize(
    "edit", [FeatureEdit(()), FeatureEdit(tuple(range(D_SAE)), multiplier=-1.0)], ids=["no-feature", "times-one"]
)
def test_an_edit_of_nothing_is_the_identity(edit: FeatureEdit, lm: HookedLM, tokens: Tensor) -> None:
    clean = lm.model(tokens)
    assert_close(spliced(lm, tokens, edit), clean, atol=1e-4, rtol=0)
    assert_close(lm.logits_from(tokens, lm.activations(tokens)), clean, atol=1e-4, rtol=0)
    everything = FeatureEdit(tuple(range(D_SAE)))
    assert (spliced(lm, tokens, everything) - clean).abs().max() > 1e-2
    assert_close(spliced(lm, tokens, everything, torch.ones_like(tokens, dtype=torch.bool)), clean)


@pytest.mark.parametrize("multiplier", [0.0, 2.5])
def test_an_edit_moves_the_activations_where_the_feature_fires(multiplier: float, lm: HookedLM, tokens: Tensor) -> None:
    h = lm.activations(tokens)
    feature_acts = lm.splice.feature_acts(h)
    feature = busiest(feature_acts)
    edited = lm.splice.edited(h, FeatureEdit((feature,), multiplier))
    delta = (edited - h).reshape(6, CONTEXT, D_MODEL)
    fires = feature_acts[..., feature] > 0
    assert 0 < fires.sum() < fires.numel()
    assert torch.equal((delta != 0).any(dim=-1), fires)
    expected = -(1 + multiplier) * feature_acts[..., feature].unsqueeze(-1) * lm.sae.W_dec[feature]
    assert_close(delta, expected, atol=1e-5, rtol=1e-4)
    assert_close(lm.logits_from(tokens, edited), spliced(lm, tokens, FeatureEdit((feature,), multiplier)), atol=1e-5, rtol=1e-4)


def test_masked_positions_are_left_alone(lm: HookedLM, tokens: Tensor) -> None:
    masked = lm.masked(tokens)
    assert torch.equal(masked, (tokens == BOS) | (tokens == EOS))
    assert lm.masked(tokens[:, 1:])[:, 0].all()
    h = lm.activations(tokens)
    feature_acts = lm.feature_acts(tokens)
    assert torch.equal(feature_acts, lm.feature_acts(tokens, h))
    walled = h.clone()
    walled[masked] = 0
    assert torch.equal(feature_acts, lm.splice.feature_acts(walled))  # special tokens are walls, as in training
    assert not torch.equal(feature_acts[~masked], lm.splice.feature_acts(h)[~masked])
    edited = lm.splice.edited(h, FeatureEdit(tuple(range(D_SAE))), masked)
    assert torch.equal(edited[masked], h[masked])
    assert (edited[~masked] != h[~masked]).flatten(1).any(dim=1).all()


def test_masked_positions_have_no_features_in_any_sae(model: HookedSAETransformer, tokens: Tensor) -> None:
    sae = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=D_SAE, metadata=SAEMetadata(hook_name=RESIDUAL)))
    sae.b_enc.data.fill_(1.0)
    h, masked = activations(model, tokens), tokens == BOS
    feature_acts = Splice(sae).feature_acts(h, masked)
    assert not feature_acts[masked].any()
    assert torch.equal(feature_acts[~masked], sae.encode(h)[~masked])


def test_clamping_multiplies() -> None:
    feature_acts = torch.tensor([[[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]])
    edit = FeatureEdit((0, 2), multiplier=2.0)
    assert edit.apply(feature_acts).tolist() == [[[-2.0, 2.0, 0.0], [-6.0, 4.0, -10.0]]]
    assert feature_acts[0, 0, 0] == 1


def test_the_sae_must_name_its_hook() -> None:
    sae = random_sae()
    sae.cfg.metadata = SAEMetadata()
    with pytest.raises(ConfigError, match="hook_name"):
        Splice(sae)


def test_one_head(model: HookedSAETransformer, tokens: Tensor) -> None:
    sae = random_sae(HOOK_Z, d_in=8)
    sae.cfg.metadata.hook_head_index = 1
    z = activations(model, tokens, HOOK_Z)
    before = z.clone()
    edited = Splice(sae).edited(z, FeatureEdit(tuple(range(D_SAE))))
    assert torch.equal(z, before)
    assert torch.equal(edited[:, :, 0], z[:, :, 0])
    assert (edited[:, 1:, 1] != z[:, 1:, 1]).any(dim=-1).all()


# gates ----------------------------------------------------------------------------------------------------------------


def test_running_evidence() -> None:
    gate = RunningEvidenceGate(torch.tensor([0, 2]), torch.tensor([1.0, -0.5]), decay=0.5, threshold=0.9)
    fires = torch.tensor([[[9.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.1, 0.0, 3.0], [2.0, 0.0, 0.0]]])
    assert gate.evidence(fires).tolist() == [[1.0, 0.5, 0.75, 1.375]]
    assert gate.open_from(fires, None)[0].tolist() == [[True, False, False, True]]


def test_running_evidence_is_causal(model: HookedSAETransformer, tokens: Tensor) -> None:
    sae = random_sae()
    feature_acts = sae.encode(activations(model, tokens))
    weights = torch.randn(D_SAE, generator=torch.Generator().manual_seed(0))
    gate = RunningEvidenceGate(torch.arange(D_SAE), weights, decay=0.8, threshold=0.0)
    before, evidence = gate.open_from(feature_acts, None)[0], gate.evidence(feature_acts)
    assert 0 < before.sum() < before.numel()
    for t in range(CONTEXT - 1):
        changed = feature_acts.clone()
        changed[:, t + 1 :] = feature_acts[:, t + 1 :].flip(-1)
        assert torch.equal(gate.open_from(changed, None)[0][:, : t + 1], before[:, : t + 1])
        assert not torch.equal(gate.evidence(changed)[:, t + 1 :], evidence[:, t + 1 :])
    alone = torch.cat([gate.open_from(one, None)[0] for one in feature_acts.split(1)])
    assert torch.equal(alone, before)


def test_a_gated_edit_is_causal(lm: HookedLM, tokens: Tensor) -> None:
    h = lm.activations(tokens)
    features = torch.arange(D_SAE)
    gate = RunningEvidenceGate(
        features, torch.randn(D_SAE, generator=torch.Generator().manual_seed(0)), decay=0.8, threshold=0.0
    )
    edit = FeatureEdit(tuple(range(D_SAE)), gate=gate)
    t = CONTEXT // 2
    changed = h.clone()
    changed[:, t + 1 :] = h[:, t + 1 :].flip(0)
    before, after = lm.splice.edited(h, edit), lm.splice.edited(changed, edit)
    assert torch.equal(before[:, : t + 1], after[:, : t + 1])
    is_open = gate.open_from(lm.splice.feature_acts(h), None)[0]
    assert 0 < is_open.sum() < is_open.numel()
    assert torch.equal(before[~is_open], h[~is_open])
