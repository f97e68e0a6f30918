"""Tests `foldserve-train diagnose`: its files, its lines, its refusals."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from foldserve.training.cli import main
from foldserve.training.diagnose import run
from foldserve.training.table.load import load
from tests.training.diagnose.support import OWN, TINY, assert_complete

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_progress_of_each_experiment_reaches_its_end():
    seen = {}
    run.diagnose(load(OWN.data), TINY, OWN, lambda stage, done, of: seen.update({stage: (done, of)}))
    assert list(seen) == ["your recipe", "your network", "convergence", "gradients", "batch sizes", "folding"]
    assert all(done == of for done, of in seen.values())


def test_the_command_writes_report_and_figures_and_prints_the_findings(tmp_path, capsys):
    output, figures = tmp_path / "report.html", tmp_path / "figures.json"
    textbook, recipe = ["--quick", "--textbook-steps", "4", "--seed", "3"], ["--epochs", "2", "--hidden", "8"]
    arguments = [*textbook, *recipe, "--output", str(output), "--json", str(figures)]
    assert main(["diagnose", "iris", *arguments]) == 0
    assert_complete(output.read_text(encoding="utf-8"))
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert (found["source"], found["plan"]["steps"], found["plan"]["seed"]) == ("iris", 4, 3)
    assert found["recipe"]["architecture"]["hidden"] == [8]
    assert [training["batch_norm"] for training in found["recipe"]["trainings"]] == [False, True]
    said = capsys.readouterr()
    assert "iris: all 150 rows" in said.out
    assert said.out.count("\n  - ") == 10
    assert str(output) in said.out
    assert said.err == ""  # without a terminal there are no progress bars


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nothing",), "unknown source 'nothing'"),
        (("--output", "nowhere/report.html"), "not a file in an existing folder"),
        (("--json", "."), "not a file in an existing folder"),
        (("--textbook-steps", "0"), "steps are at least 1"),
        (("--dropout", "1"), "dropout must be at least 0 and below 1"),
        (("--seed", "-1"), "the seed is from 0"),
    ],
)
def test_a_refusal_is_one_line(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("foldserve-train: error: ")
    assert reason in line
    assert not list(tmp_path.iterdir())


def test_help_loads_no_torch():
    script = (
        "import sys; from foldserve.training.cli import main\n"
        "try: main(['diagnose', '--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout


def test_the_plan_is_recorded(tiny):
    recorded = json.loads(run.to_json(tiny))["plan"]
    assert recorded == json.loads(json.dumps(asdict(TINY)))
