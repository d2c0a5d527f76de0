"""Test that the names that `mtsae_lens.upstream` imports from SAELens and TransformerLens exist and have the meaning that this package needs.

One contract for each name. A failure here after an update says which assumption broke; `make versions` runs this file on the lowest and on
the newest versions that pyproject.toml allows.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
import transformer_lens
from datasets import Dataset
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LoggingConfig,
    SAETrainer,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
    run_evals,
)
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import GPTNeoXForCausalLM

import mtsae_lens
from mtsae_lens import upstream
from mtsae_lens.data.language_models import load_language_model

PACKAGE = Path(mtsae_lens.__file__).parent


# The seam itself


def _is_public(module: str, name: str) -> bool:
    return module == "transformer_lens" or (module == "sae_lens" and name in ("", *sae_lens.__all__))


def _imports(tree: ast.AST) -> list[tuple[str, str]]:
    """Module and name of every import of SAELens and TransformerLens."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] in ("sae_lens", "transformer_lens")]


def test_only_upstream_imports_what_is_not_public() -> None:
    beyond = {
        (str(path.relative_to(PACKAGE)), module, name)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "upstream.py"
        for module, name in _imports(ast.parse(path.read_text(encoding="utf-8")))
        if not _is_public(module, name)
    }
    assert beyond == set(), "import these from mtsae_lens.upstream"


PRIVATE_ATTRIBUTES = {
    "_add_aliases_to_hooks",
    "_train_step",
    "_is_logging_step",
    "act_freq_scores",
    "n_frac_active_samples",
    "run_time_activation_norm_fn_in",
    "run_time_activation_norm_fn_out",
    "reshape_fn_in",
    "reshape_fn_out",
    "hook_z_reshaping_mode",
    "output_logits_soft_cap",
}


def test_only_upstream_reads_attributes_that_are_not_public() -> None:
    read = {
        (str(path.relative_to(PACKAGE)), node.attr)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "upstream.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in PRIVATE_ATTRIBUTES
        and ast.unparse(node.value) != "numbers"  # the record of a checkpoint, whose field is named alike
    }
    assert read == set(), "use a function of mtsae_lens.upstream"


def test_activations_have_values_and_gradients_for_the_threshold() -> None:
    x = torch.tensor([[0.5, 2.0, -1.0], [3.0, 0.1, 0.2]], requires_grad=True)
    assert upstream.BatchTopK(1)(x).count_nonzero() == 2  # k on average over the batch
    assert int(upstream.BatchTopK(1)(x)[1].count_nonzero()) == 1
    threshold = torch.tensor([0.45, 0.45, 0.45], requires_grad=True)
    acts = upstream.JumpReLU.apply(x, threshold, 0.2, False)
    assert_close(acts, x * (x > 0.45))
    acts.sum().backward()
    assert threshold.grad is not None
    assert threshold.grad[0] < 0  # 0.5 is within the bandwidth of the threshold
    assert torch.equal(upstream.Step.apply(x, threshold, 0.2, False), (x > 0.45).float())
    loss = upstream.calculate_pre_act_loss(1.0, threshold, x, torch.tensor([False, False, True]), torch.ones(3))
    assert loss > 0  # feature 2 is dead and below its threshold


def test_every_name_has_a_contract() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in upstream.__all__ if f"upstream.{name}" not in tested] == []


# Signatures

