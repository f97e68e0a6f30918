"""The cells of a training row are posted as texts. The server reads exactly the numbers that the training read."""

import csv
import io
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.training.certify.manifest import describe_features
from foldserve.training.cli import main
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load
from tests.service.support import manifest, serving

JSON = {b"content-type": b"application/json"}


def codec(table):
    features = [feature.model_dump() for feature in describe_features(table.columns, table.x)]
    return FriendlyCodec(manifest(features=features), max_rows=10_000)


def decode(reader, rows):
    return reader.decode(JSON, orjson.dumps({"instances": rows})).rows


def grouped(decimal, thousands, pattern):
    """Draw texts of numbers with two digits after the decimal mark, so that the texts show their notation."""
    marks = str.maketrans({".": decimal, ",": thousands})
    return st.integers(-(10**8), 10**8).map(lambda n: pattern.format(f"{n / 100:,.2f}".translate(marks)))


COLUMNS = (
    grouped(".", ",", "{}"),
    grouped(",", ".", "{}"),
    grouped(",", "\u202f", "{} €"),
    grouped(".", ",", "$ {}"),
    grouped(".", "'", "{}%"),
    st.floats(-1e30, 1e30, allow_subnormal=False).map(repr),
    st.integers(0, 99).map("({})".format) | st.just("7"),
    st.sampled_from(["true", " False", "TRUE"]),
    st.dates().map(str),
    st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1)).map(lambda moment: moment.isoformat(" ", "minutes")),
    st.datetimes(datetime(1950, 1, 1), timezones=st.just(timezone(timedelta(hours=-5)))).map(datetime.isoformat),
    st.sampled_from(["a", " a", "b,c", "é", "\u00a0x"]),
)
BLANK = st.sampled_from(["", "  ", "?", " ?", "-1"])


@st.composite
def tables(draw):
    kinds = draw(st.lists(st.sampled_from(range(12)), min_size=1, max_size=4))
    strategies = [COLUMNS[kind] for kind in kinds]
    columns = [draw(st.lists(strategy, min_size=8, max_size=8)) for strategy in strategies]
    for column in columns:
        for place in draw(st.lists(st.integers(0, 7), max_size=2)):
            column[place] = draw(BLANK)
    return list(zip(*columns, strict=True))


@given(tables())
def test_a_training_row_posted_as_its_cells_is_read_as_in_training(rows):
    out = io.StringIO()
    names = [f"c{place}" for place in range(len(rows[0]))]
    csv.writer(out).writerows([[*names, "n", "y"], *([*row, i, i % 2] for i, row in enumerate(rows))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_text(out.getvalue(), encoding="utf-8", newline="")
        table = load(DataOptions(str(path), missing=("?", "-1")))
    used = [(*names, "n").index(column.name) for column in table.columns]
    cells = [[(*row, str(i))[place] for place in used] for i, row in enumerate(rows)]
    reader = codec(table)
    np.testing.assert_array_equal(decode(reader, cells), table.x)
    named = [dict(zip(table.features, row, strict=True)) for row in cells]
    np.testing.assert_array_equal(decode(reader, named), table.x)
    np.testing.assert_array_equal(np.vstack([decode(reader, [row]) for row in cells]), table.x)


@pytest.fixture
def townspeople(tmp_path):
    """A table of numbers, categories and booleans with two texts for missing values, `?` and `-9`."""
    rows = [("Oslo", "1", "true", "7"), ("?", "2", "?", "-9"), ("Rome", "3", "false", "8")] * 4
    path = tmp_path / "t.csv"
    path.write_text("town,size,member,n,y\n" + "".join(f"{','.join(row)},{i % 2}\n" for i, row in enumerate(rows)))
    return load(DataOptions(str(path), categorical=("size",), missing=("?", "-9")))


@pytest.mark.parametrize("missing", ["?", " ? ", "", " ", None])
def test_a_missing_text_is_read_as_null(townspeople, missing):
    reader = codec(townspeople)
    assert np.isnan(decode(reader, [[missing, "1", missing, missing]])[0]).tolist() == [True, False, True, True]


def test_a_number_that_means_missing_is_read_as_null(townspeople):
    assert np.isnan(decode(codec(townspeople), [["Oslo", 1, True, -9]])[0, 3])
    large = [["Oslo", 1, True, -9.0], ["Oslo", 1, True, 7]] * 200
    assert np.isnan(decode(codec(townspeople), large)[:, 3]).tolist() == [True, False] * 200


def test_numbers_alone_that_mean_missing_are_found_in_a_large_body(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + "".join(f"{i % 4 - 1},{i},{i % 2}\n" for i in range(12)))
    reader = codec(load(DataOptions(str(path), missing=("-1",))))
    read = decode(reader, [[-1, 5], [3, 4]] * 1000)
    assert np.isnan(read).tolist() == [[True, False], [False, False]] * 1000


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["Oslo", "1", "maybe", "7"], "row 0, column 'member' is neither true nor false"),
        (["Oslo", "1", "true", "seven"], "row 0, column 'n' is not a number"),
        (["Oslo", "1", "true", "1,5"], "row 0, column 'n' is not a number"),
        (["Oslo", "1", "true", "1e400"], "row 0, column 'n' is not a number"),
        (["Oslo", "?", "true", "7"], "row 0, column 'size' is null, and the feature has no missing values"),
    ],
)
def test_a_text_that_training_would_refuse_is_refused(townspeople, row, reason):
    with pytest.raises(InvalidInput, match=reason):
        decode(codec(townspeople), [row])
    with pytest.raises(InvalidInput, match=reason.replace("row 0", "row 1")):
        decode(codec(townspeople), [["Oslo", "1", "true", "7"], row])


