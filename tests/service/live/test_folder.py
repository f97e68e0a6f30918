"""A running server follows its folder: versions and models appear, change and disappear, and nothing is dropped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.http.test_workers import until
from tests.service.live.versions import BODY, answer_of, make, publish
from tests.service.support import Served, assert_refused_in_one_line, edit_manifest, flip_byte, foldserve, serving

PREDICT = "/v1/models/roots:predict"
FAST = ("--rescan", 0.1)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def served(models: Path, tmp_path: Path) -> Iterator[Served]:
    """A server that has started with roots/1."""
    publish(models, 1)
    with serving(models, tmp_path / "log", *FAST) as server:
        yield server


def answers(server: Served, version: int) -> Callable[[], bool]:
    """Return a condition. The condition is true if `version` answers the requests that name no version."""

    def holds() -> bool:
        answer = server.send("POST", PREDICT, body=BODY)
        return answer.status == 200 and answer.json()["version"] == version

    return holds


def version(server: Served, number: int) -> dict[str, Any]:
    found = server.send("GET", "/v1/models/roots").json().get("versions", [])
    return next((each for each in found if each["version"] == number), {"state": None})


def test_new_versions_replace_older_ones_in_the_order_of_integers(served: Served, models: Path) -> None:
    for number in (9, 10):
        publish(models, number)
        until(answers(served, number))
    publish(models, 2)
    until(lambda: version(served, 2)["state"] == "ready")
    assert answers(served, 10)()
    for number in (1, 2, 9, 10):
        answer = served.send("POST", f"/v1/models/roots/versions/{number}:predict", body=BODY)
        assert answer.json()["predictions"] == [answer_of(number)]
    assert served.send("GET", "/v2/models/roots").json()["versions"] == ["10", "9", "2", "1"]
    assert "roots: version 10 answers in place of version 9" in served.log.read_text()


def test_a_bundle_that_is_still_being_copied_is_waited_for(served: Served, models: Path) -> None:
    made = make(2)
    target = models / "roots" / "2"
    target.mkdir()
    until(lambda: version(served, 2)["state"] == "loading")
    shutil.copy(made / "manifest.json", target)
    until(lambda: "can't read model.onnx" in (version(served, 2)["why"] or ""))
    content = (made / "model.onnx").read_bytes()
    (target / "model.onnx").write_bytes(content[:100])
    until(lambda: "has 100 bytes" in (version(served, 2)["why"] or ""))
    assert answers(served, 1)()
    assert served.send("GET", "/v2/health/ready").status == 200
    with (target / "model.onnx").open("ab") as file:
        file.write(content[100:])
    until(answers(served, 2))
    assert "ERROR" not in served.log.read_text()


def test_a_damaged_version_is_refused_and_serves_once_it_is_repaired(served: Served, models: Path) -> None:
    made = make(2)
    flip_byte(made / "model.onnx", 10)
    shutil.copytree(made, models / "roots" / "2")
    until(lambda: version(served, 2)["state"] == "refused")
    assert version(served, 2)["why"] == "model.onnx is not the certified one: its sha256 is not the manifest's"
    assert answers(served, 1)()
    assert 'foldserve_model_refused{model="roots",version="2"} 1.0' in served.send("GET", "/metrics").body.decode()
    flip_byte(models / "roots" / "2" / "model.onnx", 10)
    until(answers(served, 2))
    assert 'foldserve_model_refused{model="roots",version="2"}' not in served.send("GET", "/metrics").body.decode()


def test_a_removed_version_and_a_removed_model_serve_no_more(served: Served, models: Path) -> None:
    publish(models, 2)
    publish(models, 1, "pairs")
    until(lambda: served.send("POST", "/v1/models/pairs:predict", body=BODY).status == 200)
    until(answers(served, 2))
    shutil.rmtree(models / "roots" / "2")
    until(answers(served, 1))
    assert served.send("POST", "/v1/models/roots/versions/2:predict", body=BODY).status == 404
    until(lambda: "roots/2 is unloaded" in served.log.read_text())
    shutil.rmtree(models / "roots")
    until(lambda: served.send("POST", PREDICT, body=BODY).status == 404)
    assert served.send("GET", "/v2/health/ready").status == 200
    shutil.rmtree(models / "pairs")
    until(lambda: served.send("GET", "/v2/health/ready").status == 503)
    assert served.send("GET", "/v2/health/live").status == 200
    assert served.send("POST", "/predict", body=BODY).status == 503
    assert served.send("GET", "/openapi.json").status == 200


def test_a_server_without_models_starts_unready_and_serves_the_first_model(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", *FAST) as server:
        assert " serves no model yet on " in server.announcement
        assert "it is empty" in server.log.read_text()
        assert server.send("GET", "/v2/health/ready").status == 503
        assert server.send("POST", "/predict", body=BODY).json() == {"error": "the server has no model yet"}
        assert server.send("GET", "/openapi.json").status == 200
        publish(models, 1)
        until(answers(server, 1))
        assert server.send("GET", "/v2/health/ready").status == 200
        assert server.send("POST", "/predict", body=BODY).status == 200
        example = server.send("GET", "/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
        assert example["application/json"]["example"] == {"instances": [{"a": 1.0, "b": 3.0}]}


def test_the_models_serve_on_when_their_folder_disappears(served: Served, models: Path) -> None:
    elsewhere = models.rename(models.with_name("elsewhere"))
    until(lambda: "the models stay as they were" in served.log.read_text())
    assert answers(served, 1)()
    assert served.send("GET", "/v2/health/ready").status == 200
    publish(elsewhere, 2)
    elsewhere.rename(models)
    until(answers(served, 2))


def test_a_link_that_is_replaced_changes_the_version_in_place(models: Path, tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap like this: each file is a link through `..data`. Kubernetes updates the files by a
    rename, which replaces the link `..data`.
    """
    mount = models / "roots" / "1"
    mount.mkdir(parents=True)

    def update(added: float) -> None:
        made = make(1, added=added)
        shutil.move(made, mount / f"..{added}")
        (mount / "..new").symlink_to(f"..{added}")
        (mount / "..new").rename(mount / "..data")

    update(1.0)
    for name in ("manifest.json", "model.onnx"):
        (mount / name).symlink_to(f"..data/{name}")
    with serving(models, tmp_path / "log", *FAST) as server:
        assert server.send("POST", PREDICT, body=BODY).json()["predictions"] == [3.0]
        update(2.0)
        until(lambda: server.send("POST", PREDICT, body=BODY).json()["predictions"] == [4.0])


