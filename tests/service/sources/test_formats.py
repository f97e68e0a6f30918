"""Tests formats and dialects of tables: separators, encodings, spreadsheets, JSON lines, Arrow, several files, and
stdin.
"""

import gzip
import io
import json
import subprocess
import sys
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from foldserve.service import sources
from foldserve.service.errors import SourceError
from foldserve.training.plan import DataOptions
from tests.service.sources.test_sources import cells

ROOT = Path(__file__).parents[3]


@pytest.fixture
def write(tmp_path):
    def to(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return to


# --- separators and encodings


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a;b\n1,5;x\n2,5;y\n", "semicolons"),
        ("a\tb\n1,5\tx\n2,5\ty\n", "tabs"),
        ("a|b\n1,5|x\n2,5|y\n", "bars"),
        ('"a";"b"\n"1,5";"x"\n"2,5";y\n', "semicolons"),
    ],
)
def test_the_separator_is_found_and_reported(write, content, said):
    path = write(content)
    assert cells(path) == {"a": ["1,5", "2,5"], "b": ["x", "y"]}
    assert sources.read(path).notes == (f"the cells of t.csv are separated by {said}",)
    assert sources.header(path) == ("a", "b")


def test_commas_and_quoted_separators_need_no_note(write):
    path = write('a,b\n"x;y;z",2\n"u;v;w",3\n')
    assert cells(path) == {"a": ["x;y;z", "u;v;w"], "b": ["2", "3"]}
    assert sources.read(path).notes == ()
    assert cells(write("a\n1\n2\n")) == {"a": ["1", "2"]}


@pytest.mark.parametrize(("sep", "char"), [(";", ";"), ("tab", "\t"), ("\\t", "\t"), ("^", "^")])
def test_the_separator_can_be_given(write, sep, char):
    assert cells(write(f"a,b{char}c\n1,2{char}3\n"), sep=sep) == {"a,b": ["1,2"], "c": ["3"]}


def test_a_wrong_separator_is_refused(write):
    with pytest.raises(SourceError, match="has one column, 'a,b': --sep is another separator"):
        cells(write("a,b\n1,2\n"), sep=";")
    for sep in ("", ";;", '"', "\n"):
        with pytest.raises(ValueError, match="--sep must be one character"):
            DataOptions("t.csv", sep=sep)


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "t.csv was read as UTF-16"),
        ("cp1252", r"t.csv is not UTF-8 (line 2 has the byte 0xe9) and was read as cp1252, as in Western Europe; use "),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_encoding_is_found_and_reported(write, encoding, note, packed):
    content = "a,b\né,“x”\nü,y\n".encode(encoding)
    path = write(gzip.compress(content), "t.csv.gz") if packed else write(content)
    assert cells(path) == {"a": ["é", "ü"], "b": ["“x”", "y"]}
    notes = [each.replace("t.csv.gz", "t.csv") for each in sources.read(path).notes]
    assert [each[: len(note)] for each in notes] == [note] if note else notes == []


def test_the_encoding_can_be_given(write):
    assert cells(write("a,b\nż,1\n".encode("cp1250")), encoding="cp1250") == {"a": ["ż"], "b": ["1"]}
    assert cells(write("a,b\nż,1\n".encode("utf-16-be")), encoding="utf-16-be") == {"a": ["ż"], "b": ["1"]}
    for encoding in ("klingon", "hex"):
        with pytest.raises(SourceError, match=f"--encoding: Python knows no text encoding '{encoding}'"):
            cells(write("a,b\n1,2\n"), encoding=encoding)
    with pytest.raises(SourceError, match=r"t\.csv is not ascii text"):
        cells(write("a,b\né,2\n"), encoding="ascii")
    with pytest.raises(SourceError, match=r"t\.csv is not ascii text"):
        cells(write("a,b\n" + "1234567,1234567\n" * 600_000 + "é,1\n"), encoding="ascii")


def test_a_row_of_another_length_is_named_in_any_dialect(write):
    with pytest.raises(SourceError, match="row 30 has 3 cells, but the header has 2"):
        cells(write(("a;b\n" + "1;é\n" * 29 + "1;2;3\n").encode("utf-16")))


# --- spreadsheets


