"""Arrow columns are read as the JSON protocol reads the same values, and as training reads the same columns."""

from __future__ import annotations

import csv
import io
import tempfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.arrow_rows import ArrowRows
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.training.certify.manifest import describe_features
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load
from tests.service.support import manifest
from tests.test_cells import tables

JSON = {b"content-type": b"application/json"}


def features_of(table):
    return describe_features(table.columns, table.x)


def by_json(features, rows):
    codec = FriendlyCodec(manifest(features=[feature.model_dump() for feature in features]), max_rows=10_000)
    return codec.decode(JSON, orjson.dumps({"instances": rows})).rows


@given(tables())
def test_columns_of_texts_are_read_as_training_reads_the_csv(rows):
    out = io.StringIO()
    names = [f"c{place}" for place in range(len(rows[0]))]
    csv.writer(out).writerows([[*names, "n", "y"], *([*row, i, i % 2] for i, row in enumerate(rows))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_text(out.getvalue(), encoding="utf-8", newline="")
        table = load(DataOptions(str(path), missing=("?", "-1")))
    columns = dict(zip((*names, "n"), zip(*[(*row, str(i)) for i, row in enumerate(rows)], strict=True), strict=True))
    half = len(rows) // 2
    chunked = {
        name: pa.chunked_array([pa.array(cells[:half], pa.large_string()), pa.array(cells[half:], pa.large_string())])
        for name, cells in columns.items()
    }
    np.testing.assert_array_equal(ArrowRows(features_of(table)).read(chunked), table.x)


TYPED = pa.table(
    {
        "whole": pa.array([1, 2, None, 4] * 5, pa.int32()),
        "money": pa.array([Decimal("1.50"), Decimal("2.25"), None, Decimal("0.00")] * 5, pa.decimal128(9, 2)),
        "wide": pa.array([1e30, -2.5, float("nan"), 0.0] * 5, pa.float64()),
        "narrow": pa.array([1.5, -2.5, None, 0.0] * 5, pa.float32()),
        "flag": pa.array([True, None, False, True] * 5),
        "digit": pa.array([0, 1, 1, None] * 5, pa.int8()),
        "code": pa.array([7.0, 8.0, None, 9.5] * 5),
        "town": pa.array(["Oslo", "", None, " Rome"] * 5).dictionary_encode(),
        "binary": pa.array([True, False, None, True] * 5),
        "day": pa.array([date(2024, 2, 29), date(1969, 1, 1), None, date(2000, 1, 1)] * 5),
        "moment": pa.array([datetime(2024, 2, 29, 13, 59, tzinfo=UTC), None] * 10, pa.timestamp("ns", "Asia/Tokyo")),
        "y": pa.array(["p", "q"] * 10),
    }
)


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    path = tmp_path_factory.mktemp("typed") / "t.parquet"
    pa.parquet.write_table(TYPED, path)
    return load(DataOptions(str(path), categorical=("code", "binary"), boolean=("digit",)))


def test_columns_of_every_type_are_read_as_training_reads_them(typed):
    assert set(typed.features) == set(TYPED.column_names) - {"y"}
    reader = ArrowRows(features_of(typed))
    np.testing.assert_array_equal(reader.read({name: TYPED[name] for name in TYPED.column_names}), typed.x)
    sliced = TYPED.slice(3, 5)
    np.testing.assert_array_equal(reader.read({name: sliced[name] for name in TYPED.column_names}), typed.x[3:8])
    empty = TYPED.slice(0, 0)
    assert reader.read({name: empty[name] for name in TYPED.column_names}).shape == (0, len(typed.columns))


def test_a_category_that_training_has_not_seen_gets_the_reserved_code(typed):
    columns = {name: TYPED[name] for name in TYPED.column_names} | {"town": pa.array(["Paris"] * 20)}
    town = typed.features.index("town")
    read = ArrowRows(features_of(typed)).read(columns)
    assert set(read[:, town]) == {len(typed.columns[town].categories)}


FEATURES = (
    {"name": "n"},
    {"name": "t", "reading": {"decimal": ",", "unit": "€"}},
    {"name": "b", "kind": "boolean"},
    {"name": "c", "kind": "categorical", "categories": ["x", "y"]},
    {"name": "i", "kind": "categorical", "categories": [1, 2], "missing": True},
    {"name": "d", "kind": "time", "reading": {"origin": "2000-01-01"}, "missing": True},
)
ACCEPTED = {"n": 1.5, "t": "2,5 €", "b": True, "c": "x", "i": 2, "d": "2001-01-01"}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[("n", "1.5"), ("n", None), ("n", 1e39), ("n", True)],
        *[("t", "2.5"), ("t", "1e400"), ("t", ""), ("t", True)],
        *[("b", "true"), ("b", 2), ("b", None)],
        *[("c", 1), ("c", None)],
        *[("i", "1"), ("d", "2001-13-01"), ("d", "01/02/2001"), ("d", 5)],
    ],
)
def test_a_value_that_the_service_refuses_is_refused_with_the_same_text(column, value):
    features = manifest(features=FEATURES).features
    reader = ArrowRows(features)
    good = {name: pa.array([cell]) for name, cell in ACCEPTED.items()}
    np.testing.assert_array_equal(reader.read(good), by_json(features, [ACCEPTED]))
    with pytest.raises(InvalidInput) as by_service:
        by_json(features, [ACCEPTED | {column: value}])
    # All cells of an Arrow column have one type, so the row is the first row.
    with pytest.raises(InvalidInput) as refused:
        reader.read(good | {column: pa.array([value])})
    assert str(refused.value) == str(by_service.value)


def test_infinity_and_missing_columns_and_other_types_are_refused():
    features = manifest(features=FEATURES).features
    good = {name: pa.array([cell] * 2) for name, cell in ACCEPTED.items()}
    for column, cells, reason in (
        ("n", pa.array([0.0, float("inf")]), "row 11, column 'n' is infinite"),
        ("n", pa.array([0.0, float("inf")], pa.float32()), "row 11, column 'n' is infinite"),
        ("n", pa.array([[1], [2]]), r"column 'n' has the type list<.*>, which no feature has"),
        ("d", pa.array([datetime(2001, 1, 1, tzinfo=UTC)] * 2), "row 10, column 'd' is not a date or time as in"),
        ("b", pa.array([date(2001, 1, 1)] * 2), "row 10, column 'b' is neither true nor false"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            ArrowRows(features).read(good | {column: cells}, first_row=10)
    del good["c"]
    with pytest.raises(InvalidInput, match="the table lacks the feature 'c'"):
        ArrowRows(features).read(good)


def test_each_refused_row_has_the_reason_of_its_first_bad_column():
    features = manifest(features=FEATURES).features
    columns = {name: pa.array([cell] * 3) for name, cell in ACCEPTED.items()}
    columns |= {"n": pa.array([1.5, None, 1e300]), "c": pa.array(["x", None, "z"])}
    rows, refused = ArrowRows(features).read_accepted(columns)
    assert refused == {
        1: "column 'n' is null, and the feature has no missing values",
        2: "column 'n' is too large for float32",
    }
    np.testing.assert_array_equal(rows[:1], by_json(features, [ACCEPTED]))
