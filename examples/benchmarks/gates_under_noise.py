"""Try to make a gate of known people robust to a vector at the hook, which closes it and so brings back what an edit forgot.

The gate of known groups is compared with three remedies:

- `with an outlier guard`: also open where the activation is further from the mean of SELECT text than nearly all text to keep on TUNE.
- `variances for noise a`: expects a random vector of a times the norm of the largest attack, so the variances of known groups and of a new
  one are raised by what such a vector adds in each direction, s_i^2 = (a epsilon norm)^2 / d * |P_i|^2.
- `fitted on noise a`: fitted on activations to which such vectors are added, so directions are chosen in which people differ by more.

The edit behind each gate projects 128 features out (m = -0.1). For each epsilon, the vector is searched against that edit on SELECT with the
gate held, and measured on TEST with the gate asked again (`asked`) and with it held (`held`), beside random vectors of the same norm
(`random`). Another vector is searched to close the gate of known groups, without the model (`aimed`). Norms are at most epsilon times the
mean norm of the activations. Everything is written to a JSON file, and the table is printed as Markdown.

    python examples/benchmarks/gates_under_noise.py SAE_FOLDER [--out gates_under_noise.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.experiments.benchmark.arms import TASKS
from mtsae_lens.opening import open_sae
from mtsae_lens.records import Interval, Stopwatch, provenance
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.group_gate import KnownGroupsGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.candidates import Grid, fit_gates, gather_evidence, rankings
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS
from mtsae_lens.unlearning.gating import observe, sampled, thresholds_at
from mtsae_lens.unlearning.group_fit import fit_known_groups
from mtsae_lens.unlearning.measures.effects import edit_losses, model_losses
from mtsae_lens.unlearning.measures.results import EditLoss
from mtsae_lens.unlearning.protocol import recovery_texts
from mtsae_lens.unlearning.recovery.attack import AttackedTexts
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings, Target, fit_perturbation, mean_norm
from mtsae_lens.unlearning.recovery.shares import recovered
from mtsae_lens.unlearning.task import SPARED, Task

RATE = 0.01
"""False-positive rate of the gates on TUNE."""
SCORE, N_FEATURES, MULTIPLIER = "frequency_difference", 128, -0.1
ATTACKS = ("asked", "held", "random", "aimed")
N_AIM_STEPS = 200
EPSILONS = (0.1, 0.25, 0.5)
NOISE_SHARES = (0.25, 0.5, 1.0)
COPIES = 8
"""Copies of each question, each with other noise, that a gate is fitted on."""
MIN_RECOGNIZED = 0.1
"""A gate that recognizes a smaller share of the questions is not attacked, because hardly anything is forgotten behind it."""
QUANTILE = 0.999
"""Share of the positions of every text to keep that are no outliers."""
ROWS_OF_TEXT = 3_000
"""Activations of each text that the guard's mean and covariance are estimated from."""
RIDGE = 1e-3
"""Added to the covariance's diagonal, as a share of its mean."""


