"""From cells to a table: kinds, categories, missing values, labels, and a test file that is read by the schema."""

import csv
import io
import math
from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import datasets

from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.table import schema
from foldserve.training.table.load import load, load_held_out, load_test
from foldserve.training.table.split import split_rows

Y = ["p", "q"] * 5  # of ten rows


@pytest.fixture
def write(tmp_path):
    """Write columns of equal length as a CSV; the target is the last."""

    def to(columns, name="table.csv"):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
        return tmp_path / name

    return to


@pytest.fixture
def load_columns(write):
    def loaded(columns, **options):
        return load(DataOptions(str(write(columns)), **options))

    return loaded


def test_digits_is_scikit_learn_s_with_its_labels_as_numbers():
    table = load(DataOptions("digits"))
    raw = datasets.load_digits()
    np.testing.assert_array_equal(table.x, raw.data)
    np.testing.assert_array_equal(table.y, raw.target)
    assert table.labels == tuple(range(10))
    assert all(type(label) is int for label in table.labels)
    assert table.features == tuple(raw.feature_names)
    assert table.notes == ("constant, and so useless: pixel_0_0, pixel_4_0, pixel_4_7",)


def test_names_stay_names():
    assert load(DataOptions("iris")).labels == ("setosa", "versicolor", "virginica")


def test_a_regression_has_no_labels():
    table = load(DataOptions("diabetes"))
    assert (table.task, table.labels, table.y.dtype) == ("regression", (), np.float64)


def test_an_unknown_source_is_refused_and_the_known_ones_named():
    with pytest.raises(DataError, match=r"unknown source 'mnist': expected .*digits"):
        load(DataOptions("mnist"))


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
        ([*"12345bcdef"], {}, "looks numeric, but 5 of 10 cells"),
        ([*"bcdefghij1"], {"numeric": ("a",)}, "column 'a' must be numeric, but 9 of 10 .* row 1: 'b'"),
        ([*"010101010", "x"], {"boolean": ("a",)}, "column 'a' must be boolean, but row 10 is 'x'"),
        ([*"12345678", "9007199254740993", ""], {}, r"column 'a': row 9 is 9007199254740993, .* past 2\^53"),
        ([*"12345678", "inf", "1"], {}, "column 'a': row 9 is infinite"),
        ([*"12345678", "1e39", "1"], {}, "column 'a': row 9 is too large"),
        ([*"12345678", "1e400", "1"], {}, "column 'a': row 9 is too large"),
    ],
)
def test_a_column_that_is_a_mistake_is_named_by_column_and_row(load_columns, column, options, reason):
    with pytest.raises(DataError, match=reason):
        load_columns({"a": column, "b": [*"0123456789"], "y": Y}, **options)


def test_what_the_reader_decides_is_noted(write):
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
        "dropped, because no row has a value: none",
        "constant, and so useless: same",
    )
    assert len(load(DataOptions(path, categorical=("id",))).columns[0].categories) == rows


