"""Open the models and tables of a task in the process that needs them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from sae_lens import SAE

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.questions import is_question_source, read_questions
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.data.vocabularies import check_reference
from mtsae_lens.experiments.benchmark.arms import BenchmarkTask
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.measures.effects import as_logits, measure_model
from mtsae_lens.unlearning.task import ALL_QUESTIONS, Task

TRAINING_CONTEXTS = 512  # per corpus, for methods that change weights
BATCH_SIZE = 32


@dataclass(frozen=True)
class BenchmarkSetup:
    """A task with a language model, a reference, and an SAE at its hook, which methods that change weights do not use."""

    task_of: BenchmarkTask
    contexts_per_split: int
    model_name: str
    reference_name: str | None
    sae_folder: Path
    device: str = "cpu"
    first_trained_layer: int = 0
    max_select_questions: int = ALL_QUESTIONS

    def opened(self) -> BenchmarkSetup:
        """Return a copy to load models in, so that they are freed with it; the setup of a cell lives as long as the list of cells."""
        return replace(self)

    @cached_property
    def task(self) -> Task:
        """Return the corpora and splits."""
        return self.task_of.task(self.contexts_per_split, self.max_select_questions)

    @cached_property
    def lm(self) -> HookedLM:
        """Return the language model with the SAE."""
        model = load_language_model(self.model_name, device=self.device)
        sae = SAE.load_from_disk(self.sae_folder, device=self.device)
        assert model.tokenizer is not None
        metadata = sae.cfg.metadata
        cutter = ContextCutter(model.tokenizer, metadata.context_size or 128, prepend_bos=metadata.prepend_bos is not False)
        return HookedLM(model, Splice(sae), cutter, BATCH_SIZE)

    @cached_property
    def reference(self) -> AnyHookedModel | None:
        """Return the model that was trained without the forget text; None if there is no reference."""
        if self.reference_name is None:
            return None
        reference = load_language_model(self.reference_name, device=self.device)
        check_reference(reference, self.lm.model, self.lm.cutter)
        return reference

    @cached_property
    def goal(self) -> float | None:
        """Return the increase of the reference's loss over the clean model's on the forget text of TUNE, in nats per token; None
        without a reference.
        """
        if self.reference is None:
            return None
        table = self.task.table(self.task.forget, "tune", self.lm.cutter)
        return measure_model(
            as_logits(self.reference, self.lm.cutter), self.lm.model, self.lm.cutter, table, BATCH_SIZE
        ).nll_delta

    def training_table(self, source: str) -> TokenTable:
        """Read the text that methods which change weights train on; for questions, it is the SELECT split.

        Args:
            source: a text or questions.
        """
        if is_question_source(source):
            return read_questions(source, "select", self.lm.cutter, 10 * TRAINING_CONTEXTS)
        return read_tokens(source, "train", self.lm.cutter, TRAINING_CONTEXTS)
