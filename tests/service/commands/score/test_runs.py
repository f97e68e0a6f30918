"""Tests runs of `foldserve score`: interruptions, refusals of the command, and the files that are left behind."""

import os
import resource
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from foldserve.service.cli import main
from foldserve.service.commands.score import journal
from tests.service.commands.score.support import DIGITS, digits_table
from tests.service.support import (
    PATIENCE,
    assert_refused_in_one_line,
    command_line,
    environment,
    write_square_root,
)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The model sqrt(a + b)."""
    return write_square_root(tmp_path_factory.mktemp("models")).path


@pytest.fixture
def table(tmp_path):
    """A table of 30,000 rows for the model of roots. In every 1,000th row, the model's output is not finite."""
    a = np.arange(30_000, dtype=np.float32)
    a[999::1000] = -10
    path = tmp_path / "in.parquet"
    pa.parquet.write_table(pa.table({"a": a, "b": np.ones(30_000, np.float32), "id": range(30_000)}), path)
    return path


def score(*arguments):
    return main(["score", *map(str, arguments)])


def assert_refused(capsys, status, reason):
    """Check that the last line on standard error gives the reason for the refusal. Only notes may come before the last
    line.
    """
    assert status == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    *notes, last = printed.err.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert last.startswith("foldserve: error: ")
    assert reason in last


# --- interruptions


INTERRUPTED = """
import os, signal, sys
from foldserve.service.cli import main
from foldserve.service.commands.score import journal
number, signal_number = int(sys.argv[1]), int(sys.argv[2])
journal._PART_ROWS = 8192  # a part for each chunk
write = journal.Journal.add

def add(self, scored):
    if scored.chunk == number:
        os.kill(os.getpid(), signal_number)
    write(self, scored)

journal.Journal.add = add
sys.exit(main(sys.argv[3:]))
"""


def interrupt(number, kind, *arguments):
    """Run the command, and interrupt it at a chunk. At the chunk `number`, the process sends the signal `kind` to
    itself.
    """
    command = [*command_line()[:3], "-c", INTERRUPTED, str(number), str(int(kind)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False)


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_resumed_run_gives_the_bytes_of_one_run(roots, table, tmp_path, capsys, name, kind):
    flags = ("--columns", "id")
    assert score(roots, table, "-o", tmp_path / f"whole-{name}", *flags) == 3
    out = tmp_path / name
    done = interrupt(2, kind, "score", roots, table, "-o", out, *flags)
    assert done.returncode == (-9 if kind == signal.SIGKILL else 130), done.stderr
    if kind == signal.SIGINT:
        assert done.stderr == "note: interrupted: 16,384 rows are saved: use --resume to go on\n"
    assert not out.exists()
    assert (tmp_path / f"{name}.partial").is_dir()
    capsys.readouterr()
    assert_refused(capsys, score(roots, table, "-o", out, *flags), "unfinished run: use --resume")
    assert score(roots, table, "-o", out, *flags, "--resume") == 3
    assert "note: resuming after 16,384 rows" in capsys.readouterr().err
    assert out.read_bytes() == (tmp_path / f"whole-{name}").read_bytes()
    refused = [tmp_path / f"{stem}.refused.csv" for stem in ("out", "whole-out")]
    assert refused[0].read_bytes() == refused[1].read_bytes()
    assert len(refused[0].read_text().splitlines()) == 31
    assert not (tmp_path / f"{name}.partial").exists()


def test_an_interruption_before_the_first_part_leaves_nothing(roots, table, tmp_path):
    assert interrupt(0, signal.SIGINT, "score", roots, table, "-o", tmp_path / "out.csv").returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_a_journal_line_that_was_cut_short_is_scored_again(roots, table, tmp_path):
    out = tmp_path / "out.csv"
    assert score(roots, table, "-o", tmp_path / "whole.csv") == 3
    interrupt(3, signal.SIGKILL, "score", roots, table, "-o", out)
    lines = tmp_path / "out.csv.partial" / "journal.jsonl"
    lines.write_bytes(lines.read_bytes()[:-10])
    assert score(roots, table, "-o", out, "--resume") == 3
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_run_with_other_options_is_not_resumed(roots, table, tmp_path, capsys):
    out = tmp_path / "out.csv"
    interrupt(2, signal.SIGKILL, "score", roots, table, "-o", out)
    status = score(roots, table, "-o", out, "--columns", "id", "--resume")
    assert_refused(capsys, status, "can't resume: the unfinished run had other columns; use --force")
    os.utime(table, (1, 1))
    assert_refused(capsys, score(roots, table, "-o", out, "--resume"), "had other input files")
    assert score(roots, table, "-o", out, "--force") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.csv", "out.refused.csv"]


def test_two_runs_do_not_write_one_output(roots, table, tmp_path, capsys):
    job = tmp_path / "out.csv.partial"
    held = journal.Journal.open(job, {}, resume=False, force=False)
    try:
        assert_refused(capsys, score(roots, table, "-o", tmp_path / "out.csv", "--force"), "another run is writing")
    finally:
        held.close()
    assert job.exists()


def test_a_full_disk_is_one_line_and_the_run_can_be_resumed(roots, table, tmp_path):
    out = tmp_path / "out.csv"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    command = command_line("score", roots, table, "-o", out, "--columns", "id")
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), preexec_fn=limit, timeout=PATIENCE, check=False
    )
    assert_refused_in_one_line(done, f"{out}: can't be written: File too large")
    assert not out.exists()
    assert score(roots, table, "-o", out, "--columns", "id", "--resume") == 3
    assert len(out.read_text().splitlines()) == 30_000 - 30 + 1


