"""perf_analyzer against the real server. Its exit status is 0 only when every request was answered as it understands.

It is looked for in PERF_ANALYZER, beside this Python, and on PATH; tests/clients/install_perf_analyzer.sh gets one.
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
# Windows of time, any three of which are steady enough: how steady is not for a test to say. --request-count would be
# the plainer way, but a request that is answered before it begins to measure is one that it then waits for, for ever.
WINDOWS = ("-p", "300", "-s", "999", "-r", "10")


def found() -> str | None:
    """A perf_analyzer that runs here. Of PyPI's, versions before 2.58 are empty."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    candidate = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer", path=path)
    if candidate is None:
        return None
    told = subprocess.run([candidate, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return candidate if told.returncode == 0 and "Perf Analyzer" in told.stdout + told.stderr else None


PERF_ANALYZER = found()
pytestmark = pytest.mark.skipif(PERF_ANALYZER is None, reason="no perf_analyzer runs here: make test-clients")
FORMAT = pytest.mark.parametrize("form", ["binary", "json"])


def perf_analyzer(server: Server, model: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    assert PERF_ANALYZER
    command = [PERF_ANALYZER, "-m", model, "-u", server.address, *WINDOWS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def assert_measured(done: subprocess.CompletedProcess[str]) -> None:
    """It ended well, and reports what it has measured, and what the server says of that."""
    assert done.returncode == 0, done.stdout + done.stderr
    for figure in (r"  Request count: [1-9]", r"  Successful request count: [1-9]", r"throughput: [\d.]+ infer/sec"):
        assert re.search(figure, done.stdout), done.stdout


def rows_served(server: Server, model: str) -> int:
    told = httpx.get(f"{server.url}/v2/models/{model}/stats").raise_for_status().json()
    return sum(stats["inference_count"] for stats in told["model_stats"])


@FORMAT
@pytest.mark.parametrize(("batch", "concurrency"), [(1, 1), (8, 1), (8, 4)])
def test_it_measures_the_shipped_model_as_it_stands(server, batch, concurrency, form):
    before = rows_served(server, "digits")
    done = perf_analyzer(
        server, "digits", "-b", batch, "--concurrency-range", concurrency, "--input-tensor-format", form
    )
    assert_measured(done)
    served = rows_served(server, "digits") - before
    assert served >= batch
    assert served % batch == 0


@FORMAT
def test_it_measures_with_zeros(server, form):
    done = perf_analyzer(server, "digits", "-b", 8, "--input-data", "zero", "--input-tensor-format", form)
    assert_measured(done)


def test_it_measures_with_asynchronous_requests(server):
    assert_measured(perf_analyzer(server, "digits", "--async", "--concurrency-range", 4))


def test_it_measures_a_named_version(server):
    before = rows_served(server, "roots/versions/1"), rows_served(server, "roots/versions/2")
    assert_measured(perf_analyzer(server, "roots", "-x", 1))
    assert rows_served(server, "roots/versions/1") > before[0]
    assert rows_served(server, "roots/versions/2") == before[1]


def data_file(folder: Path, rows: np.ndarray, outputs: np.ndarray, output: str) -> Path:
    """Rows, and what must come back for them, as perf_analyzer reads them: a float must look like one."""
    content = {
        "data": [{"input": list(map(float, row))} for row in rows],
        "validation_data": [{output: list(map(float, row))} for row in outputs],
    }
    file = folder / "data.json"
    file.write_text(json.dumps(content))
    return file


@FORMAT
@pytest.mark.parametrize("concurrency", [1, 4])
def test_every_answer_is_the_expected_one_to_the_last_bit(server, tmp_path, concurrency, form):
    rows = np.array([[1, 3], [4, 5], [0.25, 2], [1, 1]], np.float32)
    file = data_file(tmp_path, rows, server.expected(rows, "roots", 2), "value")
    done = perf_analyzer(
        server, "roots", "--input-data", file, "--concurrency-range", concurrency, "--input-tensor-format", form
    )
    assert_measured(done)


@FORMAT
def test_digits_answers_as_onnx_runtime_does_with_a_row_alone(server, tmp_path, form):
    rows = pixels(5)
    alone = np.concatenate([server.expected(row[None]) for row in rows])
    file = data_file(tmp_path, rows, alone, "probabilities")
    assert_measured(perf_analyzer(server, "digits", "--input-data", file, "--input-tensor-format", form))


def test_it_would_notice_a_wrong_answer(server, tmp_path):
    rows = np.array([[1, 3], [4, 5]], np.float32)
    wrong = np.nextafter(server.expected(rows, "roots", 2), np.float32(0))
    done = perf_analyzer(server, "roots", "--input-data", data_file(tmp_path, rows, wrong, "value"))
    assert done.returncode == 99
    assert "Output doesn't match expected output" in done.stdout + done.stderr


@FORMAT
def test_its_random_bytes_are_huge_numbers_which_are_answered_like_others(server, form):
    assert_measured(perf_analyzer(server, "gaps", "--input-tensor-format", form))


def test_its_random_bytes_hold_a_nan_in_wide_rows_and_zeros_do_not(server):
    done = perf_analyzer(server, "wide")
    assert done.returncode == 99
    assert "row 0, column 'c298' is NaN, and the feature has no missing values" in done.stdout + done.stderr
    assert_measured(perf_analyzer(server, "wide", "--input-data", "zero"))


def test_it_says_which_model_there_is_not(server):
    done = perf_analyzer(server, "nobody")
    assert done.returncode == 99
    assert "failed to get model metadata: unknown model" in done.stdout + done.stderr
