"""Test the fit of the gate of known groups, on groups that are drawn from the model that it assumes, and on questions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtsae_lens.data.questions import read_questions
from mtsae_lens.errors import DataError
from mtsae_lens.splice.group_gate import KnownGroupsGate
from mtsae_lens.unlearning.candidates import fit_gates
from mtsae_lens.unlearning.gate_kinds import GateChoice
from mtsae_lens.unlearning.gating import logistic_regression
from mtsae_lens.unlearning.group_fit import fit_known_groups
from mtsae_lens.unlearning.measures.gate_quality import auroc
from mtsae_lens.unlearning.task import Corpus, Task

N_EACH, WIDTH = 12, 24


def planted(n_groups: int, seed: int, name: str, *, of: Tensor | None = None) -> tuple[Tensor, list[str], Tensor]:
    """Rows of groups whose means vary by 4 in half of the coordinates, with noise of 1, in coordinates of very different size."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(n_groups, WIDTH, generator=generator) if of is None else of
    means[:, WIDTH // 2 :] = 0
    rows = means.repeat_interleave(N_EACH, dim=0) + torch.randn(n_groups * N_EACH, WIDTH, generator=generator)
    names = [f"{name}{group}" for group in range(n_groups) for _ in range(N_EACH)]
    return rows * torch.logspace(-1, 2, WIDTH), names, means


def test_known_groups_are_told_from_groups_never_seen() -> None:
    """A classifier of the same rows knows the groups to keep by heart, and opens on a new one as readily as on a known one."""
    ours, our_names, means = planted(10, 0, "ours")
    theirs, their_names, _ = planted(30, 1, "theirs")
    new, _, _ = planted(200, 2, "new")
    again, _, _ = planted(10, 3, "ours", of=means)
    gate = fit_known_groups(ours, our_names, theirs, their_names)
    known, unknown = (gate.score(rows.unsqueeze(1))[:, 0] for rows in (again, new))
    assert auroc(known, unknown) > 0.99
    assert (known > 0).float().mean() > 0.95
    assert (unknown > 0).float().mean() < 0.1
    scale = torch.cat([ours, theirs]).std(dim=0)
    labels = torch.cat([torch.ones(len(ours)), torch.zeros(len(theirs))])
    weights, _ = logistic_regression(torch.cat([ours, theirs]) / scale, labels, torch.full_like(labels, 1 / len(labels)), 1e-3)
    assert auroc((again / scale) @ weights, (new / scale) @ weights) < 0.9


def test_the_estimates_are_those_of_the_groups() -> None:
    ours, our_names, _ = planted(40, 0, "ours")
    theirs, their_names, _ = planted(200, 1, "theirs")
    gate = fit_known_groups(ours, our_names, theirs, their_names)
    strong = gate.prior > 2.0  # 1 + psi; the other half of the coordinates differ by chance alone
    assert int(strong.sum()) == WIDTH // 2
    assert len(gate.prior) < WIDTH  # directions in which the groups differ by no more than chance are left out
    assert gate.prior[strong].mean().item() == pytest.approx(1 + 4, rel=0.15)
    psi = gate.prior[strong] - 1
    torch.testing.assert_close(gate.variances[0, strong], 1 + psi / (1 + N_EACH * psi))


def test_what_cannot_be_fitted_is_refused() -> None:
    ours, our_names, _ = planted(4, 0, "ours")
    theirs, their_names, _ = planted(5, 1, "theirs")
    with pytest.raises(DataError, match="expected at least 3 groups"):
        fit_known_groups(ours[:N_EACH], our_names[:N_EACH], theirs[:N_EACH], their_names[:N_EACH])
    with pytest.raises(DataError, match="expected each group either to forget or to keep, got ours0 as both"):
        fit_known_groups(ours, our_names, ours, our_names)
    with pytest.raises(DataError, match="expected finite activations where answers begin"):
        fit_known_groups(ours / 0, our_names, theirs, their_names)
    with pytest.raises(DataError, match="expected several questions about each group, got 9 about 9"):
        fit_known_groups(ours[::N_EACH], our_names[::N_EACH], theirs[::N_EACH], their_names[::N_EACH])
    with pytest.raises(DataError, match=r"expected groups .* whose activations differ"):
        fit_known_groups(torch.zeros_like(ours), our_names, torch.zeros_like(theirs), their_names)


def people_task(forget: str = "facts:forget/8:known", near: str = "facts:retain/12:known") -> Task:
    return Task((Corpus(forget, "forget"), Corpus(near, "near"), Corpus("sotu", "far")), 8)


def test_the_kind_reads_where_answers_begin(lm: Any) -> None:
    gate = fit_gates(lm, people_task(), (0.05,), GateChoice("known_groups_activations"))[0.05]
    assert isinstance(gate, KnownGroupsGate)
    assert gate.means.shape[0] == 8
    table = read_questions("facts:forget/8:known", "select", lm.cutter, 10_000)
    assert table.answers is not None
    begins = table.answers.float().argmax(dim=1) - 1
    score = gate.score(lm.sae_input(table.tokens))
    assert auroc(score[torch.arange(len(score)), begins], score[:, 1]) > 0.8


def test_the_threshold_is_never_one_at_which_a_new_group_is_likelier(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where known people are told apart well, one percent of the people to keep lie far below zero, and so do strangers."""
    for rule in ("quantile", "conformal"):
        choice = GateChoice("known_groups_activations", threshold=rule)  # type: ignore[arg-type]
        strict, loose = (fit_gates(lm, people_task(), (0.2, 0.999), choice)[rate].threshold for rate in (0.2, 0.999))  # type: ignore[attr-defined]
        assert loose == 0 <= strict
    monkeypatch.setattr(KnownGroupsGate, "lowest_threshold", -1e9)
    assert fit_gates(lm, people_task(), (0.999,), GateChoice("known_groups_activations"))[0.999].threshold < 0  # type: ignore[attr-defined]


def test_text_is_refused(lm: Any) -> None:
    for task in (people_task("kjv"), people_task(near="milton")):
        with pytest.raises(DataError, match="expected questions to forget and questions to keep for a gate of known groups"):
            fit_gates(lm, task, (0.05,), GateChoice("known_groups_activations"))