PARAMETERS = {
    "EvalConfig": "batch_size_prompts n_eval_reconstruction_batches n_eval_sparsity_variance_batches compute_kl compute_ce_loss "
    "compute_l2_norms compute_sparsity_metrics compute_variance_metrics compute_featurewise_density_statistics",
    "SAETrainerConfig": "total_training_samples train_batch_size_samples lr lr_end lr_scheduler_name lr_warm_up_steps lr_decay_steps "
    "n_restart_cycles adam_beta1 adam_beta2 device autocast dead_feature_window feature_sampling_window logger "
    "n_batches_for_norm_estimate",
    "TrainStepInput": "sae_in coefficients dead_neuron_mask n_training_steps is_logging_step",
    "TrainStepOutput": "sae_in sae_out feature_acts hidden_pre loss losses metrics",
    "TrainCoefficientConfig": "value warm_up_steps",
    "FeatureDictionary": "num_features hidden_dim bias initializer device seed",
    "get_lr_scheduler": "scheduler_name optimizer training_steps lr warm_up_steps decay_steps lr_end num_cycles",
    "get_pretrained_model_config": "model_name hf_cfg device n_ctx",
    "get_pretrained_state_dict": "official_model_name cfg hf_model dtype",
    "load_sae_config_from_huggingface": "release sae_id device",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_have_their_names(name: str) -> None:
    parameters = inspect.signature(getattr(upstream, name)).parameters
    assert [p for p in PARAMETERS[name].split() if p not in parameters] == []


@pytest.mark.parametrize(
    "record", [upstream.TrainStepInput, upstream.TrainStepOutput, upstream.EvalConfig, upstream.SAETrainerConfig]
)
def test_records_are_dataclasses(record: Any) -> None:
    """`dataclasses.replace` works on them."""
    assert dataclasses.is_dataclass(record)


# SAELens: SAEs and their files


@pytest.fixture
def sae() -> StandardSAE:
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=6, d_sae=8))
    torch.nn.init.normal_(sae.W_enc)
    return sae


