"""`foldserve score` gives the same answers as the server for the same cells, in every input and output format."""

import csv
import gzip
import io
import json
import subprocess

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from foldserve.service import bundle
from foldserve.service.cli import main
from tests.service.commands.score.support import COLUMNS, DIGITS, digits_table, sales, train_sales, write_csv
from tests.service.support import PATIENCE, command_line, environment, oracle, serving

ROWS = sales(300, seed=1)
# For each row that the server refuses: its number in the file, and the reason.
BAD = {
    7: (1, "seven", "column 'price' is not a number"),
    30: (3, "30.02.2024", "column 'seen' is not a date or time as in the training table"),
    31: (4, "maybe", "column 'sold' is neither true nor false"),
    300: (2, "12.5 €", "column 'share' is not a number"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_sales(tmp_path_factory.mktemp("models") / "m")


def damaged(rows):
    rows = [list(row) for row in rows]
    for number, (place, text, _) in BAD.items():
        rows[number - 1][place] = text
    return [tuple(row) for row in rows]


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """Post the cells of all good rows in one request. Return the answer of the server."""
    features = [feature.name for feature in bundle.read(model).manifest.features]
    posted = [
        {name: cell for name, cell in zip(COLUMNS, row, strict=True) if name in features}
        for number, row in enumerate(ROWS, 1)
        if number not in BAD
    ]
    with serving(model.parents[1], tmp_path_factory.mktemp("log") / "log") as server:
        return httpx.post(f"{server.url}/predict", json={"instances": posted}).raise_for_status().json()


def assert_answers(table, served, rtol=0):
    """Check that each row has the id, the prediction and the probabilities that the server returns.

    If a run has a different number of rows, the last bit of a probability may differ.
    """
    expected = [row[0] for number, row in enumerate(ROWS, 1) if number not in BAD]
    assert table["id"].to_pylist() == expected
    assert table["prediction"].to_pylist() == served["predictions"]
    probabilities = np.array([table["probability_p"], table["probability_q"]], np.float32).T
    np.testing.assert_allclose(probabilities, np.array(served["probabilities"], np.float32), rtol=rtol)


def run(model, *arguments):
    return main(["score", str(model), *map(str, arguments), "--columns", "id", "--probabilities"])


def test_the_answers_and_refusals_of_a_csv_are_those_of_the_server(model, served, tmp_path, capsys):
    source = write_csv(tmp_path / "in.csv", damaged(ROWS))
    assert run(model, source, "-o", tmp_path / "out.csv") == 3
    assert_answers(pa.csv.read_csv(tmp_path / "out.csv"), served)
    with (tmp_path / "out.refused.csv").open(newline="") as file:
        refused = list(csv.DictReader(file))
    assert refused == [
        {"file": str(source), "row": str(number), "reason": reason, "id": f"r{number - 1}"}
        for number, (*_, reason) in BAD.items()
    ]
    printed = capsys.readouterr()
    assert printed.out.startswith(f"wrote {tmp_path / 'out.csv'}: 296 rows scored by sales/1 on CPUExecutionProvider")
    assert "note: ignored, because the model has no such features: 'y'" in printed.err
    assert f"4 rows refused: {tmp_path / 'out.refused.csv'} has the reasons; the first is row 7 of " in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv", "out.refused.csv"]


def as_csv(**dialect):
    return lambda path: write_csv(path, damaged(ROWS), **dialect)


def as_gzip(path):
    path.write_bytes(gzip.compress(write_csv(path.with_suffix(""), damaged(ROWS)).read_bytes()))


def as_json_lines(path):
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in damaged(ROWS)]
    path.write_text("\n".join(lines), encoding="utf-8")


def as_table(write):
    def save(path):
        table = pa.table([pa.array(column) for column in zip(*damaged(ROWS), strict=True)], list(COLUMNS))
        write(table, path)

    return save


@pytest.mark.parametrize(
    ("name", "save", "flags"),
    [
        ("in.tsv", as_csv(delimiter="\t"), ()),
        ("in.csv", as_csv(delimiter=";", encoding="utf-16"), ()),
        ("in.txt", as_csv(delimiter="^", encoding="cp1252"), ("--sep", "^", "--encoding", "cp1252")),
        ("in.csv.gz", as_gzip, ()),
        ("in.jsonl", as_json_lines, ()),
        ("in.parquet", as_table(lambda table, path: pa.parquet.write_table(table, path, row_group_size=77)), ()),
        ("in.feather", as_table(pa.feather.write_feather), ()),
    ],
)
def test_every_format_of_the_same_cells_gives_the_same_answers(model, served, tmp_path, name, save, flags):
    save(tmp_path / name)
    assert run(model, tmp_path / name, "-o", tmp_path / "out.arrow", *flags) == 3
    assert_answers(pa.feather.read_table(tmp_path / "out.arrow"), served)
    assert pa.csv.read_csv(tmp_path / "out.refused.csv")["row"].to_pylist() == list(BAD)


def test_several_files_and_a_folder_are_scored_in_order(model, served, tmp_path):
    (tmp_path / "parts").mkdir()
    rows = damaged(ROWS)
    first = write_csv(tmp_path / "parts" / "1.csv", rows[:100])
    reordered = [(*row[1:], row[0]) for row in rows[100:]]
    second = write_csv(tmp_path / "parts" / "2.csv", reordered, (*COLUMNS[1:], "id"))
    assert run(model, first, second, "-o", tmp_path / "files.jsonl") == 3
    assert run(model, tmp_path / "parts", "-o", tmp_path / "folder.jsonl") == 3
    assert (tmp_path / "files.jsonl").read_bytes() == (tmp_path / "folder.jsonl").read_bytes()
    answers = pa.Table.from_pylist([json.loads(line) for line in (tmp_path / "files.jsonl").read_text().splitlines()])
    assert_answers(answers, served, rtol=1e-6)
    refused = pa.csv.read_csv(tmp_path / "files.refused.csv")
    assert refused["file"].to_pylist() == [str(first)] * 3 + [str(second)]
    assert refused["row"].to_pylist() == [7, 30, 31, 200]


def test_the_standard_streams_can_be_used(model, served, tmp_path):
    source = write_csv(tmp_path / "in.csv", damaged(ROWS)).read_bytes()
    flags = ("--columns", "id", "--probabilities", "--refused", tmp_path / "bad.csv")
    command = command_line("score", model, "-", "-o", "-", *flags)
    done = subprocess.run(command, input=source, capture_output=True, env=environment(), timeout=PATIENCE, check=False)
    assert done.returncode == 3, done.stderr
    assert_answers(pa.csv.read_csv(io.BytesIO(done.stdout)), served)
    assert pa.csv.read_csv(tmp_path / "bad.csv")["row"].to_pylist() == list(BAD)
    assert b"296 rows scored" in done.stderr


def test_the_probabilities_of_float32_are_those_of_onnx_runtime(tmp_path):
    table = digits_table(500)
    pa.parquet.write_table(table, tmp_path / "in.parquet", row_group_size=123)
    flags = ["-o", str(tmp_path / "out.parquet"), "--probabilities"]
    assert main(["score", str(DIGITS.parent), str(tmp_path / "in.parquet"), *flags]) == 0
    assert not (tmp_path / "out.refused.csv").exists()
    found = pa.parquet.read_table(tmp_path / "out.parquet")
    rows = np.array([column.to_numpy() for column in table.columns[1:]], np.float32).T
    expected = oracle(bundle.read(DIGITS).model)(rows)
    assert found.schema.names == ["prediction", *(f"probability_{digit}" for digit in range(10))]
    assert found["prediction"].to_pylist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(np.array(found.columns[1:], np.float32).T, expected, rtol=1e-5, atol=1e-7)
