"""`foldserve-train`, as a process of its own."""

import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from service import bundle
from training.cli import main


def train(*arguments, **kwargs):
    command = [sys.executable, "-m", "training", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **kwargs)


def test_fit_writes_a_bundle_and_says_what_it_did(tmp_path):
    done = train("fit", "iris", "--models", tmp_path, "--epochs", "3", "--name", "flowers")
    assert done.returncode == 0, done.stderr
    manifest = bundle.read(tmp_path / "flowers" / "1").manifest
    assert f"accuracy {manifest.metrics['test']['accuracy']:.4f}" in done.stdout
    assert "norm1 -> dense1" in done.stdout
    assert re.search(r"certificate .*% of the tolerance", done.stdout)
    assert str(tmp_path / "flowers" / "1") in done.stdout
    # No terminal: no progress bar, nothing that a log would have to strip.
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


def test_a_terminal_gets_a_progress_bar_with_loss_rate_and_time_left(tmp_path):
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "training", "fit", "iris", "--models", str(tmp_path), "--epochs", "3"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer, env=environment) as process:
        os.close(writer)
        shown = b""
        while True:
            try:
                chunk = os.read(reader, 4096)
            except OSError:  # Linux ends a pseudo-terminal so
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
        (("iris", "--models", "nowhere"), "nowhere: no such folder"),
        (("iris", "--eps", "inf"), "eps is above 0"),
        (("iris", "--hidden", "1000000000000"), "at most 65536"),
        (("iris", "--threads", "100000000000"), "threads are at least 1, at most 1024"),
        (("digits", "--learning-rate", "1e30", "--models", "."), "the loss is no longer finite in epoch 1"),
        (("iris", "--dropout", "1"), "dropout is at least 0 and below 1"),
        (("iris", "--seed", "-1"), "the seed is from 0"),
        (("iris", "--test-share", "0.95"), "shares leave no rows"),
    ],
)
def test_what_can_t_be_done_is_one_line_and_leaves_nothing(tmp_path, arguments, reason):
    models = () if "--models" in arguments else ("--models", str(tmp_path))
    done = train("fit", *arguments, *models, cwd=tmp_path)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("foldserve-train: error: ")
    assert reason in line
    assert not list(tmp_path.iterdir())


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
        "import sys; from training.cli import main\n"
        "try: main(['fit', '--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--placement" in done.stdout


def test_without_the_trainer_s_libraries_it_says_what_to_install(tmp_path):
    script = "import sys; sys.modules['torch'] = None; from training.cli import main; sys.exit(main(['fit', 'iris']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "foldserve-train: error: torch is not installed: pip install 'foldserve[train,cpu]' or 'foldserve[train,gpu]'"
    ]


def test_an_interrupt_ends_it_without_a_bundle(tmp_path):
    script = (
        "import sys; from pathlib import Path; from training import pipeline\n"
        "from training.plan import DataOptions, Plan, Recipe\n"
        "plan = Plan(DataOptions('digits'), 'digits', Path(sys.argv[1]), recipe=Recipe(epochs=10**6, patience=10**6))\n"
        "try: pipeline.run(plan, lambda epoch: print(epoch.number, flush=True))\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130
    assert not list(tmp_path.iterdir())
