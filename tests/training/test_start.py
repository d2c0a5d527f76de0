"""Test the start of training: the scale, `b_dec`, and activations that cannot be trained on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import stored
from torch.testing import assert_close

from mtsae_lens.data.activations import ActivationReader
from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.sae.transcoder import TRANSCODER
from mtsae_lens.training.fit import fit
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.training.start import RowStatistics, look_ahead, start_b_dec_
from mtsae_lens.upstream import SAE_TRAINING_CLASS_REGISTRY

POS, D_IN = 16, 6
SCHEDULE = {"n_steps": 6, "batch_size_tokens": 2 * POS, "lr": 0.0}  # a rate of 0: what is measured is the start
ARCHITECTURES = sorted(set(SAE_TRAINING_CLASS_REGISTRY) - {TRANSCODER})  # which reads pairs: test_transcoding.py


def make_sae(architecture: str = "mtsae", **settings: Any) -> Any:
    kind, config = SAE_TRAINING_CLASS_REGISTRY[architecture]
    own: dict[str, Any] = {"context_size": POS, "dilations": (0, 1, 2)} if architecture == "mtsae" else {}
    if architecture == "matryoshka_batchtopk":
        own["matryoshka_widths"] = [6, 12]
    if "k" in config.__dataclass_fields__:
        own["k"] = 3
    torch.manual_seed(0)
    return kind(config(d_in=D_IN, d_sae=12, **own, **settings))


def make_stream(offset: float = 3.0) -> StoredBlocks:
    h = torch.randn(20, POS, D_IN, generator=torch.Generator().manual_seed(1)) + offset
    h[:, [0, 5]] = 0
    return stored(h, batch_size_sequences=2, block_size_batches=4)


def rows_of(stream: StoredBlocks, n_batches: int) -> torch.Tensor:
    return torch.cat(list(islice(stream.mixed(), n_batches)))


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_b_dec_starts_at_the_mean_of_the_unmasked_rows(architecture: str, normalize: str) -> None:
    """After the scale is folded in, `b_dec` is in the units of the activations, for any scale."""
    sae = fit(make_sae(architecture, normalize_activations=normalize), make_stream(), **SCHEDULE)
    assert_close(sae.b_dec.data, rows_of(make_stream(), 6).mean(dim=0), rtol=1e-4, atol=1e-4)
    assert sae.cfg.normalize_activations == "none"


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_b_dec_can_start_at_zero(architecture: str) -> None:
    sae = fit(make_sae(architecture), make_stream(), **SCHEDULE, options=TrainerOptions(b_dec_init="zeros"))
    assert not sae.b_dec.any()


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected b_dec_init of mean or zeros, got 'median'"):
        TrainerOptions(b_dec_init="median")  # type: ignore[arg-type]


def test_a_b_dec_that_was_set_is_kept() -> None:
    sae = make_sae()
    sae.b_dec.data[2] = 0.5
    before = sae.b_dec.detach().clone()
    assert torch.equal(fit(sae, make_stream(), **SCHEDULE).b_dec, before)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("mtsae", {}), ("mtsae", {"learn_dilations": True, "max_lag": 6}), ("topk", {}), ("jumprelu", {}), ("gated", {})],
    ids=str,
)
def test_without_b_dec_on_the_input_the_encoder_starts_at_the_same_pre_activations(
    architecture: str, settings: dict[str, Any]
) -> None:
    applied, free = (make_sae(architecture, apply_b_dec_to_input=apply, **settings) for apply in (True, False))
    free.load_state_dict(applied.state_dict())
    h = make_stream().h[:, 1:5].repeat(1, 4, 1)  # no masked positions
    mean = h.mean(dim=(0, 1))
    for sae in (applied, free):
        start_b_dec_(sae, mean)
        assert torch.equal(sae.b_dec, mean)
    given = h if architecture == "mtsae" else h.flatten(0, 1)
    assert_close(free.encode(given), applied.encode(given), rtol=1e-4, atol=1e-4)


def test_batches_that_are_measured_are_given_back_and_let_go() -> None:
    batches = [torch.full((2, 3), float(i)) + torch.eye(2, 3) for i in range(1, 6)]
    read: list[int] = []

    def reading() -> Iterator[torch.Tensor]:
        for place, batch in enumerate(batches):
            read.append(place)
            yield batch

    statistics, again = look_ahead(reading(), 3, 3)
    assert read == [0, 1, 2]
    assert statistics.n_rows == 6
    assert_close(statistics.mean, torch.cat(batches[:3]).mean(dim=0))
    assert all(torch.equal(got, expected) for got, expected in zip(again, batches, strict=True))
    assert read == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("normalize_activations", ["none", "expected_average_only_in"])
def test_nothing_is_read_twice(
    normalize_activations: str,
    tmp_path: Path,
    tiny_settings: Callable[..., TrainSettings],
    tiny_model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The language model reads as many tokens as training needs, for any block size."""
    read, n_read = ActivationReader.read, []

    def counted(reader: ActivationReader, tokens: torch.Tensor) -> torch.Tensor:
        n_read.append(tokens.numel())
        return read(reader, tokens)

    monkeypatch.setattr(ActivationReader, "read", counted)
    for place, (buffer, sae) in enumerate(
        [(640, {"k": 4}), (20, {"k": 4}), (640, {"k": 4, "dilations": "auto"})]
    ):  # of 48 contexts
        settings = tiny_settings(
            tmp_path / str(place),
            normalize_activations=normalize_activations,
            buffer_size_sequences=buffer,
            lm_batch_size_sequences=4,
            sae=sae,
        )
        n_read.clear()
        train_sae(settings, tiny_model)
        assert sum(n_read) == settings.training_tokens


