"""`torch.compile` of a training step and of the language model, as SAELens's `compile_sae` and `compile_llm` ask for it.

What cannot be traced, such as the selection of rows by a mask, runs between compiled pieces as ever. Where compiling fails, the run ends
with an error that names the setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from sae_lens import TrainingSAE

from mtsae_lens.errors import ConfigError

BACKEND = "inductor"
_FAILURES = ("torch._dynamo", "torch._inductor", "torch._functorch")  # the modules whose exceptions say that compiling failed

F = TypeVar("F", bound=Callable[..., Any])


def compile_function(function: F, setting: str, mode: str | None = None) -> F:
    """Compile a function when it is first called.

    Args:
        function: the function.
        setting: the setting that asks for it, which errors name.
        mode: the mode of `torch.compile`.

    Returns:
        A function that gives the same.

    Raises:
        ConfigError: when it is called, that the function cannot be compiled here.
    """
    compiled = torch.compile(function, mode=mode, backend=BACKEND)

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return compiled(*arguments, **options)
        except Exception as error:
            if not type(error).__module__.startswith(_FAILURES):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"expected code that torch.compile can compile here, got {type(error).__name__} ({reason}); set {setting}=False"
            ) from error

    return call  # type: ignore[return-value]


@contextmanager
def compiled_step(sae: TrainingSAE[Any], *, enabled: bool, mode: str | None = None) -> Iterator[None]:
    """Compile an SAE's training step for a `with` block.

    Args:
        sae: the SAE; afterwards it is as it was, so that it can be saved and used anywhere.
        enabled: whether to compile at all.
        mode: the mode of `torch.compile`.
    """
    if not enabled:
        yield
        return
    sae.training_forward_pass = compile_function(sae.training_forward_pass, "compile_sae", mode)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del sae.training_forward_pass  # the method of the class comes back
