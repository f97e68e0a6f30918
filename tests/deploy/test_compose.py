"""docker-compose.yml matches its schema, and every name in the file exists. These tests need no Docker engine."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from foldserve.service import bundle
from foldserve.service.cli import main as foldserve
from foldserve.service.settings import PREFIX, Settings
from foldserve.training.cli import main as foldserve_train
from tests.deploy.support import COMPOSE, FILE, ROOT, SERVICES, VARIABLE
from tests.service.support import serving

DOCKERFILE = ROOT / "Dockerfile"
SCHEMA = json.loads((Path(__file__).parent / "compose-spec.json").read_text())

SERVERS = {name: service for name, service in SERVICES.items() if name.startswith("foldserve")}
BUILT = {name: service for name, service in SERVICES.items() if "build" in service}

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_server = pytest.mark.parametrize("service", SERVERS.values(), ids=SERVERS)


def seconds(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([sm])", duration).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def mounts(service: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Return source, target and mode of each volume."""
    for volume in service["volumes"]:
        source, target, mode = (*volume.split(":"), "rw")[:3]
        yield source, target, mode


# --- the specification -----------------------------------------------------------------------------------------------


def test_the_file_matches_the_compose_specification() -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(COMPOSE)
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(FILE.read_text()))


@pytest.mark.parametrize("key", ["cap_dropp", "mem", "health_check"])
def test_the_schema_refuses_an_unknown_key(key: str) -> None:
    wrong = copy.deepcopy(COMPOSE)
    wrong["services"]["foldserve"][key] = []
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(wrong)


# --- start order -----------------------------------------------------------------------------------------------------


def test_without_a_profile_only_the_service_starts() -> None:
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        "foldserve": None,
        "foldserve-gpu": ["gpu"],
        "train": ["train"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }
    for profile in ("gpu", "train", "monitoring"):
        assert re.search(rf"^#   --profile {profile}\b", FILE.read_text(), re.MULTILINE)


@each_service
def test_a_dependency_starts_too_and_has_a_health_check(service: dict[str, Any]) -> None:
    for name, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
        assert not SERVICES[name].get("profiles") or SERVICES[name]["profiles"] == service["profiles"]


def test_monitoring_starts_after_its_targets() -> None:
    assert list(SERVICES["prometheus"]["depends_on"]) == ["foldserve"]
    assert list(SERVICES["grafana"]["depends_on"]) == ["prometheus"]


@each_server
def test_a_stopped_server_has_time_to_drain(service: dict[str, Any]) -> None:
    assert (
        seconds(service["stop_grace_period"]) > Settings().drain_timeout + 5
    )  # a server with several workers needs 5 more seconds


@each_server
def test_a_failed_start_is_repeated_a_limited_number_of_times(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"on-failure:\d", service["restart"])


# --- containment -----------------------------------------------------------------------------------------------------


@each_service
def test_each_service_is_contained(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "cap_add", "pid", "ipc"} & service.keys()
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}


@each_service
def test_ports_are_published_on_this_machine_only(service: dict[str, Any]) -> None:
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_every_published_port_is_different() -> None:
    published = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["8000", "8001", "9090", "3000"]


