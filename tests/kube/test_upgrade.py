"""Tests that no request fails during an upgrade under load in a real cluster.

KUBE_CONTEXT names the cluster. KUBE_IMAGES names two images of `make image` that the nodes of the cluster can pull, for
example `KUBE_IMAGES="registry.example/foldserve:1 registry.example/foldserve:2"`. The clients send requests to the
ready endpoints of the service. Like clients behind a slow proxy, the clients learn five seconds late that an endpoint
has changed. The API server forwards the requests of the clients to the pods. The test creates the namespace
`foldserve-upgrade`, and deletes this namespace at the end.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="not installed here: make kube-check")

OVERLAY = Path(__file__).parents[2] / "deploy/kubernetes/overlays/cpu"
NAMESPACE = "foldserve-upgrade"
POD = f"/api/v1/namespaces/{NAMESPACE}/pods/http:{{}}:8000/proxy/predict"
ENDPOINTS = (
    f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?watch=1"
    "&labelSelector=kubernetes.io/service-name%3Dfoldserve"
)
BODY = json.dumps({"instances": [[0.0] * 64]}).encode()
CLIENTS = 8
DELAY_SECONDS = 5

pytestmark = pytest.mark.skipif(
    not {"KUBE_CONTEXT", "KUBE_IMAGES"} <= os.environ.keys(), reason="KUBE_CONTEXT and KUBE_IMAGES name no cluster"
)


def command(*arguments: str) -> list[str]:
    return [os.environ["KUBECTL"], "--context", os.environ["KUBE_CONTEXT"], *arguments]


def kubectl(*arguments: str) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_namespace(*arguments: str) -> str:
    return kubectl("--namespace", NAMESPACE, *arguments)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[str]:
    """A deployment with two ready replicas of the first image.

    The replicas request little processor time, so they fit on a small node.
    """
    name, _, tag = os.environ["KUBE_IMAGES"].split()[0].rpartition(":")
    changes = [
        {"op": "add", "path": "/spec/replicas", "value": 2},
        {"op": "replace", "path": "/spec/template/spec/containers/0/resources/requests/cpu", "value": "100m"},
    ]
    kustomization = {
        "namespace": NAMESPACE,
        "resources": [os.path.relpath(OVERLAY, tmp_path)],
        "images": [{"name": "registry.example/foldserve", "newName": name, "newTag": tag}],
        "patches": [{"target": {"kind": "Deployment"}, "patch": yaml.safe_dump(changes)}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    try:
        kubectl("apply", "--kustomize", str(tmp_path))
        in_namespace("rollout", "status", "deployment/foldserve", "--timeout=300s")
        yield "deployment/foldserve"
    finally:
        kubectl("delete", "namespace", NAMESPACE)


class Cluster:
    """Sends requests to the API server through `kubectl proxy`. ready: the pods that the clients consider ready."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self.ready: list[str] = []
        self.results: list[str] = []
        self.stopped = threading.Event()

    def follow(self) -> None:
        """Watch the endpoints of the service. The clients learn `DELAY_SECONDS` late which pods are ready."""
        with closing(http.client.HTTPConnection(*self._address)) as connection:
            connection.request("GET", ENDPOINTS)
            with connection.getresponse() as events:
                while event := events.readline():
                    endpoints = json.loads(event)["object"]["endpoints"] or []
                    pods = [x["targetRef"]["name"] for x in endpoints if x["conditions"]["ready"]]
                    if self.ready:
                        threading.Timer(DELAY_SECONDS, setattr, (self, "ready", pods)).start()
                    else:
                        self.ready = pods

    def send(self) -> None:
        """Send requests to the pods in `ready`, one pod after the other.

        Each result is the status of a response, or the error of the connection.
        """
        for turn in itertools.count():
            if self.stopped.is_set():
                return
            if pods := self.ready:
                self.results.append(self._post(POD.format(pods[turn % len(pods)])))

    def _post(self, path: str) -> str:
        connection = http.client.HTTPConnection(*self._address)
        try:
            connection.request("POST", path, BODY, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            return "200" if response.status == http.client.OK else f"{response.status} {text.decode()}"
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        finally:
            connection.close()


@contextmanager
def load() -> Iterator[list[str]]:
    """Send requests from several clients until the `with` block ends. Yields the list of the results."""
    with subprocess.Popen(command("proxy", "--port=0"), stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        host, _, port = proxy.stdout.readline().split()[-1].rpartition(":")
        cluster = Cluster(host, int(port))
        follower = threading.Thread(target=cluster.follow)
        clients = [threading.Thread(target=cluster.send) for _ in range(CLIENTS)]
        for thread in (follower, *clients):
            thread.start()
        try:
            yield cluster.results
        finally:
            cluster.stopped.set()
            for client in clients:
                client.join()
            proxy.terminate()  # when the proxy ends, the response that `follower` reads ends too
            follower.join()


def test_an_upgrade_under_load_loses_no_request(deployment: str) -> None:
    new = os.environ["KUBE_IMAGES"].split()[1]
    with load() as results:
        old = in_namespace("get", "pods", "--output=name").split()
        before = len(results)
        in_namespace("set", "image", deployment, f"foldserve={new}")
        in_namespace("rollout", "status", deployment, "--timeout=300s")
        in_namespace("wait", "--for=delete", *old, "--timeout=120s")
    images = in_namespace("get", "pods", "--output=jsonpath={.items[*].spec.containers[0].image}").split()
    assert images == [new, new]
    assert len(results) > before
    assert set(results) == {"200"}, Counter(results)
    print(f"{len(results):,} requests were answered during the upgrade")  # noqa: T201 (pytest -rP shows the figure)
