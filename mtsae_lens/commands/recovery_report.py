"""Report recovery attacks: how much of the forgetting a perturbation at the hook brings back."""

from __future__ import annotations

from collections.abc import Mapping

from mtsae_lens.records import Interval
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.unlearning.recovery.results import SUBSPACES, PerturbationResult, Recovered, Recovery

_HEADER = "method|nats forgotten|directions|attacked|gate held|random|beyond the unedited model|error part|untouched features|edited features"
_HEADER += "|drift|gate open|worst other text"

_TEXT = (
    "One vector is added to the activations at the hook at every position, before the edit, which stays active. It is fitted on SELECT "
    "forget text and measured on TEST. Its norm is at most {epsilon:g} times the mean norm of the activations. Values are shares of the "
    "forgetting that come back, with 95% intervals over documents: 0 is best, and 100% is the loss before unlearning. Blind: orthogonal to "
    "every direction in which the edit reads a position (in parentheses, how many directions there are, of {d_in}). An edit of features "
    "reads through the encoder; a projection, such as one of a difference of means, reads the directions that it removes. Nearly blind: "
    "also the directions that the encoder reads least for the edited features; a projection has none. Gate held: the gate stays as it "
    "is without the perturbation. Beyond the unedited model: less what the same search gains there. Parts: only this part of the "
    "perturbation reaches the edited model; an edit without features has no parts of features. Drift: relative change of the edited "
    "features. Gate open: share of positions before and after. Worst other text: nats that the perturbation adds to it. Without an edit "
    "the same search gains {gains} nats."
)


def recovery_section(title: str, found: Mapping[str, Recovery]) -> Section:
    """Make the section on recovery attacks.

    Args:
        title: the heading.
        found: results by method, at least one.
    """
    first = next(iter(found.values()))
    gains = ", ".join(f"{nats:+.3f} ({name})" for name, nats in first.gains.items())
    return Section(title, _TEXT.format(epsilon=first.epsilon, d_in=first.d_in, gains=gains), recovery_table(found))


def recovery_table(found: Mapping[str, Recovery]) -> Table:
    """Make the table of recovery attacks: for each method, one row for each subspace, and one for the attack by context.

    Args:
        found: results by method.
    """
    rows = []
    for method, recovery in found.items():
        forgotten = f"{recovery.nll_edited - recovery.nll_clean:+.3f}"
        rows += [
            [method, forgotten, *_cells(name, recovery.by_subspace[name])] for name in SUBSPACES if name in recovery.by_subspace
        ]
        if recovery.by_context is not None:
            context = recovery.by_context
            nats = f"{context.nll_edited - context.nll_clean:+.3f}"
            rows.append([method, nats, "one vector per context", _share(context.attacked), *[None] * 9])
    return Table(_HEADER.split("|"), rows)


def _cells(name: str, result: PerturbationResult) -> list[str | None]:
    directions = f"{name} ({result.n_directions})"
    if result.attacked is None:
        return [directions, "no such direction", *[None] * 9]
    parts = [_share(result.parts.get(part)) for part in ("error", "untouched features", "edited features")]
    opened = None if result.gate_open is None else " -> ".join(f"{share:.0%}" for share in result.gate_open)
    return [
        directions,
        _share(result.attacked),
        _share(result.gate_held),
        _share(result.random),
        _percent(result.beyond_control),
        *parts,
        None if result.drift is None else f"{result.drift:.1%}",
        opened,
        f"{max(result.others.values()):+.3f}" if result.others else None,
    ]


def _share(recovered: Recovered | None) -> str | None:
    return None if recovered is None else _percent(recovered.share)


def _percent(share: Interval | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def recovery_summary(recovery: Recovery) -> str:
    """Describe in a sentence how much comes back at most.

    Args:
        recovery: the results.
    """
    worst = recovery.worst
    if worst is None:
        return "Recovery attack: too little was forgotten for a share of it to come back."
    return (
        f"Recovery attack: with the edit active, one vector added at the hook brings back {worst.mean:.0%} of the forgetting (95% interval "
        f"{worst.low:.0%} to {worst.high:.0%})."
    )
