"""Tests dates and times as features: their kind, the numbers that they become, and a model that uses their parts."""

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import onnxruntime as ort
import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest

from foldserve.service import bundle
from foldserve.service.bundle import Reading
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.friendly import FriendlyCodec, example
from foldserve.training.cli import main
from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.summary import describe_table
from foldserve.training.table.load import load, load_test
from tests.training.table.support import Y

DAYS = ["2024-03-01", "2024-02-29"] * 5
HOURS = ["2024-03-01 13:45", "2024-02-29T00:00:59.999"] * 5
ZONED = ["2024-03-01T13:45:00+02:00", "2024-02-29T23:30:00Z"] * 5


@pytest.mark.parametrize(
    ("cells", "reading", "numbers", "said"),
    [
        (DAYS, {"step": "day"}, [60, 59], "1 time (a in days)"),
        (HOURS, {"step": "hour"}, [60 * 24 + 13, 59 * 24], "1 time (a in hours)"),
        (ZONED, {"step": "hour", "zoned": True}, [60 * 24 + 11, 59 * 24 + 23], "1 time (a in hours)"),
    ],
)
def test_a_column_of_iso_texts_is_a_time(load_columns, cells, reading, numbers, said):
    table = load_columns({"a": cells, "y": Y})
    (column,) = table.columns
    assert (column.kind, column.reading) == ("time", Reading(origin=date(2024, 1, 1), **reading))
    assert table.x[:, 0].tolist() == numbers * 5
    assert said in describe_table(table)


@pytest.mark.parametrize(
    ("cells", "reading", "numbers"),
    [
        (pa.array([date(2024, 3, 1), None] * 5), {"step": "day"}, [60, np.nan]),
        (pa.array([datetime(2024, 3, 1, 13, 45), None] * 5), {"step": "hour"}, [60 * 24 + 13, np.nan]),
        (
            pa.array([datetime(2024, 3, 1, 1, tzinfo=timezone(timedelta(hours=2))), None] * 5),
            {"step": "hour", "zoned": True},
            [59 * 24 + 23, np.nan],
        ),
        (pa.array([datetime(2024, 3, 1)] * 10, pa.timestamp("ns")), {"step": "day"}, [60, 60]),
    ],
)
def test_a_column_of_typed_times_is_a_time(tmp_path, cells, reading, numbers):
    pa.parquet.write_table(pa.table({"a": cells, "n": range(10), "y": Y}), tmp_path / "t.parquet")
    table = load(DataOptions(str(tmp_path / "t.parquet")))
    assert table.columns[0].kind == "time"
    assert table.columns[0].reading == Reading(origin=date(2024, 1, 1), **reading)
    np.testing.assert_array_equal(table.x[:, 0], np.array(numbers * 5, np.float32))


@pytest.mark.parametrize(
    "cells",
    [["2024-02-30", "2024-03-01"], ["2024-03-01T10:00Z", "2024-03-01T10:00"], ["2024-03-01", "soon"], ["2024-03", "x"]],
)
def test_texts_that_are_not_times_stay_categories(load_columns, cells):
    assert load_columns({"a": cells * 5, "y": Y}).columns[0].kind == "categorical"


def test_dates_can_be_categories_or_decide_the_split(load_columns):
    assert load_columns({"a": DAYS, "y": Y}, categorical=("a",)).columns[0].categories == ("2024-02-29", "2024-03-01")
    days = [f"2024-03-{day:02}" for day in range(1, 11)]
    table = load_columns({"a": days, "n": range(10), "y": Y}, time="a")
    assert table.features == ("n",)


def test_a_test_file_has_the_times_of_the_training_table(write):
    train = write({"a": HOURS, "y": Y}, "train.csv")
    options = DataOptions(str(train), test=write({"a": ["2025-01-01", "2023-12-31 23:59"], "y": "pq"}, "test.csv"))
    table = load(options)
    assert load_test(options, table).x[:, 0].tolist() == [366 * 24, -1]
    zoned = DataOptions(str(train), test=write({"a": ZONED, "y": Y}, "zoned.csv"))
    with pytest.raises(DataError, match=r"zoned.csv: column 'a' must be a date or time without a time zone"):
        load_test(zoned, table)