def test_a_typed_table_accepts_no_texts_as_numbers(tmp_path):
    table = pa.table({"n": range(10), "b": [True, False] * 5, "y": ["p", "q"] * 5})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    reader = codec(load(DataOptions(str(tmp_path / "t.parquet"))))
    for row in (["1", True], [1, "true"]):
        with pytest.raises(InvalidInput):
            decode(reader, [row])


def test_a_server_answers_the_cells_of_a_training_row_as_training_does(tmp_path):
    generator = np.random.default_rng(1)
    lines = ["price,share,seen,sold,town,y"]
    for row in range(120):
        price = "?" if row % 11 == 0 else f'"${generator.integers(100, 9_000_000) / 100:,.2f}"'
        share = f"{generator.integers(0, 1000) / 10}%"
        seen = f"2024-{row % 12 + 1:02}-{row % 28 + 1:02} {row % 24:02}:30"
        lines.append(f"{price},{share},{seen},{('true', 'False', '?')[row % 3]},{('a', ' b', '?')[row % 3]},{row % 2}")
    (tmp_path / "sales.csv").write_text("\n".join(lines), encoding="utf-8")
    source, models = str(tmp_path / "sales.csv"), tmp_path / "models"
    assert main(["fit", source, "--missing", "?", "--epochs", "3", "--models", str(models)]) == 0
    table = load(DataOptions(source, missing=("?",)))
    (expected,) = ort.InferenceSession(models / "sales" / "1" / "model.onnx").run(None, {"input": table.x})
    rows = list(csv.DictReader(lines))
    posted = [{name: row[name] for name in table.features} for row in rows]
    with serving(models, tmp_path / "log") as server:
        answer = httpx.post(f"{server.url}/predict", json={"instances": posted}).raise_for_status().json()
        nulls = [{name: None if cell == "?" else cell for name, cell in row.items()} for row in posted]
        again = httpx.post(f"{server.url}/predict", json={"instances": nulls}).raise_for_status().json()
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-5, atol=1e-6)
    assert again == answer


def test_a_percentage_needs_its_sign_unless_it_is_zero(tmp_path):
    lines = ["share,y", *(f"{row % 90}%,{'pq'[row % 2]}" for row in range(40))]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    reader = codec(load(DataOptions(str(tmp_path / "t.csv"))))
    assert decode(reader, [["45%"], ["-4.5 %"], ["%7"], ["0"], [45]]).tolist() == [[45], [-4.5], [7], [0], [45]]
    for text in ("0.45", "45"):
        with pytest.raises(InvalidInput, match="'share' is not a number"):
            decode(reader, [[text]])
