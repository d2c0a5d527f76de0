"""The language model, hook and text on which the paper is repeated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.data.activations import ActivationReader
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, ContextStream, TokenTable, read_tokens
from mtsae_lens.data.documents import read_documents
from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.data.language_models import load_language_model, resolve_hook
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.errors import ConfigError

PaperAddress = tuple[str, str, str, int, str]
"""What `PaperSetup.load` takes: enough to find the same setup from another process."""


@dataclass(frozen=True)
class PaperSetup:
    """A loaded model with all that is needed to read its activations on training and held-out text."""

    model: AnyHookedModel
    model_name: str
    hook_name: str
    dataset: str
    context_size: int
    device: str = "cpu"
    lm_batch_size_sequences: int = 32

    @classmethod
    def load(cls, model_name: str, hook_name: str, dataset: str, context_size: int, device: str = "cpu") -> PaperSetup:
        """Load the model.

        Raises:
            ModelError: no such model or hook.
            ConfigError: contexts longer than the model's.
        """
        model = load_language_model(model_name, device=device)
        resolve_hook(model, hook_name)
        if context_size > model.cfg.n_ctx:
            raise ConfigError(
                f"context_size={context_size} is longer than the model's context of {model.cfg.n_ctx}; give it in --config"
            )
        return cls(model, model_name, hook_name, dataset, context_size, device)

    @property
    def address(self) -> PaperAddress:
        """Arguments of `load`."""
        return self.model_name, self.hook_name, self.dataset, self.context_size, self.device

    @property
    def record(self) -> dict[str, str]:
        """What all results depend on."""
        named = {"model": self.model_name, "hook_name": self.hook_name, "dataset": self.dataset}
        return named | model_stamps(self.model_name) | text_stamps(self.dataset)

    @cached_property
    def d_in(self) -> int:
        """Width of the activations."""
        return resolve_hook(self.model, self.hook_name)

    @property
    def cutter(self) -> ContextCutter:
        """How documents become contexts."""
        assert self.model.tokenizer is not None
        return ContextCutter(self.model.tokenizer, self.context_size)

    def train_tokens(self, n_contexts: int, seed: int = 0) -> Int[Tensor, "n pos"]:
        """Read contexts of the training split."""
        stream = ContextStream(partial(read_documents, self.dataset, "train"), self.cutter, seed)
        return torch.tensor(list(islice(stream, n_contexts)), dtype=torch.long)

    def test_table(self, n_contexts: int, seed: int = 0) -> TokenTable:
        """Read contexts of the test split, which no training sees."""
        return read_tokens(self.dataset, "test", self.cutter, n_contexts, seed=seed)

    def activations(self, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n pos d_in"]:
        """Read activations, zero at special tokens and at position 0, as in training."""
        reader, cutter = ActivationReader(self.model, self.hook_name), self.cutter
        parts = []
        for batch in tokens.split(self.lm_batch_size_sequences):
            parts.append(zero_rows(reader.read(batch), cutter.masked(batch)))
        return torch.cat(parts).to(self.device)
