"""Tables are read as the server reads the same cells in requests.

A cell that can't be read refuses only its own row.
"""

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.errors import InvalidInput, TableError
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.tables import ObjectEncoder, TableDecoder, TableEncoder
from foldserve.training.certify.manifest import describe_features
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load
from tests.service.support import manifest
from tests.test_cells import tables

JSON = {b"content-type": b"application/json"}


def answers(features, rows):
    """Post each row in its own request. Return the numbers that the server reads, and the server's reasons for refused
    rows.
    """
    codec, read, refused = FriendlyCodec(manifest(features=features), max_rows=10), [], {}
    for place, row in enumerate(rows):
        try:
            read.append(codec.decode(JSON, orjson.dumps({"instances": [row]})).rows[0])
        except InvalidInput as error:
            refused[place] = str(error).removeprefix("row 0, ")
            read.append(np.zeros(len(row), np.float32))
    return np.array(read), refused


def assert_read_as_by_the_server(encoded, expected):
    rows, refused = expected
    assert dict(encoded.refused) == refused
    accepted = [place for place in range(len(rows)) if place not in refused]
    np.testing.assert_array_equal(encoded.rows[accepted], rows[accepted])


ANY_CELL = st.sampled_from(
    [
        *("", " ", "?", "-1", "nan", "inf", "1e39", "1e400", "1,5", "1.5", "x", "true", "No", "0", "1", "$1", "45%"),
        *("2024-02-30", "2024-02-28", "2024-02-28T10:00Z", "99999-01-01", "(7)", "1'000.00", "\u22123", "0x10", "1_0"),
    ]
)


@given(tables(), st.data())
def test_texts_are_read_as_the_server_reads_them(rows, data):
    out = io.StringIO()
    names = [f"c{place}" for place in range(len(rows[0]))]
    csv.writer(out).writerows([[*names, "n", "y"], *([*row, i, i % 2] for i, row in enumerate(rows))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_text(out.getvalue(), encoding="utf-8", newline="")
        trained = load(DataOptions(str(path), missing=("?", "-1")))
    features = [feature.model_dump() for feature in describe_features(trained.columns, trained.x)]
    used = [(*names, "n").index(column.name) for column in trained.columns]
    cells = [[(*row, str(i))[place] for place in used] for i, row in enumerate(rows)]
    for row in cells:
        for place in data.draw(st.lists(st.integers(0, len(row) - 1), max_size=1)):
            row[place] = data.draw(ANY_CELL)
    expected = answers(features, cells)
    made = manifest(features=features).features
    columns = {
        column.name: list(texts) for column, texts in zip(trained.columns, zip(*cells, strict=True), strict=True)
    }
    table = pa.table({name: pa.array(texts, pa.string()) for name, texts in columns.items()})
    assert_read_as_by_the_server(TableEncoder(made, typed=False).encode(table), expected)
    halves = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    assert_read_as_by_the_server(TableEncoder(made, typed=False).encode(halves), expected)
    objects = [dict(zip(columns, row, strict=True)) for row in cells]
    assert_read_as_by_the_server(ObjectEncoder(made).encode(objects), expected)
    # The decoded numbers become columns of a table, and the encoder reads these columns as the same numbers.
    decoder = TableDecoder(made)
    accepted = expected[0][[place for place in range(len(cells)) if place not in expected[1]]]
    decoded = pa.Table.from_arrays(decoder.columns(accepted), schema=pa.schema(decoder.fields))
    assert_read_as_by_the_server(TableEncoder(made, typed=True).encode(decoded), (accepted, {}))


FEATURES = [
    {"name": "n", "missing": True},
    {"name": "b", "kind": "boolean", "range": (0.0, 1.0)},
    {"name": "town", "kind": "categorical", "categories": ("a", "b"), "range": None, "missing": True},
    {"name": "size", "kind": "categorical", "categories": (1, 2), "range": None},
]
VALUES = [
    {"n": 1.5, "b": True, "town": "b", "size": 1},
    {"n": None, "b": False, "town": None, "size": 2},
    {"n": 1e39, "b": True, "town": "a", "size": 1},
    {"n": 3, "b": None, "town": "x", "size": 7},
    {"n": 4, "b": True, "town": "a", "size": None},
]


def test_typed_columns_are_read_as_the_same_json_values():
    made = manifest(features=FEATURES).features
    expected = answers(FEATURES, [list(row.values()) for row in VALUES])
    table = pa.Table.from_pylist(VALUES)
    encoder = TableEncoder(made, typed=True)
    encoder.check(table.schema)
    assert_read_as_by_the_server(encoder.encode(table), expected)


def test_cells_of_a_model_that_was_trained_on_types_are_read_from_texts():
    table = pa.table({"n": ["1.5", " 7 "], "b": ["true", "No"], "town": ["b", "?"], "size": ["2", "9"]})
    encoded = TableEncoder(manifest(features=FEATURES).features, typed=False).encode(table)
    assert encoded.rows.tolist() == [[1.5, 1, 1, 1], [7, 0, 2, 2]]
    assert not encoded.refused


def test_a_column_that_was_constant_in_training_may_be_left_out():
    features = [{"name": "n"}, {"name": "flag", "kind": "boolean", "range": (1.0, 1.0)}, {"name": "m"}]
    made = manifest(features=features).features
    table = pa.table({"m": [3.0, 4.0], "n": [1.0, None]})
    encoder = TableEncoder(made, typed=True)
    encoder.check(table.schema)
    encoded = encoder.encode(table)
    assert encoded.refused == {1: "column 'n' is null, and the feature has no missing values"}
    assert encoded.rows[0].tolist() == [1, 1, 3]
    assert ObjectEncoder(made).encode(table.to_pylist()).rows[0].tolist() == [1, 1, 3]


def test_an_object_may_lack_a_missing_value_and_have_further_names():
    encoder = ObjectEncoder(manifest(features=FEATURES).features)
    encoded = encoder.encode([{"b": True, "size": 1, "id": 7}, [1], {"n": 1}])
    assert encoded.refused == {
        1: "the line is not a JSON object",
        2: "column 'b' is null, and the feature has no missing values",
    }
    np.testing.assert_array_equal(encoded.rows[0], [np.nan, 1, np.nan, 0])


@pytest.mark.parametrize(
    ("column", "cells", "reason"),
    [
        ("n", ["1"], "column 'n' has the type string, but the model's feature is numeric"),
        ("n", [[1.0]], "column 'n' has the type list"),
        ("b", ["true"], "column 'b' has the type string, but the model's feature is boolean"),
        ("town", [b"a"], "column 'town' has the type binary"),
        ("b", None, "the table has no column 'b', a feature of the model; it has n, town, size"),
    ],
)
def test_a_column_that_fits_no_row_is_refused(column, cells, reason):
    columns = {"n": [1.0], "b": [True], "town": ["a"], "size": [1], column: cells}
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    with pytest.raises(TableError, match=reason):
        TableEncoder(manifest(features=FEATURES).features, typed=True).check(table.schema)
