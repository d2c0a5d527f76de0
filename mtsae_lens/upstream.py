"""The one seam to SAELens and TransformerLens: every name of theirs that is not part of their public interface.

Names in `sae_lens.__all__` and in `transformer_lens` itself are public; the rest of the package imports those directly, and everything
else from here. Each entry says why it is needed. Each has a test in `tests/integration/test_upstream.py` that fails when upstream moves it,
renames it, or changes its meaning; `make versions` runs these tests on the lowest and on the newest allowed versions.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE, HookedSAETransformer, SAETrainer, SAETransformerBridge
from sae_lens.config import (
    HfDataset,  # the rows that SAELens's runner accepts as `override_dataset`, and so does ours
    SAETrainerConfig,  # what `SAETrainer` takes; only the runner's configuration is public
)
from sae_lens.constants import (
    # the files of a saved SAE: ours lie beside them, and every reader looks for them under these names
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.evals import EvalConfig  # which metrics `run_evals` computes, and on how much text
from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface  # the saved dtype, before the weights
from sae_lens.registry import (
    # which architectures exist, and the configuration of each: to name the nearest one, and to check a file before it is loaded
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
)
from sae_lens.saes.batchtopk_sae import BatchTopK  # the k largest pre-activations of a batch
from sae_lens.saes.jumprelu_sae import JumpReLU, Step, calculate_pre_act_loss  # with SAELens's gradients for the threshold
from sae_lens.saes.sae import (
    # the records that `TrainingSAE.training_forward_pass` takes and returns, and the metadata of a configuration
    SAEMetadata,
    TrainCoefficientConfig,
    TrainStepInput,
    TrainStepOutput,
)
from sae_lens.saes.topk_sae import (
    calculate_topk_aux_acts,  # AuxK of Gao et al. 2024, so that ours revives dead features as SAELens's does
)
from sae_lens.synthetic import (
    # planted features, made and scored as SAELens's synthetic benchmark does
    FeatureDictionary,
    mean_correlation_coefficient,
    orthogonal_initializer,
)
from sae_lens.training.activation_scaler import ActivationScaler  # `run_evals` asks for one, even where nothing is scaled
from sae_lens.training.optim import get_lr_scheduler  # the learning rate schedules of `SAETrainer`, on our optimizer
from sae_lens.util import (
    # the layer of a hook, so that the model is not run beyond it
    extract_layer_from_tlens_hook_name,
    extract_stop_at_layer_from_tlens_hook_name,
)
from torch import Tensor
from transformer_lens.hook_points import HookPoint  # what `hook_dict` holds
from transformer_lens.loading_from_pretrained import (
    MODEL_ALIASES,  # the names of models that TransformerLens knows, to name the nearest one
    NEED_REMOTE_CODE_MODELS,  # models that run code from the hub, which are refused
    get_official_model_name,  # the hub's name for one of TransformerLens's
    get_pretrained_model_config,  # a local folder's configuration: `from_pretrained` looks only on the hub
    get_pretrained_state_dict,  # and its weights, converted
)

__all__ = [
    "MODEL_ALIASES",
    "NEED_REMOTE_CODE_MODELS",
    "RUNNER_CFG_FILENAME",
    "SAE_CFG_FILENAME",
    "SAE_CLASS_REGISTRY",
    "SAE_TRAINING_CLASS_REGISTRY",
    "SAE_WEIGHTS_FILENAME",
    "SPARSITY_FILENAME",
    "ActivationScaler",
    "BatchTopK",
    "EvalConfig",
    "FeatureDictionary",
    "HfDataset",
    "HookPoint",
    "JumpReLU",
    "SAEMetadata",
    "SAETrainerConfig",
    "Step",
    "TrainCoefficientConfig",
    "TrainStepInput",
    "TrainStepOutput",
    "add_hook_aliases",
    "calculate_pre_act_loss",
    "calculate_topk_aux_acts",
    "count_firing",
    "extract_layer_from_tlens_hook_name",
    "extract_stop_at_layer_from_tlens_hook_name",
    "finish_logits",
    "flatten_heads",
    "get_lr_scheduler",
    "get_official_model_name",
    "get_pretrained_model_config",
    "get_pretrained_state_dict",
    "load_sae_config_from_huggingface",
    "mean_correlation_coefficient",
    "normalize_input",
    "orthogonal_initializer",
    "read_firing_counts",
    "reads_heads",
    "remember_norms",
    "restore_firing_counts",
    "restore_output",
    "unregister",
]


def unregister(architecture: str) -> None:
    """Remove an architecture from SAELens's registries, which refuse a second registration: a reloaded module registers again.

    Args:
        architecture: the name it was registered under; nothing happens if it is not registered.
    """
    for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY):
        registry.pop(architecture, None)


def flatten_heads(sae: SAE[Any], h: Tensor) -> Tensor:
    """Lay the heads of `hook_z` activations side by side, for an SAE that is configured so; other activations stay as they are.

    Needed because an encoder that reads time checks its input between this step and the normalization.

    Args:
        sae: the SAE; it remembers the head's width for `restore_output`.
        h: activations `(..., n_heads, d_head)` or `(..., d_in)`.

    Returns:
        Activations `(..., d_in)`.
    """
    return sae.reshape_fn_in(h)


def normalize_input(sae: SAE[Any], h: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_in"]:
    """Normalize activations as `sae.cfg.normalize_activations` says.

    Needed because an encoder that reads time has to find its walls before and to put them back after this step.

    Args:
        sae: the SAE; it remembers the norms for `restore_output`.
        h: activations with heads laid side by side.

    Returns:
        Activations of the same shape.
    """
    return sae.run_time_activation_norm_fn_in(h)


def restore_output(sae: SAE[Any], sae_out: Float[Tensor, "*row d_in"]) -> Tensor:
    """Undo `normalize_input` and `flatten_heads` on an SAE's output.

    Args:
        sae: the SAE that was given the input.
        sae_out: reconstructions `(..., d_in)`.

    Returns:
        Reconstructions on the scale and in the shape of the model's activations.
    """
    return sae.reshape_fn_out(sae.run_time_activation_norm_fn_out(sae_out), sae.d_head)


def remember_norms(sae: SAE[Any], sae_in: Tensor) -> None:
    """Let an SAE remember the shape and the norms of an input, as `encode` does, so that `decode` restores them.

    Needed because `decode` forgets the norms, so that a second call of it fails, and because another input may have been encoded since.

    Args:
        sae: the SAE.
        sae_in: the input that the features to decode were computed from, in the form that `encode` takes.
    """
    normalize_input(sae, flatten_heads(sae, sae_in.to(sae.dtype)))


def reads_heads(sae: SAE[Any]) -> bool:
    """Return whether the SAE takes activations with an axis of heads (`hook_z`), which it lays side by side.

    Args:
        sae: the SAE.
    """
    return sae.hook_z_reshaping_mode


def count_firing(trainer: SAETrainer[Any, Any], counts: Float[Tensor, " d_sae"], n_samples: int) -> None:
    """Add one step to a trainer's firing statistics, from which SAELens computes sparsity and dead features.

    Needed because the counts may be those of several ranks, and come from a sparse matrix.

    Args:
        trainer: the trainer.
        counts: how often each feature fired in the step.
        n_samples: rows in the step.
    """
    trainer.n_forward_passes_since_fired += 1
    trainer.n_forward_passes_since_fired[counts > 0] = 0
    trainer.act_freq_scores += counts
    trainer.n_frac_active_samples += n_samples


def read_firing_counts(trainer: SAETrainer[Any, Any]) -> tuple[dict[str, Float[Tensor, " d_sae"]], int]:
    """Return a trainer's firing statistics for a checkpoint.

    Args:
        trainer: the trainer.

    Returns:
        Tensors by name, and the number of samples that they were counted on.
    """
    names = ("act_freq_scores", "n_forward_passes_since_fired")
    return {name: getattr(trainer, name) for name in names}, trainer.n_frac_active_samples


def restore_firing_counts(trainer: SAETrainer[Any, Any], tensors: dict[str, Tensor], n_samples: int) -> None:
    """Set a trainer's firing statistics to those of a checkpoint.

    Args:
        trainer: the trainer.
        tensors: the tensors that `read_firing_counts` returned, among others; they are taken out.
        n_samples: the number that it returned.

    Raises:
        KeyError: a tensor is missing.
    """
    trainer.act_freq_scores = tensors.pop("act_freq_scores")
    trainer.n_forward_passes_since_fired = tensors.pop("n_forward_passes_since_fired")
    trainer.n_frac_active_samples = n_samples


def add_hook_aliases(bridge: SAETransformerBridge, hooks: dict[str, HookPoint]) -> None:
    """Add `HookedTransformer`'s names of a bridge's hooks (`blocks.3.hook_resid_post`) to a dictionary of them, in place.

    Needed because `SAETransformerBridge.hook_dict` leaves them out, and a hook under a name that is not there is never called.

    Args:
        bridge: the model.
        hooks: hooks by their own name.
    """
    bridge._add_aliases_to_hooks(hooks)


def finish_logits(
    model: HookedSAETransformer | SAETransformerBridge, unembedded: Float[Tensor, "*n d_vocab"]
) -> Float[Tensor, "*n d_vocab"]:
    """Turn what the unembedding gives into logits, as `forward` of the model ends: with the soft cap or scale of the configuration.

    Needed because `forward` computes the logits of all positions at once, which a large vocabulary makes the largest tensor of all.

    Args:
        model: the model.
        unembedded: the output of `model.unembed`, at any positions.

    Returns:
        The logits.
    """
    if isinstance(model, SAETransformerBridge):
        transform = getattr(model.adapter, "apply_output_logits_transform", None)  # older versions of TransformerLens have none
        if transform is not None:
            return transform(unembedded)
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0.0
    return cap * torch.tanh(unembedded / cap) if cap > 0 else unembedded
