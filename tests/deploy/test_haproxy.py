"""deploy/haproxy: a real HAProxy accepts the shipped configuration. `make test-fleet` sends requests through it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.support import ROOT

HAPROXY = ROOT / "deploy" / "haproxy" / "foldserve.cfg"


def test_haproxy_accepts_the_configuration(tmp_path: Path) -> None:
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if not (program and shutil.which("openssl")):
        pytest.skip("haproxy and openssl are not installed: apt-get install haproxy openssl")
    pem = tmp_path / "certificate-and-key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, "-subj", "/CN=localhost", "-keyout", pem, "-out", tmp_path / "crt"], check=True)
    pem.write_text((tmp_path / "crt").read_text() + pem.read_text())
    text = HAPROXY.read_text()
    assert text.count("/etc/ssl/foldserve/certificate-and-key.pem") == 1
    file = tmp_path / "haproxy.cfg"
    file.write_text(text.replace("/etc/ssl/foldserve/certificate-and-key.pem", str(pem)))
    done = subprocess.run([program, "-c", "-f", file], capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
