"""An overloaded server immediately answers 503 with Retry-After, and keeps room for requests of high priority.

Every run has one row and takes 30 ms, so the capacity does not depend on the machine.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.service.support import Served, receive, request, serving, write_square_root

BODY = b'{"instances": [[1, 3]]}'
NORMAL = request("POST", "/predict", body=BODY)
HIGH = request("POST", "/predict", "X-Request-Priority: high", body=BODY)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("overload")
    (folder / "models").mkdir()
    write_square_root(folder / "models")
    (folder / "faults").write_text(json.dumps({"slow": 1}))
    flags = ("--max-batch", 1, "--max-wait", 1, "--faults", folder / "faults")
    with serving(folder / "models", folder / "log", *flags, program="tests.service.serve_with_faults") as server:
        for _ in range(3):  # the server learns how long a run takes
            assert server.send("POST", "/predict", body=BODY).status == 200
        yield server


@pytest.mark.parametrize("stopped", [False, True], ids=["one after the other", "in one turn of the loop"])
def test_more_than_a_second_of_work_is_refused_at_once(stopped: bool, busy: Served) -> None:
    with ExitStack() as stack:
        talks = [stack.enter_context(busy.connect()) for _ in range(100)]
        last = stack.enter_context(busy.connect())
        if stopped:
            busy.process.send_signal(signal.SIGSTOP)
        for talk in talks:
            talk.sendall(NORMAL)
        last.sendall(HIGH)
        if stopped:
            busy.process.send_signal(signal.SIGCONT)
        answers = [receive(talk) for talk in talks]
        assert receive(last).status == 200
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} == {200, 503}
    assert len(answers) - len(refused) >= 10
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.json()["error"] for answer in refused} == {"too many rows wait for this model"}


def test_an_expected_wait_longer_than_the_deadline_is_refused_at_once(busy: Served) -> None:
    with ExitStack() as stack:
        talks = [stack.enter_context(busy.connect()) for _ in range(20)]
        for talk in talks:
            talk.sendall(NORMAL)
        assert receive(talks[0]).status == 200  # the other requests are in the queue now
        hurried = stack.enter_context(busy.connect())
        hurried.sendall(request("POST", "/predict", "X-Request-Timeout-Ms: 50", body=BODY))
        assert receive(hurried).status == 503  # a queued request would get 504 after 50 ms
        assert {receive(talk).status for talk in talks[1:]} == {200}


def test_health_is_answered_during_an_overload(busy: Served) -> None:
    with ExitStack() as stack:
        talks = [stack.enter_context(busy.connect()) for _ in range(100)]
        for talk in talks:
            talk.sendall(NORMAL)
        assert busy.send("GET", "/v2/health/ready").status == 200
        for talk in talks:
            receive(talk)


@pytest.mark.parametrize(("value", "status"), [("high", 200), ("Normal", 200), ("urgent", 400), ("", 400)])
def test_the_priority_is_high_or_normal(value: str, status: int, busy: Served) -> None:
    answer = busy.send("POST", "/predict", f"X-Request-Priority: {value}", body=BODY)
    assert answer.status == status
    if status == 400:
        assert answer.json() == {"error": "X-Request-Priority is neither high nor normal"}