@pytest.mark.parametrize(
    ("reading", "text", "number"),
    [
        ({"step": "day"}, " 2024-01-02 ", 1),
        ({"step": "day"}, "2023-12-31T23:59", -1),
        ({"step": "hour"}, "2024-01-01", 0),
        ({"step": "hour", "zoned": True}, "2024-01-01T00:30+0100", -1),
        ({}, "", None),
        ({"missing": ("?",)}, "?", None),
    ],
)
def test_a_text_is_read_as_a_moment(reading, text, number):
    assert Reading(origin=date(2024, 1, 1), **reading).moment(text) == number


@pytest.mark.parametrize(
    "text", ["2024-1-1", "01.02.2024", "2024-02-30", "2024-01-01T00:00Z", "1704067200", "2024-W01-1", "9999-12-31T24"]
)
def test_another_text_is_not_a_moment(text):
    with pytest.raises(ValueError, match=r"not|zone|day|range|hour"):
        Reading(step="hour").moment(text)


def test_a_moment_is_written_as_it_is_read():
    for reading in (Reading(step="day"), Reading(step="hour"), Reading(step="hour", zoned=True)):
        for number in (-5, 0, 12_345):
            assert reading.moment(reading.moment_text(number)) == number


@pytest.fixture(scope="module")
def weekends(tmp_path_factory):
    """The bundle of a table in which the weekday and the hour decide the class. In some rows, the moment is missing."""
    folder = tmp_path_factory.mktemp("weekends")
    generator = np.random.default_rng(0)
    start, lines = datetime(2023, 5, 1, tzinfo=UTC).replace(tzinfo=None), ["when,n,open"]
    for hour in generator.integers(0, 24 * 500, 1500).tolist():
        moment = start + timedelta(hours=hour, minutes=7)
        is_open = moment.weekday() < 5 and 8 <= moment.hour < 18
        when = "" if generator.random() < 0.02 else moment.isoformat(" ")
        lines.append(f"{when},{generator.random():.3f},{'yes' if is_open else 'no'}")
    (folder / "shop.csv").write_text("\n".join(lines))
    arguments = ["--models", str(folder), "--epochs", "30", "--members", "2", "--bins", "16", "--binned", "all"]
    assert main(["fit", str(folder / "shop.csv"), *arguments]) == 0
    return bundle.read(folder / "shop" / "1")


def test_a_model_learns_the_week_and_the_day_from_one_number(weekends):
    assert weekends.manifest.metrics["test"]["accuracy"] > 0.93
    codec = FriendlyCodec(weekends.manifest, 100)
    rows = [["2025-03-05 11:00", 0.5], ["2025-03-08 11:00", 0.5], ["2025-03-05 23:00", 0.5], [None, 0.5]]
    read = codec.decode({}, orjson.dumps({"instances": rows})).rows
    (outputs,) = ort.InferenceSession(weekends.model).run(None, {"input": read})
    assert [weekends.manifest.labels[i] for i in outputs.argmax(1)][:3] == ["yes", "no", "no"]


def test_only_a_text_is_a_moment_in_a_request(weekends):
    codec = FriendlyCodec(weekends.manifest, 100)
    assert codec.decode({}, orjson.dumps({"instances": [example(weekends.manifest)]})).rows.shape == (1, 2)
    for value in (5, True, "tomorrow", "2025-03-05T11:00Z"):
        with pytest.raises(InvalidInput, match="row 0, column 'when' is not a date or time as in the training table"):
            codec.decode({}, orjson.dumps({"instances": [[value, 0.5]]}))
    raw = {b"content-type": b"application/octet-stream"}
    for number in (0.5, 2.0**25, -(2.0**25)):
        with pytest.raises(InvalidInput, match=r"row 0, column 'when' is not a whole number from -2\^24 to 2\^24"):
            codec.decode(raw, np.array([[number, 0.5]], "<f4").tobytes())
