"""docs/deployment.md is right: its tables, its error messages, and its proxy in front of a real server."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from foldserve.service.cli import main as foldserve_main
from foldserve.service.settings import PREFIX, Settings
from tests.deploy.support import ROOT, RULES, SERVICES, VARIABLE, until
from tests.service.support import PATIENCE, edit_manifest, flip_byte, foldserve, serving, write_square_root

PAGE = (ROOT / "docs" / "deployment.md").read_text()
NGINX = ROOT / "deploy" / "nginx" / "foldserve.conf"


def table(first: str) -> list[list[str]]:
    """The cells of the table whose first column is `first`, without backquotes."""
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
    # Given as flags, the defaults of the page change nothing.
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
        ("the folder is empty", empty),
        ("the only bundle has a newer schema", newer),
        ("the only bundle has a flipped byte", flipped),
    ],
)
def test_models_that_can_not_be_served_give_the_line_of_the_page(
    what: str, damage: Callable[[Path], object], models: Path
) -> None:
    damage(models)
    done = foldserve("serve", env={"FOLDSERVE_MODELS": str(models), "FOLDSERVE_PORT": "0"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.replace(str(models), "/models") == dict(table("what is wrong"))[what] + "\n"


def test_a_port_in_use_gives_the_line_of_the_page(models: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104
        port = str(taken.getsockname()[1])
        address = {"FOLDSERVE_HOST": "0.0.0.0", "FOLDSERVE_PORT": port}  # noqa: S104
        done = foldserve("serve", env={"FOLDSERVE_MODELS": str(models), **address})
    assert done.returncode == 1
    said = dict(table("what is wrong"))["the port is in use, on the network of the host"]
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
    said = dict(table("the proxy"))
    assert f"largest body, {nginx_number('client_max_body_size') // 2**20} MiB" in said
    assert f"response timeout, {nginx_number('proxy_read_timeout')} s" in said
    assert f"idle connections to the server, {nginx_number('keepalive_timeout')} s" in said


@dataclass(frozen=True)
class Proxied:
    """A server, and a client that reaches it through nginx."""

    direct: str
    client: httpx.Client


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not (nginx and shutil.which("openssl")):
        pytest.skip("nginx and openssl are not installed: apt-get install nginx-light openssl")
    folder = tmp_path_factory.mktemp("proxied")
    write_square_root(folder)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with serving(folder, folder / "log", "--max-body", 2**20, "--allowed-hosts", "foldserve.example") as server:
        text = NGINX.read_text()
        for ours, here in (
            ("server 127.0.0.1:8000;", f"server 127.0.0.1:{server.port};"),
            ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
            ("/etc/ssl/foldserve/certificate.pem", str(certificate)),
            ("/etc/ssl/foldserve/key.pem", str(key)),
        ):
            assert text.count(ours) == 1
            text = text.replace(ours, here)
        (folder / "foldserve.conf").write_text(text)
        paths = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        user = "user root;" if os.getuid() == 0 else ""  # otherwise its workers can't read the folder
        (folder / "nginx.conf").write_text(
            f"{user} daemon off; pid {folder}/pid; error_log {folder}/error; events {{}}\n"
            f"http {{ access_log off; {paths} include {folder}/foldserve.conf; }}\n"
        )
        trusted = ssl.create_default_context(cafile=certificate)
        with (
            subprocess.Popen([nginx, "-c", folder / "nginx.conf", "-e", folder / "error"]) as process,
            httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusted, timeout=PATIENCE) as client,
        ):
            try:
                until(lambda: process.poll() is not None or listens(port))
                assert process.poll() is None, (folder / "error").read_text()
                yield Proxied(server.url, client)
            finally:
                process.terminate()
                process.wait(PATIENCE)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_proxy_returns_the_same_answer_over_tls(proxied: Proxied) -> None:
    body = {"instances": [[1, 3], [4, 5]]}
    answer = proxied.client.post("/predict", json=body)
    assert answer.json() == httpx.post(f"{proxied.direct}/predict", json=body).json()
    assert answer.json()["predictions"] == [2, 3]
    assert proxied.client.get("/v2/health/ready").status_code == 200


def test_the_server_knows_the_name_of_the_proxy(proxied: Proxied) -> None:
    page = {"Host": "foldserve.example", "Origin": "https://foldserve.example"}
    assert proxied.client.post("/predict", json={"instances": [[1, 3]]}, headers=page).status_code == 200
    assert proxied.client.get("/v2/health/ready", headers={"Host": "other.example"}).status_code == 421


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b" " * (2**20 + 1), {}, 413),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (json.dumps({"instances": [[1, 3]]}).encode(), {"X-Request-Timeout-Ms": "0"}, 504),
    ],
)
def test_behind_the_proxy_the_server_sends_its_own_errors(
    body: bytes, headers: dict[str, str], status: int, proxied: Proxied
) -> None:
    answer = proxied.client.post("/predict", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}


@pytest.mark.parametrize("path", ["/metrics", "/v2/repository/index"])
def test_internal_paths_are_not_reachable_through_the_proxy(path: str, proxied: Proxied) -> None:
    assert proxied.client.request("POST" if "index" in path else "GET", path).status_code == 404
    assert httpx.request("POST" if "index" in path else "GET", proxied.direct + path).status_code == 200
