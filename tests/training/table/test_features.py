"""Tests the features: kinds of columns, categories, missing values, and refused cells."""

import csv
import io
import math
import re
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.table import schema
from foldserve.training.table.load import load
from tests.training.table.support import Y


def test_kinds_are_inferred_and_values_encoded(load_columns):
    table = load_columns(
        {
            "n": ["1", "2.5", "-3e2", "", ".5", " 6 ", "nan", "+8", "9.", "0"],
            "b": ["true", "False", "", "TRUE", *["false"] * 6],
            "c": ["NA", "b", "a", "", "a", "a", "b", "nan", "a", "b"],
            "y": Y,
        }
    )
    nan = math.nan
    assert table.columns == (
        schema.Column("n", "numeric", (), missing=True),
        schema.Column("b", "boolean", (), missing=True),
        schema.Column("c", "categorical", ("NA", "a", "b", "nan"), missing=True),
    )
    assert table.x.dtype == np.float32
    np.testing.assert_array_equal(table.x[:, 0], np.array([1, 2.5, -300, nan, 0.5, 6, nan, 8, 9, 0], "f4"))
    np.testing.assert_array_equal(table.x[:, 1], [1, 0, nan, 1, *[0] * 6])
    np.testing.assert_array_equal(table.x[:, 2], [0, 2, 1, nan, 1, 1, 2, 3, 1, 2])
    assert (table.task, table.target, table.labels) == ("classification", "y", ("p", "q"))


def test_kinds_can_be_declared(load_columns):
    columns = {"a": [*"1223344556"], "b": [*"0101010101"], "c": ["01", *["2"] * 9], "d": ["x"] * 10, "y": Y}
    table = load_columns(columns, categorical=("a", "c"), boolean=("b",), drop=("d",))
    assert table.columns == (
        schema.Column("a", "categorical", (1, 2, 3, 4, 5, 6)),
        schema.Column("b", "boolean"),
        schema.Column("c", "categorical", ("01", "2")),
    )


def test_missing_texts_make_a_column_numeric(load_columns):
    table = load_columns({"a": [*"12345678", "NA", "?"], "y": Y}, missing=("NA", "?"))
    assert table.columns == (schema.Column("a", "numeric", (), missing=True),)
    assert np.isnan(table.x[-2:]).all()


@pytest.mark.parametrize(
    ("column", "options", "reason"),
    [
        (
            [*"1234567", "n/a", "8", "n/a"],
            {},
            r"column 'a' looks numeric, but 2 of 10 cells are not numbers, the first in row 8: 'n/a'; "
            r"use --missing n/a, --categorical a or --drop a",
        ),
        ([*"12345bcdef"], {}, "looks numeric, but 5 of 10 cells"),  # pragma: allowlist secret
        ([*"bcdefghij1"], {"numeric": ("a",)}, "column 'a' must be numeric, but 9 of 10 .* row 1: 'b'"),
        ([*"010101010", "x"], {"boolean": ("a",)}, "column 'a' must be boolean, but row 10 is 'x'"),
        ([*"12345678", "9007199254740993", ""], {}, r"column 'a': row 9 is 9007199254740993, .* past 2\^53"),
        ([*"12345678", "inf", "1"], {}, "column 'a': row 9 is infinite"),
        ([*"12345678", "1e39", "1"], {}, "column 'a': row 9 is too large"),
        ([*"12345678", "1e400", "1"], {}, "column 'a': row 9 is too large"),
    ],
)
def test_a_bad_cell_is_refused_with_its_column_and_row(load_columns, column, options, reason):
    with pytest.raises(DataError, match=reason):
        load_columns({"a": column, "b": [*"0123456789"], "y": Y}, **options)