def test_an_sae_is_saved_under_the_names_of_the_constants(sae: StandardSAE, tmp_path: Path) -> None:
    sae.save_model(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {upstream.SAE_CFG_FILENAME, upstream.SAE_WEIGHTS_FILENAME}
    assert (upstream.SAE_CFG_FILENAME, upstream.SAE_WEIGHTS_FILENAME) == ("cfg.json", "sae_weights.safetensors")
    assert (upstream.RUNNER_CFG_FILENAME, upstream.SPARSITY_FILENAME) == ("runner_cfg.json", "sparsity.safetensors")


def test_the_registries_hold_class_and_configuration() -> None:
    assert upstream.SAE_CLASS_REGISTRY["topk"][0] is TopKSAE
    assert upstream.SAE_TRAINING_CLASS_REGISTRY["topk"] == (TopKTrainingSAE, TopKTrainingSAEConfig)


def test_registering_twice_is_refused_until_it_is_unregistered() -> None:
    name = "contract-of-upstream"
    upstream.unregister(name)
    for _ in range(2):
        sae_lens.register_sae_class(name, TopKSAE, StandardSAEConfig)
        sae_lens.register_sae_training_class(name, TopKTrainingSAE, TopKTrainingSAEConfig)
        with pytest.raises(ValueError, match="already registered"):
            sae_lens.register_sae_class(name, TopKSAE, StandardSAEConfig)
        upstream.unregister(name)
    assert name not in upstream.SAE_CLASS_REGISTRY
    assert name not in upstream.SAE_TRAINING_CLASS_REGISTRY


def test_metadata_keeps_any_attribute_and_answers_none_to_others() -> None:
    metadata = upstream.SAEMetadata(hook_name="blocks.0.hook_resid_post")
    metadata.ours = 3  # type: ignore[attr-defined]
    assert (metadata.hook_name, metadata.ours, metadata.missing) == ("blocks.0.hook_resid_post", 3, None)  # type: ignore[attr-defined]
    assert {"hook_name", "ours"} <= metadata.to_dict().keys()


@pytest.mark.parametrize("mode", ["none", "layer_norm", "constant_norm_rescale"])
def test_normalization_is_undone_on_the_output(mode: Any) -> None:
    sae = StandardSAE(StandardSAEConfig(d_in=6, d_sae=8, normalize_activations=mode))
    h = torch.randn(2, 3, 6) * 5 + 1
    x = upstream.normalize_input(sae, upstream.flatten_heads(sae, h))
    if mode == "none":
        assert torch.equal(x, h)
    elif mode == "layer_norm":
        assert_close(x.mean(dim=-1), torch.zeros(2, 3), atol=1e-6, rtol=0)
        assert_close(x.std(dim=-1), torch.ones(2, 3), atol=1e-4, rtol=0)
    else:
        assert_close(x.norm(dim=-1), torch.full((2, 3), 6**0.5))
    assert not upstream.reads_heads(sae)
    assert_close(upstream.restore_output(sae, x), h, atol=1e-4, rtol=1e-4)
    upstream.normalize_input(sae, 7 * h + 1)
    upstream.remember_norms(sae, h)
    assert_close(upstream.restore_output(sae, x), h, atol=1e-4, rtol=1e-4)


def test_heads_are_laid_side_by_side_and_back(sae: StandardSAE) -> None:
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae.turn_on_forward_pass_hook_z_reshaping()
    h = torch.arange(24.0).view(2, 2, 2, 3)
    assert upstream.reads_heads(sae)
    flat = upstream.flatten_heads(sae, h)
    assert torch.equal(flat, h.flatten(2))
    assert torch.equal(upstream.restore_output(sae, flat), h)


def test_auxk_keeps_the_largest_pre_activations_of_dead_features() -> None:
    hidden_pre, dead = torch.tensor([[3.0, -1.0, 2.0, -4.0]]), torch.tensor([False, True, True, True])
    assert torch.equal(upstream.calculate_topk_aux_acts(2, hidden_pre, dead), torch.tensor([[0.0, -1.0, 2.0, 0.0]]))


# SAELens: training


class Trainer(SAETrainer[TrainingSAE[Any], Any]):
    """Records the inputs of `training_forward_pass`."""


def make_trainer(rows: Tensor) -> Trainer:
    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=6, d_sae=8, k=2))
    cfg = upstream.SAETrainerConfig(
        total_training_samples=4 * len(rows),
        train_batch_size_samples=len(rows),
        lr_end=1e-4,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return Trainer(cfg=cfg, sae=sae, data_provider=iter([rows] * 4))


def test_counts_are_those_that_the_trainer_makes_itself() -> None:
    rows = torch.randn(16, 6)
    theirs, ours = make_trainer(rows), make_trainer(rows)
    for _ in range(3):
        output = theirs.step(rows)
        upstream.count_firing(ours, (output.feature_acts != 0).sum(dim=0).float(), len(rows))
    tensors, n_samples = upstream.read_firing_counts(ours)
    expected, n_expected = upstream.read_firing_counts(theirs)
    assert n_samples == n_expected == 48
    assert_close(tensors, expected)
    assert_close(ours.feature_sparsity, theirs.feature_sparsity)
    assert torch.equal(ours.dead_neurons, theirs.dead_neurons)


def test_counts_are_restored_and_taken_out() -> None:
    rows = torch.randn(16, 6)
    trainer, fresh = make_trainer(rows), make_trainer(rows)
    trainer.step(rows)
    tensors, n_samples = upstream.read_firing_counts(trainer)
    rest = dict(tensors) | {"other": torch.zeros(1)}
    upstream.restore_firing_counts(fresh, rest, n_samples)
    assert rest.keys() == {"other"}
    assert_close(fresh.feature_sparsity, trainer.feature_sparsity)


def test_the_step_gives_the_sae_the_records() -> None:
    rows = torch.randn(16, 6)
    trainer = make_trainer(rows)
    given: list[Any] = []
    forward = trainer.sae.training_forward_pass

    def record(step_input: Any) -> Any:
        given.append(step_input)
        return forward(step_input)

    trainer.sae.training_forward_pass = record  # type: ignore[method-assign]
    output = trainer.step(rows)
    (step_input,) = given
    assert isinstance(step_input, upstream.TrainStepInput)
    assert isinstance(output, upstream.TrainStepOutput)
    assert torch.equal(step_input.sae_in, rows)
    assert step_input.dead_neuron_mask is not None
    assert step_input.dead_neuron_mask.shape == (8,)
    assert (step_input.n_training_steps, output.loss.ndim) == (0, 0)


def test_a_coefficient_warms_up_to_its_value() -> None:
    class Warmed(TopKTrainingSAE):
        def get_coefficients(self) -> dict[str, Any]:
            return {"l1": upstream.TrainCoefficientConfig(value=2.0, warm_up_steps=4)}

    rows = torch.randn(16, 6)
    cfg = make_trainer(rows).cfg
    trainer = Trainer(cfg=cfg, sae=Warmed(TopKTrainingSAEConfig(d_in=6, d_sae=8, k=2)), data_provider=iter(()))
    values = []
    for _ in range(5):
        values.append(trainer.get_coefficients()["l1"])
        trainer.coefficient_schedulers["l1"].step()
    assert values == sorted(values)
    assert values[0] < 2.0
    assert values[-1] == 2.0


def test_a_schedule_warms_up_holds_and_decays() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = upstream.get_lr_scheduler(
        "constant", optimizer, training_steps=10, lr=1.0, warm_up_steps=2, decay_steps=4, lr_end=0.1, num_cycles=1
    )
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] < rates[2] == rates[5] == 1.0
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[-1] < 1.0


