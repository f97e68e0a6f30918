"""Versions replace each other under full load. No request fails, and no answer mixes two versions."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.service.http.test_workers import until
from tests.service.live.versions import answer_of, publish
from tests.service.support import Served, receive, request, serving
from tests.soak.test_soak import Usage, excess

CLIENTS = 6
# Bodies of one row, of many rows, and of a size that arrives in several pieces.
BODIES = [json.dumps({"instances": [[1, 3]] * rows}).encode() for rows in (1, 64, 20_000)]
PATHS = ("/predict", "/v1/models/roots:predict")


def load_without_end(server: Served, client: int, stop: threading.Event) -> Counter[str]:
    """Predict on one connection until `stop`. Returns how many answers of each kind arrived."""
    body = BODIES[client % len(BODIES)]
    sent = request("POST", PATHS[client % len(PATHS)], body=body)
    outcomes: Counter[str] = Counter()
    with server.connect() as connection:
        while not stop.is_set():
            connection.sendall(sent)
            answer = receive(connection)
            if answer.status != 200:
                outcomes[f"{answer.status} {answer.body[:80]!r}"] += 1
                continue
            content = answer.json()
            whole = set(content["predictions"]) == {answer_of(content["version"])}
            outcomes["whole" if whole else "mixed"] += 1
    return outcomes


@contextmanager
def full_load(server: Served) -> Iterator[list[Future[Counter[str]]]]:
    """Send requests from all clients to the server.

    After the `with` block, the list has the outcomes of the clients.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(load_without_end, server, client, stop) for client in range(CLIENTS)]
        try:
            yield clients
        finally:
            stop.set()


def swap(server: Served, models: Path, number: int) -> None:
    """Add a version, and wait until it answers. Afterwards, remove the version `number - 2`."""
    publish(models, number)
    until(lambda: server.send("GET", "/v1/models/roots").json()["current"] == number)
    if number > 2:
        shutil.rmtree(models / "roots" / str(number - 2))


def assert_whole(clients: list[Future[Counter[str]]]) -> None:
    for client in clients:
        outcomes = client.result()
        assert set(outcomes) == {"whole"}, outcomes


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_twenty_swaps_under_load_drop_nothing(workers: int, tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(models, 1)
    with serving(models, tmp_path / "log", "--workers", workers, "--rescan", 0.1) as server:
        with full_load(server) as clients:
            for number in range(2, 22):
                swap(server, models, number)
        assert_whole(clients)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_five_hundred_swaps_under_load_drop_nothing_and_keep_nothing(tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(models, 1)
    with serving(models, tmp_path / "log", "--rescan", 0.5) as server:
        with full_load(server) as clients:
            for number in range(2, 501):
                swap(server, models, number)
                if number == 100:  # caches, pools and the series of the metrics are full
                    first = Usage.of(server.process.pid)
            last = Usage.of(server.process.pid)
        assert_whole(clients)
    assert not excess(first, last), (first, last)
    assert "Traceback" not in (tmp_path / "log").read_text()
