"""Load a Hugging Face model with an edit of sparse features attached. Only torch, transformers and safetensors are needed.

    model = load_edited("this folder")      # an ordinary transformers model; generate() works, with the KV cache or without
    remove = attach(model, "this folder")   # the same for a model that is already loaded; remove() removes the edit

At one decoder layer the residual stream h becomes h + delta wherever the gate is open, with

    x     = h - b_in, zero at walls (special tokens, padding, the first token)
    z_k   = norm(sum_o filters[k, o] * x[t + o])         one vector per time scale k; nothing is read at or across a wall
    e     = act([z_1; ...; z_K] @ W_enc + b_enc)         features, none at walls
    delta = (e' - e) @ W_dec                             e' the edited features; or a projection of h, or of h - decode(e); or a sum

Both refuse a model other than the one that the edit was made on, unless `allow_other_model=True` is given.

The edit is suppression, not deletion: without the hook the model is what it was.

An exported folder holds a copy of this package, so its modules import each other by relative names.
"""

from .edits import EDITS
from .encoder import ACTIVATIONS
from .gates import GATES
from .layer import EditedLayer
from .loading import CHECKSUMS_FILE, EDIT_FILE, HOOK_FOLDER, attach, decoder_layers, load_edited
from .state import EditState

__all__ = [
    "ACTIVATIONS",
    "CHECKSUMS_FILE",
    "EDITS",
    "EDIT_FILE",
    "GATES",
    "HOOK_FOLDER",
    "EditState",
    "EditedLayer",
    "attach",
    "decoder_layers",
    "load_edited",
]
