"""Tests a server whose GPU runs out of memory or fails: the responses to clients, and how the server ends."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.service.http.test_workers import until
from tests.service.support import PATIENCE, Served, serving

PROGRAM = "tests.service.runtime.serve_on_simulated_cuda"
# The environment variable that serve_on_simulated_cuda.py reads. An import of serve_on_simulated_cuda would change the
# runtime of this process.
FAILURE = "FAILURE"
OUT_OF_MEMORY = "Failed to allocate memory for requested buffer of size 4096"
LOST = "CUDA failure 700: an illegal memory access was encountered ; GPU=0"
ROWS = {"instances": [[0.0] * 64]}


def ready(served: Served) -> bool:
    """Return whether the server and its model are ready. A server that has ended is not ready."""
    try:
        return all(
            httpx.get(f"{served.url}/v2/{path}/ready").status_code == 200 for path in ("health", "models/digits")
        )
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_lost_device_makes_the_server_unready_and_then_ends_it(workers: int, models: Path, tmp_path: Path) -> None:
    failing = tmp_path / "failure"
    flags = ("--default-model", "digits", "--device", "cuda", "--workers", workers)
    with serving(models, tmp_path / "log", *flags, env={FAILURE: str(failing)}, program=PROGRAM) as served:
        status = httpx.get(f"{served.url}/v1/models/digits").json()["versions"][0]
        assert status["provider"] == "CUDAExecutionProvider"
        assert httpx.post(f"{served.url}/predict", json=ROWS).status_code == 200
        failing.write_text(LOST, encoding="utf-8")
        answer = httpx.post(f"{served.url}/predict", json=ROWS)
        assert (answer.status_code, answer.json()) == (500, {"error": "the device was lost"})
        if workers == 1:
            assert not ready(served)
            assert served.process.wait(PATIENCE) == 1
            lines = served.log.read_text(encoding="utf-8").splitlines()
            assert lines[-1] == "foldserve: error: the device was lost"
        else:
            until(lambda: "died with status 1; starting another" in served.log.read_text(encoding="utf-8"))
            assert served.process.poll() is None
            assert " stopped: the device was lost\n" in served.log.read_text(encoding="utf-8")


def test_a_device_out_of_memory_is_a_503_and_the_next_request_is_answered(models: Path, tmp_path: Path) -> None:
    failing = tmp_path / "failure"
    flags = ("--default-model", "digits", "--device", "cuda")
    with serving(models, tmp_path / "log", *flags, env={FAILURE: str(failing)}, program=PROGRAM) as served:
        before = httpx.post(f"{served.url}/predict", json=ROWS)
        failing.write_text(OUT_OF_MEMORY, encoding="utf-8")
        answer = httpx.post(f"{served.url}/predict", json=ROWS)
        assert (answer.status_code, answer.json()) == (503, {"error": "the device is out of memory"})
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{served.url}/v2/health/ready").status_code == 200
        assert httpx.post(f"{served.url}/predict", json=ROWS).json() == before.json()
