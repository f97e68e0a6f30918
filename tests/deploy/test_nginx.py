"""A real nginx uses the configuration in deploy/nginx in front of a real server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.deploy.support import INTERNAL, ROOT, listens, until
from tests.service.support import PATIENCE, serving, write_square_root

NGINX = ROOT / "deploy" / "nginx" / "foldserve.conf"
GOOD = {"instances": [[1, 3]]}
TOO_MANY = {"error": "too many requests from this address"}


@dataclass(frozen=True)
class Proxied:
    """A server, and nginx in front of it."""

    direct: str
    port: int
    certificate: Path
    client: httpx.Client

    @property
    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificate)

    def from_address(self, address: str) -> httpx.Client:
        """A client that connects to nginx from another loopback address."""
        transport = httpx.HTTPTransport(verify=self.trusted, local_address=address)
        return httpx.Client(base_url=f"https://127.0.0.1:{self.port}", transport=transport, timeout=PATIENCE)


@contextmanager
def proxy(folder: Path, changes: Mapping[str, str]) -> Iterator[Proxied]:
    """Run a server behind nginx. changes: maps texts of the shipped file to their replacements."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not (nginx and shutil.which("openssl")):
        pytest.skip("nginx and openssl are not installed: apt-get install nginx-light openssl")
    write_square_root(folder)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with serving(folder, folder / "log", "--max-body", 2**20, "--allowed-hosts", "foldserve.example") as server:
        text = NGINX.read_text()
        for ours, here in {
            "server 127.0.0.1:8000 ": f"server 127.0.0.1:{server.port} ",
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "/etc/ssl/foldserve/certificate.pem": str(certificate),
            "/etc/ssl/foldserve/key.pem": str(key),
            **changes,
        }.items():
            assert text.count(ours) == 1
            text = text.replace(ours, here)
        (folder / "foldserve.conf").write_text(text)
        paths = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        user = "user root;" if os.getuid() == 0 else ""  # nginx's workers must be able to read the folder
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
                yield Proxied(server.url, port, certificate, client)
            finally:
                process.terminate()
                process.wait(PATIENCE)


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxy(tmp_path_factory.mktemp("proxied"), {}) as running:
        yield running


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


@pytest.mark.parametrize("path", INTERNAL)
def test_internal_paths_are_not_reachable_through_the_proxy(path: str, proxied: Proxied) -> None:
    assert proxied.client.request("POST" if "index" in path else "GET", path).status_code == 404
    assert httpx.request("POST" if "index" in path else "GET", proxied.direct + path).status_code == 200


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_client_beyond_the_rate_gets_429_and_the_others_get_answers(tmp_path: Path) -> None:
    with proxy(tmp_path, {"rate=200r/s": "rate=1r/m", "burst=400": "burst=2"}) as proxied:
        answers = [proxied.client.post("/predict", json=GOOD) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[-1].json() == TOO_MANY
        assert answers[-1].headers["Retry-After"] == "1"
        assert answers[-1].headers["Content-Type"] == "application/json"
        with proxied.from_address("127.0.0.2") as other:
            assert other.post("/predict", json=GOOD).status_code == 200


def test_a_client_with_too_many_requests_at_once_gets_429(tmp_path: Path) -> None:
    with proxy(tmp_path, {"limit_conn foldserve_connections 64": "limit_conn foldserve_connections 1"}) as proxied:
        plain = socket.create_connection(("127.0.0.1", proxied.port), timeout=PATIENCE)
        with proxied.trusted.wrap_socket(plain, server_hostname="127.0.0.1") as slow:
            body = json.dumps(GOOD).encode()
            slow.sendall(
                b"POST /predict HTTP/1.1\r\nHost: foldserve.example\r\nContent-Type: application/json\r\n"
                b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            assert slow.recv(1024).startswith(b"HTTP/1.1 100 ")  # nginx waits for the rest of the body
            refused = proxied.client.post("/predict", json=GOOD)
            assert (refused.status_code, refused.json()) == (429, TOO_MANY)
            with proxied.from_address("127.0.0.2") as other:
                assert other.post("/predict", json=GOOD).status_code == 200
            slow.sendall(body)
            assert slow.recv(1024).startswith(b"HTTP/1.1 200 ")
        assert proxied.client.post("/predict", json=GOOD).status_code == 200


def test_the_shipped_limits_let_a_burst_pass(proxied: Proxied) -> None:
    assert {proxied.client.get("/v2/health/ready").status_code for _ in range(300)} == {200}
