"""Take the language model out of a multimodal model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM


def text_model_of(model: Any) -> Any:
    """Return the causal language model inside a multimodal model, with shared weights; return any other model unchanged.

    The vision or audio part stays with the model that was passed in. A language model that transformers does not know as a separate class,
    such as that of Qwen2-VL, is not taken out.

    Args:
        model: a loaded transformers model.
    """
    config = model.config.get_text_config()
    if config is model.config or type(config) not in AutoModelForCausalLM._model_mapping:
        return model
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if type(decoder) is not type(text.base_model) or head is None:
        return model
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(head)
    if any(tensor.is_meta for tensor in (*text.parameters(), *text.buffers())):
        return model
    text.config.architectures = [type(text).__name__]
    text.generation_config = model.generation_config
    return text.eval()