def test_changed_files_that_may_not_serve_leave_the_version_as_it_was(served: Served, models: Path) -> None:
    edit_manifest(models / "roots" / "1", lambda content: content["golden"]["outputs"][0].__setitem__(0, 7.0))
    until(lambda: (version(served, 1)["note"] or "").startswith("the files have changed, and may not serve: "))
    assert served.send("POST", PREDICT, body=BODY).json()["predictions"] == [answer_of(1)]


def test_a_folder_that_can_only_be_read_is_followed(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    folders = [models, *(found for found in models.rglob("*") if found.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    before = sorted(models.rglob("*"))
    with serving(models, tmp_path / "log", *FAST) as server:
        assert answers(server, 1)()
        for folder in folders:
            folder.chmod(0o755)
        publish(models, 2)
        until(answers(server, 2))
        assert sorted(found for found in models.rglob("*") if "2" not in found.parts) == before


def test_two_hundred_models_are_followed(models: Path, tmp_path: Path) -> None:
    made = make(1)
    for number in range(200):
        name = f"model{number}"
        shutil.copytree(made, models / name / "1")
        edit_manifest(models / name / "1", lambda content, name=name: content.update(name=name))
    with serving(models, tmp_path / "log", *FAST) as server:
        assert server.send("POST", "/v1/models/model199:predict", body=BODY).json()["predictions"] == [102.0]
        publish(models, 2, "model100")
        path = "/v1/models/model100:predict"
        until(lambda: server.send("POST", path, body=BODY).json()["predictions"] == [answer_of(2)])
        assert server.send("GET", "/v2/health/ready").status == 200


def test_without_watching_the_models_stay_as_they_were(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    with serving(models, tmp_path / "log", "--no-watch", *FAST) as server:
        publish(models, 2)
        server.send("POST", PREDICT, body=BODY)
        assert version(server, 2) == {"state": None}
        assert answers(server, 1)()


def test_several_workers_change_together(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    with serving(models, tmp_path / "log", "--workers", 2, *FAST) as server:
        publish(models, 2)
        until(lambda: "roots: version 2 answers in place of version 1" in server.log.read_text())
        found = [server.send("POST", PREDICT, "Connection: close", body=BODY).json()["version"] for _ in range(40)]
        assert found == [2] * 40


def test_no_worker_serves_a_version_that_one_of_them_refuses(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    variables = {"MANIFEST": str(models / "roots" / "2" / "manifest.json"), "REFUSED": str(tmp_path / "refused")}
    program = "tests.service.live.serve_with_refusal"
    with serving(models, tmp_path / "log", "--workers", 2, *FAST, env=variables, program=program) as server:
        publish(models, 2)
        until(lambda: version(server, 2)["state"] == "refused")
        found = [server.send("POST", PREDICT, "Connection: close", body=BODY).json()["version"] for _ in range(20)]
        assert found == [1] * 20
        assert "can't read manifest.json" in version(server, 2)["why"]


def test_several_workers_without_models_wait_for_one(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--workers", 2, *FAST) as server:
        assert server.send("GET", "/v2/health/ready").status == 503
        publish(models, 1)
        until(lambda: all(answers(server, 1)() for _ in range(8)))


def test_a_wrong_policy_is_refused_in_one_line(models: Path, tmp_path: Path) -> None:
    publish(models, 1)
    policy = tmp_path / "policy.toml"
    policy.write_text('[models.roots]\nversions = "newest"\n')
    expected = f'{policy}: models.roots.versions: expected "all", "latest N" or a list'
    assert_refused_in_one_line(foldserve("serve", "--models", models, "--policy", policy), expected)
