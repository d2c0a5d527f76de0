"""Write `features.parquet`: one row per feature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.exploration.columns import TokenTexts, make_lists, make_numbers, make_table, make_whole_lists, replace_nan
from mtsae_lens.exploration.decoder import find_extreme_tokens, find_neighbors
from mtsae_lens.exploration.peaks import find_strongest_peaks
from mtsae_lens.exploration.plan import IMPULSE_LAGS, N_NEIGHBOURS, N_TOKENS_LISTED
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.facts.records import FeatureFacts
from mtsae_lens.files import write_whole_file
from mtsae_lens.sae.lift import Lift, share_of_context
from mtsae_lens.sae.memory import impulse_norms
from mtsae_lens.sae.temporal_encoder import TemporalEncoder

_FEATURES_AT_ONCE = 4_096


@dataclass(frozen=True, eq=False)
class Effects:
    """Measurements that follow the pass over the text."""

    ablation: Float[Tensor, "d_sae rank 2"]  # NaN where there is no example or no token to predict
    attribution: Float[Tensor, " d_sae"]  # NaN if it was not measured


def write_features(path: Path, survey: Survey, texts: TokenTexts, effects: Effects) -> None:
    """Write the table.

    Args:
        path: the file to write.
        survey: the finished pass.
        texts: text of every token.
        effects: measurements after the pass.
    """
    counts = survey.counts
    columns = {
        "feature": pa.array(range(len(counts.total)), pa.int32()),
        **_firing_columns(survey),
        **_decoder_columns(survey, texts),
        **_cofiring_columns(survey),
        **_scale_columns(survey.lift, len(counts.total)),
        **_effect_columns(effects),
        **_memory_columns(survey.lm.sae),
        "top_token": pc.if_else(pa.array(counts.never_fired.numpy()), None, texts(find_top_tokens(survey))),
    }
    with write_whole_file(path) as partial:
        pq.write_table(make_table(columns, FeatureFacts), partial, compression="zstd")


def _firing_columns(survey: Survey) -> dict[str, pa.Array]:
    counts = survey.counts
    n_active, never_fired = counts.n_active_in_all, counts.never_fired
    missing = torch.where(never_fired, torch.nan, 0.0)  # added to values that are undefined for a feature that never fired
    persistence = (counts.persisted / counts.could_persist).T  # NaN at a lag for which no firing has a later position
    selectivity = counts.selectivity
    return {
        "n_active": make_numbers(n_active, pa.int64()),
        "density": make_numbers((n_active / counts.n_tokens.sum()).float(), pa.float32()),
        "mean_activation": make_numbers((counts.total / n_active + missing).float(), pa.float32()),
        "max_activation": make_numbers(counts.maximum + missing, pa.float32()),
        "histogram": make_lists(counts.histogram, torch.ones_like(counts.histogram, dtype=torch.bool), pa.int64()),
        "corpus_density": make_lists(counts.density.T, torch.ones_like(counts.density.T, dtype=torch.bool), pa.float32()),
        "selectivity": make_numbers(missing * torch.nan if selectivity is None else selectivity.float(), pa.float32()),
        "mean_run_length": make_numbers(n_active / counts.n_runs + missing, pa.float32()),
        "next_persistence": make_numbers(persistence[:, 0].float(), pa.float32()),
        "next_persistence_control": make_numbers((counts.fired_elsewhere / counts.could_elsewhere).float(), pa.float32()),
        "persistence": replace_nan(make_whole_lists(persistence.float(), pa.float32(), ~never_fired)),
    }


def _decoder_columns(survey: Survey, texts: TokenTexts) -> dict[str, pa.Array]:
    lm = survey.lm
    extremes, d_sae = find_extreme_tokens(lm, N_TOKENS_LISTED), lm.sae.cfg.d_sae
    nothing: dict[str, Tensor] = {"": torch.empty(d_sae, 0, dtype=torch.long), "_logits": torch.empty(d_sae, 0)}
    columns: dict[str, Any] = {}
    for name in ("promoted", "suppressed"):
        tokens, logits = extremes.get(name, nothing[""]), extremes.get(f"{name}_logits", nothing["_logits"])
        everything = torch.ones_like(tokens, dtype=torch.bool)
        columns[f"{name}_tokens"] = texts.make_lists(tokens, everything)
        columns[f"{name}_logits"] = make_lists(logits, everything, pa.float32())
    cosines, nearest = find_neighbors(lm.sae, N_NEIGHBOURS)
    everything = torch.ones_like(nearest, dtype=torch.bool)
    return columns | {
        "neighbours": make_lists(nearest, everything, pa.int32()),
        "neighbour_cosines": make_lists(cosines, everything, pa.float32()),
    }


def _cofiring_columns(survey: Survey) -> dict[str, pa.Array]:
    scores, features = survey.cofiring.strongest(survey.lm.sae.cfg.d_sae, N_NEIGHBOURS)
    known = scores > 0
    return {"cofiring": make_lists(features, known, pa.int32()), "cofiring_scores": make_lists(scores, known, pa.float32())}


def _scale_columns(lift: Lift | None, d_sae: int) -> dict[str, pa.Array]:
    if lift is None:
        empty = make_lists(torch.empty(d_sae, 0), torch.empty(d_sae, 0, dtype=torch.bool), pa.float32())
        none = pa.nulls(d_sae, pa.float32())
        return {"scale_shares": empty, "main_dilation": none, "context_share": none, "kernel": empty}
    shares, kernel = lift.scale_shares, lift.offset_shares
    lifted: Bool[Tensor, " d_sae"] = shares.any(dim=1)
    main = torch.tensor(lift.sae.dilations)[shares.argmax(dim=1)].masked_fill(~lifted, torch.nan)
    context = share_of_context(kernel, lift.sae.read_offsets).float().masked_fill(~lifted, torch.nan)
    return {
        "scale_shares": make_whole_lists(shares, pa.float32(), lifted),
        "main_dilation": make_numbers(main, pa.float32()),
        "context_share": make_numbers(context, pa.float32()),
        "kernel": make_whole_lists(kernel, pa.float32(), lifted),
    }


def _memory_columns(sae: SAE[Any]) -> dict[str, pa.Array]:
    has_memory = isinstance(sae, TemporalEncoder) and sae.has_memory
    norms = impulse_norms(sae, IMPULSE_LAGS).float() if has_memory else torch.full((sae.cfg.d_sae, 1), torch.nan)
    return {
        "carried_over": make_numbers(norms[:, 0], pa.float32()),
        "impulse_response": make_whole_lists(norms, pa.float32(), ~norms.isnan().any(dim=1)),
    }


def _effect_columns(effects: Effects) -> dict[str, pa.Array]:
    means = effects.ablation.nanmean(dim=1) if effects.ablation.shape[1] else torch.full((len(effects.ablation), 2), torch.nan)
    return {
        "ablation_next_nll": make_numbers(means[:, 0], pa.float32()),
        "ablation_rest_nll": make_numbers(means[:, 1], pa.float32()),
        "n_ablated": make_numbers((~effects.ablation.isnan()).any(dim=2).sum(dim=1), pa.int32()),
        "attribution": make_numbers(effects.attribution, pa.float32()),
    }


def find_top_tokens(survey: Survey) -> Int[Tensor, " d_sae"]:
    """Find the most common token at the peaks of each feature's strongest examples; among equals, that of the stronger example.

    Args:
        survey: the finished pass.

    Returns:
        Token ids; 0 for a feature that never fired.
    """
    found, strongest = [], find_strongest_peaks(survey, survey.plan.n_examples)
    peaks = torch.full((survey.lm.sae.cfg.d_sae, survey.plan.n_examples), -1)
    peaks[strongest.feature, strongest.rank] = strongest.tokens[strongest.context, strongest.position]
    for some in peaks.split(_FEATURES_AT_ONCE):
        times = (some.unsqueeze(2) == some.unsqueeze(1)).sum(dim=2).masked_fill(some < 0, -1)
        found.append(some.gather(1, times.argmax(dim=1, keepdim=True)).squeeze(1).clamp(min=0))
    return torch.cat(found)
