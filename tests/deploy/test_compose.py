"""docker-compose.yml, without an engine: against its schema, and each name in it against what exists."""

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
    """Source, target and mode of each volume."""
    for volume in service["volumes"]:
        source, target, mode = (*volume.split(":"), "rw")[:3]
        yield source, target, mode


# --- the specification -----------------------------------------------------------------------------------------------


def test_it_is_what_the_specification_allows() -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(COMPOSE)
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(FILE.read_text()))


@pytest.mark.parametrize("key", ["cap_dropp", "mem", "health_check"])
def test_the_schema_finds_a_key_that_there_is_not(key: str) -> None:
    wrong = copy.deepcopy(COMPOSE)
    wrong["services"]["foldserve"][key] = []
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(wrong)


# --- what starts, and in which order ---------------------------------------------------------------------------------


def test_without_a_profile_it_is_the_service_alone() -> None:
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
def test_who_it_waits_for_starts_with_it_and_says_when_it_is_healthy(service: dict[str, Any]) -> None:
    for name, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
        assert not SERVICES[name].get("profiles") or SERVICES[name]["profiles"] == service["profiles"]


def test_monitoring_starts_after_what_it_looks_at() -> None:
    assert list(SERVICES["prometheus"]["depends_on"]) == ["foldserve"]
    assert list(SERVICES["grafana"]["depends_on"]) == ["prometheus"]


@each_server
def test_a_server_that_is_stopped_has_the_time_to_drain(service: dict[str, Any]) -> None:
    assert seconds(service["stop_grace_period"]) > Settings().drain_timeout + 5  # what several workers have besides


@each_server
def test_a_start_that_is_refused_is_not_repeated_for_ever(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"on-failure:\d", service["restart"])


# --- what each may do ------------------------------------------------------------------------------------------------


@each_service
def test_each_is_contained(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "cap_add", "pid", "ipc"} & service.keys()
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}


@each_service
def test_what_is_published_is_published_on_this_machine_alone(service: dict[str, Any]) -> None:
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_no_two_publish_the_same_port() -> None:
    published = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["8000", "8001", "9090", "3000"]


def test_a_gpu_is_reserved_where_cuda_is_asked_for_and_nowhere_else() -> None:
    for name, service in SERVICES.items():
        reserved = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
        device = service.get("environment", {}).get(f"{PREFIX}DEVICE")
        assert (name == "foldserve-gpu") == (device == "cuda") == bool(reserved)
    (gpu,) = SERVICES["foldserve-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_job_writes_where_the_servers_read() -> None:
    (_, target, mode), *others = mounts(SERVICES["train"])
    assert (target, mode, others) == ("/models", "rw", [])
    for server in SERVERS.values():
        assert list(mounts(server)) == [("models", "/models", "ro")]
    assert SERVICES["train"]["restart"] == "no"


# --- what it names ---------------------------------------------------------------------------------------------------


@each_service
def test_every_file_and_volume_that_it_mounts_is_there(service: dict[str, Any]) -> None:
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


def test_secrets_are_files_that_neither_git_nor_an_image_takes() -> None:
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


def test_every_setting_that_it_gives_is_one() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if name.startswith(PREFIX):
                Settings.model_validate({name.removeprefix(PREFIX).lower(): value})
    assert set(re.findall(rf"{PREFIX}[A-Z]\w+", FILE.read_text())) == {
        f"{PREFIX}{name}" for name in ("DEVICE", "HOST", "PORT", "MODELS")
    }


def test_its_head_names_every_variable() -> None:
    head, _, rest = FILE.read_text().partition("\nname:")
    assert {name for name, _ in VARIABLE.findall(rest)} == set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", head)) - {"CUDA"} - {
        word for word in re.findall(r"\b[A-Z][A-Z_]{3,}\b", head) if word.startswith(PREFIX)
    }


def test_images_of_others_have_an_exact_version() -> None:
    foreign = {service["image"] for service in SERVICES.values() if "build" not in service}
    assert len(foreign) == 2
    assert all(re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", image) for image in foreign)


def test_ports_are_those_that_the_servers_listen_on() -> None:
    for name, port in {"foldserve": Settings().port, "foldserve-gpu": Settings().port, "prometheus": 9090}.items():
        assert [published.split(":")[2] for published in SERVICES[name]["ports"]] == [str(port)]


def test_what_the_job_trains_is_what_the_server_serves(tmp_path: Path) -> None:
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
    """Each instruction of the Dockerfile with its arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def variables(instructions: list[tuple[str, str]]) -> dict[str, str]:
    """Each ENV of any stage."""
    words = [word for name, rest in instructions if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def test_every_target_that_is_built_is_a_stage(instructions: list[tuple[str, str]]) -> None:
    stages = [
        match[1] for name, rest in instructions if name == "FROM" and (match := re.search(r" [Aa][Ss] (\S+)", rest))
    ]
    assert {service["build"]["target"] for service in BUILT.values()} == {"service", "trainer"} <= set(stages)
    arguments = {re.split("[= ]", rest)[0] for name, rest in instructions if name == "ARG"}
    assert {argument for service in BUILT.values() for argument in service["build"].get("args", {})} <= arguments


def test_the_image_listens_where_it_is_published_and_reads_where_it_is_mounted(variables: dict[str, str]) -> None:
    assert variables[f"{PREFIX}MODELS"] == "/models"
    assert variables[f"{PREFIX}HOST"] == "0.0.0.0"  # noqa: S104
    assert variables.get(f"{PREFIX}PORT", str(Settings().port)) == "8000"
    assert {name.removeprefix(PREFIX).lower() for name in variables if name.startswith(PREFIX)} <= set(
        Settings.model_fields
    )


def test_the_image_checks_its_health_as_compose_does(
    instructions: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (check,) = {rest.partition("CMD ")[2] for name, rest in instructions if name == "HEALTHCHECK"}
    for server in SERVERS.values():
        assert server["healthcheck"]["test"] == ["CMD", *json.loads(check)]
    with pytest.raises(SystemExit) as stopped:
        foldserve([*json.loads(check)[1:], "--help"])
    assert stopped.value.code == 0
    assert "health" in capsys.readouterr().out


def test_the_programs_are_those_whose_commands_compose_gives(instructions: list[tuple[str, str]]) -> None:
    entrypoints = [json.loads(rest)[-1] for name, rest in instructions if name == "ENTRYPOINT"]
    assert sorted(entrypoints) == ["foldserve", "foldserve-train"]
    assert all("command" not in server for server in SERVERS.values())
    assert ["serve"] in [json.loads(rest) for name, rest in instructions if name == "CMD"]
