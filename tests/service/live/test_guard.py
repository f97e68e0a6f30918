"""A new version replaces the old version only if the swap policy accepts its outputs and its interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from foldserve.service import bundle
from foldserve.service.access.keys import Scope, create_key
from tests.service.http.test_workers import until
from tests.service.support import Served, constant, manifest, onnx_model, oracle, serving, tensor

PREDICT = "/v1/models/sides:predict"
GOLDEN = ((1.0, 2.0), (2.0, 1.0), (-3.0, 0.5), (0.25, -4.0))


def write(
    models: Path,
    *,
    weight: float = 1.0,
    labels: Sequence[str] = ("left", "right"),
    features: Sequence[str] = ("a", "b"),
    slow: int = 0,
    bounded: bool = False,
) -> None:
    """Write the next version of a classification. The sign of a - b decides the label.

    weight: a factor that multiplies all weights. The factor -1 swaps the two labels. slow: the number of large matrix
    products that slow down a run. bounded: whether a run fails for a value outside of (-4, 3).
    """
    weights = constant("weights", weight * np.array([[1.0, -1.0], [-1.0, 1.0]]))
    nodes = [helper.make_node("MatMul", ["input", "weights"], ["logits"])]
    constants = [weights]
    if slow:
        constants += [constant("wide", np.zeros((2, 512))), constant("square", np.zeros((512, 512)))]
        constants.append(constant("axes", [1], np.int64))
        nodes.append(helper.make_node("MatMul", ["input", "wide"], ["work0"]))
        nodes += [helper.make_node("MatMul", [f"work{i}", "square"], [f"work{i + 1}"]) for i in range(slow)]
        nodes.append(helper.make_node("ReduceSum", [f"work{slow}", "axes"], ["zero"], keepdims=1))
        nodes.append(helper.make_node("Add", ["logits", "zero"], ["slow_logits"]))
    if bounded:
        constants.append(constant("table", np.zeros(3)))
        nodes.insert(0, helper.make_node("Cast", ["input"], ["indices"], to=TensorProto.INT64))
        nodes.insert(1, helper.make_node("Gather", ["table", "indices"], ["zeros"]))
        nodes[2] = helper.make_node("MatMul", ["input", "weights"], ["product"])
        nodes.insert(3, helper.make_node("Add", ["product", "zeros"], ["logits"]))
    nodes.append(helper.make_node("Softmax", ["slow_logits" if slow else "logits"], ["probabilities"], axis=1))
    model = onnx_model(nodes, constants, outputs=[tensor("probabilities", "batch", 2)])
    inputs = GOLDEN[:-1] if bounded else GOLDEN
    outputs = tuple(tuple(map(float, row)) for row in oracle(model)(np.array(inputs)))
    golden = bundle.Golden(inputs=inputs, outputs=outputs)
    fields: dict[str, Any] = {"name": "sides", "golden": golden, "labels": labels, "features": features}
    bundle.write(models, "sides", model, lambda n: manifest(model, version=n, **fields))


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    """Start a server with sides/1 and a policy. Clients of the server need a key."""
    models = tmp_path / "models"
    write(models)
    (tmp_path / "keys").write_text(create_key("operator", tuple(Scope)[1:], None)[1])

    def begin(policy: str = "", *flags: object) -> Any:
        (tmp_path / "policy.toml").write_text(policy)
        return serving(models, tmp_path / "log", "--rescan", 0.1, "--policy", tmp_path / "policy.toml", *flags)

    return begin


def predict(server: Served, rows: int = 100) -> Any:
    values = np.random.default_rng(0).normal(size=(rows, 2)).tolist()
    return server.send("POST", PREDICT, body=json.dumps({"instances": values}).encode()).json()


def second(server: Served) -> dict[str, Any]:
    """Wait for the verdict on version 2. Return the state of version 2.

    The function returns the first state that has a verdict, because the next response may come from a worker that does
    not have the verdict yet.
    """
    found: list[dict[str, Any]] = []

    def is_decided() -> bool:
        found[:] = versions(server)[1:2]
        return bool(found) and found[0]["state"] in ("ready", "refused")

    until(is_decided)
    return found[0]


def versions(server: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.send("GET", "/v1/models/sides").json()["versions"]
    return found


def test_shadow_refuses_a_version_that_answers_other_labels(start: Callable[..., Any], tmp_path: Path) -> None:
    """The verdict depends on the rows of both workers."""
    with start('[models.sides.swap]\npolicy = "shadow"\n', "--workers", 2) as server:
        for _ in range(20):
            predict(server, rows=5)
        write(tmp_path / "models", weight=-1)
        found = second(server)
        assert found["state"] == "refused"
        assert found["why"] == "100.0% of 100 live rows get another label, and 5.0% may"
        assert found["compared"]["changed_by_class"] == {"left": 1.0, "right": 1.0}
        assert found["compared"]["against"] == 1
        assert predict(server)["version"] == 1
        metrics = server.send("GET", "/metrics").body.decode()
        assert 'foldserve_model_refused{model="sides",version="2"} 1.0' in metrics
        assert f"refused {tmp_path / 'models' / 'sides' / '2'}: 100.0% of 100" in server.log.read_text()


@pytest.mark.parametrize("policy", ["always", "golden"])
def test_without_a_comparison_of_answers_a_version_with_other_labels_serves(
    policy: str, start: Callable[..., Any], tmp_path: Path
) -> None:
    with start("", "--swap-policy", policy) as server:
        predict(server)
        write(tmp_path / "models", weight=-1)
        assert second(server)["state"] == "ready"
        assert predict(server)["version"] == 2


def test_a_version_is_refused_if_its_run_fails_for_the_golden_rows_of_the_old_version(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    with start() as server:
        write(tmp_path / "models", bounded=True)
        found = second(server)
        assert found["state"] == "refused"
        assert found["why"] == "a run fails on the rows of the comparison with the version that serves"
        assert len(predict(server)["predictions"]) == 100
    log = (tmp_path / "log").read_text()
    assert "sides/2 fails on the rows" in log
    assert "internal error" not in log


def test_shadow_accepts_a_version_that_answers_almost_the_same(start: Callable[..., Any], tmp_path: Path) -> None:
    with start("", "--swap-policy", "shadow") as server:
        predict(server)
        write(tmp_path / "models", weight=1.05)
        found = second(server)
        assert found["state"] == "ready"
        assert (found["compared"]["rows"], found["compared"]["changed"]) == (100, 0.0)
        assert 0 < found["compared"]["largest_change"] < 0.1
        assert predict(server)["version"] == 2


@pytest.mark.parametrize(
    ("limit", "changes", "why"),
    [
        ("max_change = 0.001", {"weight": 1.5}, "an output changes by "),
        ("max_latency_ratio = 2", {"slow": 40}, "a run takes "),
    ],
)
def test_a_version_beyond_a_limit_is_refused(
    limit: str, changes: dict[str, Any], why: str, start: Callable[..., Any], tmp_path: Path
) -> None:
    with start(f'[default.swap]\npolicy = "shadow"\n{limit}\n') as server:
        predict(server)
        write(tmp_path / "models", **changes)
        assert second(server)["why"].startswith(why)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"labels": ("right", "left")}, "the labels have another order"),
        ({"labels": ("left", "up")}, "the labels differ"),
        ({"features": ("b", "a")}, "the features have another order"),
        ({"features": ("a", "c")}, "the feature 'b' is now 'c'"),
    ],
    ids=["order of labels", "labels", "order of features", "name of a feature"],
)
def test_another_interface_is_refused_unless_the_policy_allows_it(
    changes: dict[str, Any], why: str, start: Callable[..., Any], tmp_path: Path
) -> None:
    with start() as server:
        write(tmp_path / "models", **changes)
        assert second(server)["why"] == f"the interface differs from version 1: {why}"
        assert predict(server)["version"] == 1
        (tmp_path / "policy.toml").write_text("[models.sides.swap]\nallow_interface_change = true\n")
        until(lambda: versions(server)[1]["state"] == "ready")
        assert server.send("GET", "/v1/models/sides").json()["current"] == 2


def test_a_promotion_lets_a_refused_version_answer(start: Callable[..., Any], tmp_path: Path) -> None:
    key, line = create_key("operator", tuple(Scope)[1:], None)
    (tmp_path / "keys").write_text(line)
    header = f"X-API-Key: {key}"
    with start("", "--keys", tmp_path / "keys") as server:

        def current() -> Any:
            return server.send("GET", "/v1/models/sides", header).json()

        write(tmp_path / "models", labels=("right", "left"))
        until(lambda: [v["state"] for v in current()["versions"]] == ["ready", "refused"])
        assert server.send("POST", "/v2/repository/models/sides/load", header).status == 400
        assert server.send("POST", "/v2/repository/models/sides/promote", header).status == 200
        assert current()["current"] == 2
