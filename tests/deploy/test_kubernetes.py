"""Every name, port, path and setting in deploy/kubernetes and deploy/kserve exists.

These tests need no Kubernetes cluster. `make kube-check` compares the manifests with the schemas of Kubernetes.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from foldserve.service.http.workers import _GRACE_SECONDS
from foldserve.service.settings import PREFIX, Settings
from tests.deploy.support import ROOT, SERVICES
from tests.service.support import Served, command_line, environment, serving, write_square_root

KUBERNETES, KSERVE = ROOT / "deploy/kubernetes", ROOT / "deploy/kserve"
METRICS = (ROOT / "docs/metrics.md").read_text()
Resource = dict[str, Any]


def resources(folder: Path) -> dict[tuple[str, str], Resource]:
    """Return the resources of a folder by kind and name."""
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        for resource in yaml.safe_load_all(file.read_text()):
            if "metadata" in resource:
                found[resource["kind"], resource["metadata"]["name"]] = resource
    return found


BASE = resources(KUBERNETES / "base")
MONITORING = resources(KUBERNETES / "components/monitoring")
KEDA = resources(KUBERNETES / "components/keda")
POD = BASE["Deployment", "foldserve"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
FLAGS = dict(flag.removeprefix("--").split("=") for flag in CONTAINER["args"][1:])
RUNTIME = resources(KSERVE)["ClusterServingRuntime", "foldserve"]["spec"]
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


@contextmanager
def served_as_in_the_pod(tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    """Start a server with the flags of the container on free ports.

    Yields the main port and the admin port of the server.
    """
    write_square_root(tmp_path / "models")
    free = ("--admin-port", 0, "--admin-host", "127.0.0.1")
    with serving(tmp_path / "models", tmp_path / "log", *CONTAINER["args"][1:], *free) as main:
        found = re.search(r"administration are on http://127\.0\.0\.1:(\d+)\n", main.process.stdout.readline())
        yield main, replace(main, port=int(found[1]))
        main.process.kill()  # an ordinary stop would wait for --drain-delay


def test_the_probes_and_the_metrics_answer_at_their_ports_and_paths(tmp_path: Path) -> None:
    (endpoint,) = MONITORING["ServiceMonitor", "foldserve"]["spec"]["endpoints"]
    with served_as_in_the_pod(tmp_path) as (main, admin):
        served = {"http": main, "admin": admin}
        for probe in PROBES:
            target = CONTAINER[probe]["httpGet"]
            assert served[target["port"]].send("GET", target["path"]).status == 200
        assert served[endpoint["port"]].send("GET", endpoint["path"]).status == 200


def test_the_ports_are_those_of_the_settings_and_of_the_services() -> None:
    assert {"http": Settings.model_fields["port"].default, "admin": int(FLAGS["admin-port"])} == PORTS
    targets = {
        port["targetPort"]
        for name in ("foldserve", "foldserve-admin")
        for port in BASE["Service", name]["spec"]["ports"]
    }
    policy = BASE["NetworkPolicy", "foldserve"]["spec"]
    allowed = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert targets == allowed == set(PORTS)


def test_the_component_of_grpc_adds_one_port_to_the_server_the_service_and_the_policy() -> None:
    folder = KUBERNETES / "components/grpc"
    patches = yaml.safe_load((folder / "kustomization.yaml").read_text())["patches"]
    added = {one["target"]["kind"]: yaml.safe_load(one["patch"])[0]["value"] for one in patches if "target" in one}
    (container,) = resources(folder)["Deployment", "foldserve"]["spec"]["template"]["spec"]["containers"]
    service = resources(folder)["Service", "foldserve-grpc"]["spec"]
    (name,) = [
        port["name"] for port in container["ports"] if added["Deployment"] == f"--grpc-port={port['containerPort']}"
    ]
    assert [port["targetPort"] for port in service["ports"]] == [name] == [added["NetworkPolicy"]["port"]]
    assert "grpc_port" in Settings.model_fields
    (labels,) = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())["labels"]
    assert service["selector"] == labels["pairs"]
    assert "\ngrpcio==" in (ROOT / "requirements/cpu.txt").read_text()


def test_the_pod_may_finish_its_requests_before_it_is_killed() -> None:
    assert (
        POD["terminationGracePeriodSeconds"]
        > float(FLAGS["drain-delay"]) + float(FLAGS["drain-timeout"]) + _GRACE_SECONDS
    )


def test_the_drain_lasts_until_the_readiness_probe_has_seen_it() -> None:
    probe = CONTAINER["readinessProbe"]
    assert float(FLAGS["drain-delay"]) > (probe["periodSeconds"] + probe["timeoutSeconds"]) * probe["failureThreshold"]


def test_the_variables_are_settings() -> None:
    patch = yaml.safe_load((KUBERNETES / "overlays/gpu/gpu.yaml").read_text())
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    names = {name.removeprefix(PREFIX).lower() for name in given}
    assert names <= set(Settings.model_fields)
    Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in given.items()})


def test_the_containers_run_as_the_user_of_the_image() -> None:
    (user,) = re.findall(r"useradd --uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert POD["securityContext"]["runAsUser"] == int(user)
    assert RUNTIME["containers"][0]["securityContext"]["runAsUser"] == int(user)
    assert f"USER {user}:" in (KUBERNETES / "models/Dockerfile").read_text()


def test_the_images_are_those_of_compose() -> None:
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    assert CONTAINER["image"] in built
    for overlay in (KUBERNETES / "overlays").iterdir():
        (image,) = yaml.safe_load((overlay / "kustomization.yaml").read_text())["images"]
        assert f"{image['name']}:{image['newTag']}" in built
        assert image["newTag"] == overlay.name
    assert RUNTIME["containers"][0]["image"].rpartition("/")[2] in built


@pytest.mark.parametrize("component", ["models-volume", "models-image", "models-init"])
def test_the_models_are_mounted_where_the_image_looks_for_them(component: str) -> None:
    (patch,) = yaml.safe_load((KUBERNETES / "components" / component / "kustomization.yaml").read_text())["patches"]
    pod = yaml.safe_load((KUBERNETES / "components" / component / patch["path"]).read_text())["spec"]["template"][
        "spec"
    ]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    assert f"FOLDSERVE_MODELS={mount['mountPath']} " in (ROOT / "Dockerfile").read_text()
    assert mount["readOnly"]
    assert mount["name"] in [volume["name"] for volume in pod["volumes"]]


def test_the_autoscalers_read_documented_metrics() -> None:
    pods, _ = BASE["HorizontalPodAutoscaler", "foldserve"]["spec"]["metrics"]
    (trigger,) = KEDA["ScaledObject", "foldserve"]["spec"]["triggers"]
    names = {pods["pods"]["metric"]["name"], *re.findall(r"foldserve_\w+", trigger["metadata"]["query"])}
    assert all(f"| `{name}` | gauge |" in METRICS for name in names)
    assert trigger["metadata"]["threshold"] == pods["pods"]["target"]["averageValue"]


def test_the_alerts_are_those_of_prometheus_without_the_condition_for_a_missing_server() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    ready = rules["groups"][0]["rules"][0]
    *kept, missing = ready["expr"].splitlines(keepends=True)
    assert "max_over_time" in missing
    ready["expr"] = "".join(kept)
    assert MONITORING["PrometheusRule", "foldserve"]["spec"] == rules, "run make docs"


def test_the_monitor_selects_the_admin_service() -> None:
    monitor = MONITORING["ServiceMonitor", "foldserve"]["spec"]
    (kustomization,) = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())["labels"]
    labels = kustomization["pairs"] | BASE["Service", "foldserve-admin"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"] == labels
    assert labels[monitor["jobLabel"]] == "foldserve"  # the alerts select job="foldserve"


def test_the_arguments_of_kserve_serve_one_bundle_under_the_name_of_the_service(tmp_path: Path) -> None:
    write_square_root(tmp_path / "models")
    (container,) = RUNTIME["containers"]
    values = {"/mnt/models": str(tmp_path / "models/roots/1"), "{{.Name}}": "house-prices", "=8080": "=0"}
    flags = []
    for argument in container["args"][1:]:
        for text, value in values.items():
            argument = argument.replace(text, value)
        flags.append(argument)
    command = command_line("serve", *flags)
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r" on http://([\d.]+):(\d+),", process.stdout.readline())
            served = Served(process, found[1], int(found[2]), "", tmp_path / "log")
            for probe in PROBES[1:]:
                assert served.send("GET", container[probe]["httpGet"]["path"]).status == 200
            answer = served.send("POST", "/v1/models/house-prices:predict", body=b'{"instances": [[1, 3]]}')
            assert answer.json()["predictions"] == [2.0]
        finally:
            process.kill()  # an ordinary stop would wait for --drain-delay


def test_the_drain_of_kserve_is_shorter_than_the_default_grace_of_a_pod() -> None:
    (container,) = RUNTIME["containers"]
    flags = dict(argument.removeprefix("--").split("=") for argument in container["args"][1:])
    settings = Settings.model_validate({"drain_delay": flags["drain-delay"]})
    assert container["readinessProbe"]["periodSeconds"] < settings.drain_delay
    assert settings.drain_delay + settings.drain_timeout < 30


def test_kserve_scrapes_the_port_of_the_server() -> None:
    (container,) = RUNTIME["containers"]
    (port,) = container["ports"]
    assert f"--http_port={port['containerPort']}" in container["args"]
    assert RUNTIME["annotations"]["prometheus.kserve.io/port"] == str(port["containerPort"])
    assert {container[probe]["httpGet"]["port"] for probe in PROBES[1:]} == {port["containerPort"]}


def test_the_runtime_of_grpc_differs_only_in_its_port() -> None:
    (container,) = RUNTIME["containers"]
    runtime = resources(KSERVE)["ClusterServingRuntime", "foldserve-grpc"]["spec"]
    ports = [{"name": "h2c", "containerPort": 9000, "protocol": "TCP"}]  # Knative reads the name h2c
    changed = {**container, "args": [*container["args"], "--grpc-port=9000"], "ports": ports}
    assert runtime == {**RUNTIME, "protocolVersions": ["grpc-v2"], "containers": [changed]}
