"""Which features are chosen, which random ones stand beside them, and how often the gate opens where it should not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.contexts import read_tokens
from mtsae_lens.unlearning.selection import MIN_RATE, calibrate_gate, matched_random, rank_by_frequency
from mtsae_lens.unlearning.statistics import FiringStatistics, firing_statistics


def rates(*values: float) -> FiringStatistics:
    rate = torch.tensor(values)
    return FiringStatistics("c", rate, torch.ones_like(rate), 1000)


def test_rank_by_frequency_wants_the_ratio_to_every_retain_text() -> None:
    forget = rates(0.5, 0.4, 0.3, 0.2, 0.0)
    one, other = rates(0.01, 0.2, 0.01, 0.0, 0.0), rates(0.02, 0.0, 0.3, 0.0, 0.0)
    assert rank_by_frequency(forget, [one, other], min_ratio=5) == [0, 3]
    assert rank_by_frequency(forget, [one], min_ratio=5) == [0, 2, 3]
    assert rank_by_frequency(forget, [one, other], min_ratio=1) == [0, 1, 2, 3]
    assert rank_by_frequency(forget, [one, other], min_ratio=1e9) == []


def test_rank_by_frequency_is_most_frequent_first() -> None:
    forget = rates(0.1, 0.3, 0.2, 0.4)
    assert rank_by_frequency(forget, [rates(0, 0, 0, 0)]) == [3, 1, 2, 0]


def test_features_that_never_fire_are_not_ranked() -> None:
    assert rank_by_frequency(rates(0.0, MIN_RATE / 2), [rates(0.0, 0.0)], min_ratio=0.0) == [1]


@pytest.mark.parametrize("seed", range(10))
def test_matched_random_is_disjoint_matched_and_seeded(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    forget = rates(*torch.rand(300, generator=generator).pow(3).tolist())
    chosen = torch.randperm(300, generator=generator)[:40].tolist()
    twins = matched_random(forget, chosen, torch.Generator().manual_seed(seed))
    assert len(twins) == len(set(twins)) == 40
    assert not set(twins) & set(chosen)
    assert twins == matched_random(forget, chosen, torch.Generator().manual_seed(seed))
    assert twins != matched_random(forget, chosen, torch.Generator().manual_seed(seed + 1))
    log_rate = forget.rate.clamp(min=MIN_RATE).log()
    distance = (log_rate[chosen] - log_rate[list(twins)]).abs()
    random = (log_rate[chosen] - log_rate[torch.randperm(300, generator=generator)[:40]]).abs()
    assert distance.mean() < 0.3 * random.mean()


def test_matched_random_takes_what_there_is() -> None:
    twins = matched_random(rates(0.1, 0.2, 0.3, 0.4, 0.5), [0, 1, 2], torch.Generator().manual_seed(0))
    assert set(twins) == {3, 4}
    assert matched_random(rates(0.1, 0.2), [0, 1], torch.Generator()) == ()


def test_the_gate_opens_on_five_percent_of_the_retain_text_it_was_set_on(lm: Any, text_file: Path, sea_file: Path) -> None:
    tables = [read_tokens(str(path), "train", lm.cutter, 40) for path in (text_file, sea_file)]
    forget, retain = (firing_statistics(lm, table) for table in tables)
    for rate in (0.05, 0.2):
        gate = calibrate_gate(lm, forget, [retain], tables[1:], false_positive_rate=rate)
        share = open_share(lm, gate, tables[1])
        assert share <= rate + 1e-6
        assert share == pytest.approx(rate, abs=0.01)
    assert (
        open_share(lm, calibrate_gate(lm, forget, [retain], tables[1:]), tables[0]) > 0.1
    )  # and on the forget text more often


def test_the_gate_keeps_the_rate_on_every_retain_text(lm: Any, text_file: Path, sea_file: Path) -> None:
    forget_table = read_tokens(str(text_file), "train", lm.cutter, 20)
    tables = [read_tokens(str(sea_file), "train", lm.cutter, 30), read_tokens("kjv", "select", lm.cutter, 30)]
    gate = calibrate_gate(lm, firing_statistics(lm, forget_table), [firing_statistics(lm, t) for t in tables], tables)
    shares = [open_share(lm, gate, table) for table in tables]
    assert max(shares) == pytest.approx(0.05, abs=0.01)


def open_share(lm: Any, gate: Any, table: Any) -> float:
    opened, n = 0, 0
    for tokens in lm.batches(table):
        kept = ~lm.masked(tokens)
        opened += int((gate.open_from(lm.feature_acts(tokens), None)[0] & kept).sum())
        n += int(kept.sum())
    return opened / n
