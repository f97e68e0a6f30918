"""A policy file chooses versions, labels and canaries. A single flat bundle is served under the name that the user
gives.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from foldserve.service import bundle
from tests.service.http.test_workers import until
from tests.service.live.versions import BODY, answer_of, make, publish
from tests.service.support import Served, assert_refused_in_one_line, flip_byte, foldserve, serving

PREDICT = "/v1/models/roots:predict"
FAST = ("--rescan", 0.1)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with the versions 1, 2 and 3 of roots."""
    for number in (1, 2, 3):
        publish(tmp_path / "models", number)
    return tmp_path / "models"


def status(server: Served) -> Any:
    return server.send("GET", "/v1/models/roots").json()


def states(server: Served) -> dict[int, str]:
    return {version["version"]: version["state"] for version in status(server)["versions"]}


def version_of(server: Served, path: str = PREDICT, *headers: str) -> int:
    answer = server.send("POST", path, *headers, body=BODY).json()
    assert answer["predictions"] == [answer_of(answer["version"])]
    number: int = answer["version"]
    return number


def test_the_newest_versions_are_kept_and_a_refused_one_does_not_count(models: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[default]\nversions = "latest 1"\n')
    damaged = make(4)
    flip_byte(damaged / "model.onnx", 10)
    shutil.copytree(damaged, models / "roots" / "4")
    with serving(models, tmp_path / "log", "--policy", policy, *FAST) as server:
        assert states(server) == {1: "unloaded", 2: "unloaded", 3: "ready", 4: "refused"}
        assert status(server)["versions"][0]["why"] == "the policy keeps latest 1"
        publish(models, 5)
        until(lambda: states(server) == {1: "unloaded", 2: "unloaded", 3: "unloaded", 4: "refused", 5: "ready"})
        policy.write_text("[models.roots]\nversions = [1, 2]\n")
        until(lambda: states(server) == {1: "ready", 2: "ready", 3: "unloaded", 4: "unloaded", 5: "unloaded"})
        assert version_of(server) == 2
        policy.write_text("[models.roots]\nversions = 7\n")
        until(lambda: "the policies stay as they were" in server.log.read_text())
        assert version_of(server) == 2
        policy.write_text("[models.root]\n[models.roots]\nlabels = {stable = 9}\n")
        until(lambda: "of roots names version 9, which does not exist" in server.log.read_text())
        assert "the policy names the model 'root', which does not exist" in server.log.read_text()


def test_labels_are_versions_in_paths(models: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[models.roots]\nlabels = {stable = 1, next = 3}\n")
    with serving(models, tmp_path / "log", "--policy", policy, *FAST) as server:
        assert version_of(server) == 1
        assert version_of(server, "/v1/models/roots/versions/stable:predict") == 1
        assert version_of(server, "/v1/models/roots/versions/next:predict") == 3
        assert server.send("POST", "/v1/models/roots/versions/other:predict", body=BODY).status == 404
        tensor = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 3]}
        body = json.dumps({"inputs": [tensor]}).encode()
        answer = server.send("POST", "/v2/models/roots/versions/next/infer", body=body).json()
        assert answer["model_version"] == "3"
        assert status(server)["labels"] == {"stable": 1, "next": 3}
        publish(models, 4)
        until(lambda: 4 in states(server))
        policy.write_text("[models.roots]\nlabels = {stable = 2}\n")
        until(lambda: version_of(server) == 2)


def test_a_canary_answers_its_share_and_the_same_requests_again(models: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[models.roots]\nlabels = {stable = 1, canary = 2}\ncanary = 0.25\n")
    with serving(models, tmp_path / "log", "--policy", policy, "--workers", 2, *FAST) as server:

        def ask(path: str) -> list[int]:
            return [version_of(server, path, f"X-Request-Id: request-{number}") for number in range(200)]

        first = ask(PREDICT)
        assert 20 <= Counter(first)[2] <= 80
        assert ask("/v1/models/%72oots:predict") == first
        assert ask("/predict") == first
        assert {version_of(server) for _ in range(100)} == {1, 2}


# --- one flat bundle -------------------------------------------------------------------------------------------------


def test_a_flat_bundle_serves_under_the_given_name_and_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    shutil.copytree(make(3), folder)
    flags = ("--model_name", "house-prices", "--model_dir", folder, *FAST)
    with serving(tmp_path / "unused", tmp_path / "log", *flags) as server:
        answer = server.send("POST", "/v1/models/house-prices:predict", body=BODY).json()
        assert (answer["model"], answer["version"], answer["predictions"]) == ("house-prices", 3, [answer_of(3)])
        assert server.send("GET", "/v2/models/house-prices/versions/3/ready").status == 200
        assert server.send("POST", "/predict", body=BODY).status == 200
        made = make(4)
        for name in ("model.onnx", "manifest.json"):
            shutil.copy(made / name, folder / f".{name}")
        for name in ("model.onnx", "manifest.json"):
            (folder / f".{name}").rename(folder / name)
        until(lambda: server.send("POST", "/predict", body=BODY).json()["version"] == 4)


def test_the_folder_of_one_model_may_have_versions(tmp_path: Path) -> None:
    for number in (1, 2):
        shutil.copytree(make(number), tmp_path / "mnt" / str(number))
    flags = ("--model-name", "other", "--model-dir", tmp_path / "mnt")
    with serving(tmp_path / "unused", tmp_path / "log", *flags) as server:
        assert version_of(server, "/v1/models/other:predict") == 2
        assert version_of(server, "/v1/models/other/versions/1:predict") == 1
        assert bundle.read(tmp_path / "mnt" / "2").manifest.name == "roots"


def test_a_name_and_a_folder_belong_together(tmp_path: Path) -> None:
    assert_refused_in_one_line(foldserve("serve", "--model-dir", tmp_path), "--model-dir needs --model-name")
    assert_refused_in_one_line(foldserve("serve", "--model-name", "a"), "--model-name needs --model-dir")
    assert_refused_in_one_line(
        foldserve("serve", "--model-name", "..", "--model-dir", tmp_path), "--model-dir needs --model-name, a name of"
    )
