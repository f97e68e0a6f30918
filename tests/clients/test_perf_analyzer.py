"""Tests the real server with perf_analyzer. perf_analyzer exits with 0 only if it understood every response.

The tests look for the program in PERF_ANALYZER, next to this Python, and on PATH. install_perf_analyzer.sh installs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.clients.conftest import Server, pixels

PATIENCE = 120
# Each measurement window lasts 300 ms. The tolerance is large, so any three windows count as stable. The test must also
# pass on a machine with unsteady timings. The option --request-count would be simpler, but with it perf_analyzer hangs
# if an answer arrives before the count starts.
WINDOWS = ("-p", "300", "-s", "999", "-r", "10")


def found() -> str | None:
    """Find a perf_analyzer that runs here. On PyPI, the packages of perf_analyzer before version 2.58 are empty."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    candidate = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer", path=path)
    if candidate is None:
        return None
    done = subprocess.run([candidate, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return candidate if done.returncode == 0 and "Perf Analyzer" in done.stdout + done.stderr else None


PERF_ANALYZER = found()
pytestmark = pytest.mark.skipif(PERF_ANALYZER is None, reason="perf_analyzer does not run here: make test-clients")
FORMAT = pytest.mark.parametrize("form", ["binary", "json"])


def perf_analyzer(server: Server, model: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    assert PERF_ANALYZER
    command = [PERF_ANALYZER, "-m", model, "-u", server.address, *WINDOWS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def assert_measured(done: subprocess.CompletedProcess[str]) -> None:
    """Check that perf_analyzer succeeded, and that it reports the measurements and the statistics of the server."""
    assert done.returncode == 0, done.stdout + done.stderr
    for figure in (r"  Request count: [1-9]", r"  Successful request count: [1-9]", r"throughput: [\d.]+ infer/sec"):
        assert re.search(figure, done.stdout), done.stdout


def rows_served(server: Server, model: str) -> int:
    answer = httpx.get(f"{server.url}/v2/models/{model}/stats").raise_for_status().json()
    return sum(stats["inference_count"] for stats in answer["model_stats"])


@FORMAT
@pytest.mark.parametrize(("batch", "concurrency"), [(1, 1), (8, 1), (8, 4)])
def test_perf_analyzer_measures_the_shipped_model(server, batch, concurrency, form):
    before = rows_served(server, "digits")
    done = perf_analyzer(
        server, "digits", "-b", batch, "--concurrency-range", concurrency, "--input-tensor-format", form
    )
    assert_measured(done)
    served = rows_served(server, "digits") - before
    assert served >= batch
    assert served % batch == 0


@FORMAT
def test_perf_analyzer_measures_with_zeros(server, form):
    done = perf_analyzer(server, "digits", "-b", 8, "--input-data", "zero", "--input-tensor-format", form)
    assert_measured(done)


def test_perf_analyzer_measures_with_asynchronous_requests(server):
    assert_measured(perf_analyzer(server, "digits", "--async", "--concurrency-range", 4))


def test_perf_analyzer_measures_a_named_version(server):
    before = rows_served(server, "roots/versions/1"), rows_served(server, "roots/versions/2")
    assert_measured(perf_analyzer(server, "roots", "-x", 1))
    assert rows_served(server, "roots/versions/1") > before[0]
    assert rows_served(server, "roots/versions/2") == before[1]


def data_file(folder: Path, rows: np.ndarray, outputs: np.ndarray, output: str) -> Path:
    """Write rows and their expected outputs for perf_analyzer, which requires a decimal point in a float."""
    content = {
        "data": [{"input": list(map(float, row))} for row in rows],
        "validation_data": [{output: list(map(float, row))} for row in outputs],
    }
    file = folder / "data.json"
    file.write_text(json.dumps(content))
    return file


@FORMAT
@pytest.mark.parametrize("concurrency", [1, 4])
def test_every_answer_equals_the_expected_outputs_bit_for_bit(server, tmp_path, concurrency, form):
    rows = np.array([[1, 3], [4, 5], [0.25, 2], [1, 1]], np.float32)
    file = data_file(tmp_path, rows, server.expected(rows, "roots", 2), "value")
    done = perf_analyzer(
        server, "roots", "--input-data", file, "--concurrency-range", concurrency, "--input-tensor-format", form
    )
    assert_measured(done)


@FORMAT
def test_a_single_row_of_digits_gets_the_answer_of_onnx_runtime(server, tmp_path, form):
    rows = pixels(5)
    alone = np.concatenate([server.expected(row[None]) for row in rows])
    file = data_file(tmp_path, rows, alone, "probabilities")
    assert_measured(perf_analyzer(server, "digits", "--input-data", file, "--input-tensor-format", form))


def test_perf_analyzer_reports_a_wrong_answer(server, tmp_path):
    rows = np.array([[1, 3], [4, 5]], np.float32)
    wrong = np.nextafter(server.expected(rows, "roots", 2), np.float32(0))
    done = perf_analyzer(server, "roots", "--input-data", data_file(tmp_path, rows, wrong, "value"))
    assert done.returncode == 99
    assert "Output doesn't match expected output" in done.stdout + done.stderr


@FORMAT
def test_random_bytes_that_are_huge_numbers_are_answered(server, form):
    assert_measured(perf_analyzer(server, "gaps", "--input-tensor-format", form))


def test_random_bytes_of_wide_rows_contain_a_nan(server):
    done = perf_analyzer(server, "wide")
    assert done.returncode == 99
    assert "row 0, column 'c298' is NaN, and the feature has no missing values" in done.stdout + done.stderr
    assert_measured(perf_analyzer(server, "wide", "--input-data", "zero"))


def test_perf_analyzer_reports_an_unknown_model(server):
    done = perf_analyzer(server, "nobody")
    assert done.returncode == 99
    assert "failed to get model metadata: unknown model" in done.stdout + done.stderr