# --- refusals of the command


def csv_file(tmp_path, content, name="in.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "in.csv is empty"),
        ("a,b\n", "in.csv has columns but no rows"),
        ("a,c\n1,2\n", "in.csv has no column 'b', a feature of the model; it has a, c"),
        ("a#b\n1#2\n", "it has a#b; if another character separates its cells, use --sep"),
        ("a,b\n1,2\n1,2,3\n", "in.csv: row 2 has 3 cells, but the header has 2"),
        ("a,b,a\n1,2,3\n", "in.csv has two columns with the name 'a'"),
        (b"a,b\n" + b"1234567,1234567\n" * 600_000 + b"1,\xff\n", "column 'b' contains bytes that are not UTF-8"),
        (b"PK\x03\x04" + b"\0" * 40, "in.csv is not a .csv file but a zip archive"),
    ],
)
def test_an_input_that_can_not_be_scored_is_refused_in_one_line(roots, tmp_path, capsys, content, reason):
    source = csv_file(tmp_path, content)
    assert_refused(capsys, score(roots, source, "-o", tmp_path / "out.csv"), reason)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


GOOD = "a,b,id\n1,3,x\n4,5,y\n"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("-o", "in.csv"), "in.csv is the input: write to another file"),
        (("-o", "link.csv"), "link.csv is the input"),
        (("-o", "there.csv"), "there.csv exists: use --force to replace it"),
        (("-o", "out.csv", "--refused", "there.csv"), "there.csv exists"),
        (("-o", "out.csv", "--refused", "out.csv"), "the refused rows need another file"),
        (("-o", "out.xls"), "out.xls: expected a name with .csv, .parquet"),
        (("-o", "none/out.csv"), "none: no such folder; make it first"),
        (("-o", "folder.csv"), "folder.csv is a folder, not a file"),
        (("-o", "/proc/out.csv"), "/proc/out.csv: can't be written: "),
        (("-o", "out.csv", "--columns", "z"), "--columns: in.csv has no column 'z'; it has a, b, id"),
        (("-o", "-", "--resume"), "--resume needs files"),
        (("-o", "out.csv", "--engine", "ray", "--device", "cuda"), "--engine ray runs on the CPUs"),
    ],
)
def test_an_output_that_can_not_be_written_is_refused_in_one_line(roots, tmp_path, monkeypatch, capsys, flags, reason):
    monkeypatch.chdir(tmp_path)
    csv_file(tmp_path, GOOD)
    csv_file(tmp_path, "", "there.csv")
    Path("link.csv").symlink_to("in.csv")
    Path("folder.csv").mkdir()
    before = sorted(tmp_path.iterdir())
    assert_refused(capsys, score(roots, "in.csv", *flags), reason)
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_in_the_folder_of_the_input_is_refused(roots, tmp_path, capsys):
    csv_file(tmp_path, GOOD)
    assert_refused(capsys, score(roots, tmp_path, "-o", tmp_path / "out.csv"), "is in the folder of the input")


def test_files_of_two_formats_are_refused(roots, table, tmp_path, capsys):
    assert_refused(
        capsys,
        score(roots, csv_file(tmp_path, GOOD), table, "-o", tmp_path / "out.csv"),
        "in.parquet and in.csv have different formats",
    )