# ------------------------------------------------------------------------------------ what cannot be trained on


def trained_on(h: torch.Tensor, architecture: str = "mtsae", **settings: Any) -> Any:
    return fit(make_sae(architecture, **settings), stored(h, 2, 4), **(SCHEDULE | {"lr": 1e-3}))


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "mean norm from 1e-12 to 1e\\+12, got .*rescale"),
        (1e-30, "mean norm from 1e-12 to 1e\\+12, got .*rescale"),
        (1e30, "mean norm from 1e-12 to 1e\\+12, got .*rescale"),
        (2.0, "that vary, got .* rows that are all the same"),
        (float("nan"), "finite activations, got NaN or infinity"),
        (float("inf"), "finite activations, got NaN or infinity"),
    ],
)
def test_activations_that_hold_nothing_are_refused(value: float, message: str, normalize: str, architecture: str) -> None:
    h = torch.full((20, POS, D_IN), value)
    h[:, 0] = 0
    with pytest.raises(DataError, match=message) as refused:
        trained_on(h, architecture, normalize_activations=normalize)
    assert "\n" not in str(refused.value)


def test_one_row_that_differs_is_enough_to_train_on() -> None:
    h = torch.full((20, POS, D_IN), 2.0)
    h[:, 0] = 0
    h[:, 3] = torch.randn(20, D_IN, generator=torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in trained_on(h).parameters())


@pytest.mark.wrong_shapes
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_activations_that_are_not_real_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match=f"expected real activations.* got {dtype}"):
        stored(torch.ones(4, POS, D_IN, dtype=dtype), 2)


def test_row_statistics_are_those_of_every_row_also_of_one_that_is_zero() -> None:
    h = make_stream().h.flatten(0, 1)
    assert not h[0].any()
    statistics = RowStatistics.of([torch.cat([part, part], dim=1) for part in (h[:50], h[50:])], D_IN)
    assert statistics.n_rows == len(h)
    assert_close(statistics.mean, h.mean(dim=0))
    assert statistics.mean_norm == pytest.approx(h.norm(dim=-1).mean().item(), rel=1e-5)


def test_a_corpus_of_special_tokens_alone_is_refused(
    tmp_path: Path, tiny_settings: Callable[..., TrainSettings], tiny_model: Any
) -> None:
    text = tmp_path / "special.jsonl"
    text.write_text(json.dumps({"text": "<|endoftext|>" * 40}) + "\n")
    text.write_text(text.read_text() * 40)
    for architecture in ("mtsae", "topk"):
        with pytest.raises(DataError, match="more than special tokens"):
            train_sae(tiny_settings(tmp_path / architecture, architecture=architecture, dataset=str(text)), tiny_model)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [text]


def test_an_sae_of_half_the_run_starts_as_it_was() -> None:
    """Training further begins where the SAE is: its `b_dec` is that of the first run."""
    sae = fit(make_sae(), make_stream(), **(SCHEDULE | {"lr": 1e-3}))
    before = copy.deepcopy(sae.b_dec.data)
    assert torch.equal(fit(sae, make_stream(offset=-3.0), **SCHEDULE).b_dec, before)


def test_massive_positions_are_left_out_of_training_unless_asked_for() -> None:
    def mean_start(**options: Any) -> torch.Tensor:
        stream = make_stream()
        stream.h[3, 7] *= 1000
        return fit(make_sae(), stream, **SCHEDULE, options=TrainerOptions(**options)).b_dec.data

    quiet = fit(make_sae(), make_stream(), **SCHEDULE).b_dec.data
    assert_close(mean_start(), quiet, rtol=0.05, atol=0.05)
    assert (mean_start(max_norm_multiple=None) - quiet).norm() > 1
    with pytest.raises(
        ConfigError, match=r"expected max_norm_multiple above 1, got 0\.5; raise it, or give None to keep all positions"
    ):
        TrainerOptions(max_norm_multiple=0.5)
