"""A small training imports only the modules that it needs, because other imports would take most of its time."""

import os
import pty
import subprocess
import sys

import pytest

from foldserve.service import bundle

ROWS = "width,colour,kind\n" + "".join(
    f"{row % 7 + row % 3},{'red' if row % 2 else 'blue'},{'abc'[row % 3]}\n" for row in range(90)
)
# Each of these modules takes at least 0.2 s to import, or is never necessary for a training.
HEAVY = (
    "sklearn",
    "scipy",
    "pandas",
    "polars",
    "matplotlib",
    "sympy",
    "optuna",
    "torch._dynamo",
    "torch.onnx",
    "onnxscript",
)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "table.csv").write_text(ROWS)
    return tmp_path


def run(script, folder):
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_a_training_with_its_report_imports_no_library_that_it_hardly_uses(table):
    script = (
        "import sys; from foldserve.training.cli import main\n"
        "assert main(['fit', 'table.csv', '--models', '.', '--epochs', '2']) == 0\n"
        f"print('imported:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = run(script, table)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
    assert "Thresholds" in bundle.read_report(table / "table" / "1")


def test_a_wrong_flag_of_the_table_is_found_before_torch_is_imported(table):
    script = (
        "import sys; from foldserve.training.cli import main\n"
        "assert main(['fit', 'table.csv', '--drop', 'weight']) == 1\n"
        "assert 'torch' not in sys.modules"
    )
    done = run(script, table)
    assert done.returncode == 0, done.stderr
    assert "weight" in done.stderr


def test_a_bar_shows_that_the_trainer_starts_before_torch_is_imported(table):
    """An import hook writes a marker to the terminal, so that the order of the output shows the order of the events."""
    script = (
        "import os, sys, importlib.abc\n"
        "class Hook(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch._C': os.write(2, b'<torch>')\n"
        "sys.meta_path.insert(0, Hook())\n"
        "from foldserve.training.cli import main\n"
        "sys.exit(main(['fit', 'table.csv', '--models', '.', '--epochs', '1']))"
    )
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=table, stdout=subprocess.PIPE, stderr=writer, env=environment
    ) as process:
        os.close(writer)
        shown = b""
        try:
            while chunk := os.read(reader, 4096):
                shown += chunk
        except OSError:  # on Linux, reading from a closed pseudo-terminal raises OSError
            pass
        process.communicate()
    os.close(reader)
    assert process.returncode == 0
    assert -1 < shown.find(b"read table.csv") < shown.find(b"start") < shown.find(b"<torch>")
