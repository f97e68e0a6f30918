"""Tests several worker processes on one socket: their start, their stop, and the replacement of a dead worker."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from foldserve.service import bundle
from tests.service.support import (
    GATED,
    PATIENCE,
    Served,
    assert_refused_in_one_line,
    command_line,
    environment,
    flip_byte,
    foldserve,
    receive,
    request,
    serving,
    through,
    write_square_root,
)

BODY = b'{"instances": [[1, 3]]}'
PREDICT = request("POST", "/predict", body=BODY)
TWO = ("--workers", 2)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_square_root(folder)
    return folder


@pytest.fixture
def served(models: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(models, tmp_path / "log", *TWO) as server:
        yield server


def until(condition: Callable[[], object]) -> None:
    hung = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < hung, "it hangs"
        os.sched_yield()


def children(pid: int) -> dict[int, str]:
    """Return the command lines of the child processes of `pid`."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def workers(pid: int) -> set[int]:
    return {child for child, command in children(pid).items() if "spawn_main" in command and alive(child)}


def alive(pid: int) -> bool:
    try:
        _, _, behind = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return behind.split()[0] not in {"Z", "X"}  # a zombie is a dead process whose parent has not waited for it yet


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))


def assert_it_predicts(server: Served, times: int = 1) -> None:
    """Predict `times` times, each on a new connection."""
    for _ in range(times):
        answer = server.send("POST", "/predict", "Connection: close", body=BODY)
        assert answer.status == 200
        assert answer.json()["predictions"] == [2]


def counted(server: Served, name: str) -> float:
    text = server.send("GET", "/metrics", "Connection: close").body.decode()
    return math.fsum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )


# --- start -----------------------------------------------------------------------------------------------------------


def test_the_server_is_announced_once_when_all_workers_are_ready(served: Served) -> None:
    assert len(workers(served.process.pid)) == 2
    assert served.log.read_text().count("roots/1 ready on") == 2
    assert_it_predicts(served, 20)
    served.process.terminate()
    assert served.process.stdout
    rest = served.process.stdout.read()
    assert rest.count("curl") == 1
    assert "serves" not in rest
    assert served.process.wait(PATIENCE) == 0


def test_a_start_that_every_worker_refuses_prints_one_line(tmp_path: Path) -> None:
    assert_refused_in_one_line(
        foldserve("serve", "--models", tmp_path, "--port", 0, "--no-watch", *TWO), "no models to serve"
    )


