"""`features.parquet`: one row per feature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.exploration.columns import TokenTexts, all_or_none, lists, make_table, nullable, numbers
from mtsae_lens.exploration.decoder import extreme_tokens, neighbours
from mtsae_lens.exploration.peaks import strongest_peaks
from mtsae_lens.exploration.plan import N_NEIGHBOURS, N_TOKENS_LISTED
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.facts.records import FeatureFacts
from mtsae_lens.files import whole_file
from mtsae_lens.sae.lift import Lift, share_of_context

_FEATURES_AT_ONCE = 4_096


@dataclass(frozen=True)
class Effects:
    """What was measured after the pass."""

    ablation: Float[Tensor, "d_sae rank 2"]  # NaN where there is no example, or nothing to predict
    attribution: Float[Tensor, " d_sae"]  # NaN where it was left out


def write_features(path: Path, survey: Survey, texts: TokenTexts, effects: Effects) -> None:
    """Write the table."""
    counts = survey.counts
    columns = {
        "feature": pa.array(range(len(counts.total)), pa.int32()),
        **_firing_columns(survey),
        **_decoder_columns(survey, texts),
        **_cofiring_columns(survey),
        **_scale_columns(survey.lift, len(counts.total)),
        **_effect_columns(effects),
        "top_token": pc.if_else(pa.array(counts.dead.numpy()), None, texts(top_tokens(survey))),
    }
    with whole_file(path) as partial:
        pq.write_table(make_table(columns, FeatureFacts), partial, compression="zstd")


def _firing_columns(survey: Survey) -> dict[str, pa.Array]:
    counts = survey.counts
    n_active, dead = counts.n_active_in_all, counts.dead
    missing = torch.where(dead, torch.nan, 0.0)  # added to what a feature that never fires does not have
    persistence = (counts.persisted / counts.could_persist).T  # NaN at a lag for which no firing has a later position
    selectivity = counts.selectivity
    return {
        "n_active": numbers(n_active, pa.int64()),
        "density": numbers((n_active / counts.n_tokens.sum()).float(), pa.float32()),
        "mean_activation": numbers((counts.total / n_active + missing).float(), pa.float32()),
        "max_activation": numbers(counts.maximum + missing, pa.float32()),
        "histogram": lists(counts.histogram, torch.ones_like(counts.histogram, dtype=torch.bool), pa.int64()),
        "corpus_density": lists(counts.density.T, torch.ones_like(counts.density.T, dtype=torch.bool), pa.float32()),
        "selectivity": numbers(missing * torch.nan if selectivity is None else selectivity.float(), pa.float32()),
        "mean_run_length": numbers(n_active / counts.n_runs + missing, pa.float32()),
        "persistence": nullable(all_or_none(persistence.float(), pa.float32(), ~dead)),
    }


def _decoder_columns(survey: Survey, texts: TokenTexts) -> dict[str, pa.Array]:
    lm = survey.lm
    extremes, d_sae = extreme_tokens(lm, N_TOKENS_LISTED), lm.sae.cfg.d_sae
    nothing: dict[str, Tensor] = {"": torch.empty(d_sae, 0, dtype=torch.long), "_logits": torch.empty(d_sae, 0)}
    columns: dict[str, Any] = {}
    for name in ("promoted", "suppressed"):
        tokens, logits = extremes.get(name, nothing[""]), extremes.get(f"{name}_logits", nothing["_logits"])
        everything = torch.ones_like(tokens, dtype=torch.bool)
        columns[f"{name}_tokens"] = texts.lists(tokens, everything)
        columns[f"{name}_logits"] = lists(logits, everything, pa.float32())
    cosines, nearest = neighbours(lm.sae, N_NEIGHBOURS)
    everything = torch.ones_like(nearest, dtype=torch.bool)
    return columns | {
        "neighbours": lists(nearest, everything, pa.int32()),
        "neighbour_cosines": lists(cosines, everything, pa.float32()),
    }


def _cofiring_columns(survey: Survey) -> dict[str, pa.Array]:
    scores, features = survey.cofiring.strongest(survey.lm.sae.cfg.d_sae, N_NEIGHBOURS)
    known = scores > 0
    return {"cofiring": lists(features, known, pa.int32()), "cofiring_scores": lists(scores, known, pa.float32())}


def _scale_columns(lift: Lift | None, d_sae: int) -> dict[str, pa.Array]:
    if lift is None:
        empty = lists(torch.empty(d_sae, 0), torch.empty(d_sae, 0, dtype=torch.bool), pa.float32())
        none = pa.nulls(d_sae, pa.float32())
        return {"scale_shares": empty, "main_dilation": none, "context_share": none, "kernel": empty}
    shares, kernel = lift.scale_shares, lift.offset_shares
    lifted: Bool[Tensor, " d_sae"] = shares.any(dim=1)
    main = torch.tensor(lift.sae.dilations)[shares.argmax(dim=1)].masked_fill(~lifted, torch.nan)
    context = share_of_context(kernel, lift.sae.read_offsets).float().masked_fill(~lifted, torch.nan)
    return {
        "scale_shares": all_or_none(shares, pa.float32(), lifted),
        "main_dilation": numbers(main, pa.float32()),
        "context_share": numbers(context, pa.float32()),
        "kernel": all_or_none(kernel, pa.float32(), lifted),
    }


def _effect_columns(effects: Effects) -> dict[str, pa.Array]:
    means = effects.ablation.nanmean(dim=1) if effects.ablation.shape[1] else torch.full((len(effects.ablation), 2), torch.nan)
    return {
        "ablation_next_nll": numbers(means[:, 0], pa.float32()),
        "ablation_rest_nll": numbers(means[:, 1], pa.float32()),
        "n_ablated": numbers((~effects.ablation.isnan()).any(dim=2).sum(dim=1), pa.int32()),
        "attribution": numbers(effects.attribution, pa.float32()),
    }


def top_tokens(survey: Survey) -> Int[Tensor, " d_sae"]:
    """The commonest token at the peaks of each feature's strongest examples, the stronger one's of two that are as common; 0 for a dead one."""
    found, strongest = [], strongest_peaks(survey, survey.plan.n_examples)
    peaks = torch.full((survey.lm.sae.cfg.d_sae, survey.plan.n_examples), -1)
    peaks[strongest.feature, strongest.rank] = strongest.tokens[strongest.context, strongest.position]
    for some in peaks.split(_FEATURES_AT_ONCE):
        times = (some.unsqueeze(2) == some.unsqueeze(1)).sum(dim=2).masked_fill(some < 0, -1)
        found.append(some.gather(1, times.argmax(dim=1, keepdim=True)).squeeze(1).clamp(min=0))
    return torch.cat(found)
