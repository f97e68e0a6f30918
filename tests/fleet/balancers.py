"""The shipped configurations of nginx and HAProxy, changed for the hosts of a test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fleet.hosts import Host
from tests.service.support import PATIENCE

DEPLOY = Path(__file__).parents[2] / "deploy"
PORT = 8443


@dataclass(frozen=True)
class Balancer:
    """A load balancer.

    configure: a function that writes the balancer's files, and returns the balancer's command line. drain_delay: the
    number of seconds after SIGTERM in which a server still accepts requests. most_rows: the number of rows of the
    largest request that the balancer can repeat. read_tried: a function that reads the header X-Tried. The function
    returns the address of the server that answered, and the number of retries.
    """

    name: str
    package: str
    configure: Callable[[Path, Sequence[Host]], list[object]]
    drain_delay: float
    most_rows: int
    read_tried: Callable[[str], tuple[str, int]]


def changed(file: Path, changes: Mapping[str, str]) -> str:
    """Return the text of a shipped file with replaced values. Each replaced text must be in the file exactly once."""
    text = file.read_text()
    for ours, here in changes.items():
        assert text.count(ours) == 1, ours
        text = text.replace(ours, here)
    return text


def configure_nginx(folder: Path, servers: Sequence[Host]) -> list[object]:
    """Configure nginx without its limits for each address, because all requests of a test have one address."""
    file = DEPLOY / "nginx" / "foldserve.conf"
    server = "server {address}:8000 max_fails=1 fail_timeout=5s;"
    text = changed(
        file,
        {
            server.format(address="127.0.0.1"): " ".join(server.format(address=host.address) for host in servers),
            "listen 443 ssl;": f"listen {PORT} ssl;",
            "/etc/ssl/foldserve/certificate.pem": f"{folder}/certificate.pem",
            "/etc/ssl/foldserve/key.pem": f"{folder}/key.pem",
            "rate=200r/s": "rate=100000r/s",
            "limit_conn foldserve_connections 64;": "",
            "proxy_read_timeout 30s;": "proxy_read_timeout 4s; add_header X-Tried $upstream_addr always;",
        },
    )
    (folder / "foldserve.conf").write_text(text)
    paths = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"user root; worker_processes 2; daemon off; pid {folder}/pid; error_log {folder}/error; events {{}}\n"
        f"http {{ access_log off; {paths} include {folder}/foldserve.conf; }}\n"
    )
    return ["nginx", "-c", folder / "nginx.conf", "-e", folder / "error"]


def configure_haproxy(folder: Path, servers: Sequence[Host]) -> list[object]:
    pem = folder / "certificate-and-key.pem"
    pem.write_text((folder / "certificate.pem").read_text() + (folder / "key.pem").read_text())
    text = changed(
        DEPLOY / "haproxy" / "foldserve.cfg",
        {
            "log /dev/log local0": "log stdout format raw local0",
            "bind :443 ": f"bind :{PORT} ",
            "/etc/ssl/foldserve/certificate-and-key.pem": str(pem),
            "    server one 127.0.0.1:8000 tcp-ut 2s": "    http-response set-header X-Tried %[srv_name],%rc\n"
            + "\n".join(f"    server {host.address} {host.address}:8000 tcp-ut 2s" for host in servers),
        },
    )
    (folder / "haproxy.cfg").write_text(text)
    return ["haproxy", "-db", "-f", folder / "haproxy.cfg"]


def read_nginx(tried: str) -> tuple[str, int]:
    """Read a list of addresses with ports: the servers that nginx tried."""
    *failed, last = tried.split(", ")
    return last.split(":")[0], len(failed)


def read_haproxy(tried: str) -> tuple[str, int]:
    """Read the name of the server, a comma and the number of retries."""
    name, retries = tried.split(",")
    return name, int(retries)


NGINX = Balancer("nginx", "nginx-light", configure_nginx, 0, 10_000, read_nginx)
HAPROXY = Balancer("haproxy", "haproxy", configure_haproxy, 5, 1_000, read_haproxy)


@contextmanager
def balancing(balancer: Balancer, folder: Path, first: Host, servers: Sequence[Host]) -> Iterator[str]:
    """Run a balancer with TLS on the first host.

    Yields the URL of the balancer. The certificate of the balancer is folder/certificate.pem.
    """
    if not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in (balancer.name, "openssl")):
        pytest.skip(f"{balancer.name} and openssl are not installed: apt-get install {balancer.package} openssl")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{first.address}"]
    files = ("-keyout", folder / "key.pem", "-out", folder / "certificate.pem")
    subprocess.run([*command, *files], check=True, capture_output=True)
    name, *arguments = balancer.configure(folder, servers)
    program = shutil.which(str(name), path=f"{os.environ['PATH']}:/usr/sbin")
    with (
        (folder / "balancer.log").open("w") as log,
        subprocess.Popen(first.command(program, *arguments), stdout=log, stderr=log) as process,
    ):
        try:
            yield f"https://{first.address}:{PORT}"
        finally:
            process.terminate()
            process.wait(PATIENCE)
