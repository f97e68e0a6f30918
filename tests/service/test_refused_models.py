"""A real server refuses broken models. The other models answer requests, and every interface names the refused
models.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foldserve.service import bundle
from tests.service.bundle.changes import CHANGES, DIABETES_CHANGES, OLD
from tests.service.support import (
    Served,
    assert_refused_in_one_line,
    edit_manifest,
    flip_byte,
    foldserve,
    serving,
    write_square_root,
)

GOOD = b'{"instances": [[1, 3]]}'


def add_copy(models: Path, name: str) -> Path:
    """Write a copy of the bundle roots/1 under another name."""
    whole = bundle.read(models / "roots" / "1")
    update = {"name": name}
    return bundle.write(
        models, name, whole.model, lambda n: whole.manifest.model_copy(update=update | {"version": n})
    ).path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """roots/1 is intact. Each of the other models is broken in a different way."""
    folder = tmp_path_factory.mktemp("models")
    write_square_root(folder)
    flip_byte(add_copy(folder, "flipped") / "model.onnx", 20)
    edit_manifest(add_copy(folder, "edited"), lambda content: content["features"][0].update(name="c"), keep_seal=True)
    shutil.copytree(folder / "roots", folder / "renamed")
    for name, file in (("pipe", "manifest.json"), ("zero", "model.onnx"), ("huge", "manifest.json")):
        damaged = add_copy(folder, name) / file
        if name == "huge":
            os.truncate(damaged, 300 * 2**20)
            continue
        damaged.unlink()
        if name == "pipe":
            os.mkfifo(damaged)
        else:
            damaged.symlink_to("/dev/zero")
    return folder


REASONS = {
    "flipped": "model.onnx is not the certified one: its sha256 is not the manifest's",
    "edited": "manifest.json was changed after it was written: it differs from its seal in features.0",
    "renamed": "the manifest is of roots/1, the folder is renamed/1; `foldserve copy` gives a bundle another name",
    "pipe": "manifest.json is not a regular file",
    "zero": "model.onnx is not a regular file",
    "huge": "manifest.json has 314572800 bytes; the limit is 67108864",
}


@pytest.fixture(scope="module")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(models, tmp_path_factory.mktemp("served") / "log") as server:
        yield server


def test_the_whole_model_serves(served: Served) -> None:
    answer = served.send("POST", "/v1/models/roots:predict", body=GOOD)
    assert (answer.status, answer.json()["predictions"]) == (200, [2.0])
    assert served.send("GET", "/v2/models/roots/ready").status == 200
    assert served.send("GET", "/openapi.json").status == 200


@pytest.mark.parametrize("name", list(REASONS))
def test_a_refused_model_is_not_ready_and_says_why(name: str, served: Served) -> None:
    status = served.send("GET", f"/v1/models/{name}").json()
    version = {"version": 1, "state": "refused", "provider": None, "why": REASONS[name], "note": None, "compared": None}
    assert status == {"name": name, "ready": False, "current": None, "labels": {}, "versions": [version]}
    for path in ("/ready", "", "/config", "/stats", "/versions/1/ready"):
        answer = served.send("GET", f"/v2/models/{name}{path}")
        assert (answer.status, answer.json()) == (503, {"error": "the model is not ready"})
    for path in (f"/v1/models/{name}:predict", f"/v2/models/{name}/infer", f"/v1/models/{name}/versions/1:predict"):
        assert served.send("POST", path, body=GOOD).status == 503
    assert f"refused {served.log.parent}" not in served.log.read_text()
    assert f"/{name}/1: {REASONS[name]}\n" in served.log.read_text()
    assert f"{name} is not ready: none of its versions may be served\n" in served.log.read_text()


def test_the_repository_index_has_every_refusal(served: Served) -> None:
    index: list[dict[str, Any]] = served.send("POST", "/v2/repository/index").json()
    refused = {entry["name"]: entry["reason"] for entry in index if entry["state"] == "UNAVAILABLE"}
    assert refused == REASONS
    assert [entry["name"] for entry in index if entry["state"] == "READY"] == ["roots"]


def test_the_server_is_live_and_not_ready_as_the_protocol_asks(served: Served) -> None:
    assert served.send("GET", "/v2/health/live").status == 200
    assert (served.send("GET", "/v2/health/ready").status) == 503


def test_the_announcement_names_the_models_that_serve_and_then_the_refused_models(served: Served) -> None:
    assert " serves roots on http://" in served.announcement
    assert served.process.stdout
    assert served.process.stdout.readline() == f"not ready: {', '.join(sorted(REASONS))}; the log has the reasons\n"


def test_without_strict_readiness_the_server_is_ready(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", env={"FOLDSERVE_STRICT_READINESS": "false"}) as server:
        assert server.send("GET", "/v2/health/ready").status == 200
        assert server.send("GET", "/v2/models/flipped/ready").status == 503


def test_with_several_workers_each_worker_serves_the_intact_model(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--workers", 2) as server:
        assert server.send("POST", "/v1/models/roots:predict", body=GOOD).status == 200
        assert server.send("GET", "/v2/health/ready").status == 503


def test_a_start_fails_in_one_line_if_no_model_serves(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("pipe", "zero"):
        (folder / name).symlink_to(models / name)
    assert_refused_in_one_line(
        foldserve("serve", "--models", folder, "--port", 0),
        f"no version of pipe may be served: {REASONS['pipe']}; no version of zero may be served: {REASONS['zero']}",
    )


# --- changes of a manifest's meaning ---------------------------------------------------------------------------------


def test_no_manifest_with_a_changed_meaning_is_served(tmp_path: Path, trained: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "models"))
    expected: dict[str, dict[int, str]] = {"digits": {}, "diabetes": {}}
    for change, (edit, fields) in CHANGES.items():
        name = "diabetes" if change in DIABETES_CHANGES else "digits"
        whole = bundle.read(folder / name / "1")
        manifest = whole.manifest
        path = bundle.write(
            folder, name, whole.model, lambda n, manifest=manifest: manifest.model_copy(update={"version": n})
        ).path
        edit_manifest(path, edit, keep_seal=True)
        expected[name][int(path.name)] = (
            f"manifest.json was changed after it was written: it differs from its seal in {fields}"
        )
    with serving(folder, tmp_path / "log") as server:
        for name, reasons in expected.items():
            versions = server.send("GET", f"/v1/models/{name}").json()["versions"]
            assert {found["version"]: found["why"] for found in versions if found["state"] == "refused"} == reasons
            assert [found["version"] for found in versions if found["state"] == "ready"] == [1]


def test_a_bundle_of_schema_1_serves_with_a_warning(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "models")
    with serving(tmp_path / "models", tmp_path / "log") as server:
        assert server.send("POST", "/predict", body=GOOD).json()["predictions"] == [2.0]
    assert "WARNING foldserve: roots/1: the manifest has no seal (schema 1)" in server.log.read_text()


# --- variables of the environment ------------------------------------------------------------------------------------


def test_the_log_names_variables_that_are_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_square_root(folder)
    variables = {"FOLDSERVE_PORT": "tcp://10.99.0.217:80", "FOLDSERVE_PORT_80_TCP_ADDR": "10.99.0.217"}
    with serving(folder, tmp_path / "log", env=variables | {"FOLDSERVE_MAXROWS": "3"}) as server:
        assert server.send("GET", "/v2/health/ready").status == 200
    warnings = [line for line in server.log.read_text().splitlines() if "WARNING" in line]
    assert [line.partition("foldserve: ")[2] for line in warnings] == [
        "ignored FOLDSERVE_MAXROWS: there is no such setting; did you mean FOLDSERVE_MAX_ROWS?",
        "ignored FOLDSERVE_PORT: a Kubernetes service link has set it to 'tcp://10.99.0.217:80'",
    ]
