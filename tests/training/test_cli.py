"""Tests the command `foldserve-train`, mostly in a separate process."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foldserve.service import bundle
from foldserve.training.cli import main

ROOT = Path(__file__).parents[2]


def train(*arguments, **kwargs):
    command = [sys.executable, "-m", "foldserve.training", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **kwargs)


def test_fit_writes_a_bundle_and_prints_its_results(tmp_path):
    done = train("fit", "iris", "--models", tmp_path, "--epochs", "3", "--name", "flowers")
    assert done.returncode == 0, done.stderr
    manifest = bundle.read(tmp_path / "flowers" / "1").manifest
    assert f"accuracy {manifest.metrics['test']['accuracy']:.4f}" in done.stdout
    assert "norm1 -> dense1" in done.stdout
    assert re.search(r"certificate .*% of the tolerance", done.stdout)
    assert str(tmp_path / "flowers" / "1") in done.stdout
    # Without a terminal there is no progress bar and no escape sequence.
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_every_flag_reaches_the_bundle(tmp_path):
    flags = {
        "hidden": "8,4",
        "placement": "post",
        "activation": "silu",
        "dropout": "0.3",
        "eps": "0.001",
        "momentum": "0.01",
        "epochs": "2",
        "patience": "2",
        "batch_size": "16",
        "learning_rate": "0.003",
        "weight_decay": "0.5",
        "schedule": "cosine",
        "input_noise": "0.1",
        "label_smoothing": "0.05",
    }
    arguments = [part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), value)]
    done = train("fit", "iris", "--models", tmp_path, "--seed", "7", "--input-norm", *arguments)
    assert done.returncode == 0, done.stderr
    provenance = bundle.read(tmp_path / "iris" / "1").manifest.provenance
    recorded = {name: str(value) for name, value in provenance.hyperparameters.items()}
    assert recorded.pop("hidden") == "(8, 4)"
    assert recorded["input_norm"] == "True"
    assert provenance.seed == 7
    del flags["hidden"]
    assert {name: recorded[name] for name in flags} == flags


def test_a_terminal_shows_a_progress_bar_with_loss_rate_and_time_left(tmp_path):
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "foldserve.training", "fit", "iris", "--models", str(tmp_path), "--epochs", "3"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer, env=environment) as process:
        os.close(writer)
        shown = b""
        while True:
            try:
                chunk = os.read(reader, 4096)
            except OSError:  # on Linux, reading from a closed pseudo-terminal raises OSError
                break
            if not chunk:
                break
            shown += chunk
        process.communicate(timeout=120)
    os.close(reader)
    assert process.returncode == 0
    text = shown.decode()
    assert "3/3" in text
    assert re.search(r"loss \d", text)
    assert re.search(r"val \d", text)
    assert re.search(r"\d rows/s", text)
    assert re.search(r"\d:\d\d:\d\d", text)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nothing",), "unknown source 'nothing'"),
        (("data/houses.csv",), "data/houses.csv: no such file"),
        (("",), "unknown source ''"),
        (("iris", "--models", "/dev/null"), "/dev/null: not a folder"),
        (("iris", "--models", "/dev/null/models"), "/dev/null: not a folder"),
        (("iris", "--eps", "inf"), "eps must be above 0"),
        (("iris", "--hidden", "1000000000000"), "at most 65536"),
        (("iris", "--threads", "100000000000"), "threads must be from 1 to 1024"),
        (("digits", "--learning-rate", "1e30", "--models", "."), "the loss is no longer finite in epoch 1"),
        (("iris", "--dropout", "1"), "dropout must be at least 0 and below 1"),
        (("iris", "--seed", "-1"), "the seed must be from 0"),
        (("iris", "--test-share", "0.95"), "shares leave no training rows"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_files(tmp_path, arguments, reason):
    models = () if "--models" in arguments else ("--models", str(tmp_path))
    done = train("fit", *arguments, *models, cwd=tmp_path)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("foldserve-train: error: ")
    assert reason in line
    assert not list(tmp_path.iterdir())


HOUSES = "price,rooms,city,garden\n" + "".join(
    f"{100 + 7 * row % 41},{row % 5},{'Oslo' if row % 3 else 'Bergen'},{'true' if row % 2 else 'false'}\n"
    for row in range(60)
)


def test_the_kinds_of_the_columns_are_printed_before_training(tmp_path, capsys):
    path = tmp_path / "houses.csv"
    path.write_text(HOUSES)
    # Two groups are too few for three parts, so the command ends before the training.
    flags = ["--target", "price", "--categorical", "rooms", "--group", "garden"]
    assert main(["fit", str(path), *flags, "--models", str(tmp_path)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "columns      2 categorical (rooms 5, city 2)"
    assert out[1] == "target       price: a value"


def test_a_csv_file_becomes_a_model_named_by_its_stem(tmp_path):
    rows = [f"{row % 7},{row * row % 11},{'big' if row % 7 > 3 else 'small'}" for row in range(80)]
    for name, part in (("sizes.train.csv", rows[:60]), ("sizes.test.csv", rows[60:])):
        (tmp_path / name).write_text("\n".join(["a,b,size", *part]))
    done = train("fit", "sizes.train.csv", "--test", "sizes.test.csv", "--models", ".", "--epochs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = bundle.read(tmp_path / "sizes" / "1").manifest
    assert manifest.labels == ("big", "small")
    assert manifest.provenance.rows == {"train": 54, "validation": 6, "test": 20}
    assert manifest.provenance.source == "sizes.train.csv"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("houses.csv", "--target", "rent"), "houses.csv has no column 'rent'; it has price, rooms, city, garden"),
        (("houses.csv", "--numeric", "city"), "column 'city' must be numeric, but 60 of 60 cells are not numbers"),
        (("houses.csv", "--drop", "city", "--numeric", "city"), "column 'city' is declared twice"),
        (("houses.csv", "--group", "city", "--time", "rooms"), "by a group or by time, not by both"),
        (("houses.csv", "--group", "city"), "the group column has 2 different values"),
        (("houses.csv", "--test", "none.csv"), "none.csv: no such file"),
        (("houses (1).csv",), "'houses (1)' can't be a model's name"),
    ],
)
def test_an_error_in_a_table_is_one_line(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "houses.csv").write_text(HOUSES)
    assert main(["fit", *arguments, "--models", "."]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert [path.name for path in tmp_path.iterdir()] == ["houses.csv"]


def test_control_characters_in_a_header_do_not_break_the_error_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text('"two\nlines","\x1b[31mred",y\n1,2,p\n', encoding="utf-8")
    assert main(["fit", "t.csv", "--target", "z", "--models", "."]) == 1
    said = capsys.readouterr().err
    assert "it has two\N{REPLACEMENT CHARACTER}lines, \N{REPLACEMENT CHARACTER}[31mred, y" in said
    assert len(said.splitlines()) == 1


def test_a_table_too_small_to_diagnose_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("a,y\n1,p\n2,q\n3,p\n4,q\n5,p\n6,q\n", encoding="utf-8")
    assert main(["diagnose", "t.csv"]) == 1
    assert "6 rows are too few to diagnose: at least 20 are needed" in capsys.readouterr().err


def test_contradictory_flags_of_diagnose_are_one_line(capsys):
    assert main(["diagnose", "iris", "--numeric", "a", "--drop", "a"]) == 1
    assert capsys.readouterr().err == "foldserve-train: error: column 'a' is declared twice\n"


def test_a_list_flag_may_quote_a_comma(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text('"a,b",c,y\n' + "1,x,p\n2,x,q\n" * 2)
    assert main(["fit", "t.csv", "--drop", '"a,b",c', "--models", "."]) == 1
    assert "class 'p' has 2 rows" in capsys.readouterr().err


def test_a_terminal_shows_the_progress_of_reading(tmp_path):
    (tmp_path / "houses.csv").write_text(HOUSES)
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "foldserve.training", "fit", "houses.csv", "--numeric", "city"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--models", "."], stdout=subprocess.PIPE, stderr=writer, env=environment, cwd=tmp_path
    ) as process:
        os.close(writer)
        process.communicate(timeout=120)
    shown = os.read(reader, 65536).decode()
    os.close(reader)
    assert "read houses.csv" in shown


@pytest.mark.parametrize(
    "wrong", [("--placement", "middle"), ("--name", "../up"), ("--hidden", "a"), ("--epochs", "x")]
)
def test_a_wrong_flag_is_a_usage_error(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "iris", *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_help_needs_no_torch():
    script = (
        "import sys; from foldserve.training.cli import main\n"
        "try: main(['fit', '--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--placement" in done.stdout


@pytest.mark.parametrize("library", ["torch", "onnxruntime"])
def test_a_missing_library_is_named_with_the_install_command(library, tmp_path):
    script = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from foldserve.training.cli import main; sys.exit(main(['fit', 'iris']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"foldserve-train: error: {library} is not installed: "
        "pip install 'foldserve[train,cpu]' or 'foldserve[train,gpu]'"
    ]


def test_an_interrupt_stops_the_run_without_a_bundle(tmp_path):
    script = (
        "import sys; from pathlib import Path; from foldserve.training import pipeline\n"
        "from foldserve.training.plan import DataOptions, Plan, Recipe\n"
        "plan = Plan(DataOptions('digits'), 'digits', Path(sys.argv[1]), recipe=Recipe(epochs=10**6, patience=10**6))\n"
        "context = pipeline.Context(on_epoch=lambda epoch: print(epoch.number, flush=True))\n"
        "try: pipeline.run(plan, context=context)\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_the_command_with_130_and_one_line(tmp_path):
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "foldserve.training", "fit", "digits", "--models", str(tmp_path)]
    command += ["--epochs", "1000000", "--patience", "1000000"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer, env=environment) as process:
        os.close(writer)
        shown = b""
        while b"rows/s" not in shown:
            shown += os.read(reader, 4096)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # on Linux, reading from a closed pseudo-terminal raises OSError
            while chunk := os.read(reader, 4096):
                shown += chunk
        stdout, _ = process.communicate()
    os.close(reader)
    assert process.returncode == 130
    assert b"wrote" not in stdout
    assert shown.decode().rstrip().endswith("foldserve-train: interrupted, no result was written")
    assert b"Traceback" not in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_failed_compilation_is_one_line(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler", "PATH": str(tmp_path)}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    done = train("fit", "iris", "--models", tmp_path, "--compile", "--device", "cpu", env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("foldserve-train: error: --compile: ")
    assert not (tmp_path / "iris").exists()


@pytest.mark.slow
@pytest.mark.parametrize("flag", [(), ("--resume",)])
def test_a_checkpoint_does_not_change_the_bytes_of_the_model(tmp_path, flag):
    shared = ("fit", "iris", "--models", tmp_path, "--epochs", "3")
    assert train(*shared).returncode == 0
    assert train(*shared, "--checkpoint", tmp_path / "state", *flag).returncode == 0
    first, second = (bundle.read(tmp_path / "iris" / version) for version in ("1", "2"))
    assert first.model == second.model