def test_only_the_most_frequent_categories_are_kept(load_columns):
    names = [f"c{number:04}" for number in range(5000)]
    column = names + names[900:]  # c0900 and later twice
    table = load_columns({"a": column, "y": ["p", "q"] * (len(column) // 2)}, categorical=("a",))
    (kept,) = table.columns
    assert len(kept.categories) == 4096
    assert kept.categories == tuple(names[900:4996])  # of 4,100 that are there twice, the first by name
    assert (table.x == 4096).sum() == len(column) - 2 * 4096
    assert "the 4,096 most frequent are kept" in table.notes[0]


def test_the_order_of_the_rows_decides_no_category(load_columns):
    first = load_columns({"a": [*"bbaaccbbaa"], "y": Y})
    other = load_columns({"a": [*"aabbccaabb"], "y": Y})
    assert first.columns == other.columns


@pytest.mark.parametrize(
    ("target", "options", "task", "labels"),
    [
        ([*"0123401234"] * 2, {}, "classification", (0, 1, 2, 3, 4)),
        (["1.0", "2.0"] * 10, {}, "classification", (1, 2)),
        (["True", "false"] * 10, {}, "classification", (False, True)),
        (["NA", "nan"] * 10, {}, "classification", ("NA", "nan")),
        ([*map(str, range(30))], {}, "regression", ()),
        (["0.5", "1.5"] * 10, {}, "regression", ()),
        (["0.5", "1.5"] * 10, {"task": "classification"}, "classification", (0.5, 1.5)),
        ([*"0123401234"] * 2, {"task": "regression"}, "regression", ()),
        (["01", "2", "x"] * 10, {"task": "classification"}, "classification", ("01", "2", "x")),
    ],
)
def test_task_and_labels(load_columns, target, options, task, labels):
    table = load_columns({"a": range(len(target)), "y": target}, **options)
    assert (table.task, table.labels) == (task, labels)
    assert [type(label) for label in table.labels] == [type(label) for label in labels]
    if labels:
        assert [str(table.labels[y]).lower() for y in table.y] == [
            text.lower().removesuffix(".0") for text in map(str, target)
        ]


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ([*"pqpqpqpqp", ""], {}, "column 'y', the target: row 10 has no value"),
        ([*"0101", "nan", *"01010"], {}, "the target: row 5 has no value"),
        ([*"0101", "inf", *"01010"], {"task": "classification"}, "the target: row 5 is infinite"),
        (["0.5", "1", "inf", *"0123456"], {}, "column 'y': row 3 is infinite"),
        (["0.5", "1", " ", *"0123456"], {}, "the target: row 3 has no value"),
        (["p"] * 10, {}, "has only one class, 'p'"),
        (["1"] * 10, {"task": "regression"}, "has only one value, 1"),
        ([*"ppppqqqqr", "r"], {}, "class 'r' has 2 rows: it needs 3"),
        ([*"ppppppppp", "r"], {}, "class 'r' has 1 row: it needs 3"),
        ([*"012345678", "x"], {}, "looks numeric, but 1 of 10 cells .* row 10: 'x'; correct them, or use --task"),
        (Y, {"task": "regression"}, "column 'y' must be numeric"),
        (Y, {"target": "z"}, "--target: table.csv has no column 'z'; it has a, y"),
        (Y, {"drop": ("y",)}, "--drop: column 'y' is the target"),
        (Y, {"categorical": ("b",)}, "--categorical: table.csv has no column 'b'"),
        (Y, {"drop": ("a",)}, "no feature besides the target, 'y'"),
    ],
)
def test_what_can_t_be_learned_is_refused(load_columns, target, options, reason):
    with pytest.raises(DataError, match=reason):
        load_columns({"a": range(10), "y": target}, **options)


def test_group_is_no_feature_and_time_is_one_if_it_is_a_number(load_columns):
    columns = {"a": range(10), "who": [*"aabbccddee"], "t": range(10), "day": ["2024-01-02", "2024-01-01"] * 5, "y": Y}
    grouped = load_columns(columns, group="who", drop=("day",))
    assert grouped.features == ("a", "t")
    assert len(set(grouped.group)) == 5
    numbered = load_columns(columns, time="t", drop=("day", "who"))
    assert numbered.features == ("a", "t")
    np.testing.assert_array_equal(numbered.time, range(10))
    dated = load_columns(columns, time="day", drop=("who",))
    assert dated.features == ("a", "t")
    np.testing.assert_array_equal(dated.time[::2] - dated.time[1::2], [86_400_000_000] * 5)
    with pytest.raises(DataError, match="column 'who' is not a time"):
        load_columns(columns, time="who")
    with pytest.raises(DataError, match="column 'who', the group: row 1 has no value"):
        load_columns(columns | {"who": ["", *"abcdefghi"]}, group="who")


def test_parquet_says_what_its_cells_are(tmp_path):
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
        ([datetime(2024, 1, 1)] * 10, "column 'a' is a date or time"),
        ([[1]] * 10, r"column 'a' has the type list.*, which can't be a feature: use --drop a"),
        ([2**53 + 1, *range(9)], "column 'a': row 1 is 9007199254740993"),
        ([1e39, *[1.0] * 9], "column 'a': row 1 is too large"),
    ],
)
def test_parquet_with_what_is_no_feature_is_refused(tmp_path, cells, reason):
    pa.parquet.write_table(pa.table({"a": cells, "y": Y}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=reason):
        load(DataOptions(str(tmp_path / "t.parquet")))


def test_a_test_file_is_encoded_by_the_table_s_schema(write):
    train = write({"n": range(10), "c": [*"aabbaabba", ""], "y": Y}, "train.csv")
    test = write({"y": ["q", "p", "q"], "extra": [1, 2, 3], "c": ["zebra", "", "b"], "n": [1.5, 2, 3]}, "test.csv")
    options = DataOptions(str(train), test=test)
    table = load(options)
    assert table.notes == ("columns of test.csv that are not in the table: extra",)
    parts = split_rows(table, test=0, validation=0.2, seed=0)
    held_out = load_held_out(options, table, parts)
    assert (held_out.columns, held_out.labels) == (table.columns, table.labels)
    np.testing.assert_array_equal(held_out.y, [1, 0, 1])
    np.testing.assert_array_equal(held_out.x, np.array([[1.5, 2], [2, np.nan], [3, 1]], "f4"))


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ({"n": ["", 1], "c": "ab", "y": "pq"}, "test.csv: column 'n': row 1 has no value, but every row"),
        ({"n": [0, 1], "c": "ab", "y": "pr"}, "test.csv: column 'y', the target: row 2 is 'r', not a class"),
        ({"n": [0, 1], "c": "ab", "y": ["p", ""]}, "the target: row 2 has no value"),
        ({"n": [0, "x"], "c": "ab", "y": "pq"}, "column 'n' must be numeric"),
        ({"n": [0], "c": "a", "y": "p"}, "has 1 row"),
    ],
)
def test_a_test_file_that_does_not_fit_is_refused(write, test, reason):
    options = DataOptions(
        str(write({"n": range(10), "c": [*"aabbaabbab"], "y": Y}, "train.csv")), test=write(test, "test.csv")
    )
    table = load(options)
    with pytest.raises(DataError, match=reason):
        load_test(options, table)