def test_a_port_in_use_prints_one_line(models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = foldserve("serve", "--models", models, "--port", port, *TWO)
    assert_refused_in_one_line(done, f"can't listen on 127.0.0.1 port {port}", "in use")


def test_the_server_can_be_stopped_before_it_is_ready(models: Path) -> None:
    gate = through(models / "roots" / "1")
    os.mkfifo(gate["GATE"])  # a worker opens this pipe for reading, then waits for a writer
    with subprocess.Popen(
        command_line("serve", "--models", models, "--port", 0, *TWO, program=GATED),
        env=environment(gate),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(lambda: len(workers(process.pid)) == 2)
        below = children(process.pid)
        process.terminate()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert stdout == ""
    assert "Traceback" not in stderr
    until(lambda: not any(map(alive, below)))


# --- stop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_processes_with_status_0(number: signal.Signals, served: Served) -> None:
    assert_it_predicts(served)
    below = children(served.process.pid)
    assert len(below) >= 2
    served.process.send_signal(number)
    assert served.process.wait(PATIENCE) == 0
    until(lambda: not any(map(alive, below)))
    assert "Traceback" not in served.log.read_text()
    with pytest.raises(ConnectionError):
        served.connect()


def test_workers_stop_when_their_supervisor_dies(served: Served) -> None:
    below = children(served.process.pid)
    kill(served.process.pid)
    until(lambda: not any(map(alive, below)))
    with pytest.raises(ConnectionError):
        served.connect()


@pytest.mark.parametrize("seconds", [0.2, 0.8, 1.6])
def test_a_supervisor_that_is_killed_during_the_start_leaves_no_worker_and_no_traceback(
    seconds: float, models: Path
) -> None:
    """The test kills the server `seconds` after the start. The result must not depend on `seconds`."""
    with subprocess.Popen(
        command_line("serve", "--models", models, "--port", 0, *TWO),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(lambda: workers(process.pid))
        started = time.monotonic()
        until(lambda: time.monotonic() > started + seconds)
        below = children(process.pid)
        process.kill()
        _, stderr = process.communicate(timeout=PATIENCE)  # this call returns when the last process has closed the pipe
    until(lambda: not any(map(alive, below)))
    assert "Traceback" not in stderr, stderr


# --- replacement -----------------------------------------------------------------------------------------------------


# --- shares ----------------------------------------------------------------------------------------------------------


def sockets(pid: int) -> int:
    """Return the number of open sockets of a process."""
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the process has just closed this file
            found += str(entry.readlink()).startswith("socket:")
    return found


@contextmanager
def connected(server: Served, count: int) -> Iterator[None]:
    """Open all connections first, then get an answer on each of them."""
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(count)]
        for client in clients:
            client.sendall(PREDICT)
        assert [receive(client).status for client in clients] == [200] * count
        yield


def test_each_worker_gets_a_share_of_connections_that_are_opened_at_once(served: Served) -> None:
    without = {pid: sockets(pid) for pid in workers(served.process.pid)}
    for count in (32, 8, 64):
        with connected(served, count):
            shares = [sockets(pid) - before for pid, before in without.items()]
        assert sum(shares) == count
        assert min(shares) >= count // 4, shares  # a delayed worker may get fewer connections
        until(lambda: {pid: sockets(pid) for pid in without} == without)


def test_a_worker_accepts_the_share_of_a_worker_that_hangs(served: Served) -> None:
    hung, other = workers(served.process.pid)
    before = sockets(other)
    os.kill(hung, signal.SIGSTOP)
    try:
        with connected(served, 100):
            assert sockets(other) == before + 100
    finally:
        os.kill(hung, signal.SIGCONT)


def test_a_worker_that_dies_is_replaced_while_new_connections_are_answered(served: Served) -> None:
    supervisor = served.process.pid
    first = workers(supervisor)
    one, other = first
    kill(one)
    assert_it_predicts(served, 20)
    until(lambda: len(workers(supervisor)) == 2)
    assert one not in workers(supervisor)
    kill(other)
    assert_it_predicts(served, 20)  # only the new worker is left, so the server answers when this worker is ready
    until(lambda: len(workers(supervisor)) == 2)
    assert not first & workers(supervisor)
    log = served.log.read_text()
    for dead in first:
        assert log.count(f"worker {dead} died with status -9; starting another") == 1
    below = children(supervisor)
    served.process.terminate()
    assert served.process.wait(PATIENCE) == 0
    until(lambda: not any(map(alive, below)))


def test_a_worker_that_can_not_start_again_is_logged_while_the_others_serve(served: Served, models: Path) -> None:
    manifest = models / "roots" / "1" / bundle.MANIFEST_FILE
    whole = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    supervisor = served.process.pid
    kill(min(workers(supervisor)))
    until(lambda: "refused to start: version 1 of roots may not be served" in served.log.read_text())
    assert_it_predicts(served, 10)
    manifest.write_bytes(whole)
    until(lambda: served.log.read_text().count("roots/1 ready on") == 3)
    assert_it_predicts(served, 10)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_each_worker_reports_the_counts_of_all_workers_and_of_dead_workers(served: Served) -> None:
    assert_it_predicts(served, 40)
    for _ in range(10):
        assert served.send("POST", "/predict", body=json.dumps({}).encode()).status == 400
    until(lambda: counted(served, "foldserve_requests_total") == 50)
    until(lambda: counted(served, "foldserve_batch_rows_sum") == 40)
    assert counted(served, "foldserve_request_seconds_count") == 50
    assert counted(served, "foldserve_rejected_total") == 10
    assert counted(served, "foldserve_requests_in_flight") == 0
    for dead, total in zip(workers(served.process.pid), (55, 60), strict=True):
        kill(dead)  # a worker writes its counts once a second, so a dead worker's last counts may be lost
        assert_it_predicts(served, 5)
        until(lambda total=total: counted(served, "foldserve_requests_total") == total)
    assert counted(served, "foldserve_request_rows_total") == 50
    statistics = served.send("GET", "/v2/models/roots/stats").json()["model_stats"]
    assert statistics[0]["inference_count"] == 50


def test_a_scrape_ignores_the_empty_file_of_a_worker_that_starts(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", *TWO, env={"TMPDIR": str(tmp_path)}) as server:
        (folder,) = tmp_path.glob("foldserve-*")
        (folder / "counter_1.db").touch()
        assert_it_predicts(server)
        until(lambda: counted(server, "foldserve_requests_total") == 1)


@pytest.mark.slow
def test_a_replaced_worker_no_longer_reports_a_version_that_was_repaired(models: Path, tmp_path: Path) -> None:
    whole = bundle.read(models / "roots" / "1")
    second = bundle.write(models, "roots", whole.model, lambda n: whole.manifest.model_copy(update={"version": n}))
    flip_byte(second.path / "model.onnx", 10)
    with serving(models, tmp_path / "log", *TWO) as server:
        assert counted(server, "foldserve_model_refused") == 1
        flip_byte(second.path / "model.onnx", 10)
        for dead in workers(server.process.pid):
            kill(dead)
        until(lambda: server.log.read_text().count("roots/2 ready on") == 2)
        until(lambda: counted(server, "foldserve_model_refused") == 0)


@pytest.mark.parametrize("flags", [(), TWO], ids=["one", "two"])
def test_the_gauges_of_a_model_do_not_depend_on_the_number_of_workers(
    flags: tuple[object, ...], models: Path, tmp_path: Path
) -> None:
    with serving(models, tmp_path / "log", *flags) as server:
        assert counted(server, "foldserve_model_provider_info") == 1
        assert counted(server, "foldserve_queued_rows") == 0
        assert 0 < counted(server, "foldserve_model_load_seconds") < PATIENCE