def test_the_scaler_scales_only_when_it_has_a_factor(tmp_path: Path) -> None:
    h = torch.randn(4, 6)
    scaler = upstream.ActivationScaler()
    assert torch.equal(scaler(h), h)
    scaler.scaling_factor = 2.0
    assert torch.equal(scaler(h), 2 * h)
    scaler.save(str(tmp_path / "scaler.json"))
    assert json.loads((tmp_path / "scaler.json").read_text())["scaling_factor"] == 2.0


def test_the_runner_accepts_a_dataset_of_hugging_face() -> None:
    assert isinstance(Dataset.from_dict({"text": ["a"]}), upstream.HfDataset)


# SAELens: evaluation, hub, synthetic features


class Store:
    """What `run_evals` asks of an activation store."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.context_size = tokens.shape[1]
        self.store_batch_size_prompts = len(tokens)

    def get_batch_tokens(self, *arguments: Any, **options: Any) -> Tensor:
        return self.tokens

    def reset_input_dataset(self) -> None:
        pass


def test_run_evals_gives_the_metrics_that_its_configuration_asks_for(model: HookedSAETransformer, tokens: Tensor) -> None:
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=model.cfg.d_model, d_sae=24))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.cfg.metadata.hook_head_index = None
    store = Store(tokens)
    config = upstream.EvalConfig(
        batch_size_prompts=len(tokens),
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    groups, features = run_evals(
        sae=sae,
        activation_store=store,  # type: ignore[arg-type]
        model=model,
        activation_scaler=upstream.ActivationScaler(),
        eval_config=config,
        exclude_special_tokens=[0],
    )
    metrics = {name for group in groups.values() for name in group}
    assert {"ce_loss_without_sae", "ce_loss_with_sae", "ce_loss_score", "explained_variance", "l2_norm_in", "l0"} <= metrics
    assert len(features["feature_density"]) == 24


def test_the_saved_dtype_is_read_from_the_hub(hub: Any, sae: StandardSAE) -> None:
    """The hub is a folder here (`tests/folder_hub.py`)."""
    folder = hub.root / "someone" / "saes" / "first"
    folder.mkdir(parents=True)
    sae.save_model(folder)
    assert upstream.load_sae_config_from_huggingface("someone/saes", "first")["dtype"] == "float32"


@pytest.mark.parametrize(
    ("hook_name", "layer"),
    [("blocks.3.hook_resid_post", 3), ("blocks.12.attn.hook_z", 12), ("hook_embed", None)],
)
def test_the_layer_of_a_hook(hook_name: str, layer: int | None) -> None:
    assert upstream.extract_layer_from_tlens_hook_name(hook_name) == layer
    assert upstream.extract_stop_at_layer_from_tlens_hook_name(hook_name) == (None if layer is None else layer + 1)


def test_planted_features_are_orthogonal_unit_vectors_and_reproducible() -> None:
    def make() -> Tensor:
        torch.manual_seed(0)
        return upstream.FeatureDictionary(
            4, 16, bias=False, initializer=upstream.orthogonal_initializer()
        ).feature_vectors.detach()

    vectors = make()
    assert vectors.shape == (4, 16)
    assert_close(vectors @ vectors.T, torch.eye(4), atol=1e-2, rtol=0)
    assert torch.equal(vectors, make())


def test_features_are_matched_whatever_their_order_and_sign() -> None:
    features = torch.eye(5)[:4]
    assert upstream.mean_correlation_coefficient(-features.flip(0), features) == pytest.approx(1.0)
    assert upstream.mean_correlation_coefficient(torch.eye(5)[[4, 4, 4, 4]], features) == pytest.approx(0.0)


# TransformerLens


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=16,
        n_heads=2,
        d_head=8,
        n_ctx=16,
        d_vocab=20,
        act_fn="relu",
        seed=0,
        device="cpu",
        model_name="tiny",
    )
    return HookedSAETransformer(cfg).eval()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 20, (3, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cap", [-1.0, 0.5])
@torch.no_grad()
def test_the_last_layers_of_forward(
    model: HookedSAETransformer, tokens: Tensor, cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.cfg, "output_logits_soft_cap", cap)
    resid = model(tokens, stop_at_layer=2)
    expected = model(tokens)
    assert (expected.abs().max() <= 0.5) == (cap > 0)
    assert_close(upstream.finish_logits(model, model.unembed(model.ln_final(resid[:, 2:5]))), expected[:, 2:5])


def test_hooks_are_hook_points(model: HookedSAETransformer) -> None:
    assert all(isinstance(hook, upstream.HookPoint) for hook in model.hook_dict.values())


def test_a_bridge_answers_to_the_names_of_hooked_transformer(tiny_model_dir: Path) -> None:
    bridge: Any = load_language_model(f"bridge:{tiny_model_dir}")
    hooks = dict(super(type(bridge), bridge).hook_dict)
    name = "blocks.0.hook_resid_post"
    hooks.pop(name, None)
    upstream.add_hook_aliases(bridge, hooks)
    seen: list[Tensor] = []
    hooks[name].add_hook(lambda h, hook: seen.append(h))
    with torch.no_grad():
        bridge(torch.zeros(1, 3, dtype=torch.long))
    hooks[name].remove_hooks()
    assert [h.shape for h in seen] == [(1, 3, 32)]


def test_names_and_aliases() -> None:
    assert "pythia-70m-deduped" in upstream.MODEL_ALIASES["EleutherAI/pythia-70m-deduped"]
    assert upstream.get_official_model_name("pythia-70m-deduped") == "EleutherAI/pythia-70m-deduped"
    with pytest.raises(ValueError, match="not found"):
        upstream.get_official_model_name("no-such-model")


def test_models_that_run_code_are_prefixes_of_official_names() -> None:
    assert "Qwen/Qwen-7B".startswith(upstream.NEED_REMOTE_CODE_MODELS)
    assert not "EleutherAI/pythia-70m".startswith(upstream.NEED_REMOTE_CODE_MODELS)


@torch.no_grad()
def test_a_folder_is_converted_to_the_same_model(tmp_path: Path, save_neox: Callable[..., Path]) -> None:
    """The configuration is read from the folder, the weights from the given model; together they give its logits."""
    folder = save_neox(tmp_path / "lm")
    hf_model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cfg = upstream.get_pretrained_model_config(str(folder), hf_cfg=hf_model.config.to_dict(), device="cpu", n_ctx=32)
    assert (cfg.n_layers, cfg.d_model, cfg.n_ctx) == (2, 32, 32)
    state_dict = upstream.get_pretrained_state_dict(str(folder), cfg, hf_model=hf_model, dtype=torch.float32)
    model = HookedTransformer(cfg, move_to_device=False)
    model.load_and_process_state_dict(
        state_dict, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    tokens = torch.randint(1, 4096, (2, 9), generator=torch.Generator().manual_seed(0))
    assert_close(model(tokens), hf_model(tokens).logits, atol=1e-3, rtol=1e-3)


def test_public_names_are_there() -> None:
    """Those that the package imports from the top of SAELens and TransformerLens."""
    used = {
        (module, name)
        for path in PACKAGE.rglob("*.py")
        for module, name in _imports(ast.parse(path.read_text(encoding="utf-8")))
    }
    missing = [name for module, name in used if name and module == "sae_lens" and not hasattr(sae_lens, name)]
    assert (
        missing + [name for module, name in used if module == "transformer_lens" and not hasattr(transformer_lens, name)] == []
    )
    assert SAE.load_from_disk
