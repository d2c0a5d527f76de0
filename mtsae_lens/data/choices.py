"""Name the dtypes of a language model and the splits of a text, for settings and for code.

They are in a separate module so that the settings of a command can be read without importing torch.
"""

from __future__ import annotations

from typing import Literal, get_args

Dtype = Literal["float32", "bfloat16", "float16"]
FLOAT32: Dtype = "float32"
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

Split = Literal["train", "select", "tune", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
