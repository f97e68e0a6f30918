"""Tests the commands with unusual tables.

An unusable table gives a one-line error and no bundle. Every usable table gives a bundle.
"""

import pytest

from foldserve.service import bundle
from foldserve.training.cli import main

HEAD = b"a,b,y\n"
GOOD = b"1,x,p\n2,x,q\n3,z,p\n4,z,q\n5,x,p\n6,z,q\n"
REFUSED = {
    "no target column": (HEAD + GOOD, ("--target", "none"), "has no column 'none'"),
    "two columns of one name": (b"a,a,y\n" + GOOD, (), "'a'"),
    "a row too long": (HEAD + GOOD + b"1,x,p,9\n", (), "row 7"),
    "a row too short": (HEAD + GOOD + b"1,x\n", (), "row 7"),
    "UTF-16 without its mark": ((HEAD + GOOD).decode().encode("utf-16-le"), (), "use --encoding utf-16-le"),
    "another separator than --sep": (HEAD + GOOD, ("--sep", ";"), "--sep is another separator"),
    "a number with two readings": (b"a,y\n" + b'"1,234",p\n5,q\n' * 3, (), "--decimal , or 1234 with --thousands ,"),
    "a target with two readings": (
        b"a,y\n" + b'1,"1,234"\n2,5\n' * 3,
        (),
        "--thousands ,; say which, or use --task cl",
    ),
    "large integers beside a blank": (b"a,b,y\n9007199254740993,x,p\n,x,q\n" + GOOD, (), "column 'a'"),
    "a label that is not there": (HEAD + GOOD + b"1,x,\n", (), "row 7 has no value"),
    "a label that is infinite": (b"a,y\n" + b"".join(b"%d,%d.5\n" % (i, i) for i in range(30)) + b"1,inf\n", (), "'y'"),
    "text among numbers": (HEAD + GOOD * 5 + b"oops,x,p\n", (), "column 'a'"),
    "text in a column declared numeric": (HEAD + GOOD, ("--numeric", "b"), "column 'b' must be numeric"),
    "a class of one row": (HEAD + GOOD + b"1,x,r\n", (), "class 'r' has 1 row"),
    "one class": (b"a,y\n1,p\n2,p\n3,p\n4,p\n5,p\n", (), "only one class"),
    "a header and no rows": (HEAD, (), "no rows"),
    "an empty file": (b"", (), "empty"),
    "a zip that is called csv": (b"PK\x03\x04" + bytes(range(256)), (), "zip"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusable_table_gives_one_line_and_no_bundle(tmp_path, capsys, name):
    content, arguments, reason = REFUSED[name]
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    assert main(["fit", str(table), *arguments, "--models", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("foldserve-train: error: ")
    assert reason in line
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize(("flag", "mark", "highest"), [("--thousands", ",", 1234), ("--decimal", ",", 1.234)])
def test_a_flag_decides_between_two_readings_of_a_number(tmp_path, flag, mark, highest):
    table = tmp_path / "table.csv"
    table.write_bytes(b"a,y\n" + b'"1,234",p\n0,q\n' * 20)
    arguments = ["--models", str(tmp_path), "--epochs", "1", flag, mark]
    assert main(["fit", str(table), *arguments]) == 0
    (feature,) = bundle.read(tmp_path / "table" / "1").manifest.features
    assert feature.range is not None
    assert feature.range[1] == pytest.approx(highest)


@pytest.mark.parametrize("rows", [37, 38, 39])
def test_a_byte_order_mark_a_class_of_three_rows_and_a_last_batch_of_one_row_are_accepted(tmp_path, rows):
    table = tmp_path / "table.csv"
    labels = ["r"] * 3 + ["p", "q"] * 20
    lines = ["a,y", *(f"{place},{labels[place]}" for place in range(rows))]
    table.write_text("\n".join(lines), encoding="utf-8-sig")
    assert main(["fit", str(table), "--models", str(tmp_path), "--epochs", "4", "--batch-size", "8"]) == 0
    manifest = bundle.read(tmp_path / "table" / "1").manifest
    assert [feature.name for feature in manifest.features] == ["a"]
    assert manifest.labels == ("p", "q", "r")


def test_a_parquet_file_that_is_cut_short_is_refused(tmp_path, capsys):
    table = tmp_path / "table.parquet"
    table.write_bytes(b"PAR1" + bytes(100))
    assert main(["fit", str(table), "--models", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "table.parquet" in line
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
