"""Operators load, unload, roll back and promote versions over HTTP, with an API key of the scope admin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from foldserve.service.access.keys import Scope, create_key
from tests.service.http.test_workers import kill, until, workers
from tests.service.live.versions import BODY, make, publish
from tests.service.support import GATED, Answer, Served, flip_byte, receive, request, serving, through, while_loading


class Operator:
    """A client with a key for everything."""

    def __init__(self, server: Served, key: str) -> None:
        self.server, self.key = server, f"X-API-Key: {key}"

    def command(self, kind: str, model: str = "roots", **parameters: object) -> Answer:
        body = json.dumps({"parameters": parameters}).encode() if parameters else b""
        return self.server.send("POST", f"/v2/repository/models/{model}/{kind}", self.key, body=body)

    def predict(self, path: str = "/v1/models/roots:predict") -> Answer:
        return self.server.send("POST", path, self.key, body=BODY)

    @property
    def current(self) -> int:
        """The version that answers requests that name no version."""
        version: int = self.predict().json()["version"]
        return version

    def states(self) -> dict[int, str]:
        found = self.server.send("GET", "/v1/models/roots", self.key).json()["versions"]
        return {version["version"]: version["state"] for version in found}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with the versions 1, 2 and 3 of roots."""
    folder = tmp_path / "models"
    for number in (1, 2, 3):
        publish(folder, number)
    return folder


@pytest.fixture
def key(tmp_path: Path) -> tuple[str, Path]:
    made, line = create_key("operator", [Scope.PREDICT, Scope.METRICS, Scope.ADMIN], None)
    file = tmp_path / "keys"
    file.write_text(line)
    return made, file


@pytest.fixture
def operator(request: pytest.FixtureRequest, models: Path, key: tuple[str, Path], tmp_path: Path) -> Iterator[Operator]:
    flags = ("--no-watch", "--keys", key[1], "--workers", getattr(request, "param", 1))
    with serving(models, tmp_path / "log", *flags) as server:
        yield Operator(server, key[0])


@pytest.mark.parametrize("operator", [1, 2], indirect=True, ids=["one worker", "two workers"])
def test_a_rollback_and_a_promotion_choose_the_version_that_answers(operator: Operator) -> None:
    assert operator.command("rollback").status == 200
    assert operator.current == 2
    assert operator.command("rollback").status == 200
    assert operator.current == 1
    refused = operator.command("rollback")
    assert (refused.status, refused.json()) == (400, {"error": "there is no earlier version"})
    assert operator.command("promote", version=2).status == 200
    assert operator.current == 2
    assert operator.command("promote").status == 200
    assert operator.current == 3
    assert operator.command("rollback", version="1").status == 200
    assert operator.current == 1
    assert operator.states() == {1: "ready", 2: "ready", 3: "ready"}


def test_a_version_that_is_newer_than_a_rollback_takes_over(operator: Operator, models: Path) -> None:
    operator.command("rollback")
    publish(models, 4)
    assert operator.current == 2
    assert operator.command("load").status == 200
    assert operator.current == 4


def test_an_unloaded_model_is_known_and_not_ready_until_it_is_loaded(operator: Operator) -> None:
    assert operator.command("unload", unload_dependents=False).status == 200
    answer = operator.predict()
    assert (answer.status, answer.json()) == (503, {"error": "the model is not ready"})
    assert set(operator.states().values()) == {"unloaded"}
    index = operator.server.send("POST", "/v2/repository/index", operator.key).json()
    assert {(entry["state"], entry["reason"]) for entry in index} == {("UNAVAILABLE", "an operator has unloaded it")}
    assert operator.command("load").status == 200
    assert operator.current == 3


def test_one_version_can_be_unloaded_and_loaded(operator: Operator) -> None:
    assert operator.command("unload", version=3).status == 200
    assert operator.current == 2
    assert operator.states() == {1: "ready", 2: "ready", 3: "unloaded"}
    assert operator.command("load", version=3).status == 200
    assert operator.current == 3


def test_a_version_that_may_not_serve_is_a_failed_command(operator: Operator, models: Path) -> None:
    made = make(4)
    flip_byte(made / "model.onnx", 10)
    shutil.copytree(made, models / "roots" / "4")
    answer = operator.command("promote", version=4)
    assert answer.status == 400
    assert answer.json()["error"].startswith("version 4 may not serve: model.onnx is not the certified one")
    assert operator.current == 3
    assert operator.command("load").json()["error"].endswith("; version 3 serves")
    flip_byte(models / "roots" / "4" / "model.onnx", 10)
    assert operator.command("load").status == 200
    assert operator.current == 4
    # While the command fails, no other version answers in the place of version 1.
    assert operator.command("rollback", version=1).status == 200
    shutil.copytree(made, models / "roots" / "5")
    assert operator.command("promote", version=5).status == 400
    assert operator.current == 1
    assert "answers in place of version 1" not in operator.server.log.read_text()


WRONG: list[tuple[str, str, dict[str, object], int]] = [
    ("load", "nope", {}, 404),
    ("load", "..%2froots", {}, 404),
    ("rollback", "roots", {"version": 9}, 404),
    ("load", "roots", {"version": 0}, 400),
    ("load", "roots", {"version": "x"}, 400),
    ("load", "roots", {"version": True}, 400),
    ("load", "roots", {"config": "{}"}, 400),
    ("load", "roots", {"file:1/model.onnx": "AAAA"}, 400),
]


def test_a_wrong_command_changes_nothing(models: Path, key: tuple[str, Path], tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--no-watch", "--keys", key[1]) as server:
        operator = Operator(server, key[0])
        statuses = [operator.command(kind, model, **parameters).status for kind, model, parameters, _ in WRONG]
        assert statuses == [status for *_, status in WRONG]
        assert operator.current == 3


def test_of_two_loads_of_one_model_one_is_refused(models: Path, key: tuple[str, Path], tmp_path: Path) -> None:
    target = models / "roots" / "4"
    made = make(4)
    with serving(
        models, tmp_path / "log", "--no-watch", "--keys", key[1], env=through(target), program=GATED
    ) as server:
        shutil.copytree(made, target)
        operator = Operator(server, key[0])
        load = request("POST", "/v2/repository/models/roots/load", operator.key)
        with server.connect() as first:

            def second() -> Answer:
                return operator.command("load")

            with while_loading(target, second) as refused:
                first.sendall(load)
                answer = refused.result()
                assert (answer.status, answer.json()) == (
                    409,
                    {"error": "this model is being changed by another request"},
                )
                assert receive(first).status == 200
        assert operator.current == 4


def test_without_api_keys_no_command_is_executed(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--no-watch") as server:
        for kind in ("load", "unload", "rollback", "promote"):
            answer = server.send("POST", f"/v2/repository/models/roots/{kind}")
            assert answer.status == 403
            assert answer.json() == {"error": "without API keys (--keys) the models can't be changed"}
        assert server.send("POST", "/v2/repository/index").status == 200


def test_a_command_survives_a_worker_that_dies(models: Path, key: tuple[str, Path], tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--workers", 2, "--no-watch", "--keys", key[1]) as server:
        operator = Operator(server, key[0])
        assert operator.command("rollback").status == 200
        for worker in workers(server.process.pid):
            kill(worker)
        until(lambda: server.log.read_text().count("roots/2 ready on") == 4)
        until(lambda: len(workers(server.process.pid)) == 2)
        assert operator.current == 2
