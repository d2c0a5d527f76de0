"""One unlearning experiment from choice to verdict: features and gate from SELECT, size and strength from TUNE, numbers from TEST.

TEST text is read once, by `measure_on_test`, after everything is fixed. An edit at a hook is suppression, not deletion: without the
hook the model is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from sae_lens import HookedSAETransformer

from mtsae_lens.data.contexts import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen, RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.bootstrap import delta_interval
from mtsae_lens.unlearning.measures import EditEffect, as_logits, max_identity_error, measure_edits, measure_model
from mtsae_lens.unlearning.selection import calibrate_gate, matched_random, rank_by_frequency
from mtsae_lens.unlearning.statistics import firing_statistics

Role = Literal["forget", "near", "far"]
MAX_IDENTITY_ERROR = 1e-4  # in logits; what float32 rounding leaves of h + decode(e) - decode(e)


@dataclass(frozen=True)
class Corpus:
    """A text and its part: to forget, near to it (spared only by the gate), or far from it (spared by selection too)."""

    source: str
    role: Role


@dataclass(frozen=True)
class UnlearningSettings:
    """What is swept on TUNE, and the budgets that decide there."""

    n_features: tuple[int, ...] = (5, 20, 80, 320)
    multipliers: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    far_budget: float = 0.05
    """Nats per token that no far-retain corpus may lose on TUNE; half of what is allowed on TEST."""
    near_budget: float = 0.1
    """The same for near-retain corpora."""
    min_ratio: float = 5.0
    """A feature fires at least so many times as often on the forget text as on each far-retain text."""
    n_random_draws: int = 5
    contexts_per_split: int = 64
    """Contexts read of each corpus and split, at most."""
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    """The outcome of SELECT and TUNE."""

    features: tuple[int, ...]
    multiplier: float
    gate: RunningEvidenceGate
    sweep: tuple[dict[str, Any], ...]

    @property
    def edit(self) -> FeatureEdit:
        """The gated clamp."""
        return FeatureEdit(self.features, self.multiplier, self.gate)


@dataclass(frozen=True)
class Experiment:
    """An SAE in its model, the corpora, and how to choose."""

    lm: HookedLM
    corpora: tuple[Corpus, ...]
    settings: UnlearningSettings

    def __post_init__(self) -> None:
        roles = [corpus.role for corpus in self.corpora]
        if roles.count("forget") != 1 or "far" not in roles:
            raise DataError(
                "an unlearning experiment needs exactly one corpus to forget and at least one far from it to retain"
            )
        sources = [str(Path(c.source).resolve()) if Path(c.source).exists() else c.source for c in self.corpora]
        repeated = sorted({source for source in sources if sources.count(source) > 1})
        if repeated:
            raise DataError(f"{repeated[0]} is given in two roles; a text is either forgotten, near or far")

    def tables(self, split: Any, role: Role | None = None) -> list[TokenTable]:
        """The contexts of a split, of every corpus or of those of one role."""
        return [
            read_tokens(c.source, split, self.lm.cutter, self.settings.contexts_per_split, seed=self.settings.seed)
            for c in self.corpora
            if role is None or c.role == role
        ]


def choose(experiment: Experiment, reference: HookedSAETransformer | None = None) -> Chosen:
    """Select features and calibrate the gate on SELECT; set their number and the multiplier on TUNE.

    Among the settings of the sweep that stay within both budgets: with a reference model that never saw the forget text, the one whose
    forget loss is nearest to the reference's (a higher one is damage, not forgetting); without one, the highest that is no worse than
    guessing every token alike.

    Raises:
        DataError: no feature prefers the forget text, or no setting stays within the budgets.
    """
    lm, settings = experiment.lm, experiment.settings
    (forget_table,) = experiment.tables("select", "forget")
    near_tables, far_tables = experiment.tables("select", "near"), experiment.tables("select", "far")
    forget = firing_statistics(lm, forget_table)
    near = [firing_statistics(lm, table) for table in near_tables]
    far = [firing_statistics(lm, table) for table in far_tables]
    ranked = rank_by_frequency(forget, far, min_ratio=settings.min_ratio)
    if not ranked:
        raise DataError(
            f"no feature fires {settings.min_ratio} times as often on the forget text as on every far-retain text; train a wider SAE, or "
            "lower --min-ratio"
        )
    gate = calibrate_gate(lm, forget, near + far, near_tables + far_tables)
    sizes = sorted({min(n, len(ranked)) for n in settings.n_features})
    edits = [FeatureEdit(tuple(ranked[:n]), m, gate) for n in sizes for m in settings.multipliers]
    sweep = _sweep(experiment, edits)
    within = [row for row in sweep if row["far"] <= settings.far_budget and row["near"] <= settings.near_budget]
    if not within:
        best = min(sweep, key=lambda row: max(row["far"] - settings.far_budget, row["near"] - settings.near_budget))
        raise DataError(
            f"no setting stays within the budgets on TUNE (nearest: far {best['far']:.3f}, near {best['near']:.3f} nats); raise "
            "--far-budget or --near-budget, or give text that is farther away"
        )
    goal = float("inf")
    if reference is not None:
        (tune_table,) = experiment.tables("tune", "forget")
        goal = _reference_gap(lm, reference, tune_table)
    else:
        within = _no_worse_than_guessing(within, math.log(lm.model.cfg.d_vocab))
    best = min(within, key=lambda row: abs(row["forget"] - goal) if goal < float("inf") else -row["forget"])
    return Chosen(tuple(ranked[: best["n_features"]]), best["multiplier"], gate, tuple(sweep))


def _no_worse_than_guessing(sweep: Sequence[dict[str, Any]], uniform: float) -> list[dict[str, Any]]:
    """The settings whose forget loss stays within that of guessing every token alike, or else the one nearest to it."""
    return [row for row in sweep if row["forget_nll"] <= uniform] or [min(sweep, key=lambda row: row["forget_nll"])]


def _sweep(experiment: Experiment, edits: Sequence[FeatureEdit]) -> list[dict[str, Any]]:
    worst: dict[str, list[float]] = {}
    forget_nll: list[float] = []
    for corpus, table in zip(experiment.corpora, experiment.tables("tune"), strict=True):
        effects = measure_edits(experiment.lm, table, edits)
        deltas = [effect.nll_delta for effect in effects]
        if corpus.role == "forget":
            forget_nll = [effect.mean(effect.nll_edited) for effect in effects]
        before = worst.setdefault(corpus.role, [-float("inf")] * len(edits))
        worst[corpus.role] = [max(pair) for pair in zip(before, deltas, strict=True)]
    return [
        {"n_features": len(edit.features), "multiplier": edit.multiplier}
        | {role: worst[role][index] if role in worst else 0.0 for role in ("forget", "near", "far")}
        | {"forget_nll": forget_nll[index]}
        for index, edit in enumerate(edits)
    ]


def _reference_gap(lm: HookedLM, reference: HookedSAETransformer, table: TokenTable) -> float:
    """How much more the reference loses than the clean model on a corpus, in nats per token."""
    return measure_model(as_logits(reference), lm.model, lm.cutter, table, lm.batch_size).nll_delta


def measure_on_test(experiment: Experiment, chosen: Chosen, reference: HookedSAETransformer | None = None) -> dict[str, Any]:
    """The whole ladder on TEST text, once: no edit, zero, clamp, gated clamp (the edit), matched random features, the reference.

    Raises:
        RuntimeError: the splice with nothing edited is not the identity, so no number from it could be trusted.
    """
    lm, settings = experiment.lm, experiment.settings
    generator = torch.Generator().manual_seed(settings.seed)
    (select_table,) = experiment.tables("select", "forget")
    statistics = firing_statistics(lm, select_table)
    ladder = {
        "zero": FeatureEdit(chosen.features, 0.0, AlwaysOpen()),
        "clamp": FeatureEdit(chosen.features, chosen.multiplier, AlwaysOpen()),
        "gated_clamp": chosen.edit,
    }
    draws = [
        replace(chosen.edit, features=matched_random(statistics, chosen.features, generator))
        for _ in range(settings.n_random_draws)
    ]
    result: dict[str, Any] = {"corpora": {}, "random_control": {}, "ladder": {name: {} for name in ladder}, "documents": {}}
    identity_error = 0.0
    for corpus, table in zip(experiment.corpora, experiment.tables("test"), strict=True):
        identity_error = max(identity_error, max_identity_error(lm, table))
        if identity_error > MAX_IDENTITY_ERROR:
            raise RuntimeError(f"the splice without an edit changes the logits by {identity_error:.3g} on {corpus.source}")
        effects = measure_edits(lm, table, [*ladder.values(), *draws])
        by_name = dict(zip(ladder, effects, strict=False))
        main, randoms = by_name["gated_clamp"], effects[len(ladder) :]
        row = _row(main, settings.seed) | {"role": corpus.role}
        if reference is not None:
            of_reference = measure_model(as_logits(reference), lm.model, lm.cutter, table, lm.batch_size)
            row["nll_reference"] = of_reference.mean(of_reference.nll_edited)
        result["corpora"][corpus.source] = row
        result["random_control"][corpus.source] = _random_row(randoms)
        for name, effect in by_name.items():
            result["ladder"][name][corpus.source] = _row(effect, settings.seed)
        result["documents"][corpus.source] = _document_rows(main)
    result["identity_error"] = identity_error
    return result


def _row(effect: EditEffect, seed: int) -> dict[str, Any]:
    delta, n_tokens = (effect.by_document(sums) for sums in (effect.nll_edited - effect.nll_clean, effect.n_tokens))
    low, high = delta_interval(delta, n_tokens, seed)
    return {
        "nll_clean": effect.mean(effect.nll_clean),
        "nll_edited": effect.mean(effect.nll_edited),
        "nll_delta": effect.nll_delta,
        "nll_delta_low": low,
        "nll_delta_high": high,
        "kl": effect.mean(effect.kl),
        "gate_open": effect.gate_open,
        "n_tokens": int(effect.n_tokens.sum()),
        "n_documents": len(n_tokens),
    }


def _random_row(effects: Sequence[EditEffect]) -> dict[str, Any]:
    """Means over the draws, and the extremes of the change."""
    deltas = [effect.nll_delta for effect in effects]
    first = effects[0]
    return {
        "nll_clean": first.mean(first.nll_clean),
        "nll_edited": sum(effect.mean(effect.nll_edited) for effect in effects) / len(effects),
        "nll_delta": sum(deltas) / len(deltas),
        "nll_delta_min": min(deltas),
        "nll_delta_max": max(deltas),
        "kl": sum(effect.mean(effect.kl) for effect in effects) / len(effects),
        "n_draws": len(effects),
        "n_tokens": int(first.n_tokens.sum()),
    }


def _document_rows(effect: EditEffect) -> list[dict[str, Any]]:
    columns = [effect.by_document(c).tolist() for c in (effect.n_tokens, effect.nll_clean, effect.nll_edited, effect.kl)]
    return [
        {"document": name, "n_tokens": int(n), "nll_clean": c / n, "nll_edited": e / n, "kl": k / n}
        for name, n, c, e, k in zip(dict.fromkeys(effect.documents), *columns, strict=True)
        if n
    ]
