"""Multi-Scale Temporal Sparse Autoencoders for SAELens: importing this package registers the architecture `"mtsae"`.

What a notebook needs stands here by its own name; the modules hold the rest.
"""

from importlib.metadata import version

from mtsae_lens.data.contexts import ContextCutter, TokenTable, read_tokens
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.exploration.live import explain
from mtsae_lens.facts.exploration import Exploration
from mtsae_lens.opening import load_sae, open_sae
from mtsae_lens.sae.config import MTSAEConfig, MTTrainingSAEConfig
from mtsae_lens.sae.contributions import offset_contributions, scale_contributions
from mtsae_lens.sae.mtsae import MTSAE
from mtsae_lens.sae.registration import register
from mtsae_lens.sae.separation import register_separation
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.splice.edit_files import load_edit, save_edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.training.runner import SequenceSAETrainingRunner
from mtsae_lens.unlearning.gating import fit_gate
from mtsae_lens.unlearning.measures.effects import measure_edits
from mtsae_lens.unlearning.selection.scores import register_score
from mtsae_lens.unlearning.task import Corpus, Task

register()

__version__ = version("mtsae-lens")

__all__ = [
    "MTSAE",
    "AlwaysOpen",
    "ContextCutter",
    "Corpus",
    "Exploration",
    "FeatureActiveGate",
    "FeatureClamp",
    "FeatureEdit",
    "HookedLM",
    "MTSAEConfig",
    "MTTrainingSAE",
    "MTTrainingSAEConfig",
    "RunningEvidenceGate",
    "SequenceRateGate",
    "SequenceSAETrainingRunner",
    "Splice",
    "Task",
    "TokenTable",
    "TrainSettings",
    "evaluate_fidelity",
    "explain",
    "fit_gate",
    "load_edit",
    "load_language_model",
    "load_sae",
    "measure_edits",
    "offset_contributions",
    "open_sae",
    "read_tokens",
    "register_score",
    "register_separation",
    "save_edit",
    "scale_contributions",
    "train_sae",
]
