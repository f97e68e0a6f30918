"""docs/deployment.md is correct: its tables and its error messages.

The tests run the proxy that docs/deployment.md describes, and a real server behind it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from foldserve.service.cli import main as foldserve_main
from foldserve.service.settings import PREFIX, Settings
from tests.deploy.support import ROOT, RULES, SERVICES, VARIABLE
from tests.service.support import edit_manifest, flip_byte, foldserve

PAGE = (ROOT / "docs" / "deployment.md").read_text()
NGINX = ROOT / "deploy" / "nginx" / "foldserve.conf"


def table(first: str) -> list[list[str]]:
    """Return the cells of the table whose first column has the heading `first`, without backquotes."""
    _, _, behind = PAGE.partition(f"\n| {first} |")
    rows = behind.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" |")] for row in rows]


# --- tables and commands ---------------------------------------------------------------------------------------------


def test_its_settings_are_the_settings_of_the_server() -> None:
    rows = table("flag")
    assert [flag for flag, *_ in rows] == [f"--{name.replace('_', '-')}" for name in Settings.model_fields]
    given = {}
    for flag, variable, default, meaning in rows:
        name = flag.removeprefix("--").replace("-", "_")
        assert variable == PREFIX + name.upper()
        assert meaning.replace("\\", "") == Settings.model_fields[name].description
        if default:
            given[name] = default
    # The page gives the default of each setting. Settings that are built from the documented defaults must equal the
    # real defaults.
    assert Settings.model_validate(given) == Settings()
    assert {name for name in Settings.model_fields if getattr(Settings(), name) not in (None, ())} == given.keys()


def test_make_docs_writes_its_tables() -> None:
    program = [sys.executable, "docs/write_tables.py", "--check"]
    ours = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=ROOT, env=ours, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^docs: install ##.*\n\t\S+/python docs/write_tables.py$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )


def test_its_capacity_figures_are_those_of_the_benchmark() -> None:
    measured = (ROOT / "benchmarks" / "README.md").read_text()
    rows = table("load on one core")
    assert len(rows) == 4
    for load, *figures in rows:
        assert load.rpartition(",")[0] + ":" in measured
        assert all(f" {figure} " in measured for figure in figures)


def test_every_linked_file_exists_and_the_readme_links_to_the_page() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", PAGE)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
    assert "](docs/deployment.md)" in (ROOT / "README.md").read_text()


def test_its_alerts_are_those_of_the_rules() -> None:
    assert [name for name, _ in table("alert")] == [rule["alert"] for rule in RULES]


def test_its_compose_commands_name_existing_profiles_services_and_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = re.findall(r"docker compose ([^`\n#]+)", PAGE)
    assert len(commands) > 10
    for command in commands:
        words = shlex.split(command, comments=True)
        profiles = {words[place + 1] for place, word in enumerate(words) if word == "--profile"}
        assert profiles <= {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
        named = [word for word in words if word in SERVICES and word not in profiles] + [
            word for place, word in enumerate(words) if word in profiles and words[place - 1] != "--profile"
        ]
        for name in named:
            assert set(SERVICES[name].get("profiles", [])) <= profiles
        if "run" in words and "foldserve" in " ".join(named):
            with pytest.raises(SystemExit) as stopped:
                foldserve_main([words[words.index(named[0]) + 1], "--help"])
            assert stopped.value.code == 0
    capsys.readouterr()
    compose = (ROOT / "docker-compose.yml").read_text()
    for variable in re.findall(r"`(?:docker compose )?([A-Z]+)=", PAGE):
        assert variable in {name for name, _ in VARIABLE.findall(compose)}


# --- errors at the start ---------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "models", tmp_path / "models"))


def newer(models: Path) -> None:
    edit_manifest(models / "digits" / "1", lambda manifest: manifest.update(schema_version=3))


def empty(models: Path) -> None:
    shutil.rmtree(models / "digits")


def flipped(models: Path) -> None:
    flip_byte(models / "digits" / "1" / "model.onnx", 20_000)


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("the models' folder is missing", shutil.rmtree),
        ("with `--no-watch`, the folder is empty", empty),
        ("the only bundle has a newer schema", newer),
        ("the only bundle has a flipped byte", flipped),
    ],
)
def test_models_that_can_not_be_served_give_the_line_of_the_page(
    what: str, damage: Callable[[Path], object], models: Path
) -> None:
    damage(models)
    flags = ["--no-watch"] if "--no-watch" in what else []
    done = foldserve("serve", *flags, env={"FOLDSERVE_MODELS": str(models), "FOLDSERVE_PORT": "0"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.replace(str(models), "/models") == dict(table("problem"))[what] + "\n"


def test_a_port_in_use_gives_the_line_of_the_page(models: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104
        port = str(taken.getsockname()[1])
        address = {"FOLDSERVE_HOST": "0.0.0.0", "FOLDSERVE_PORT": port}  # noqa: S104
        done = foldserve("serve", env={"FOLDSERVE_MODELS": str(models), **address})
    assert done.returncode == 1
    said = dict(table("problem"))["the port is in use, on the network of the host"]
    assert done.stderr.replace(port, "8000") == said + "\n"


# --- the proxy -------------------------------------------------------------------------------------------------------


def nginx_number(directive: str) -> int:
    number, unit = re.search(rf"^ *{directive} (\d+)([sm]);", NGINX.read_text(), re.MULTILINE).groups()
    return int(number) * {"s": 1, "m": 2**20}[unit]


def test_the_limits_of_the_proxy_fit_those_of_the_server() -> None:
    settings = Settings()
    assert settings.max_body < nginx_number("client_max_body_size") < 1.1 * settings.max_body
    assert nginx_number("keepalive_timeout") < settings.idle_timeout
    assert nginx_number("proxy_read_timeout") > settings.timeout
    assert nginx_number("client_body_timeout") == settings.request_timeout
    said = dict(table("setting of the proxy"))
    assert f"largest body, {nginx_number('client_max_body_size') // 2**20} MiB" in said
    assert f"response timeout, {nginx_number('proxy_read_timeout')} s" in said
    assert f"idle connections to the server, {nginx_number('keepalive_timeout')} s" in said
    (rate,) = re.findall(r"rate=(\d+)r/s", NGINX.read_text())
    (at_once,) = re.findall(r"limit_conn \w+ (\d+);", NGINX.read_text())
    assert f"limits for each client address, {rate} requests a second and {at_once} simultaneous requests" in said
