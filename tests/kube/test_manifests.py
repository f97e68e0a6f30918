"""kubectl builds each combination in deploy/kubernetes, and the schemas accept all resources in deploy.

`make kube-check` runs these tests in a separate environment. If KUBE_CONTEXT is set, an API server also checks the
manifests in a dry run.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import subprocess
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


def kubectl(*arguments: str, text: str | None = None) -> str:
    command = [os.environ["KUBECTL"], *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


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


def dry_run(resources: str) -> str:
    """Let an API server check resources in a dry run.

    The API server must have the namespace `foldserve`. A dry run changes nothing on the server.
    """
    context = ("--context", os.environ["KUBE_CONTEXT"])
    return kubectl(*context, "apply", "--dry-run=server", "--server-side", "-f", "-", text=resources)


@needs_api_server
def test_an_api_server_accepts_every_combination(built: str) -> None:
    assert "foldserve" in dry_run(built)


@needs_api_server
@pytest.mark.parametrize("file", sorted(KSERVE.glob("*.yaml")), ids=lambda file: file.stem)
def test_an_api_server_accepts_the_resources_of_kserve(file: Path) -> None:
    assert "dry run" in dry_run(file.read_text())