def test_force_replaces_the_output_and_removes_old_refusals(roots, tmp_path):
    source = csv_file(tmp_path, GOOD)
    (tmp_path / "out.csv").write_text("old")
    (tmp_path / "out.refused.csv").write_text("old")
    assert score(roots, source, "-o", tmp_path / "out.csv", "--force", "--columns", "id,a") == 0
    assert (tmp_path / "out.csv").read_text() == 'id,a,prediction\n"x","1",2\n"y","4",3\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_a_chosen_column_with_the_name_of_an_answer_is_refused(roots, tmp_path, capsys):
    source = csv_file(tmp_path, "a,b,prediction\n1,2,3\n")
    assert_refused(
        capsys,
        score(roots, source, "-o", tmp_path / "out.csv", "--columns", "prediction"),
        "the answers have a column 'prediction' too: rename",
    )


def test_json_values_keep_their_types(roots, tmp_path):
    lines = '{"a": 1, "b": 3, "id": 7}\n[1]\n{"a": 4, "b": 5, "id": null, "more": {}}\n{"a": "1", "b": 2}\nx\n'
    source = csv_file(tmp_path, lines, "in.jsonl")
    assert score(roots, source, "-o", tmp_path / "out.jsonl", "--columns", "id") == 3
    assert (tmp_path / "out.jsonl").read_text() == '{"id":7,"prediction":2.0}\n{"id":null,"prediction":3.0}\n'
    reasons = [line.split(",")[1:3] for line in (tmp_path / "out.refused.csv").read_text().splitlines()[1:]]
    assert reasons == [
        ["2", '"the line is not a JSON object"'],
        ["4", "\"column 'a' is not a number\""],
        ["5", '"the line is not a JSON object"'],
    ]


def test_a_damaged_bundle_is_refused_as_by_the_server(tmp_path, capsys):
    copy = tmp_path / "digits" / "1"
    copy.mkdir(parents=True)
    for file in DIGITS.iterdir():
        content = file.read_bytes()
        (copy / file.name).write_bytes(content.replace(b'"name": "digits"', b'"name": "digitz"', 1))
    pa.parquet.write_table(digits_table(2), tmp_path / "in.parquet")
    assert_refused(capsys, score(copy, tmp_path / "in.parquet", "-o", tmp_path / "out.csv"), "differs from its seal")


def test_values_that_training_has_not_seen_are_counted(tmp_path, capsys):
    table = digits_table(3)
    table = table.set_column(1, table.schema.names[1], pa.array([99, 0, 99], pa.float32()))
    pa.parquet.write_table(table, tmp_path / "in.parquet")
    assert score(DIGITS, tmp_path / "in.parquet", "-o", tmp_path / "out.csv") == 0
    assert f"note: values outside the training range: '{table.schema.names[1]}' 2" in capsys.readouterr().err


def test_the_command_without_pyarrow_names_the_remedy(roots, table, tmp_path):
    code = "import sys; sys.modules['pyarrow'] = None; from foldserve.service.cli import main; sys.exit(main())"
    command = [*command_line()[:3], "-c", code, "score", str(roots), str(table), "-o", str(tmp_path / "out.csv")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=False)
    assert_refused_in_one_line(done, "pyarrow is not installed", "pip install 'foldserve[score]'")


@pytest.mark.slow
def test_memory_stays_bounded(roots, tmp_path):
    path = tmp_path / "in.parquet"
    schema = pa.schema([("a", pa.float32()), ("b", pa.float32()), ("text", pa.string())])
    with pa.parquet.ParquetWriter(path, schema, compression="none") as writer:
        for _ in range(8):
            rows = 500_000
            values = np.random.default_rng(0).uniform(0, 9, rows).astype(np.float32)
            writer.write_table(pa.table({"a": values, "b": values, "text": pa.repeat("x" * 40, rows)}), 100_000)
    peak = {}
    for rows in (500_000, 4_000_000):
        source = tmp_path / f"{rows}.parquet"
        pa.parquet.write_table(pa.parquet.read_table(path).slice(0, rows), source, row_group_size=100_000)
        out = tmp_path / f"{rows}.csv"
        code = (
            "import resource, sys; from foldserve.service.cli import main; main();"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        command = [
            *command_line()[:3],
            "-c",
            code,
            "score",
            str(roots),
            str(source),
            "-o",
            str(out),
            "--columns",
            "text",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=True)
        peak[rows] = int(done.stderr.splitlines()[-1]) >> 10
    assert peak[4_000_000] < peak[500_000] + 100, peak
