"""Settings of a training run. This module loads pydantic alone, so that the command line can show them without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from mtsae_lens.data.choices import FLOAT32, Dtype
from mtsae_lens.settings import Settings
from mtsae_lens.yaml_values import parse_yaml

BDecInit = Literal["mean", "zeros"]
Frozen = Literal["decoder", "all"]


class TrainSettings(Settings):
    """Settings of `mtsae train`."""

    model: str = "embedded"
    """Language model: `embedded`, a name that TransformerLens knows, or a local Hugging Face folder; `bridge:` before either
    loads it as a TransformerBridge."""
    dtype: Dtype = FLOAT32
    """Dtype of the language model. The SAE has its own dtype, float32 by default."""
    hook_name: str = "blocks.3.hook_resid_post"
    """TransformerLens hook whose activations the SAE reads, such as `blocks.3.hook_resid_post`."""
    hook_name_out: str | None = None
    """Hook whose activations the features decode, such as `blocks.3.hook_attn_out`: trains a transcoder from `hook_name` to this hook. By
    default it is `hook_name`, and an SAE is trained."""
    dataset: str = "embedded"
    """Training text: `embedded`, one embedded domain, a dataset on the hub, or a .txt, .jsonl or .parquet file or a folder of them. Join
    several texts with `+`."""
    cache: Path | None = None
    """Folder that `mtsae cache` wrote. Training reads its activations, and no language model is loaded. Model, text, hook and context size are
    those of the cache."""
    architecture: str = "mtsae"
    """Architecture of the SAE: `mtsae`, or any that SAELens trains, such as `topk` or `standard`. With `hook_name_out`, `mtsae` is the
    transcoder `mtsae_transcoder`."""
    d_sae: int = Field(1024, gt=0)
    """Number of features of the SAE."""
    training_tokens: int = Field(1_000_000, gt=0)
    """Number of tokens to train on."""
    out: Path = Path("runs/train")
    """Folder for the trained SAE, its checkpoints, its metrics and its report."""
    context_size: int = Field(128, gt=1)
    """Number of positions in a context."""
    batch_size_tokens: int = Field(512, gt=0)
    """Number of tokens in a training batch. It must be a multiple of the context size."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate."""
    lr_warm_up_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the training steps over which the learning rate rises to its peak."""
    lr_warm_up_steps: int | None = Field(None, ge=0)
    """Number of warm-up steps. It overrides `lr_warm_up_fraction`, and may exceed the number of training steps."""
    lr_end_fraction: float = Field(0.05, ge=0, le=1)
    """Learning rate at the end of training, as a share of the peak. The rate falls along a cosine."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    normalize_activations: str = "expected_average_only_in"
    """How SAELens normalizes activations before the SAE reads them."""
    b_dec_init: BDecInit = "mean"
    """Start of `b_dec`: `mean` takes the mean of the first activations, and `zeros` starts at zero, as in SAELens. In models with outlier
    dimensions, such as Gemma, training that starts at zero collapses."""
    frozen: Frozen | None = None
    """Weights that are not trained, as a control: `decoder` keeps the random rows of the decoder, and `all` keeps the SAE as it starts, with
    `b_dec` (and the prediction of an SAE with memory) from the first activations."""
    max_norm_multiple: float | None = Field(10.0, gt=1)
    """Leave a position out of the loss if the norm of its activation is more than this many times the median norm, as at an attention sink.
    `null` keeps all positions."""
    dead_feature_window: int = Field(300, gt=0)
    """Number of steps without firing after which a feature counts as dead. A third of the run is the maximum."""
    prepend_bos: bool = True
    """Begin every context with the BOS token."""
    packed: bool = True
    """Fill every context with several documents. Without packing, a context holds one document."""
    lm_batch_size_sequences: int = Field(32, gt=0)
    """Number of contexts in a forward pass of the language model."""
    buffer_size_sequences: int = Field(640, gt=0)
    """Number of contexts whose activations are kept in memory and shuffled together. It is rounded down to whole batches."""
    checkpoint_every_n_steps: int = Field(500, gt=0)
    """Number of steps between two checkpoints."""
    log_every_n_steps: int = Field(20, gt=0)
    """Number of steps between two rows of the training log."""
    autocast: bool = False
    """Compute the training step in bfloat16 where PyTorch's autocast does. The weights stay in float32."""
    autocast_lm: bool = False
    """Run the language model in bfloat16 where PyTorch's autocast does. Its weights keep their dtype."""
    compile_sae: bool = False
    """Compile the training step with `torch.compile`. The first steps take a minute or more."""
    compile_llm: bool = False
    """Compile the language model with `torch.compile`. The first forward pass takes a minute or more."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed of the SAE, and of the order in which it reads activations."""
    text_seed: int | None = Field(None, ge=0, lt=2**32)
    """Random seed of the order of the text, or of the contexts of a cache. By default it is `seed`. Give it to read the
    same text or cache in the same order with another `seed`."""
    prefetch: bool | None = None
    """Read activations on a thread while the SAE trains. It doubles the memory of the buffer and changes no result. By default it is on if
    `device` is a CUDA GPU."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""
    wandb: bool = False
    """Log to Weights & Biases too. With `WANDB_MODE=offline` in the environment the log stays on disk."""
    wandb_project: str = "mtsae-lens"
    """Project of Weights & Biases. Giving this option turns on `wandb`."""
    wandb_entity: str | None = None
    """Account or team of Weights & Biases. By default it is your own account."""
    wandb_run_name: str | None = None
    """Name of the run on Weights & Biases. By default Weights & Biases chooses one."""
    saes: tuple[dict[str, Any], ...] = Field(())
    """Settings of several SAEs to train in one pass over the text or the cache, each with its own folder in `out`. An entry holds what differs
    from the other settings, and may hold a `name` for its folder, such as `{name: k16, sae: {k: 16}}`."""
    sae: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"option": "--set"})
    """Setting of the SAE architecture, such as `k=16`, `dilations=[0,1,4]` or `l1_coefficient=0.01`. `dilations=auto` selects the dilations
    from the first training activations."""

    @field_validator("saes", mode="before")
    @classmethod
    def _parse_entries(cls, value: Any) -> Any:
        """Parse the entries that were typed on the command line, which are YAML."""
        if isinstance(value, list | tuple):
            return tuple(parse_yaml(entry, f"--saes {entry[:80]}:") if isinstance(entry, str) else entry for entry in value)
        return value

    @classmethod
    def build(cls, config: Path | str | None, typed: Mapping[str, Any]) -> Self:
        """Merge a YAML file with the values given on the command line; naming a wandb project there turns on logging to wandb.

        Args:
            config: path of the file, or None.
            typed: values from the command line, by the name of the setting.
        """
        named = typed.get("wandb_project") is not None and "wandb" not in typed
        return super().build(config, {**typed, "wandb": True} if named else typed)
