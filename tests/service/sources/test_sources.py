"""In each file format, every cell of a file is read. A file that can't be read gives a one-line error."""

import csv
import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foldserve.service import sources
from foldserve.service.errors import SourceError


@pytest.fixture
def write(tmp_path):
    def to(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return to


def cells(source, more=(), **options):
    found = sources.read(source, sources.ReadOptions(**options), more=more)
    return {name: found.take(name).to_pylist() for name in found.names}


def test_every_cell_keeps_its_text(write):
    path = write('a,b\n007,NA\n"1,5",nan\n,"two\nlines"\n')
    assert cells(path) == {"a": ["007", "1,5", None], "b": ["NA", "nan", "two\nlines"]}


def test_missing_texts_are_read_as_none(write):
    assert cells(write("a,b\nNA,1\n?,NAN\n"), missing=("NA", "?")) == {"a": [None, None], "b": ["1", "NAN"]}


def test_a_byte_order_mark_is_not_part_of_a_name(write):
    assert cells(write(b"\xef\xbb\xbfa,b\n1,2\n")) == {"a": ["1"], "b": ["2"]}


def test_blanks_around_a_name_and_windows_line_ends_are_ignored(write):
    assert cells(write("a, b\r\n1,2\r\n")) == {"a": ["1"], "b": ["2"]}


def test_a_compressed_file_with_tabs_is_read(write):
    assert cells(write(gzip.compress(b"a\tb\n1,5\t2\n"), "t.tsv.gz")) == {"a": ["1,5"], "b": ["2"]}


def test_the_reported_share_rises_to_one(write):
    seen = []
    sources.read(write("a,b\n" + "1,2\n" * 1000), on_read=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6)] * 3), min_size=1
    ),
    packed=st.booleans(),
)
def test_files_of_python_s_csv_writer_are_read_unchanged(write, rows, packed):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *rows])
    content = out.getvalue().encode()
    path = write(gzip.compress(content) if packed else content, "t.csv.gz" if packed else "t.csv")
    expected = [tuple(cell or None for cell in row) for row in rows]
    assert list(zip(*cells(path).values(), strict=True)) == expected


PARQUET = io.BytesIO()
pa.parquet.write_table(pa.table({"a": [1, 2], "y": ["p", "q"]}), PARQUET)
PARQUET = PARQUET.getvalue()
ARROW = io.BytesIO()
with pa.ipc.new_file(ARROW, pa.schema({"a": pa.int64()})) as writer:
    writer.write_table(pa.table({"a": [1, 2]}))