def spreadsheet(**sheets):
    """Write a workbook as Excel stores it.

    A cell is a number, a boolean, a text, a datetime, or None. Excel stores a datetime as the number of days since
    1899-12-30 in a cell with a date format.
    """
    made = io.BytesIO()
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    rel = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"

    def cell(value, row, column):
        place = f"{chr(65 + column)}{row}"
        if isinstance(value, bool):
            return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
        if isinstance(value, str):
            return f'<c r="{place}" t="inlineStr"><is><t>{value}</t></is></c>'
        if isinstance(value, datetime):
            return f'<c r="{place}" s="1"><v>{(value - datetime(1899, 12, 30)) / timedelta(days=1)}</v></c>'
        return "" if value is None else f'<c r="{place}"><v>{value}</v></c>'

    with zipfile.ZipFile(made, "w") as archive:
        parts = "".join(f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>' for i, name in enumerate(sheets, 1))
        archive.writestr(
            "xl/workbook.xml", f'<workbook xmlns="{main}" xmlns:r="{rel}"><sheets>{parts}</sheets></workbook>'
        )
        links = "".join(
            f'<Relationship Id="r{i}" Type="{rel}/worksheet" Target="worksheets/sheet{i}.xml"/>'
            for i in range(1, len(sheets) + 1)
        )
        links += f'<Relationship Id="styles" Type="{rel}/styles" Target="styles.xml"/>'
        # Cells have the plain format, or one of Excel's formats for dates.
        formats = '<xf numFmtId="0"/><xf numFmtId="22"/>'
        archive.writestr(
            "xl/styles.xml", f'<styleSheet xmlns="{main}"><cellXfs count="2">{formats}</cellXfs></styleSheet>'
        )
        package = "http://schemas.openxmlformats.org/package/2006"
        archive.writestr(
            "xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{package}/relationships">{links}</Relationships>'
        )
        root = f'<Relationship Id="r1" Type="{rel}/officeDocument" Target="xl/workbook.xml"/>'
        archive.writestr("_rels/.rels", f'<Relationships xmlns="{package}/relationships">{root}</Relationships>')
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{package}/content-types"/>')
        for i, rows in enumerate(sheets.values(), 1):
            lines = "".join(
                f'<row r="{r}">{"".join(cell(value, r, c) for c, value in enumerate(row))}</row>'
                for r, row in enumerate(rows, 1)
            )
            archive.writestr(
                f"xl/worksheets/sheet{i}.xml", f'<worksheet xmlns="{main}"><sheetData>{lines}</sheetData></worksheet>'
            )
    return made.getvalue()


SHEET = [["n", " t ", "b", "mixed"], [1, "x", True, 5], [2.5, "y", False, "n/a"], [None, None, None, None]]


def test_the_only_sheet_is_read_with_the_types_of_its_columns(write):
    path = write(spreadsheet(First=SHEET), "t.xlsx")
    assert cells(path) == {"n": [1, 2.5], "t": ["x", "y"], "b": [True, False], "mixed": ["5", "n/a"]}
    assert sources.header(path) == ("n", "t", "b", "mixed")


def test_cells_with_a_date_format_are_times(write):
    moments = [datetime(2024, 2, 29), datetime(1999, 12, 31, 23, 59, 59), datetime(2024, 3, 1, 13, 45)]
    path = write(spreadsheet(First=[["day", "when"], *([moments[0], m] for m in moments), [None, None]]), "t.xlsx")
    assert cells(path) == {"day": [moments[0]] * 3, "when": moments}


def test_a_sheet_is_chosen_by_its_name(write):
    path = write(spreadsheet(First=SHEET, Second=[["a"], [7]]), "t.xlsx")
    with pytest.raises(SourceError, match=r"t\.xlsx has 2 sheets: use --sheet with one of First, Second"):
        cells(path)
    assert cells(path, sheet="Second") == {"a": [7]}
    with pytest.raises(SourceError, match="has no sheet 'Third'; it has First, Second"):
        cells(path, sheet="Third")


def test_a_spreadsheet_without_rows_is_refused(write):
    with pytest.raises(SourceError, match="has columns but no rows"):
        cells(write(spreadsheet(First=SHEET[:1]), "t.xlsx"))
    with pytest.raises(SourceError, match=r"t\.xlsx is empty"):
        cells(write(spreadsheet(First=[]), "t.xlsx"))


# --- typed formats

TABLE = pa.table({"a": [1.5, None], "b": ["x", "1"], "c": [True, False]})


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines_are_read_with_their_types(write, packed):
    lines = b'{"a": 1.5, "b": "x", "c": true}\n\n{"b": "1", "c": false}\n'
    path = write(gzip.compress(lines), "t.ndjson.gz") if packed else write(lines, "t.jsonl")
    assert cells(path) == TABLE.to_pydict()
    assert sources.header(path) == ("a", "b", "c")


@pytest.mark.parametrize("name", ["t.feather", "t.arrow", "t.ipc"])
def test_arrow_files_and_streams_are_read_with_their_types(tmp_path, name):
    path = tmp_path / name
    pa.feather.write_feather(TABLE, path)
    assert cells(str(path)) == TABLE.to_pydict()
    with pa.ipc.new_stream(path, TABLE.schema) as stream:
        stream.write_table(TABLE)
    assert cells(str(path)) == TABLE.to_pydict()


def test_the_pandas_index_of_an_arrow_file_is_left_out(tmp_path):
    pandas = {"index_columns": ["b"], "columns": []}
    pa.feather.write_feather(TABLE.replace_schema_metadata({"pandas": json.dumps(pandas)}), tmp_path / "t.feather")
    assert [*cells(str(tmp_path / "t.feather"))] == ["a", "c"]


# --- several files, folders, the standard input


def test_the_rows_of_several_files_follow_each_other(write):
    first, second, third = (
        write(text, f"{i}.csv") for i, text in enumerate(("a,b\n1,x\n", "b;a\ny;2\nz;3\n", "a,b\n4,u\n"))
    )
    assert cells(first, more=(second, third)) == {"a": ["1", "2", "3", "4"], "b": ["x", "y", "z", "u"]}
    found = sources.read(first, more=(second, third))
    assert (found.name, found.rows) == ("0.csv and 2 more", 4)
    seen = []
    sources.read(first, on_read=seen.append, more=(second, third))
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ("a,c\n1,2\n", "2.csv", "2.csv has no column 'b', a column of 1.csv"),
        ("a,b,c\n1,2,3\n", "2.csv", "1.csv has no column 'c', a column of 2.csv"),
        ('{"a": 1, "b": 2}\n', "2.jsonl", "2.jsonl and 1.csv have different formats"),
    ],
)
def test_files_that_do_not_fit_are_refused(write, content, name, reason):
    with pytest.raises(SourceError, match=reason):
        cells(write("a,b\n1,2\n", "1.csv"), more=(write(content, name),))


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    (tmp_path / "part" / "year=1").mkdir(parents=True)
    pa.parquet.write_table(pa.table({"a": [1], "y": ["p"]}), tmp_path / "part" / "year=1" / "0.parquet")
    pa.parquet.write_table(pa.table({"y": ["q"], "a": [2.5]}), tmp_path / "part" / "year=1" / "1.parquet")
    (tmp_path / "part" / "_SUCCESS").touch()
    folder = str(tmp_path / "part")
    assert cells(folder) == {"a": [1, 2.5], "y": ["p", "q"]}
    assert sources.header(folder) == ("a", "y")
    assert sources.read(folder).name == "part"
    pa.parquet.write_table(pa.table({"a": ["x"], "y": ["q"]}), tmp_path / "part" / "2.parquet")
    with pytest.raises(SourceError, match="column 'a' has different types in the files"):
        cells(folder)


