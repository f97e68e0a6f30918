"""kubectl builds each combination in deploy/kubernetes, and the schemas accept all resources in deploy.

`make kube-check` runs these tests in a separate environment. If KUBE_CONTEXT is set, an API server also checks the
manifests in a dry run. docs/kubernetes.md has the command that prepares the server.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not installed here: make kube-check")

ROOT = Path(__file__).parents[2]
KUBERNETES, KSERVE = ROOT / "deploy/kubernetes", ROOT / "deploy/kserve"
SCHEMAS = Path(__file__).parent / "schemas"
VERSIONS = ("1.33", "1.35", "1.37")

OVERLAYS = [path.name for path in sorted((KUBERNETES / "overlays").iterdir())]
MODELS = ("models-image", "models-init", "models-volume")
OTHERS = ("grpc", "keda", "monitoring")
COMBINATIONS = [(overlay, components) for overlay in OVERLAYS for components in [(), *((x, *OTHERS) for x in MODELS)]]
NAMES = ["+".join((overlay, *components)) for overlay, components in COMBINATIONS]

Resource = dict[str, Any]


class KubectlError(Exception):
    """Raised if kubectl fails. The message is the error output of kubectl."""


def kubectl(*arguments: str, text: str | None = None) -> str:
    command = [os.environ["KUBECTL"], *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubectlError(done.stderr)
    return done.stdout


@pytest.fixture(params=COMBINATIONS, ids=NAMES)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The resources of an overlay with components, as kubectl builds them."""
    overlay, components = request.param
    text = {
        "resources": [os.path.relpath(KUBERNETES / "overlays" / overlay, tmp_path)],
        "components": [os.path.relpath(KUBERNETES / "components" / name, tmp_path) for name in components],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return kubectl("kustomize", str(tmp_path))


def kserve_resources() -> list[Resource]:
    files = sorted(KSERVE.glob("*.yaml"))
    return [resource for file in files for resource in yaml.safe_load_all(file.read_text())]


def check(resource: Resource) -> None:
    """Raise an error if the resource does not match its schema."""
    group, _, version = resource["apiVersion"].rpartition("/")
    schema = SCHEMAS / f"{group}_{version}_{resource['kind']}.json.gz"
    if schema.exists():
        jsonschema.Draft202012Validator(json.loads(gzip.decompress(schema.read_bytes()))).validate(resource)
    else:
        for kubernetes in VERSIONS:
            kubernetes_validate.validate(resource, kubernetes, strict=True)


def test_every_combination_fits_the_schemas(built: str) -> None:
    resources = list(yaml.safe_load_all(built))
    assert {"Namespace", "Deployment", "Service"} <= {resource["kind"] for resource in resources}
    for resource in resources:
        check(resource)


@pytest.mark.parametrize("resource", kserve_resources(), ids=lambda resource: resource["kind"])
def test_the_resources_of_kserve_fit_the_schemas(resource: Resource) -> None:
    check(resource)


def test_the_schemas_refuse_an_unknown_field(built: str) -> None:
    for resource in yaml.safe_load_all(built):
        if "spec" in resource:
            wrong = copy.deepcopy(resource)
            wrong["spec"]["misspelt"] = 1
            with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
                check(wrong)


needs_api_server = pytest.mark.skipif("KUBE_CONTEXT" not in os.environ, reason="KUBE_CONTEXT names no API server")


def on_server(*arguments: str, text: str | None = None) -> str:
    return kubectl("--context", os.environ["KUBE_CONTEXT"], *arguments, text=text)


@pytest.fixture(scope="module")
def namespace() -> str:
    """A namespace only for these tests, with the labels of `base/namespace.yaml`. The tests leave the namespace on the
    server.

    The namespace has no other resources, so the server has nothing to merge in a dry run. A pod needs a service
    account, which an API server without a controller manager does not create.
    """
    name = "foldserve-check"
    resource = yaml.safe_load((KUBERNETES / "base/namespace.yaml").read_text())
    resource["metadata"]["name"] = name
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
    on_server("apply", "--server-side", "--filename=-", text=yaml.safe_dump_all([resource, account]))
    return name


def dry_run(resources: list[Resource], namespace: str) -> None:
    """Let the API server check resources in a namespace. A warning of the API server is an error."""
    moved = copy.deepcopy(resources)
    for resource in moved:
        if "namespace" in resource["metadata"]:
            resource["metadata"]["namespace"] = namespace
    # Resources without a namespace may already be on the server, with other owners of their fields.
    flags = ("--dry-run=server", "--server-side", "--force-conflicts", "--warnings-as-errors")
    on_server("apply", *flags, "--filename=-", text=yaml.safe_dump_all(moved))


@cache
def kinds(api_version: str) -> frozenset[str]:
    """Return the kinds of resources that the API server knows in an API version."""
    try:
        found = on_server("get", "--raw", f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}")
    except KubectlError as error:
        if "NotFound" in str(error):
            return frozenset()
        raise
    return frozenset(resource["kind"] for resource in json.loads(found)["resources"])


def check_by_server(resources: list[Resource], namespace: str) -> None:
    """Let the API server check the resources whose kinds it knows.

    If the API server does not know a kind, the test is skipped after this check.
    """
    known = [resource for resource in resources if resource["kind"] in kinds(resource["apiVersion"])]
    if known:
        dry_run(known, namespace)
    if missing := sorted({f"{x['kind']} ({x['apiVersion']})" for x in resources if x not in known}):
        pytest.skip(f"the API server accepted {len(known)} resources, but does not have {', '.join(missing)}")


@needs_api_server
def test_the_api_server_accepts_every_combination(built: str, namespace: str) -> None:
    check_by_server(list(yaml.safe_load_all(built)), namespace)


@needs_api_server
@pytest.mark.parametrize("file", sorted(KSERVE.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_api_server_accepts_the_resources_of_kserve(file: Path, namespace: str) -> None:
    check_by_server(list(yaml.safe_load_all(file.read_text())), namespace)


@needs_api_server
def test_the_api_server_refuses_an_unknown_field(built: str, namespace: str) -> None:
    service = next(x for x in yaml.safe_load_all(built) if x["kind"] == "Service")
    service["spec"]["misspelt"] = 1
    with pytest.raises(KubectlError, match="misspelt"):
        dry_run([service], namespace)


@needs_api_server
def test_the_namespace_admits_the_pod_and_refuses_more_rights(built: str, namespace: str) -> None:
    """The API server checks a pod, but not a deployment, against the Pod Security Standard of the namespace."""
    deployment = next(x for x in yaml.safe_load_all(built) if x["kind"] == "Deployment")
    pod = {"apiVersion": "v1", "kind": "Pod", **deployment["spec"]["template"]}
    pod["metadata"] |= {"name": "foldserve", "namespace": namespace}
    dry_run([pod], namespace)
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(KubectlError, match='violates PodSecurity "restricted'):
        dry_run([pod], namespace)
