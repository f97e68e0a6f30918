"""Tests deploy/ray/serve.yaml on a cluster of two nodes: `serve run` runs the service behind Ray's autoscaler.

Ray is large, so `make test-ray` runs these tests in a separate environment. Without Ray, the tests are skipped.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from foldserve.service import bundle
from foldserve.service.errors import SettingsError
from tests.service.support import environment

ray = pytest.importorskip("ray", reason="Ray is not installed here: make test-ray")
serve = pytest.importorskip("ray.serve")

ROOT = Path(__file__).parents[2]
DIGITS = bundle.read(ROOT / "models" / "digits" / "1")
GOLDEN = DIGITS.manifest.golden
# Ray takes long to start its processes. This time limit turns a hang into a failure.
PATIENCE = 300
MOST_REPLICAS = 3


@dataclass(frozen=True)
class Deployed:
    """The application of Ray Serve that runs on the cluster. models: the folder that the replicas serve."""

    url: str
    models: Path

    def predict(self) -> httpx.Response:
        return httpx.post(f"{self.url}/predict", json={"instances": GOLDEN.inputs}, timeout=PATIENCE)

    def succeeds(self) -> bool:
        """Return whether a prediction gets an answer."""
        try:
            return self.predict().status_code == 200
        except httpx.HTTPError:
            return False

    def replicas(self) -> int:
        """Return the number of replicas that run."""
        status = serve.status().applications["foldserve"]
        return int(status.deployments["foldserve"].replica_states.get("RUNNING", 0))


def until(condition: Callable[[], object]) -> None:
    """Call `condition` repeatedly until it returns true. `condition` waits for another process, so this loop does not
    use a whole core.
    """
    hung = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < hung, "it hangs"


def configuration(models: Path, port: int) -> dict[str, Any]:
    """Read deploy/ray/serve.yaml, and change its values for small nodes.

    With the changed values, the application adds replicas quickly. Each replica reserves little processor time.
    """
    content: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
    content["http_options"] |= {"host": "127.0.0.1", "port": port}
    # With one proxy on each node, both proxies would need the same port of this machine.
    content["proxy_location"] = "HeadOnly"
    (application,) = content["applications"]
    # With the default of 50 ms, the service refuses some requests until Ray has added replicas.
    application["args"] = {"models": str(models), "max_wait": PATIENCE}
    (deployment,) = application["deployments"]
    deployment["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": MOST_REPLICAS, "upscale_delay_s": 1}
    deployment["ray_actor_options"] = {"num_cpus": 0.1}
    return content


@pytest.fixture(scope="module")
def deployed(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("serve")
    models = folder / "models"
    shutil.copytree(DIGITS.path, models / "digits" / "1")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    (folder / "serve.yaml").write_text(yaml.safe_dump(configuration(models, port)))
    program = Path(sys.executable).with_name("serve")
    with (folder / "log").open("w") as log:
        command = [program, "run", "--address", address, folder / "serve.yaml"]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    try:
        ray.init(address, namespace="serve", log_to_driver=False)
        found = Deployed(f"http://127.0.0.1:{port}", models)
        until(lambda: process.poll() is not None or is_ready(found.url))
        assert process.poll() is None, (folder / "log").read_text()
        yield found
    finally:
        process.terminate()
        process.wait(PATIENCE)
        ray.shutdown()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/ready", timeout=PATIENCE).status_code == 200
    except httpx.HTTPError:
        return False


def test_both_protocols_give_the_golden_outputs(deployed: Deployed) -> None:
    tolerance = DIGITS.manifest.certificate.tolerance
    close = {"rtol": tolerance.relative, "atol": tolerance.absolute}
    friendly = deployed.predict().json()
    np.testing.assert_allclose(friendly["probabilities"], GOLDEN.outputs, **close)
    rows = np.array(GOLDEN.inputs, np.float32)
    tensor = {"name": "input", "shape": rows.shape, "datatype": "FP32"}
    answer = httpx.post(f"{deployed.url}/v2/models/digits/infer", json={"inputs": [tensor | {"data": rows.tolist()}]})
    (output,) = [each for each in answer.json()["outputs"] if each["name"] == "probabilities"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), GOLDEN.outputs, **close)
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": rows.nbytes}}]}).encode()
    answer = httpx.post(
        f"{deployed.url}/v2/models/digits/infer",
        content=head + rows.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
    )
    (of_binary,) = [each for each in answer.json()["outputs"] if each["name"] == "probabilities"]
    assert of_binary["data"] == output["data"]


def test_errors_and_paths_are_those_of_the_service(deployed: Deployed) -> None:
    answer = httpx.post(f"{deployed.url}/predict", json={"instances": [[1, 2]]})
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    for path in ("/metrics", "/v2/repository/models/digits/unload"):
        assert httpx.post(deployed.url + path).status_code == 404
    too_large = httpx.post(f"{deployed.url}/predict", content=b" " * (64 * 2**20 + 1), timeout=PATIENCE)
    assert too_large.status_code == 413


def test_a_load_adds_replicas_and_every_answer_is_right(deployed: Deployed) -> None:
    expected = deployed.predict().json()
    done = False

    def send() -> int:
        sent = 0
        with httpx.Client(base_url=deployed.url, timeout=PATIENCE) as client:
            while not done:
                answer = client.post("/predict", json={"instances": GOLDEN.inputs})
                assert answer.json() == expected
                sent += 1
        return sent

    with ThreadPoolExecutor(64) as pool:
        sending = [pool.submit(send) for _ in range(64)]
        try:
            until(lambda: deployed.replicas() == MOST_REPLICAS)
        finally:
            done = True
        assert min(each.result() for each in sending) >= 1


def test_a_killed_replica_is_replaced(deployed: Deployed) -> None:
    until(lambda: deployed.replicas() == MOST_REPLICAS)
    actors = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    killed = next(name for name in actors if name.startswith("SERVE_REPLICA::foldserve#"))
    ray.kill(ray.get_actor(killed, namespace="serve"))

    def replaced() -> bool:
        names = {each["name"] for each in ray.util.list_named_actors(all_namespaces=True)}
        return killed not in names and deployed.replicas() == MOST_REPLICAS

    until(replaced)
    # Ray does not repeat the requests that a dead replica gets, so the first requests may fail.
    until(lambda: all(deployed.succeeds() for _ in range(20)))


def test_every_replica_loads_a_new_version(deployed: Deployed) -> None:
    bundle.write(deployed.models, "digits", DIGITS.model, lambda n: DIGITS.manifest.model_copy(update={"version": n}))
    # The proxy chooses a replica at random, so 20 answers include at least one from each replica.
    until(lambda: {deployed.predict().json()["version"] for _ in range(20)} == {2})


@pytest.mark.parametrize("setting", ["port", "workers"])
def test_settings_of_a_server_are_refused(setting: str) -> None:
    from foldserve.service.ray_serve import application

    with pytest.raises(SettingsError, match=f"setting '{setting}': it has no effect inside another server"):
        application({setting: 2})