def test_decisions_of_the_reader_are_noted(write):
    rows = 50
    columns = {
        "id": [f"person {row}" for row in range(rows)],
        "none": [""] * rows,
        "same": ["7"] * rows,
        "seconds": [str(1_700_000_001 + row) for row in range(rows)],
        "y": ["p", "q"] * (rows // 2),
    }
    path = str(write(columns))
    table = load(DataOptions(path))
    assert table.features == ("same", "seconds")
    assert table.notes == (
        "column 'id' was dropped: most of its values are different (50 texts in 50 rows); use --categorical id to "
        "keep it",
        "column 'seconds' is rounded to float32, by up to 64 at 1.70000005e+09",
        "column 'seconds' looks like an identifier: it rises or falls with every row; if a new row would not have it, "
        "use --drop seconds",
        "dropped, because no row has a value: none",
        "constant, and so useless: same",
    )
    assert len(load(DataOptions(path, categorical=("id",))).columns[0].categories) == rows


def test_only_the_most_frequent_categories_are_kept(load_columns):
    names = [f"c{number:04}" for number in range(5000)]
    column = names + names[900:]  # the names from c0900 on occur twice
    table = load_columns({"a": column, "y": ["p", "q"] * (len(column) // 2)}, categorical=("a",))
    (kept,) = table.columns
    assert len(kept.categories) == 4096
    # 4,100 names occur twice, and the first 4,096 of these names are kept.
    assert kept.categories == tuple(names[900:4996])
    assert (table.x == 4096).sum() == len(column) - 2 * 4096
    assert "the 4,096 most frequent are kept" in table.notes[0]


def test_the_order_of_the_rows_does_not_change_the_categories(load_columns):
    first = load_columns({"a": [*"bbaaccbbaa"], "y": Y})
    other = load_columns({"a": [*"aabbccaabb"], "y": Y})
    assert first.columns == other.columns


def test_parquet_columns_keep_their_types(tmp_path):
    columns = {
        "text": pa.array([*"1212121212"]),
        "dictionary": pa.array([*"abababab", None, "a"]).dictionary_encode(),
        "flag": pa.array([True, None] * 5),
        "whole": pa.array([*range(9), None], pa.int16()),
        "half": pa.array(np.arange(10, dtype=np.float16)),
        "y": pa.array([True, False] * 5),
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = load(DataOptions(str(tmp_path / "t.parquet")))
    assert table.columns == (
        schema.Column("text", "categorical", (1, 2)),
        schema.Column("dictionary", "categorical", ("a", "b"), missing=True),
        schema.Column("flag", "boolean", (), missing=True),
        schema.Column("whole", "numeric", (), missing=True),
        schema.Column("half", "numeric"),
    )
    assert table.labels == (False, True)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([[1]] * 10, r"column 'a' has the type list.*, which can't be a feature: use --drop a"),
        ([2**53 + 1, *range(9)], "column 'a': row 1 is 9007199254740993"),
        ([1e39, *[1.0] * 9], "column 'a': row 1 is too large"),
    ],
)
def test_a_parquet_column_that_can_t_be_a_feature_is_refused(tmp_path, cells, reason):
    pa.parquet.write_table(pa.table({"a": cells, "y": Y}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=reason):
        load(DataOptions(str(tmp_path / "t.parquet")))


@pytest.mark.parametrize("marker", ["NA", "n/a", "?", "NULL"])
def test_mostly_missing_numbers_are_not_taken_for_categories(load_columns, marker):
    with pytest.raises(DataError, match="column 'a' looks numeric, but 7 of 10 cells are not numbers"):
        load_columns({"a": [marker] * 7 + ["1.5", "2", "3"], "y": Y})
    assert load_columns({"a": [marker] * 5 + ["u", "v", "w", "x", "1"], "y": Y}).columns[0].kind == "categorical"


TYPED_TEXTS = {
    "dates": (["2024-01-31", "2024-02-01T12:00"], "time", "which are all dates and are read as times; use --cat"),
    "money": (["$1,234.50", "$7"], "numeric", "which are all numbers and are read as numbers; use --cat"),
    "plain numbers": (["1.5", "7"], "categorical", "although all of them are numbers; use --numeric a to"),
    "numbers and a mark": (["1.5", "7", "8", "9", "?"], "categorical", "'\\?'; use --missing '\\?' and --numeric a"),
    "dates in another form": (["31.12.2024", "1.2.2025"], "categorical", "if it is written as 2024-12-31"),
    "codes": (["007", "013"], "categorical", None),
    "names": (["Oslo", "Rome"], "categorical", None),
}


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("name", TYPED_TEXTS)
def test_texts_of_a_typed_source_that_look_like_numbers_or_dates_are_noted(tmp_path, name, text):
    cells, kind, note = TYPED_TEXTS[name]
    made = pa.table({"a": pa.array((cells * 5)[:10], text), "y": pa.array(Y, text)})
    with pa.ipc.new_file(tmp_path / "t.arrow", made.schema) as file:
        file.write_table(made)
    table = load(DataOptions(str(tmp_path / "t.arrow")))
    assert table.columns[0].kind == kind
    if note is None:
        assert table.notes == ()
    else:
        assert re.search(note, table.notes[0])


@pytest.mark.parametrize("typed", [False, True])
def test_a_target_in_money_is_a_regression_and_a_target_of_digits_as_texts_is_classes(write, tmp_path, typed):
    for cells, task in ((["$1,234.50", "$7"] * 5, "regression"), ([*"12"] * 5, "classification")):
        source = write({"a": range(10), "y": cells})
        if typed:
            source = tmp_path / "t.parquet"
            pa.parquet.write_table(pa.table({"a": range(10), "y": cells}), source)
        assert load(DataOptions(str(source))).task == task


def test_a_table_with_a_single_column_is_refused_with_the_flag_for_separators(write):
    source = write({"a#b#y": [f"{row}#2#p" for row in range(10)]})
    with pytest.raises(DataError, match=r"table[.]csv has only one column, 'a#b#y'.*use --sep"):
        load(DataOptions(str(source)))


@pytest.mark.parametrize(
    ("time", "noted"), [("11:30", True), ("11:00:07", True), ("11:00", False), ("10:00:00", False)]
)
@pytest.mark.parametrize("typed", [False, True])
def test_times_that_are_not_whole_hours_are_noted(load_columns, tmp_path, time, noted, typed):
    cells = [f"2024-01-0{row} {time}" for row in range(1, 6)] * 2
    if typed:
        times = pa.array([datetime.fromisoformat(cell) for cell in cells])
        pa.parquet.write_table(pa.table({"a": times, "y": Y}), tmp_path / "t.parquet")
        table = load(DataOptions(str(tmp_path / "t.parquet")))
    else:
        table = load_columns({"a": cells, "y": Y})
    assert table.columns[0].kind == "time"
    assert table.notes == (("times are read in whole hours, so their minutes are not used: a",) if noted else ())


NANOSECONDS = pa.array([1_700_000_000_123_456_789, 1_700_000_000_123_456_790] * 5, pa.timestamp("ns"))
DAYS = pa.array([19_000, 19_001] * 5, pa.int32()).cast(pa.date32())


@pytest.mark.parametrize("cells", [NANOSECONDS, DAYS], ids=["timestamp", "date"])
def test_dates_declared_categorical_become_texts(tmp_path, cells):
    pa.parquet.write_table(pa.table({"a": cells, "n": range(10), "y": Y}), tmp_path / "t.parquet")
    source = str(tmp_path / "t.parquet")
    table = load(DataOptions(source, categorical=("a",)))
    assert [len(category) for category in table.columns[0].categories] in ([29, 29], [10, 10])
    assert table.x[:, 0].tolist() == [0, 1] * 5
    for options in (DataOptions(source, numeric=("a",)), DataOptions(source, boolean=("a",))):
        with pytest.raises(DataError, match="column 'a' must be"):
            load(options)
    assert load(DataOptions(source, target="a")).labels == table.columns[0].categories
    assert load(DataOptions(source, group="a")).group.tolist() == [0, 1] * 5


def test_advice_can_be_pasted_into_a_shell(load_columns):
    with pytest.raises(DataError, match="""--missing '"a, b"' --categorical""".replace("' --", "', --")) as refused:
        load_columns({"signed up": [*"1234567", "a, b", "8", "9"], "y": Y})
    assert str(refused.value).endswith("--categorical 'signed up' or --drop 'signed up'")


CELL = st.one_of(
    st.just(""),
    st.integers(-(10**9), 10**9).map(str),
    st.floats(-1e30, 1e30, allow_subnormal=False).map(repr),
    st.sampled_from(["true", "FALSE", "NA", "nan", "a", "b,c", 'q"', " x"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    column=st.one_of(
        st.lists(CELL, min_size=10, max_size=10), st.lists(CELL, min_size=2, max_size=2).map(lambda c: c * 5)
    )
)
def test_any_column_agrees_with_an_independent_reader(write, column):
    """The independent reader uses only `csv` and `float`."""
    path = write({"a": column, "z": range(10), "y": Y})
    (rows,) = [list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))]
    cells = [row["a"] for row in rows]

    def number(cell):
        try:
            return float(cell)
        except ValueError:
            return None

    present = [cell for cell in cells if cell]
    numbers = [cell for cell in present if number(cell) is not None]
    written = [cell for cell in numbers if cell != "nan"]
    truths = present and all(cell.lower() in ("true", "false") for cell in present)
    others = {cell.strip().lower() for cell in present if number(cell) is None}
    half = len(present) <= 2 * len(written) or (written and others <= {"na", "n/a", "null", "none", "?", "-"})
    mixed = not truths and len(numbers) < len(present) and half
    if mixed:
        with pytest.raises(DataError, match="column 'a' looks numeric"):
            load(DataOptions(str(path)))
        return
    table = load(DataOptions(str(path)))
    empty = not present or (len(numbers) == len(present) and all(math.isnan(number(cell)) for cell in present))
    assert table.features == (("z",) if empty else ("a", "z"))
    if empty:
        return
    if truths:
        expected = [{"true": 1, "false": 0}.get(cell.lower(), math.nan) for cell in cells]
    elif len(numbers) == len(present):
        expected = [number(cell) if cell else math.nan for cell in cells]
    else:
        assert table.columns[0].categories == tuple(sorted(set(present)))
        expected = [sorted(set(present)).index(cell) if cell else math.nan for cell in cells]
    np.testing.assert_array_equal(table.x[:, 0], np.array(expected).astype(np.float32))
