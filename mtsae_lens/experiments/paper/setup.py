"""Load the language model, hook and text on which the paper is repeated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.activations import ActivationReader
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.documents import read_documents
from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.data.language_models import load_language_model, resolve_hook
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError

PaperAddress = tuple[str, str, str, int, str]
"""Arguments of `PaperSetup.load`, with which another process loads the same setup."""


@dataclass(frozen=True)
class PaperSetup:
    """A loaded model and everything that is needed to read its activations on training and held-out text."""

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

        Args:
            model_name: name of the language model.
            hook_name: hook whose activations are read.
            dataset: the text.
            context_size: positions per context.
            device: device to run on.

        Raises:
            ModelError: the model or the hook does not exist.
            ConfigError: the contexts are longer than the model's.
        """
        model = load_language_model(model_name, device=device)
        resolve_hook(model, hook_name)
        if context_size > model.cfg.n_ctx:
            raise ConfigError(
                f"expected a context_size of at most {model.cfg.n_ctx}, the model's context, got {context_size}; lower context_size"
            )
        return cls(model, model_name, hook_name, dataset, context_size, device)

    @property
    def address(self) -> PaperAddress:
        """Return the arguments of `load`."""
        return self.model_name, self.hook_name, self.dataset, self.context_size, self.device

    @property
    def record(self) -> dict[str, str]:
        """Return what all results depend on."""
        named = {"model": self.model_name, "hook_name": self.hook_name, "dataset": self.dataset}
        return named | model_stamps(self.model_name) | text_stamps(self.dataset)

    @cached_property
    def d_in(self) -> int:
        """Return the width of the activations."""
        return resolve_hook(self.model, self.hook_name)

    @property
    def cutter(self) -> ContextCutter:
        """Return the cutter that turns documents into contexts."""
        assert self.model.tokenizer is not None
        return ContextCutter(self.model.tokenizer, self.context_size)

    def train_tokens(self, n_contexts: int, seed: int = 0) -> Int[Tensor, "n pos"]:
        """Read contexts of the training split.

        Args:
            n_contexts: number of contexts.
            seed: seed of the order of documents.
        """
        stream = ContextStream(partial(read_documents, self.dataset, "train"), self.cutter, seed)
        return torch.tensor(list(islice(stream, n_contexts)), dtype=torch.long)

    def test_table(self, n_contexts: int, seed: int = 0) -> TokenTable:
        """Read contexts of the test split, which no training reads.

        Args:
            n_contexts: largest number of contexts.
            seed: seed of the draw.
        """
        return read_tokens(self.dataset, "test", self.cutter, n_contexts, seed=seed)

    def activations(self, tokens: Int[Tensor, "n pos"]) -> tuple[Float[Tensor, "n pos d_in"], Bool[Tensor, "n pos"]]:
        """Read activations, set to zero at masked positions, as in training.

        Args:
            tokens: whole contexts.

        Returns:
            The activations, and which positions are masked: special tokens and position 0.
        """
        reader, masked = ActivationReader(self.model, self.hook_name), self.cutter.masked(tokens)
        parts = [reader.read(batch) for batch in tokens.split(self.lm_batch_size_sequences)]
        return zero_rows(torch.cat(parts), masked).to(self.device), masked.to(self.device)
