"""Test edits and ablations of SAEs of SAELens that normalize each input: what they decode is scaled back by the norm of that input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.exploration.ablation import measure_ablation
from mtsae_lens.exploration.peaks import Peaks
from mtsae_lens.splice.attribution import attribution
from mtsae_lens.splice.direction_edits import orthonormal_rows
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.generation import StreamingEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.measures.effects import measure_edits

D_IN, D_SAE = 32, 48
NORMS = ("layer_norm", "constant_norm_rescale")
ERROR = ErrorEdit(orthonormal_rows(torch.randn(4, D_IN, generator=torch.Generator().manual_seed(5))), torch.ones(D_IN))
EDITS: dict[str, Edit] = {
    "features": FeatureEdit((3, 7, 11), 2.0),
    "clamp": FeatureClamp((5, 2), (4.0, -3.0), "everywhere"),
    "error": ERROR,
    "combined": CombinedEdit((FeatureEdit((3, 7), 2.0), ERROR)),
}


@pytest.fixture(params=NORMS)
def lm(request: pytest.FixtureRequest, tiny_model: Any) -> HookedLM:
    metadata = SAEMetadata(hook_name="blocks.0.hook_resid_post")
    options: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "normalize_activations": request.param, "metadata": metadata}
    sae: Any = (
        StandardSAE(StandardSAEConfig(**options)) if request.param == "layer_norm" else TopKSAE(TopKSAEConfig(**options, k=8))
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return HookedLM(tiny_model, Splice(sae), ContextCutter(tiny_model.tokenizer, 32), batch_size=2)


def prompts(model: Any, n_positions: int) -> Tensor:
    tokens = torch.randint(10, model.cfg.d_vocab, (3, n_positions), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = model.tokenizer.bos_token_id
    return tokens


def decoded_by_hand(sae: Any, h: Tensor, feature_acts: Tensor) -> Tensor:
    out = feature_acts @ sae.W_dec + sae.b_dec
    if sae.cfg.normalize_activations == "layer_norm":
        mean = h.mean(dim=-1, keepdim=True)
        return out * (h - mean).std(dim=-1, keepdim=True) + mean
    return out * h.norm(dim=-1, keepdim=True) / D_IN**0.5


@torch.no_grad()
@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_is_scaled_as_the_input_is(kind: str, lm: HookedLM) -> None:
    tokens, edit = prompts(lm.model, 12), EDITS[kind]
    h, masked = lm.activations(tokens), lm.masked(tokens)
    acts = lm.feature_acts(tokens, h)
    expected = torch.zeros_like(h)
    sae_out = decoded_by_hand(lm.sae, h, acts)
    for part in getattr(edit, "parts", (edit,)):
        if isinstance(part, ErrorEdit):
            expected += part.change_along(h - sae_out)
        else:
            expected += decoded_by_hand(lm.sae, h, part.apply(acts)) - sae_out
    expected[masked] = 0
    for _ in range(2):  # nothing that a second edit needs is used up
        torch.testing.assert_close(lm.splice.edited(h, edit, masked), h + expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lm.splice.sae_state(h, acts).sae_out[~masked], sae_out[~masked], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_some_rows_keep_their_norms(lm: HookedLM) -> None:
    tokens = prompts(lm.model, 12)
    h = lm.activations(tokens)
    state = lm.splice.sae_state(h, lm.feature_acts(tokens, h))
    kept = torch.tensor([True, False, True])
    lm.sae.encode(torch.randn(5, 7, D_IN))  # the SAE has read something else since
    torch.testing.assert_close(state.rows(kept).sae_out, state.sae_out[kept])
    edit = FeatureEdit((3, 7, 11), 2.0)
    torch.testing.assert_close(edit.delta(state.rows(kept)), edit.delta(state)[kept])


@pytest.mark.parametrize("kind", EDITS)
def test_it_generates_the_same_with_and_without_the_cache(kind: str, lm: HookedLM) -> None:
    tokens, edit = prompts(lm.model, 9), EDITS[kind]
    h = lm.activations(tokens)
    streaming = StreamingEdit(lm.splice, edit)
    pieces = [streaming(h[:, :4]), *(streaming(h[:, t : t + 1]) for t in range(4, 9))]
    whole = lm.splice.edited(h, edit, lm.masked(tokens))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False}
    cached, reread = (lm.generate(tokens, edit, use_past_kv_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, reread)


@torch.no_grad()
def test_what_is_measured_is_the_model_with_the_edit(lm: HookedLM, text_file: Path) -> None:
    table = read_tokens(str(text_file), "test", lm.cutter, 4)
    edit, feature = FeatureEdit((3, 7, 11), 2.0), 3

    def nll(h: Tensor) -> Tensor:
        logits = lm.logits_from(table.tokens, h)[:, :-1].log_softmax(dim=-1)
        return -logits.gather(-1, table.tokens[:, 1:, None])[..., 0]

    h, acts = lm.activations(table.tokens), lm.feature_acts(table.tokens)
    with_edit = nll(h + decoded_by_hand(lm.sae, h, edit.apply(acts)) - decoded_by_hand(lm.sae, h, acts)) - nll(h)
    (measured,) = measure_edits(lm, table, [edit])
    assert measured.nll_delta == pytest.approx(float(with_edit.mean()), abs=1e-4)
    assert abs(measured.nll_delta) > 1e-3

    def nll_with(scaled_by: float) -> Tensor:
        scaled = acts.clone()
        scaled[..., feature] *= scaled_by
        return nll(h + decoded_by_hand(lm.sae, h, scaled) - decoded_by_hand(lm.sae, h, acts))

    derivative = float((nll_with(1.02) - nll_with(0.98)).mean()) / 0.04
    assert float(attribution(lm, table)[feature]) == pytest.approx(-derivative, rel=0.02, abs=1e-4)
    assert abs(derivative) > 1e-3

    context, position = divmod(int(acts[:, :30, feature].argmax()), 30)
    one = [torch.tensor([number]) for number in (feature, 0, position, context)]
    peaks = Peaks(*one, tokens=table.tokens)
    ablated = acts.clone()
    ablated[context, position, feature] = 0
    change = nll(h + decoded_by_hand(lm.sae, h, ablated) - decoded_by_hand(lm.sae, h, acts)) - nll(h)
    assert float(measure_ablation(lm, peaks)[0, 0]) == pytest.approx(float(change[context, position]), abs=1e-4)