ARROW = ARROW.getvalue()
ZIP = b"PK\x03\x04" + b"\0" * 40


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (b"", "t.csv", "t.csv is empty"),
        (b"\n\n", "t.csv", "t.csv is empty"),
        (b"a,b\n", "t.csv", "has columns but no rows"),
        (b"a,b\n1,2\n3,4,5\n", "t.csv", "row 2 has 3 cells, but the header has 2"),
        (b"a,b\n1,2\n3,4\n5\n", "t.csv", "row 3 has 1 cells, but the header has 2"),
        (b'a,b\n1,"x\ny"\n3,4,5\n', "t.csv", "row 2 has 3 cells, but the header has 2"),
        (b"a,b,a\n1,2,3\n", "t.csv", "two columns with the name 'a'"),
        (b"a,,b\n1,2,3\n", "t.csv", "column 2 has no name"),
        ("a,b\n1,2\n".encode("utf-16-le"), "t.csv", "zero bytes: .*, use --encoding utf-16-le"),
        ("a,b\n1,2\n".encode("utf-16")[:-1], "t.csv", "is not utf-16 text|row 1 has"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "t.csv", "is not closed"),
        (b'a,b\n1,2\n3,"4', "t.csv", "is not closed"),
        (b'"a,b\n1,2\n', "t.csv", "the header can't be read"),
        (ZIP, "t.csv", "not a .csv file but a zip archive"),
        (PARQUET, "t.csv", "not a .csv file but a Parquet file"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "t.csv", "not a .csv file but a gzip file"),
        (b"a,b\n1,2\n", "t.csv.gz", "is not a .csv.gz file"),
        (gzip.compress(ZIP, mtime=0), "t.csv.gz", "a zip archive"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-3], "t.csv.gz", "damaged or cut short"),
        (PARQUET[:-9], "t.parquet", "is cut short"),
        (b"PAR1" * 5, "t.parquet", "can't be read"),
        (ZIP, "t.parquet", "is not a .parquet file but a zip archive"),
        (ZIP, "t.npz", "damaged or cut short"),
        (b"a,b\n1,2\n", "t.npz", "is not a .npz file"),
        (b"a,b\n1,2\n", "t.xlsx", "is not a .xlsx file"),
        (ZIP, "t.xlsx", "t.xlsx can't be read: "),
        (b"a,b\n1,2\n", "t.doc", "unknown source"),
        (b"a,b\n1,2\n", "t.feather", "is not a .feather file"),
        (ARROW[:-9], "t.arrow", "can't be read"),
        (ARROW, "t.parquet", "not a .parquet file but an Arrow file"),
        (b'{"a": 1}\n{"a": "x"}\n', "t.jsonl", "t.jsonl can't be read: .*changed from number to string in row 1"),
        (b'{"a": 1}\n{"a": ', "t.jsonl", "can't be read"),
        (b"[1, 2]\n", "t.jsonl", "can't be read"),
        (gzip.compress(b'{"a": 1}\n', mtime=0)[:-4], "t.jsonl.gz", "damaged or cut short"),
        (b"a,b\n1,2\n", "t.jsonl", "can't be read"),
    ],
)
def test_a_damaged_or_wrong_file_is_refused_in_one_line(write, content, name, reason):
    with pytest.raises(SourceError, match=reason) as refused:
        sources.read(write(content, name))
    assert "\n" not in str(refused.value)


def test_a_bad_byte_far_into_the_file_is_refused_with_its_column(write):
    with pytest.raises(SourceError, match="column 'b' contains bytes that are not UTF-8"):
        sources.read(write(b"a,b\n" + b"1234567,1234567\n" * 600_000 + b"1,\xff\n"))


def test_an_open_quote_that_swallows_the_file_is_refused(write):
    with pytest.raises(SourceError, match=r"more than 8 MiB: is a quote .* not closed"):
        sources.read(write(b'a,b\n1,"2\n' + b"1234567,1234567\n" * 1_200_000))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        sources.read(str(tmp_path / "t.csv"))
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(SourceError, match=r"is a folder without a table"):
        sources.read(str(tmp_path / "d.csv"))


def test_parquet_keeps_its_types_and_drops_the_pandas_index(tmp_path):
    table = pa.table({"a": [1.5, None], "b": [True, False], "y": ["p", "q"], "__index_level_0__": [7, 8]})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    assert cells(str(tmp_path / "t.parquet")) == {"a": [1.5, None], "b": [True, False], "y": ["p", "q"]}
    assert sources.header(str(tmp_path / "t.parquet")) == ("a", "b", "y")


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    pa.parquet.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="two columns with the name 'a'"):
        sources.read(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize("names", [("x", "y"), ("inputs", "classes")])
def test_npz_has_a_matrix_and_a_vector_of_any_name(tmp_path, names):
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2), np.array(["p", "q", "p"])
    np.savez(tmp_path / "t.npz", **dict(zip(names, (x, y), strict=True)), feature_names=np.array(["a", "b"]))
    assert cells(str(tmp_path / "t.npz")) == {"a": [0, 2, 4], "b": [1, 3, 5], "y": ["p", "q", "p"]}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.zeros((3, 2))}, r"contains x \[3, 2\]: expected"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, "expected x"),
        ({"x": np.zeros((3, 2, 2)), "y": np.zeros(3)}, "expected x"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(3), "feature_names": np.array(["a"])}, "1 feature names for 2"),
        ({"x": np.zeros((3, 2)), "y": np.array([{}, 1, 2], dtype=object)}, "can't be read"),
    ],
)
def test_npz_without_a_matrix_and_a_vector_is_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(SourceError, match=reason):
        sources.read(str(tmp_path / "t.npz"))