def test_only_the_server_on_cuda_reserves_a_gpu() -> None:
    for name, service in SERVICES.items():
        reserved = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
        device = service.get("environment", {}).get(f"{PREFIX}DEVICE")
        assert (name == "foldserve-gpu") == (device == "cuda") == bool(reserved)
    (gpu,) = SERVICES["foldserve-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_job_writes_to_the_volume_that_the_servers_read() -> None:
    (_, target, mode), *others = mounts(SERVICES["train"])
    assert (target, mode, others) == ("/models", "rw", [])
    for server in SERVERS.values():
        assert list(mounts(server)) == [("models", "/models", "ro")]
    assert SERVICES["train"]["restart"] == "no"


# --- names -----------------------------------------------------------------------------------------------------------


@each_service
def test_every_mounted_folder_and_volume_exists(service: dict[str, Any]) -> None:
    for source, target, mode in mounts(service):
        if source.startswith("./"):
            assert (ROOT / source).is_dir()
            assert mode == "ro"
        else:
            assert source in COMPOSE["volumes"]
        assert target.startswith("/")


def test_every_volume_and_secret_is_used() -> None:
    used = {source for service in SERVICES.values() for source, _, _ in mounts(service)}
    assert set(COMPOSE["volumes"]) <= used
    assert {secret for service in SERVICES.values() for secret in service.get("secrets", [])} == set(COMPOSE["secrets"])


def test_secrets_are_files_outside_git_and_images() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana-admin-password"  # noqa: S105
    assert not [name for name in environment if "PASSWORD" in name and not name.endswith("__FILE")]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./deploy/secrets/")
    assert {"deploy/secrets/", "foldserve.env", ".env"} <= set(ignored)
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert not [path for path in allowed if path.startswith(("deploy", ".env", "foldserve.env"))]


def test_the_file_for_keys_changes_only_the_servers() -> None:
    override = yaml.safe_load((ROOT / "deploy" / "keys.yml").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(override)
    assert override["services"].keys() == {"foldserve", "foldserve-gpu"} <= SERVICES.keys()
    ((name, secret),) = override["secrets"].items()
    assert secret["file"] == f"./deploy/secrets/{name}"
    for service in override["services"].values():
        assert service == {"environment": {f"{PREFIX}KEYS": f"/run/secrets/{name}"}, "secrets": [name]}


def test_every_setting_exists() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if name.startswith(PREFIX):
                Settings.model_validate({name.removeprefix(PREFIX).lower(): value})
    assert set(re.findall(rf"{PREFIX}[A-Z]\w+", FILE.read_text())) == {
        f"{PREFIX}{name}" for name in ("DEVICE", "HOST", "PORT", "MODELS")
    }


def test_the_comment_at_the_top_names_every_variable() -> None:
    head, _, rest = FILE.read_text().partition("\nname:")
    assert {name for name, _ in VARIABLE.findall(rest)} == set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", head)) - {"CUDA"} - {
        word for word in re.findall(r"\b[A-Z][A-Z_]{3,}\b", head) if word.startswith(PREFIX)
    }


def test_third_party_images_have_an_exact_version() -> None:
    foreign = {service["image"] for service in SERVICES.values() if "build" not in service}
    assert len(foreign) == 2
    assert all(re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", image) for image in foreign)


def test_published_ports_are_the_ports_of_the_servers() -> None:
    for name, port in {"foldserve": Settings().port, "foldserve-gpu": Settings().port, "prometheus": 9090}.items():
        assert [published.split(":")[2] for published in SERVICES[name]["ports"]] == [str(port)]


def test_the_server_serves_the_model_that_the_job_trains(tmp_path: Path) -> None:
    volume = tmp_path / "models"
    volume.mkdir()
    command = [str(volume) if word == "/models" else word for word in SERVICES["train"]["command"]]
    assert foldserve_train([*command, "--epochs", "3"]) == 0
    assert bundle.versions(volume / "digits") == [1]
    with serving(volume, tmp_path / "log") as server:
        assert server.send("GET", "/v2/models/digits/ready").status == 200


# --- the Dockerfile --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Return each instruction of the Dockerfile with its arguments. An instruction that continues on the next line is
    joined to one line.
    """
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def variables(instructions: list[tuple[str, str]]) -> dict[str, str]:
    """Return the variables that the ENV instructions of all stages set."""
    words = [word for name, rest in instructions if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def test_every_build_target_is_a_stage(instructions: list[tuple[str, str]]) -> None:
    stages = [
        match[1] for name, rest in instructions if name == "FROM" and (match := re.search(r" [Aa][Ss] (\S+)", rest))
    ]
    assert {service["build"]["target"] for service in BUILT.values()} == {"service", "trainer"} <= set(stages)
    arguments = {re.split("[= ]", rest)[0] for name, rest in instructions if name == "ARG"}
    assert {argument for service in BUILT.values() for argument in service["build"].get("args", {})} <= arguments


def test_the_image_uses_the_published_port_and_the_mounted_folder(variables: dict[str, str]) -> None:
    assert variables[f"{PREFIX}MODELS"] == "/models"
    assert variables[f"{PREFIX}HOST"] == "0.0.0.0"  # noqa: S104
    assert variables.get(f"{PREFIX}PORT", str(Settings().port)) == "8000"
    assert {name.removeprefix(PREFIX).lower() for name in variables if name.startswith(PREFIX)} <= set(
        Settings.model_fields
    )


def test_the_image_and_compose_have_the_same_health_check(
    instructions: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (check,) = {rest.partition("CMD ")[2] for name, rest in instructions if name == "HEALTHCHECK"}
    for server in SERVERS.values():
        assert server["healthcheck"]["test"] == ["CMD", *json.loads(check)]
    with pytest.raises(SystemExit) as stopped:
        foldserve([*json.loads(check)[1:], "--help"])
    assert stopped.value.code == 0
    assert "health" in capsys.readouterr().out


def test_the_entrypoints_accept_the_commands_of_compose(instructions: list[tuple[str, str]]) -> None:
    entrypoints = [json.loads(rest)[-1] for name, rest in instructions if name == "ENTRYPOINT"]
    assert sorted(entrypoints) == ["foldserve", "foldserve-train"]
    assert all("command" not in server for server in SERVERS.values())
    assert ["serve"] in [json.loads(rest) for name, rest in instructions if name == "CMD"]