def test_a_test_file_that_lacks_a_column_is_refused_before_the_training(write):
    train = str(write({"n": range(10), "c": [*"aabbaabbab"], "y": Y}, "train.csv"))
    with pytest.raises(DataError, match=r"test.csv has no column 'c', a column of the training table; it has n, y"):
        load(DataOptions(train, test=write({"n": [1], "y": ["p"]}, "test.csv")))
    with pytest.raises(DataError, match="no such file"):
        load(DataOptions(train, test=write({"n": [1], "y": ["p"]}).with_name("none.csv")))


def test_numbers_as_labels_and_categories_are_found_in_a_test_file(write):
    train = write({"c": [3, 4] * 5, "y": [0, 1] * 5}, "train.csv")
    options = DataOptions(str(train), categorical=("c",), test=write({"c": [4, 5], "y": ["1", "0.0"]}, "test.csv"))
    table = load(options)
    held_out = load_test(options, table)
    assert held_out.x.ravel().tolist() == [1, 2]
    assert held_out.y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["007", "008"], ("007", "008")),
        (["01", "1"], ("01", "1")),
        ([f"{code:03}" for code in range(30)], tuple(f"{code:03}" for code in range(30))),
    ],
    ids=["two", "that differ by a zero alone", "many"],
)
def test_codes_as_labels_stay_what_they_are(load_columns, cells, labels):
    table = load_columns({"a": range(10 * len(cells)), "y": cells * 10})
    assert (table.task, table.labels) == ("classification", labels)


@pytest.mark.parametrize("cells", [["01", "02"], ["1.0", "nan"], ["3", "4"]], ids=str)
def test_a_text_in_parquet_is_a_label_as_it_is(tmp_path, cells):
    pa.parquet.write_table(pa.table({"a": range(10), "y": cells * 5}), tmp_path / "t.parquet")
    options = DataOptions(str(tmp_path / "t.parquet"), test=tmp_path / "t.parquet")
    table = load(options)
    assert table.labels == tuple(cells)
    assert load_test(options, table).y.tolist() == [0, 1] * 5


def test_a_label_is_found_in_a_test_file_however_it_is_written(write):
    train = write({"n": range(10), "y": ["0.5", "1"] * 5}, "train.csv")
    test = write({"n": [1, 2], "y": ["1", "1.0"]}, "test.csv")
    options = DataOptions(str(train), test=test, task="classification")
    assert load_test(options, load(options)).y.tolist() == [1, 1]
    truths = write({"n": [1, 2], "y": ["true", "true"]}, "truths.csv")
    with pytest.raises(DataError, match="not a class of the training table"):
        load_test(replace(options, test=truths), load(options))


@pytest.mark.parametrize("marker", ["NA", "n/a", "?", "NULL"])
def test_numbers_that_are_mostly_missing_are_not_taken_for_names(load_columns, marker):
    with pytest.raises(DataError, match="column 'a' looks numeric, but 7 of 10 cells are not numbers"):
        load_columns({"a": [marker] * 7 + ["1.5", "2", "3"], "y": Y})
    assert load_columns({"a": [marker] * 5 + ["u", "v", "w", "x", "1"], "y": Y}).columns[0].kind == "categorical"


def test_dates_as_categories_are_noted(load_columns):
    table = load_columns({"a": ["2024-01-31", "2024-02-01T12:00"] * 5, "y": Y})
    assert table.columns[0].kind == "categorical"
    assert table.notes == (
        "column 'a' contains dates and is categorical, so that a later date is an unknown category; turn it into a "
        "number, use --time a to split by it, or --drop a",
    )


NANOSECONDS = pa.array([1_700_000_000_123_456_789, 1_700_000_000_123_456_790] * 5, pa.timestamp("ns"))
DAYS = pa.array([19_000, 19_001] * 5, pa.int32()).cast(pa.date32())


@pytest.mark.parametrize("cells", [NANOSECONDS, DAYS], ids=["timestamp", "date"])
def test_moments_declared_categories_are_texts(tmp_path, cells):
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


def test_the_hash_is_of_schema_and_values():
    table = load(DataOptions("iris"))
    assert table.sha256() == load(DataOptions("iris")).sha256()
    changed = table.x.copy()
    changed[0, 0] += 1
    assert replace(table, x=changed).sha256() != table.sha256()
    assert replace(table, columns=table.columns[::-1]).sha256() != table.sha256()


def test_progress_goes_from_reading_to_the_last_column(write):
    seen = []
    load(DataOptions(str(write({"a": range(10), "b": range(10), "y": Y}))), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


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
def test_any_column_is_what_an_independent_reading_of_it_says(write, column):
    """An oracle in plain Python: `csv` and `float`."""
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
