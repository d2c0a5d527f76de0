"""Continue a prompt with and without an edit."""

from __future__ import annotations

import torch

from mtsae_lens.commands.generate_settings import GenerateSettings
from mtsae_lens.data.prompts import check_text, encode_prompt
from mtsae_lens.errors import ConfigError
from mtsae_lens.interruption import STARTS_ANEW, interrupt_on_signal
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.edit_files import load_edit
from mtsae_lens.splice.generation import check_length


@interrupt_on_signal(STARTS_ANEW)
def run_generate(settings: GenerateSettings) -> tuple[str, str]:
    """Continue the prompt without and with the edit. No file is written.

    Args:
        settings: the prompt, the SAE and the edit.

    Returns:
        The text without the edit, and the text with it.

    Raises:
        DataError: the prompt is not valid Unicode.
        ConfigError: the prompt is empty, or prompt and continuation are longer than the model's context.
    """
    check_text(settings.prompt, "--prompt")
    lm, model = open_sae(settings.sae, model=settings.model, device=settings.device, batch_size=1, dtype=settings.dtype)
    edit = load_edit(settings.edit, lm.splice, model=model)
    tokens = torch.tensor([encode_prompt(lm.cutter, settings.prompt, "--prompt")], dtype=torch.long)
    if tokens.shape[1] == 0:
        raise ConfigError(
            "--prompt: expected text, since this model has no BOS token to begin with, got none; give a few words"
        )
    check_length(model, tokens.shape[1], settings.max_new_tokens)
    texts = []
    for chosen in (None, edit):
        torch.manual_seed(settings.seed)
        continued = lm.generate(
            tokens,
            chosen,
            max_new_tokens=settings.max_new_tokens,
            do_sample=settings.temperature > 0,
            temperature=settings.temperature or 1.0,
        )
        texts.append(str(lm.cutter.tokenizer.decode(continued[0].tolist(), skip_special_tokens=True)))
    return texts[0], texts[1]
