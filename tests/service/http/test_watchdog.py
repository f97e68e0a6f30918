"""A run that hangs ends the process with status 1. Slow runs and failing runs do not end the process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.service.support import PATIENCE, receive, request, serving, write_square_root

BODY = b'{"instances": [[1, 3]]}'
PROGRAM = "tests.service.serve_with_faults"
LOSS = "a run of roots/1 has taken more than 0.5 s"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_square_root(folder)
    return folder


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    return tmp_path / "faults"


def ask(file: Path, **faults: float) -> None:
    part = file.with_name("part")
    part.write_text(json.dumps(faults))
    part.rename(file)


def test_a_run_that_hangs_on_the_thread_fails_its_requests_and_ends_the_process(
    models: Path, faults: Path, tmp_path: Path
) -> None:
    ask(faults, slow=1)  # slow runs happen on the thread, not on the event loop
    flags = ("--faults", faults, "--run-timeout", 0.5)
    with serving(models, tmp_path / "log", *flags, program=PROGRAM) as server:
        assert server.send("POST", "/predict", body=BODY).status == 200
        ask(faults, hang=1)
        with server.connect() as first, server.connect() as second:
            for connection in (first, second):
                connection.sendall(request("POST", "/predict", body=BODY))
            for connection in (first, second):
                answer = receive(connection)
                assert (answer.status, answer.json()) == (500, {"error": "the model did not answer in time"})
        assert server.process.wait(PATIENCE) == 1
    log = (tmp_path / "log").read_text()
    assert f"{LOSS}; stopping" in log
    assert log.rstrip().endswith(f"foldserve: error: {LOSS}")
    assert "Traceback" not in log


def test_an_explanation_that_hangs_ends_the_process(models: Path, faults: Path, tmp_path: Path) -> None:
    flags = ("--faults", faults, "--run-timeout", 0.5)
    with serving(models, tmp_path / "log", *flags, program=PROGRAM) as server:
        ask(faults, explanation_hang=1)
        answer = server.send("POST", "/v1/models/roots:explain", body=BODY)
        assert (answer.status, answer.json()) == (500, {"error": "the model did not answer in time"})
        assert server.process.wait(PATIENCE) == 1
    assert (tmp_path / "log").read_text().rstrip().endswith(f"foldserve: error: {LOSS}")


def test_a_run_that_hangs_on_the_event_loop_ends_the_process(models: Path, faults: Path, tmp_path: Path) -> None:
    flags = ("--faults", faults, "--run-timeout", 0.5)
    with serving(models, tmp_path / "log", *flags, program=PROGRAM) as server:
        for _ in range(20):  # a run that takes microseconds happens on the event loop
            assert server.send("POST", "/predict", body=BODY).status == 200
        ask(faults, hang=1)
        with server.connect() as connection:
            connection.sendall(request("POST", "/predict", body=BODY))
            assert server.process.wait(PATIENCE) == 1
    assert f"{LOSS}; stopping" in (tmp_path / "log").read_text()


def test_a_worker_whose_run_hangs_is_replaced(models: Path, faults: Path, tmp_path: Path) -> None:
    flags = ("--faults", faults, "--run-timeout", 0.5, "--workers", 2)
    with serving(models, tmp_path / "log", *flags, program=PROGRAM) as server:
        ask(faults, hang=1)
        with server.connect() as connection:
            connection.sendall(request("POST", "/predict", body=BODY))
            connection.recv(1)  # wait for a response or the end of the connection
        faults.unlink()
        while not re.search(r"worker \d+ died with status 1; starting another", (tmp_path / "log").read_text()):
            assert server.process.poll() is None
        for _ in range(10):
            assert server.send("POST", "/predict", "Connection: close", body=BODY).status == 200


def test_slow_and_failing_runs_do_not_end_the_process(models: Path, faults: Path, tmp_path: Path) -> None:
    flags = ("--faults", faults, "--run-timeout", 5)
    with serving(models, tmp_path / "log", *flags, program=PROGRAM) as server:
        ask(faults, slow=0.5, fail=0.3)
        statuses = {server.send("POST", "/predict", body=BODY).status for _ in range(40)}
        assert statuses == {200, 500}
        assert server.send("GET", "/v2/health/ready").status == 200
