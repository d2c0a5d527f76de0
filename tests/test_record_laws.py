"""Test the law of records: a record that is written to JSON and read back is equal, for any values."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mtsae_lens
from mtsae_lens.data.planted import PlantedConfig
from mtsae_lens.errors import DataError
from mtsae_lens.records import Interval, Record, fields_of
from mtsae_lens.unlearning.sweep import Outcome

for _, module, _ in pkgutil.walk_packages(mtsae_lens.__path__, "mtsae_lens."):
    if any(part in module for part in (".unlearning", ".experiments", ".evaluation", ".reporting", ".commands")):
        importlib.import_module(module)


def record_classes(base: type[Record] = Record) -> list[type[Record]]:
    found = {base.__qualname__: base} if base is not Record else {}
    for derived in base.__subclasses__():
        if derived.__module__.startswith("mtsae_lens."):
            found |= {cls.__qualname__: cls for cls in record_classes(derived)}
    return list(found.values())


st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))  # strict JSON has neither
st.register_type_strategy(PlantedConfig, st.sampled_from([PlantedConfig(), PlantedConfig(d_in=8, lags=((1, 3),), seed=4)]))


@pytest.mark.parametrize("cls", record_classes(), ids=lambda cls: cls.__name__)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_record_read_back_is_the_same(cls: type[Record], data: st.DataObject) -> None:
    record = data.draw(st.from_type(cls))
    written = json.dumps(record.to_json(), allow_nan=False)
    assert cls.from_json(json.loads(written)) == record


def test_the_law_covers_the_records_of_every_experiment() -> None:
    names = {cls.__name__ for cls in record_classes()}
    assert {"UnlearningResult", "MethodsCell", "ReferenceCell", "StabilityCell", "TemporalTrial", "PaperRun"} <= names
    assert {"BenchmarkResult", "DemoResult", "ExportResult", "PaperResult", "PlantedResult"} <= names
    assert {"TrainResult", "EvaluateResult", "ScaleResult"} <= names


def test_a_key_with_a_default_is_left_out_and_one_without_is_null() -> None:
    from mtsae_lens.experiments.benchmark.cells import MethodResult, ScoreStability

    assert MethodResult(tune=(), test={}).to_json() == {"tune": [], "test": {}}
    stability = ScoreStability(n_features=8, halves=None, chance=0.5, seeds=None)
    assert stability.to_json() == {"n_features": 8, "halves": None, "chance": 0.5, "seeds": None}


def test_a_loss_that_is_not_finite_is_null_and_read_back_as_nan() -> None:
    row = Outcome({"n": 1}, math.nan, 0.5, math.inf, 2.0).to_json()
    assert row == {"setting": {"n": 1}, "forget": None, "near": 0.5, "far": None, "forget_nll": 2.0}
    read = Outcome.from_json(row)
    assert math.isnan(read.forget)
    assert math.isnan(read.far)


@pytest.mark.parametrize("content", [{"mean": 1.0, "low": 0.5}, {"mean": 1.0, "low": 0.5, "high": "much"}])
def test_json_of_another_shape_is_refused_with_the_place(content: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"expected the JSON of Interval, got at high: .*run the command again"):
        Interval.from_json(content)


def test_an_interval_has_one_format() -> None:
    interval = Interval(1.145, 0.994, 1.296)
    assert (f"{interval}", f"{interval:.1%}", interval.ends) == (
        "+1.145 [+0.994, +1.296]",
        "114.5% [99.4%, 129.6%]",
        "[+0.994, +1.296]",
    )
    assert set(fields_of(interval)) == {field.name for field in fields(Interval)}
