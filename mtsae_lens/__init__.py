"""Multi-Scale Temporal Sparse Autoencoders for SAELens: importing this package registers the architecture `"mtsae"`.

The names that a notebook needs are listed in `__init__.pyi`. Each is loaded at its first use, so that `mtsae --help` need not load torch.
"""

import sys
from importlib.metadata import version
from types import ModuleType

import lazy_loader
from wrapt import register_post_import_hook

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("mtsae-lens")

_LEFT_TO = {"sae_lens": "mtsae_lens.upstream", "mtsae_lens.upstream": "mtsae_lens.sae.registration"}
"""Modules after whose import the architecture is registered. If the second module of a pair is already loaded, it triggers the
registration.

The SAE classes need both modules. `mtsae_lens.upstream` imports SAELens, so it may be partly loaded when SAELens is complete, and the SAE
classes import `mtsae_lens.upstream`."""


def _register(loaded: ModuleType) -> None:
    if _LEFT_TO[loaded.__name__] not in sys.modules:
        from mtsae_lens.sae.registration import register  # noqa: PLC0415

        register()


for _name in _LEFT_TO:
    register_post_import_hook(_register, _name)  # calls immediately if the module is already loaded