def test_a_folder_of_another_format_is_one_table_too(write, tmp_path):
    (tmp_path / "parts").mkdir()
    write("a,b\n3,4\n", "parts/2.csv")
    write("a,b\n1,2\n", "parts/1.csv")
    write("", "parts/.hidden.txt")
    assert cells(str(tmp_path / "parts")) == {"a": ["1", "3"], "b": ["2", "4"]}
    write('{"a": 1}\n', "parts/3.jsonl")
    with pytest.raises(SourceError, match=r"files of several formats, \.csv, \.jsonl: name the files"):
        cells(str(tmp_path / "parts"))


PARQUET = io.BytesIO()
pa.parquet.write_table(TABLE, PARQUET)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a;b\n1;2\n", {"a": ["1"], "b": ["2"]}),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), {"a": ["1"], "b": ["2"]}),
        (b'{"a": 1}\n', {"a": [1]}),
        (PARQUET.getvalue(), TABLE.to_pydict()),
        (spreadsheet(First=[["a"], [7.5]]), {"a": [7.5]}),
    ],
    ids=["text", "gzip", "json", "parquet", "spreadsheet"],
)
def test_the_standard_input_may_have_any_format(content, expected):
    script = (
        "from foldserve.service import sources\n"
        "found = sources.read('-')\n"
        "print({name: found.take(name).to_pylist() for name in found.names})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=content, capture_output=True, check=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.decode().strip() == str(expected)
