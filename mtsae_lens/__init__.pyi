"""The names of the package. `__init__.py` loads each at its first use."""

from .data.activation_cache import ActivationCache as ActivationCache
from .data.contexts import ContextCutter as ContextCutter
from .data.contexts import TokenTable as TokenTable
from .data.contexts import read_tokens as read_tokens
from .data.language_models import load_language_model as load_language_model
from .evaluation.fidelity import evaluate_fidelity as evaluate_fidelity
from .exploration.live import explain as explain
from .facts.exploration import Exploration as Exploration
from .opening import load_sae as load_sae
from .opening import open_sae as open_sae
from .sae.activation_interface import register_activation as register_activation
from .sae.config import MTSAEConfig as MTSAEConfig
from .sae.config import MTTrainingSAEConfig as MTTrainingSAEConfig
from .sae.contributions import offset_contributions as offset_contributions
from .sae.contributions import scale_contributions as scale_contributions
from .sae.mtsae import MTSAE as MTSAE
from .sae.separation import register_separation as register_separation
from .sae.training import MTTrainingSAE as MTTrainingSAE
from .splice.edit_files import load_edit as load_edit
from .splice.edit_files import save_edit as save_edit
from .splice.edits import Edit as Edit
from .splice.edits import FeatureClamp as FeatureClamp
from .splice.edits import FeatureEdit as FeatureEdit
from .splice.edits import register_edit as register_edit
from .splice.evidence_gates import DecayedMeanGate as DecayedMeanGate
from .splice.evidence_gates import TwoStateGate as TwoStateGate
from .splice.gates import AlwaysOpen as AlwaysOpen
from .splice.gates import FeatureActiveGate as FeatureActiveGate
from .splice.gates import Gate as Gate
from .splice.gates import RunningEvidenceGate as RunningEvidenceGate
from .splice.gates import SequenceRateGate as SequenceRateGate
from .splice.gates import register_gate as register_gate
from .splice.hooked_lm import HookedLM as HookedLM
from .splice.splicing import Splice as Splice
from .training.recipe import train_sae as train_sae
from .training.runner import SequenceSAETrainingRunner as SequenceSAETrainingRunner
from .training.settings import TrainSettings as TrainSettings
from .training.several import train_saes as train_saes
from .unlearning.finetuning.sweeps import register_loss as register_loss
from .unlearning.gating import fit_gate as fit_gate
from .unlearning.measures.effects import measure_edits as measure_edits
from .unlearning.selection.scores import register_score as register_score
from .unlearning.task import Corpus as Corpus
from .unlearning.task import Task as Task

__version__: str
