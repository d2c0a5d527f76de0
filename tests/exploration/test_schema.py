"""Writer and readers of a folder of facts know nothing of each other: here they are held to one format."""

from __future__ import annotations

import facts_folder
import pyarrow as pa
import pytest

from mtsae_lens.exploration import schema
from mtsae_lens.interop import neuronpedia
from mtsae_lens.reporting.explorer import folder

TABLES = {schema.FEATURES_FILE: schema.FEATURES, schema.EXAMPLES_FILE: schema.EXAMPLES, schema.TEXTS_FILE: schema.TEXTS}


def test_all_speak_of_one_format() -> None:
    assert schema.FORMAT == folder.FORMAT == neuronpedia.FACTS_FORMAT
    assert schema.ABOUT_FILE == folder.SETTINGS_FILE


def test_the_page_reads_every_column() -> None:
    assert {name: set(columns) for name, columns in folder._COLUMNS.items()} == {
        name: set(table.names) for name, table in TABLES.items()
    }


@pytest.mark.parametrize(
    ("made_up", "written"),
    [
        (facts_folder._FEATURES, schema.FEATURES),
        (facts_folder._EXAMPLES, schema.EXAMPLES),
        (facts_folder._TEXTS, schema.TEXTS),
    ],
)
def test_the_folder_made_up_for_tests_is_of_the_same_kind(made_up: pa.Schema, written: pa.Schema) -> None:
    assert {field.name: field.type for field in made_up} == {field.name: field.type for field in written}
