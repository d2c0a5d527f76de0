"""Multi-Scale Temporal Sparse Autoencoders for SAELens: importing this package registers the architecture `"mtsae"`."""

from mtsae_lens.sae.config import MTSAEConfig, MTTrainingSAEConfig
from mtsae_lens.sae.mtsae import MTSAE
from mtsae_lens.sae.registration import register
from mtsae_lens.sae.training import MTTrainingSAE

register()

__all__ = ["MTSAE", "MTSAEConfig", "MTTrainingSAE", "MTTrainingSAEConfig"]
