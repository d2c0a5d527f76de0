"""A compiled run, and one in bfloat16, train to what the plain run trains to; what cannot be compiled is an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens import MTTrainingSAEConfig
from mtsae_lens.data.activations import ActivationReader
from mtsae_lens.errors import ConfigError
from mtsae_lens.training import compiling
from mtsae_lens.training.compiling import compile_function, compiled_step
from mtsae_lens.training.runner import SequenceSAETrainingRunner

TEXTS = Dataset.from_dict({"text": ["the sea and the land and a ship " * 40] * 8})
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "relu": {"l1_coefficient": 0.01},
    "jumprelu": {"l0_coefficient": 0.01},
}

# torch.compile warns of what it cannot trace, and cannot trace the checks of shapes
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.wrong_shapes]


def trained(model: Any, activation: str = "topk", n_steps: int = 4, **changes: Any) -> Any:
    sae = MTTrainingSAEConfig(
        d_in=model.cfg.d_model, d_sae=32, dilations=(0, 1), context_size=16, activation=activation, **ACTIVATIONS[activation]
    )
    cfg = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name="tiny",
        hook_name="blocks.1.hook_resid_pre",
        context_size=16,
        training_tokens=64 * n_steps,
        train_batch_size_tokens=64,
        lr=1e-3,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
        **changes,
    )
    return SequenceSAETrainingRunner(cfg, override_model=model, override_dataset=TEXTS).run()


@pytest.fixture
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace as ever, and run what was traced without the minute that generating code takes."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")


@pytest.mark.usefixtures("_traced_only")
def test_a_compiled_run_gives_the_same_weights(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = compiling.compile_function

    def compile_function(function: Any, setting: str, mode: str | None = None) -> Any:
        asked.append(setting)
        return original(function, setting, mode)

    monkeypatch.setattr(compiling, "compile_function", compile_function)
    monkeypatch.setattr("mtsae_lens.training.streams.compile_function", compile_function)
    plain = trained(tiny_model)
    assert asked == []
    compiled = trained(tiny_model, compile_sae=True, compile_llm=True)
    assert sorted(asked) == ["compile_llm", "compile_sae"]
    assert "training_forward_pass" not in vars(compiled)
    for name, value in plain.state_dict().items():
        assert_close(compiled.state_dict()[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autocast_stays_within_what_bfloat16_rounds(tiny_model: Any, activation: str) -> None:
    plain = trained(tiny_model, activation).state_dict()
    cast = trained(tiny_model, activation, autocast=True, autocast_lm=True).state_dict()
    moved = False
    for name, value in plain.items():
        assert cast[name].dtype == value.dtype
        assert torch.isfinite(cast[name]).all(), name
        moved |= not torch.equal(cast[name], value)
    assert moved  # it does compute in bfloat16
    for name in ("W_enc", "W_dec"):
        ours, theirs = cast[name].flatten(), plain[name].flatten()
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99, name


def test_autocast_of_the_language_model(tiny_model: Any) -> None:
    tokens = torch.randint(1, 4096, (2, 16), generator=torch.Generator().manual_seed(0))
    plain, cast = (ActivationReader(tiny_model, "blocks.1.hook_resid_pre", None, half).read(tokens) for half in (False, True))
    assert cast.dtype == torch.float32
    difference = (cast - plain).norm() / plain.norm()
    assert 0 < difference < 0.02  # eight bits of mantissa


def test_what_cannot_be_compiled_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(compiling, "BACKEND", breaks)
    double = compile_function(lambda x: 2 * x, "compile_sae")
    with pytest.raises(ConfigError, match=r"no compiler here.*; set compile_sae=False") as refused:
        double(torch.ones(2))
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("_traced_only")
def test_errors_of_the_code_itself_pass() -> None:
    def refuse(x: Tensor) -> Tensor:
        raise ConfigError("not this")

    with pytest.raises(ConfigError, match=r"^not this$"):
        compile_function(refuse, "compile_sae")(torch.ones(2))


def test_the_step_is_restored_after_an_error(tiny_model: Any) -> None:
    sae = trained(tiny_model, n_steps=1)

    def fail_inside() -> None:
        with compiled_step(sae, enabled=True):
            assert "training_forward_pass" in vars(sae)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert "training_forward_pass" not in vars(sae)
