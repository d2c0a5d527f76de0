"""Test that planted sequences have the promised properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens.synthetic import FeatureDictionary
from stored import position_0

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.data.planted import PlantedBlocks, PlantedConfig, PlantedFeatures, PlantedSample, flatten_positions
from mtsae_lens.errors import ConfigError
from mtsae_lens.evaluation.time_scales import mean_run_length

CFG = PlantedConfig(
    d_in=24,
    context_size=200,
    durations=(1, 4, 16),
    n_features_per_duration=6,
    persistent_rate=0.1,
    lags=((1, 3), (4, 8)),
    n_patterns_per_lags=4,
    pattern_rate=0.02,
    n_cues=8,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def features() -> PlantedFeatures:
    return PlantedFeatures(CFG)


@pytest.fixture(scope="module")
def sample(features: PlantedFeatures) -> PlantedSample:
    return features.sample(150, generator())


def of_kind(features: PlantedFeatures, kind: str) -> list[int]:
    return [feature for feature, its_kind in enumerate(features.kinds) if its_kind == kind]


def test_kinds_and_time_scales(features: PlantedFeatures) -> None:
    assert features.n_features == 18 + 8 + 8
    assert features.time_scales == [1] * 6 + [4] * 6 + [16] * 6 + [1] * 8 + [3] * 4 + [8] * 4
    assert [len(of_kind(features, kind)) for kind in ("persistent", "cue", "pattern")] == [18, 8, 8]


def test_rates(features: PlantedFeatures, sample: PlantedSample) -> None:
    rate = (sample.feature_acts[:, 1:] > 0).float().mean(dim=(0, 1))
    for first, tolerance in ((0, 0.01), (6, 0.015), (12, 0.02)):  # longer episodes, fewer of them
        assert rate[first : first + 6].mean().item() == pytest.approx(0.1, abs=tolerance)
    assert rate[of_kind(features, "pattern")].mean().item() == pytest.approx(0.02, abs=0.002)
    # every cue fires alone as often as all patterns have cues for it on average, 2 * 8 * 0.02 / 8
    n_uses = features.pattern_cues.flatten().bincount(minlength=8)
    expected = 1 - (1 - 0.04) * (1 - 0.02) ** n_uses
    torch.testing.assert_close(rate[of_kind(features, "cue")], expected, atol=0.006, rtol=0)


def test_a_rate_holds_from_the_start_of_a_context_to_its_end(sample: PlantedSample) -> None:
    active = (sample.feature_acts[..., :18] > 0).float()
    assert active[:, 1:20].mean().item() == pytest.approx(0.1, abs=0.015)
    assert active[:, -20:].mean().item() == pytest.approx(0.1, abs=0.015)


def test_mean_run_lengths(sample: PlantedSample) -> None:
    found = mean_run_length(sample.feature_acts[..., :18] > 0).view(3, 6).mean(dim=1)
    assert found[0].item() == 1
    assert found[1].item() == pytest.approx(4, rel=0.08)
    assert found[2].item() == pytest.approx(15.2, rel=0.08)  # 16, less what the ends of a context cut


def test_magnitudes(features: PlantedFeatures, sample: PlantedSample) -> None:
    persistent = sample.feature_acts[..., :18]
    assert persistent[persistent > 0].mean().item() == pytest.approx(1.0, abs=0.01)
    assert persistent[persistent > 0].std().item() == pytest.approx(0.2, abs=0.01)
    assert sample.feature_acts[..., of_kind(features, "cue")].unique().tolist() == [0.0, 1.5]
    assert sample.feature_acts[..., of_kind(features, "pattern")].unique().tolist() == pytest.approx([0.0, 0.8])


def test_cues_come_before_each_echo(features: PlantedFeatures, sample: PlantedSample) -> None:
    cues, patterns = of_kind(features, "cue"), of_kind(features, "pattern")
    active = sample.feature_acts > 0
    for number, (pattern, (far_cue, near_cue)) in enumerate(zip(patterns, features.pattern_cues.tolist(), strict=True)):
        near, far = CFG.lags[number // 4]
        assert far_cue != near_cue
        sequence, position = active[..., pattern].nonzero(as_tuple=True)
        assert len(position) > 300
        for cue, lag in ((far_cue, far), (near_cue, near)):
            inside = position > lag
            assert active[sequence[inside], position[inside] - lag, cues[cue]].all()
            # at another lag the cue is there no more often than anywhere
            off = position > lag + 1
            assert active[sequence[off], position[off] - lag - 1, cues[cue]].float().mean() < 0.5


def test_no_cue_promises_a_pattern(features: PlantedFeatures, sample: PlantedSample) -> None:
    active = sample.feature_acts > 0
    cues, patterns = of_kind(features, "cue"), of_kind(features, "pattern")
    for number, pattern in enumerate(patterns):
        near, _ = CFG.lags[number // 4]
        cue = active[:, 1:-near, cues[features.pattern_cues[number, 1]]]
        assert active[:, 1 + near :, pattern][cue].float().mean() < 0.6


def test_position_0_is_a_wall_and_no_other(sample: PlantedSample) -> None:
    assert not sample.h[:, 0].any()
    assert not sample.feature_acts[:, 0].any()
    assert sample.h[:, 1:].any(dim=-1).all()


def test_activations_are_the_dictionary_of_the_features_and_noise(features: PlantedFeatures, sample: PlantedSample) -> None:
    assert isinstance(features.dictionary, FeatureDictionary)
    directions = features.dictionary.feature_vectors
    assert not directions.requires_grad
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(features.n_features))
    noise = (sample.h - sample.feature_acts @ directions)[:, 1:]
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    assert noise.std().item() == pytest.approx(0.2, abs=0.002)
    assert noise.std(dim=(0, 1)) == pytest.approx(torch.full((24,), 0.2), abs=0.005)


def test_directions_are_nearly_orthogonal(features: PlantedFeatures) -> None:
    directions = features.dictionary.feature_vectors
    cosines = (directions @ directions.T).fill_diagonal_(0).abs()
    random = torch.nn.functional.normalize(torch.randn(directions.shape, generator=generator()), dim=-1)
    assert cosines.mean() < (random @ random.T).fill_diagonal_(0).abs().mean()


def test_seeds_and_generators_decide_everything(features: PlantedFeatures) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    again = PlantedFeatures(CFG)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(again.dictionary.feature_vectors, features.dictionary.feature_vectors)
    assert torch.equal(again.pattern_cues, features.pattern_cues)
    same = again.sample(2, generator(3))
    torch.manual_seed(2)
    assert torch.equal(features.sample(2, generator(3)).h, same.h)
    assert torch.equal(features.sample(2, generator(3)).feature_acts, same.feature_acts)
    assert not torch.equal(features.sample(2, generator(4)).h, same.h)
    other = PlantedFeatures(PlantedConfig(**(CFG.__dict__ | {"seed": 1})))
    assert not torch.equal(other.dictionary.feature_vectors, features.dictionary.feature_vectors)
    assert not torch.equal(other.pattern_cues, features.pattern_cues)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_sae_of_the_same_seed_knows_nothing_of_the_dictionary(seed: int) -> None:
    """Directions and weights drawn from one stream of random numbers would be correlated."""
    cfg = PlantedConfig(seed=seed)
    directions = PlantedFeatures(cfg).dictionary.feature_vectors
    torch.manual_seed(seed)
    sae = MTTrainingSAE(MTTrainingSAEConfig(d_in=cfg.d_in, d_sae=len(directions), k=4))
    cosines = (sae.W_dec.detach() @ directions.T).abs()
    assert cosines.max(dim=0).values.mean().item() == pytest.approx(0.354, abs=0.012)  # as of any other seed


def test_without_gradients_switched_on_the_dictionary_is_the_same(features: PlantedFeatures) -> None:
    with torch.no_grad():
        assert torch.equal(PlantedFeatures(CFG).dictionary.feature_vectors, features.dictionary.feature_vectors)


def test_onsets() -> None:
    acts = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.5, 0.5]).view(1, 6, 1)
    assert PlantedSample(acts, acts).onsets.flatten().tolist() == [False, True, False, False, True, False]
    assert PlantedSample(acts + 1, acts + 1).onsets.flatten().tolist() == [True] + [False] * 5


def test_rows_leave_the_wall_out(sample: PlantedSample) -> None:
    h, acts = flatten_positions(sample)
    assert torch.equal(h, sample.h[:, 1:].reshape(-1, 24))
    assert torch.equal(acts, sample.feature_acts[:, 1:].reshape(-1, 34))


def test_blocks_are_fresh_and_can_be_entered(features: PlantedFeatures) -> None:
    stream = PlantedBlocks(features, batch_size_sequences=2, block_size_batches=2, seed=5)
    blocks = stream.blocks(0)
    first, second = next(blocks), next(blocks)
    assert (first.number, second.number) == (0, 1)
    assert first.h.shape == (4, 200, 24)
    assert torch.equal(first.masked, position_0(first.h))
    assert not torch.equal(first.h, second.h)
    assert torch.equal(next(stream.blocks(1)).h, second.h)
    assert torch.equal(next(stream.sequences(3)), second.h[2:].flatten(0, 1))
    other = PlantedBlocks(features, batch_size_sequences=2, block_size_batches=2, seed=6)
    assert not torch.equal(next(other.blocks(0)).h, first.h)


@pytest.mark.parametrize("absent", [{"lags": ()}, {"n_patterns_per_lags": 0}, {"durations": ()}, {"lags": (), "n_cues": 0}])
def test_a_kind_may_be_absent(absent: dict[str, Any]) -> None:
    features = PlantedFeatures(PlantedConfig(**(CFG.__dict__ | absent)))
    sample = features.sample(3, generator())
    assert sample.feature_acts.shape == (3, 200, features.n_features)
    assert sample.feature_acts.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"durations": (0, 4)}, r"durations.*\(0, 4\)"),
        ({"lags": ((0, 2),)}, r"0 < near < far < context_size=\d+, got \(0, 2\)"),
        ({"lags": ((4, 4),)}, r"\(4, 4\)"),
        ({"lags": ((1, 128),)}, r"\(1, 128\)"),
        ({"n_cues": 1}, "n_cues of at least 2.* got 1"),
        ({"persistent_rate": 0.0}, "persistent_rate between 0 and 1, got 0.0"),
        ({"pattern_rate": 1.0}, "pattern_rate between 0 and 1, got 1.0"),
        ({"persistent_rate": 0.6}, "persistent_rate of at most 0.50 .episodes of 1 positions .* got 0.6"),
    ],
    ids=str,
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PlantedConfig(**settings)