@dataclass(frozen=True)
class OutlierGuard(Gate):
    """A gate of known groups that is also open where the squared Mahalanobis distance of the activation exceeds a limit."""

    inner: KnownGroupsGate
    center: Tensor
    whiten: Tensor
    limit: float

    def observe(self, sae_in: Tensor, feature_acts: Tensor) -> Tensor:
        """Return the activations at the hook, which the inner gate reads too."""
        return self.inner.observe(sae_in, feature_acts)

    def score(self, observed: Tensor) -> Tensor:
        """Score as the inner gate does; outliers are told apart when it opens."""
        return self.inner.score(observed)

    def open_from(self, observed: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return True where the inner gate is open or the activation is an outlier."""
        opened, state = self.inner.open_from(observed, state)
        is_text = (observed != 0).any(dim=-1)
        return opened | (is_text & (square_distance(observed, self.center, self.whiten) > self.limit)), state


def square_distance(rows: Tensor, center: Tensor, whiten: Tensor) -> Tensor:
    """Compute the squared Mahalanobis distance of activations from a center."""
    return ((rows - center) @ whiten).square().sum(dim=-1)


@torch.no_grad()
def activations(lm: HookedLM, table: TokenTable) -> Tensor:
    """Read the activations at all positions of a text that are not masked."""
    return torch.cat([lm.sae_input(tokens).flatten(2)[~lm.masked(tokens)] for tokens in lm.batches(table)])


@torch.no_grad()
def answer_activations(lm: HookedLM, table: TokenTable) -> Tensor:
    """Read the activations where the answers to questions begin."""
    return torch.cat([lm.sae_input(tokens).flatten(2)[at] for tokens, at in sampled(lm, table, torch.Generator())])


def guarded(lm: HookedLM, task: Task, gate: KnownGroupsGate, seed: int) -> OutlierGuard:
    """Add the guard: mean and covariance of SELECT text, and the limit that no text to keep on TUNE exceeds at more than 0.1%."""
    generator = torch.Generator().manual_seed(seed)
    texts = [activations(lm, table) for table in task.tables("select", lm.cutter, ("forget", *SPARED)).values()]
    rows = torch.cat([of[torch.randperm(len(of), generator=generator)[:ROWS_OF_TEXT]] for of in texts]).double()
    covariance = torch.cov(rows.T)
    spread, directions = torch.linalg.eigh(covariance + RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance)))
    center, whiten = rows.mean(dim=0).float(), (directions * spread.rsqrt()).float()
    kept = task.tables("tune", lm.cutter, SPARED).values()
    distances = [square_distance(activations(lm, table), center, whiten) for table in kept]
    return OutlierGuard(gate, center, whiten, max(of.quantile(QUANTILE).item() for of in distances))


def raised(gate: KnownGroupsGate, norm: float) -> KnownGroupsGate:
    """Raise the variances by what a random vector of this norm adds."""
    added = norm**2 / gate.projection.shape[1] * gate.projection.square().sum(dim=1)
    return replace(gate, variances=gate.variances + added, prior=gate.prior + added)


def fitted_on_noise(lm: HookedLM, task: Task, norm: float, seed: int) -> KnownGroupsGate:
    """Fit the gate on copies of the questions, with a random vector of this norm added to each activation."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(table: TokenTable) -> tuple[Tensor, list[str]]:
        rows = answer_activations(lm, table).repeat(COPIES, 1)
        return rows + norm * normalize(torch.randn(rows.shape, generator=generator), dim=1), [*table.documents] * COPIES

    near = [table for table in task.tables("select", lm.cutter, SPARED).values() if table.answers is not None]
    rows, names = zip(*map(noisy, near), strict=True)
    return fit_known_groups(
        *noisy(task.table(task.forget, "select", lm.cutter)), torch.cat(rows), [name for of in names for name in of]
    )


def gates(lm: HookedLM, task: Task, norm: float, seed: int) -> Iterator[tuple[str, Gate]]:
    """Yield the gates to compare. `norm` is that of the activations."""
    kept = list(task.tables("tune", lm.cutter, SPARED).values())
    gate = fit_gates(lm, task, (RATE,), TASKS["people"].gate)[RATE]
    assert isinstance(gate, KnownGroupsGate)
    yield "as fitted", gate
    yield "with an outlier guard", guarded(lm, task, gate, seed)
    radii = {share: share * max(EPSILONS) * norm for share in NOISE_SHARES}
    for share, radius in radii.items():
        yield f"variances for noise {share:g}", thresholds_at(lm, raised(gate, radius), kept, (RATE,))[0]
    for share, radius in radii.items():
        yield f"fitted on noise {share:g}", thresholds_at(lm, fitted_on_noise(lm, task, radius, seed), kept, (RATE,))[0]


@torch.no_grad()
def share_recognized(lm: HookedLM, gate: Gate, table: TokenTable) -> float:
    """Return the share of questions at which a gate is open where the answer begins."""
    begins = sampled(lm, table, torch.Generator())
    return torch.cat([gate.open_from(observe(lm, gate, tokens), None)[0][at] for tokens, at in begins]).float().mean().item()


def aim(gate: Gate, rows: Tensor, radius: float, settings: RecoverySettings) -> Tensor:
    """Search one vector that closes a gate on activations where answers begin, by Adam with projection onto the ball."""
    known = gate.inner if isinstance(gate, OutlierGuard) else gate
    assert isinstance(known, KnownGroupsGate)
    shift = torch.zeros(rows.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=settings.lr * radius / len(shift) ** 0.5)
    for _ in range(N_AIM_STEPS):
        optimizer.zero_grad()
        softplus(known.score((rows + shift).unsqueeze(0)) - known.threshold).mean().backward()
        optimizer.step()
        with torch.no_grad():
            shift *= (radius / shift.norm()).clamp(max=1.0)
    return shift.detach()


def attack(lm: HookedLM, edit: Edit, texts: AttackedTexts, radius: float, settings: RecoverySettings) -> dict[str, Any]:
    """Search one vector, and return the shares of the forgetting that it, random vectors of its norm and an aimed one bring back."""
    target, basis = Target(lm, edit), torch.eye(lm.sae.cfg.d_in)
    shift = fit_perturbation(target, texts.known, basis, radius, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = shift.norm() * normalize(torch.randn(settings.n_random, len(shift), generator=generator), dim=1)
    models = [target.logits(None), target.logits(shift), target.logits(shift, hold_gate=True)]
    models += [target.logits(aim(edit.gate, answer_activations(lm, texts.known), radius, settings))]
    models += [target.logits(row) for row in drawn]
    edited, asked, held, aimed, *draws = model_losses(models, lm.model, lm.cutter, texts.measured, lm.batch_size)
    random = replace(edited, nll_edited=torch.stack([draw.nll_edited for draw in draws]).mean(dim=0))
    losses = dict(zip(ATTACKS, (asked, held, random, aimed), strict=True))
    shares = {name: recovered(edited, of, settings.seed).share for name, of in losses.items()}
    return {"norm": shift.norm().item()} | {name: share and asdict(share) for name, share in shares.items()}


def row(name: str, found: dict[str, Any]) -> str:
    """Return one line of the table."""
    cells = [name, f"{found['recognized']:.0%}", f"{found['forgotten']:+.2f}", f"{found['highest_rise']:+.3f}"]
    for result in found["attacks"].values():
        shares = [Interval(**result[of]) if result[of] else None for of in ATTACKS]
        cells.append(", ".join("-" if share is None else f"{share.mean:.0%}" for share in shares))
    return "| " + " | ".join([*cells, *["-"] * (len(EPSILONS) - len(found["attacks"]))]) + " |"


def measure(task: Task, losses: dict[str, EditLoss]) -> dict[str, Any]:
    """Return what an edit does on TEST."""
    others = {source: loss.nll_delta for source, loss in losses.items() if source != task.forget}
    worst = max(others, key=others.__getitem__)
    return {"forgotten": losses[task.forget].nll_delta, "highest_rise": others[worst], "worst": worst, "others": others}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae", type=Path)
    parser.add_argument("--contexts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("gates_under_noise.json"))
    given = parser.parse_args(arguments)
    watch, found = Stopwatch(), dict[str, Any]()
    lm, _ = open_sae(given.sae, model=None, device="cpu", batch_size=32)
    task = TASKS["people"].task(given.contexts)
    texts, settings = recovery_texts(lm, task), RecoverySettings(n_random=3, seed=given.seed)
    norm, evidence = mean_norm(lm, texts.known), gather_evidence(lm, task).without_near()
    features = rankings(evidence, Grid(scores=(SCORE,)), min_ratio=5.0)[SCORE][:N_FEATURES]
    make, tables = EDIT_KINDS["project"].prepare(evidence), task.tables("test", lm.cutter)
    print(f"# {len(texts.measured)} questions about {len(set(texts.measured.documents))} people, mean norm {norm:.2f}")
    header = ["gate", "recognized", "nats forgotten", "highest rise", *(f"{e:g}: {', '.join(ATTACKS)}" for e in EPSILONS)]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for name, gate in gates(lm, task, norm, given.seed):
        edit = make(features, multiplier=MULTIPLIER, gate=gate)
        result = measure(task, {source: edit_losses(lm, table, [edit])[0] for source, table in tables.items()})
        recognized = share_recognized(lm, gate, texts.measured)
        attacked = EPSILONS if recognized >= MIN_RECOGNIZED else ()
        found[name] = {
            "recognized": recognized,
            **result,
            "attacks": {f"{e:g}": attack(lm, edit, texts, e * norm, replace(settings, epsilon=e)) for e in attacked},
        }
        made = provenance(given.seed, watch.seconds, {"sae": str(given.sae), "contexts": given.contexts, "rate": RATE})
        given.out.write_text(json.dumps({"gates": found, "provenance": made}, indent=1))
        print(row(name, found[name]), flush=True)
    print(f"# {watch.seconds:.0f} s")


if __name__ == "__main__":
    main()
