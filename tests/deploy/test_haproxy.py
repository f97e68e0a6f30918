"""A real HAProxy accepts the configuration in deploy/haproxy.

`make test-fleet` sends requests through HAProxy.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from tests.deploy.support import INTERNAL, ROOT, listens, until
from tests.service.support import PATIENCE

HAPROXY = ROOT / "deploy" / "haproxy" / "foldserve.cfg"


@pytest.fixture
def program() -> str:
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if not (found and shutil.which("openssl")):
        pytest.skip("haproxy and openssl are not installed: apt-get install haproxy openssl")
    return found


def configure(folder: Path, changes: Mapping[str, str]) -> Path:
    """Write the shipped configuration with a certificate. changes: maps texts of the file to their replacements."""
    pem = folder / "certificate-and-key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, "-subj", "/CN=localhost", "-keyout", pem, "-out", folder / "crt"], check=True)
    pem.write_text((folder / "crt").read_text() + pem.read_text())
    text = HAPROXY.read_text()
    for ours, here in {"/etc/ssl/foldserve/certificate-and-key.pem": str(pem), **changes}.items():
        assert text.count(ours) == 1
        text = text.replace(ours, here)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    return file


def test_haproxy_accepts_the_configuration(program: str, tmp_path: Path) -> None:
    done = subprocess.run([program, "-c", "-f", configure(tmp_path, {})], capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr


def test_internal_paths_are_not_reachable_through_haproxy(program: str, tmp_path: Path) -> None:
    """HAProxy has no server behind it in this test, so HAProxy itself answers 503 for each path that it allows."""
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as gone:
        port, nobody = free.getsockname()[1], gone.getsockname()[1]
    changes = {
        "log /dev/log local0": "log stdout format raw local0",
        "bind :443 ": f"bind 127.0.0.1:{port} ",
        "server one 127.0.0.1:8000 ": f"server one 127.0.0.1:{nobody} ",
    }
    file = configure(tmp_path, changes)
    with (
        subprocess.Popen([program, "-db", "-f", file], stdout=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=False, timeout=PATIENCE) as client,  # noqa: S501
    ):
        try:
            until(lambda: process.poll() is not None or listens(port))
            for path in INTERNAL:
                assert client.get(path).status_code == 404, path
            for path in ("/v1/models/drift", "/v2/health/ready"):
                assert client.get(path).status_code == 503, path
        finally:
            process.terminate()
            process.wait(PATIENCE)
