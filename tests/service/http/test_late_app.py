"""FastAPI is loaded for the first request that needs one of its routes. Requests that arrive while FastAPI is being
loaded get their answers too.
"""

from __future__ import annotations

import resource
from pathlib import Path

from tests.service.support import receive, request, serving, write_square_root

PREDICTION = request("POST", "/predict", "Content-Type: application/json", body=b'{"instances": [[4, 9]]}')


def test_requests_that_arrive_before_the_app_exists_are_answered(tmp_path: Path) -> None:
    write_square_root(tmp_path / "models")
    with serving(tmp_path / "models", tmp_path / "log") as served:
        clients = [served.connect() for _ in range(9)]
        first, predicting, *others = clients
        first.sendall(request("GET", "/v1/models"))
        for client in others:
            client.sendall(request("GET", "/v2/models/roots/ready"))
        first.close()  # this request has started to load the app, and the app must still answer the other clients
        predicting.sendall(PREDICTION)
        assert receive(predicting).status == 200
        for client in others:
            answer = receive(client)
            assert (answer.status, answer.json()) == (200, {"name": "roots", "ready": True})
        for client in clients:
            client.close()


def test_a_probe_has_the_same_answer_before_and_after_the_app_exists(tmp_path: Path) -> None:
    write_square_root(tmp_path / "models")
    with serving(tmp_path / "models", tmp_path / "log") as served:

        def probe(method: str) -> list[tuple[int, dict[str, str], bytes]]:
            answers = [
                served.send(method, f"/v2/health/{name}", "X-Request-Id: one") for name in ("live", "started", "ready")
            ]
            return [(a.status, {k: v for k, v in a.headers.items() if k != "date"}, a.body) for a in answers]

        before = probe("GET")
        assert served.send("GET", "/metrics").status == 200
        assert probe("GET") == before
        assert [status for status, *_ in before] == [200, 200, 200]
        assert [status for status, *_ in probe("POST")] == [405, 405, 405]


def test_without_descriptors_a_route_gets_a_503_and_later_its_answer(tmp_path: Path) -> None:
    write_square_root(tmp_path / "models")
    with serving(tmp_path / "models", tmp_path / "log") as served, served.connect() as client:
        client.sendall(PREDICTION)
        assert receive(client).status == 200
        limits = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        used = max(int(entry.name) for entry in Path(f"/proc/{served.process.pid}/fd").iterdir()) + 1
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
        client.sendall(request("GET", "/v1/models"))
        answer = receive(client)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {"error": "the server can't load this route now; its log has the reason"}
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, limits)
        client.sendall(request("GET", "/v1/models"))
        assert receive(client).status == 200
    assert "Too many open files" in (tmp_path / "log").read_text()
